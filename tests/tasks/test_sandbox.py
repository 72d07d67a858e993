"""The sandbox: whatever a template does, it ends soon, with its memory given back, and reaches nothing but its own."""

import gc
import hashlib
import pickle
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import SCHEMA, write_task

import factory.tasks.sandbox
from factory.records import PlannedRow, Prompt, Sampling
from factory.tasks.render import TaskFault, check_templates, open_renderer
from factory.tasks.sandbox import OutOfBounds, Stalled, bounds
from factory.tasks.tasks import Task, discover, load_task

ROW = PlannedRow(shard=0, position=0, task="adding", level="easy", number=0, seed=0)
MANY = 10**9
RICH_SCHEMA = (
    SCHEMA.replace(
        "    b: int = 1\n",
        """    b: int = 1
    note: str = "five"
    people: list[dict[str, int]] = [{"Ann": 3}, {"Bob": 1}]
    place: Path = Path("/etc/hostname")
    schema: str = "a field named like pydantic's own"

    def doubled(self) -> int:
        return 2 * self.a

    def change(self) -> str:
        self.a = 1000
        self.people.append({"Eve": 9})
        return "changed"
""",
    )
    .replace("import random", "import random\nimport warnings\nfrom pathlib import Path")
    .replace("class Scenario", "warnings.simplefilter('ignore')\n\n\nclass Scenario")
)

Render = Callable[..., str]
Refuse = Callable[..., tuple[str, str]]


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    root = tmp_path_factory.mktemp("adding")
    write_task(root, schema=RICH_SCHEMA)
    task, problems = load_task(root, "adding")
    assert task is not None, problems
    return task


def prompt_of(task: Task, text: str, **others: str) -> Prompt:
    """The prompt of `{"a": 5}` where `text` is the user's turn; `others` are the folder's other templates."""
    templates = {"user.j2": text} | {f"{name}.j2": other for name, other in others.items()}
    return open_renderer(replace(task, templates=templates), Sampling()).render(ROW, {"a": 5})


@pytest.fixture
def render(task: Task) -> Render:
    return lambda text, **others: prompt_of(task, text, **others).messages[-1]["content"]


@pytest.fixture
def refuse(task: Task) -> Refuse:
    """Reason and detail of the error that a template ends in."""

    def told(text: str, **others: str) -> tuple[str, str]:
        with pytest.raises(TaskFault) as caught:
            prompt_of(task, text, **others)
        return caught.value.reason, str(caught.value)

    return told


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second is too long for a test."""
    monkeypatch.setattr(factory.tasks.sandbox, "MAX_SECONDS", 0.2)


@pytest.fixture(autouse=True)
def _everything_is_put_back() -> Iterator[None]:
    """After every test here, the process has its own memory limit, alarm and handler again."""
    handlers = (signal.SIGALRM, signal.SIGPROF)
    before = (resource.getrlimit(resource.RLIMIT_AS), *map(signal.getsignal, handlers))
    yield
    assert (resource.getrlimit(resource.RLIMIT_AS), *map(signal.getsignal, handlers)) == before
    assert signal.getitimer(signal.ITIMER_REAL) == signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)


def spin() -> None:
    while True:
        pass


LOOP = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize(
    "text",
    [
        LOOP,
        "{% set ns = namespace(n=0) %}" + LOOP.replace("{% endfor %}", "{% set ns.n = ns.n + 1 %}{% endfor %}", 1),
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% for i in range(100000) %}{% include 'facts.j2' %}{% endfor %}",
    ],
)
def test_a_template_that_would_run_for_hours_is_stopped(refuse: Refuse, text: str) -> None:
    started = time.process_time()
    assert refuse(text, facts=LOOP) == (
        "render_too_long",
        "user.j2: still not done after 0.2 s; is there a loop in a loop?",
    )
    assert time.process_time() - started < 3


@pytest.mark.usefixtures("brief")
def test_a_template_that_swallows_the_first_alarm_is_stopped_by_the_next() -> None:
    def swallow_two() -> None:
        for _ in range(2):
            with pytest.raises(OutOfBounds):
                spin()
        spin()

    with pytest.raises(OutOfBounds, match=r"still not done after 0\.2 s"), bounds():
        swallow_two()


def test_what_counts_is_the_work_of_this_thread_not_the_time_that_others_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factory.tasks.sandbox, "MAX_SECONDS", 0.3)
    others = [threading.Thread(target=hashlib.pbkdf2_hmac, args=("sha256", b"", b"", 1_000_000)) for _ in range(3)]
    with bounds():
        for other in others:
            other.start()
        started = time.process_time()
        for other in others:
            other.join()
    assert time.process_time() - started > 0.5, "the others have worked for longer than is allowed"


@pytest.mark.usefixtures("brief")
def test_code_that_sleeps_is_stopped_by_the_clock_on_the_wall_and_is_no_fault_of_the_data(
    monkeypatch: pytest.MonkeyPatch, task: Task
) -> None:
    with bounds():
        time.sleep(0.5)
    monkeypatch.setattr(factory.tasks.sandbox, "MAX_WAIT_SECONDS", 0.3)
    with pytest.raises(Stalled, match=r"not done after 0\.3 s on the clock"), bounds():
        time.sleep(60)


@pytest.mark.parametrize(
    "text",
    [
        "{{ 'x' * 10 ** 10 }}",
        "{{ 'x' | center(10 ** 10) }}",
        "{{ '%10000000000d' | format(1) }}",
        "{{ '{:2000000000d}'.format(1) }}",
        "{{ [1] * 10 ** 10 }}",
        "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{{ 'x' | replace('x', 'x' * 10 ** 6) | replace('x', 'x' * 10 ** 6) }}",
        "{{ scenario.model_copy(update={'note': 'x' * 10 ** 10}).note }}",
    ],
)
def test_a_template_that_would_fill_the_memory_is_stopped(refuse: Refuse, text: str) -> None:
    reason, detail = refuse(text)
    assert reason in {"render_too_large", "render_failed"}
    assert "memory" in detail or "OverflowError" in detail or "MemoryError" in detail


def test_memory_has_a_bound_that_is_read_when_it_is_needed(monkeypatch: pytest.MonkeyPatch, refuse: Refuse) -> None:
    gc.collect()  # what other tests have left would be given back in the middle, and make room
    text = "{{ ('x' * 300000000) | length }}"
    monkeypatch.setattr(factory.tasks.sandbox, "MAX_BYTES", 100_000_000)
    assert refuse(text)[0] == "render_too_large"
    with bounds(more_bytes=400_000_000):
        assert len(bytes(300_000_000)) == 300_000_000


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{{ 9 ** (9 ** 9) }}", "user.j2: exponent 387420489 (at most 1000)"),
        ("{{ ((10 ** 1000) ** 1000) > 1 }}", "user.j2: a number of 3322000 bits (at most 131072)"),
        (
            "{% set ns = namespace(x=10) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
            " bits (at most 131072)",
        ),
    ],
)
def test_a_number_that_no_clock_could_interrupt_is_not_computed(refuse: Refuse, text: str, says: str) -> None:
    reason, detail = refuse(text)
    assert reason == "render_too_long"
    assert detail.endswith(says)


def test_a_template_without_end_of_its_own_calls_is_a_fault(refuse: Refuse) -> None:
    for text in ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{% include 'user.j2' %}"):
        reason, detail = refuse(text)
        assert reason == "render_failed"
        assert "RecursionError" in detail


def test_a_prompt_of_too_many_characters_is_a_fault_and_one_of_just_so_many_is_not(
    render: Render, refuse: Refuse
) -> None:
    assert len(render("{{ 'x' * 4000000 }}")) == 4_000_000
    assert refuse("{{ 'x' * 4000001 }}") == ("render_too_large", "user.j2: 4,000,001 characters (at most 4,000,000)")


def test_a_constant_too_large_is_found_before_any_run(task: Task) -> None:
    (fault,) = check_templates(replace(task, levels=("easy",), templates={"user.j2": "{{ 'x' * 10 ** 10 }}"}))
    assert "memory" in fault


@pytest.mark.parametrize("error", [ValueError("theirs"), MemoryError(), KeyboardInterrupt()])
def test_an_error_from_inside_comes_out_as_it_is(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, bounds():
        raise error
    assert caught.value is error


def test_bounds_inside_bounds_hold_together() -> None:
    started = time.process_time()

    def spin_in_both() -> None:
        with pytest.raises(OutOfBounds, match=r"0\.1 s"), bounds(seconds=0.1):
            spin()
        spin()

    with pytest.raises(OutOfBounds, match=r"0\.3 s"), bounds(seconds=0.3):
        spin_in_both()
    assert time.process_time() - started < 3


def test_bounds_inside_narrower_bounds_are_as_narrow() -> None:
    with bounds(more_bytes=200_000_000):
        outer = resource.getrlimit(resource.RLIMIT_AS)
        with bounds(more_bytes=MANY):
            assert resource.getrlimit(resource.RLIMIT_AS) == outer
        assert resource.getrlimit(resource.RLIMIT_AS) == outer
        with pytest.raises(MemoryError):
            bytes(MANY)


def test_an_alarm_that_someone_else_has_set_still_rings() -> None:
    rung: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: rung.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with bounds(seconds=5):
            pass
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 0.2
        deadline = time.monotonic() + 60
        while not rung and time.monotonic() < deadline:
            time.sleep(0.01)
        assert rung == [signal.SIGALRM]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_in_another_thread_memory_is_bounded_and_nothing_fails_for_want_of_an_alarm(task: Task) -> None:
    told: list[object] = []

    def work() -> None:
        told.append(prompt_of(task, "{{ scenario.a }}").messages[-1]["content"])
        try:
            prompt_of(task, "{{ 'x' * 10 ** 10 }}")
        except TaskFault as error:
            told.append(error.reason)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert told == ["5", "render_too_large"]


@pytest.mark.parametrize(
    ("text", "shows"),
    [
        ("{{ scenario.a }} at {{ level }}", "5 at easy"),
        ("{{ scenario.people[0].Ann }}{{ scenario.people[1]['Bob'] }}", "31"),
        ("{{ scenario.nope | default('none') }} {{ scenario.nope is defined }}", "none False"),
        ("{{ scenario.people | map(attribute='Ann', default='?') | join(', ') }}", "3, ?"),
        ("{{ {'b': [1, none], 'a': 'ü'} | tojson }}", '{"a": "\\u00fc", "b": [1, null]}'),
        ("{{ answer_schema.properties | list | sort | join(' ') }}", "total words"),
        ("{% set x = 3 %}{% for i in range(x) %}{{ loop.index }}{% endfor %}", "123"),
        ("{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m(1) }}{{ m('b') }}", "<1><b>"),
        ("{% set ns = namespace(n=0) %}{% for i in [1, 2] %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", "3"),
        ("{% include 'facts.j2' %} and {% import 'tools.j2' as t %}{{ t.shout('a') }}", "5 facts and A!"),
        ("{% from 'tools.j2' import shout %}{{ shout('b') }}", "B!"),
        ("{% extends 'frame.j2' %}{% block inner %}mine{% endblock %}", "before mine after"),
        ("{{ '%05.1f' | format(3.14159) }} {{ '{:>4}'.format(7) }}", "003.1    7"),
        ("{{ [3, 1, 2] | sort | reverse | list }} {{ [1, 2, 3] | sum }} {{ 'a b' | title }}", "[3, 2, 1] 6 A B"),
        ("{{ 7 // 2 }} {{ 2 ** 10 }} {{ 3 * 4 }} {{ 1.5 * 2 }} {{ 'ab' * 2 }} {{ 2 ** -1 }}", "3 1024 12 3.0 abab 0.5"),
        ("{{ scenario.doubled() }} {{ scenario.schema }}", "10 a field named like pydantic's own"),
        ("{{ scenario.model_dump(include={'a': true}) }} {{ scenario.model_copy(update={'a': 6}).a }}", "{'a': 5} 6"),
        ("{{ scenario.model_dump_json(include={'a': true}) }} {{ scenario.model_fields_set }}", "{\"a\":5} {'a'}"),
        ("{{ scenario.place.name }} in {{ scenario.place.parent }}", "hostname in /etc"),
        ("{{ dict(a=1).items() | list }} {{ 'x,y'.split(',') }} {{ 'é'.upper() }}", "[('a', 1)] ['x', 'y'] É"),
    ],
)
def test_what_authors_use_works(render: Render, text: str, shows: str) -> None:
    others = {
        "facts": "{{ scenario.a }} facts",
        "tools": "{% macro shout(x) %}{{ x | upper }}!{% endmacro %}",
        "frame": "before {% block inner %}{% endblock %} after",
    }
    assert render(text, **others) == shows


EVIL = pickle.dumps(print, protocol=0).decode()


@pytest.mark.parametrize(
    "text",
    [
        "{{ scenario.__class__ }}",
        "{{ scenario['__class__'] }}",
        "{{ scenario | attr('__class__') }}",
        "{{ scenario | attr('__cl' ~ 'ass__') }}",
        "{{ [scenario] | map(attribute='__class__') | list }}",
        "{{ [scenario] | map(attribute='__class__.__mro__') | first }}",
        "{{ [scenario] | map('attr', '__class__') | list }}",
        "{{ [scenario] | groupby('__class__') }}",
        "{{ [scenario, scenario] | sort(attribute='__class__') }}",
        "{{ [scenario] | selectattr('__class__') | list }}",
        "{{ '{0.__class__}'.format(scenario) }}",
        "{{ '{s.__class__}'.format(s=scenario) }}",
        "{{ '{0[__class__]}'.format(scenario) }}",
        "{{ '{s.__class__}'.format_map({'s': scenario}) }}",
        "{{ ('{0.__class__}' | attr('format'))(scenario) }}",
        "{% set f = '{0.__class__}'.format %}{{ f(scenario) }}",
        "{{ '{0.parse_file}'.format(scenario) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ joiner.__init__.__globals__['os'] }}",
        "{{ namespace.__init__ }}",
        "{{ dict.__subclasses__() }}",
        "{{ scenario.doubled.__func__.__globals__ }}",
        "{{ scenario.doubled.__self__ }}",
        "{% macro m() %}{% endmacro %}{{ m.__call__ }}",
        "{{ (scenario.people | map(attribute='x')).gi_frame }}",
        "{{ scenario.parse_file('/etc/hostname') }}",
        f"{{{{ scenario.parse_raw({EVIL!r}, proto='pickle', allow_pickle=True) }}}}",
        "{{ scenario['parse_raw']('{}') }}",
        "{{ (scenario | attr('parse_raw'))('{}') }}",
        "{{ ([scenario] | map(attribute='parse_raw') | first)('{}') }}",
        "{{ scenario.model_copy().parse_raw('{}') }}",
        "{{ scenario.model_fields.place.annotation('/etc/hostname') }}",
        "{{ scenario.model_construct(a=1) }}",
        "{{ scenario.model_validate_json('{}') }}",
        "{{ scenario.place.read_text() }}",
        "{{ scenario.place.parent.iterdir() | list }}",
        "{{ scenario.place.write_text('x') }}",
        "{{ scenario.people.append(1) }}",
        "{{ scenario.people[0].update({'x': 1}) }}",
        "{{ answer_schema.clear() }}",
    ],
)
def test_what_leads_out_is_refused(refuse: Refuse, text: str) -> None:
    reason, detail = refuse(text)
    assert reason == "render_failed"
    assert "SecurityError: access to attribute" in detail


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{% include '../../../../etc/hostname' %}", "TemplateNotFound"),
        ("{% include '/etc/hostname' %}", "TemplateNotFound"),
        ("{% include 'task.toml' %}", "TemplateNotFound"),
        ("{% import '../other/user.j2' as other %}", "TemplateNotFound"),
        ("{% set name = '../other/' ~ 'user.j2' %}{% include name %}", "TemplateNotFound"),
        ("{% set scenario.a = 7 %}", "cannot assign attribute on non-namespace object"),
        ("{{ [scenario.nope] }}", "UndefinedError"),
        ("{{ {'key': scenario.nope} }}", "UndefinedError"),
        ("{{ [1, 2] | random }}", "No filter named 'random'"),
        ("{{ lipsum() }}", "'lipsum' is undefined"),
        ("{% do scenario.change() %}", "unknown tag 'do'"),
        ("{{ open('/etc/hostname') }}", "'open' is undefined"),
    ],
)
def test_what_is_not_there_cannot_be_used(refuse: Refuse, text: str, says: str) -> None:
    reason, detail = refuse(text)
    assert reason == "render_failed"
    assert says in detail


def test_a_template_that_is_a_link_out_of_its_folder_is_a_fault_of_its_task(tmp_path: Path) -> None:
    write_task(tmp_path)
    (tmp_path / "secret.txt").write_text("secret")
    folder = tmp_path / "prompts" / "adding"
    (folder / "facts.j2").symlink_to(tmp_path / "secret.txt")
    (problem,) = discover(tmp_path, ["adding"]).problems["adding"]
    assert problem.endswith("prompts/adding/facts.j2: is a link out of its folder; put the file itself there")
    (folder / "facts.j2").unlink()
    (folder / "facts.j2").symlink_to("user.j2")
    assert (
        discover(tmp_path, ["adding"]).tasks["adding"].templates["facts.j2"]
        == "Add {{ scenario.a }} and {{ scenario.b }}."
    )


def test_what_a_template_does_to_its_scenario_is_not_what_check_sees(task: Task) -> None:
    kept = prompt_of(task, "{{ scenario.a }}")
    prompt = prompt_of(task, "{{ scenario.change() }} {{ scenario.a }}")
    assert prompt.messages[-1]["content"] == "changed 1000"
    assert prompt.scenario == kept.scenario
    seen = task.Scenario.model_validate_json(prompt.scenario)
    assert task.check(seen, task.Answer(total=6, words="")) == []
