"""A report in a real browser: it asks nobody for anything, complains of nothing, and answers to pointer and keys.

Chromium comes with the system (Debian's package `chromium`); where there is none, these tests are skipped.
"""

import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from report_support import make_record, make_rejection, write_dataset
from test_every_dataset import make_dataset
from test_report_build import HOSTILE, some_dataset

from factory.job.job import Job
from factory.publish.report.build import write_report

CHROMIUM = next(
    (path for name in ("chromium", "google-chrome", "chromium-browser") if (path := shutil.which(name))), None
)
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium"),
    pytest.mark.skipif(find_spec("axe_playwright_python") is None, reason="no axe-playwright-python: install dev"),
]
TIMEOUT = 20_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Opened:
    """A page with all that it asked for and all that it complained of."""

    def __init__(self, browser: Any, path: Path, **context: Any) -> None:
        self.page = browser.new_page(**{"viewport": {"width": 1280, "height": 900}} | context)
        self.page.set_default_timeout(TIMEOUT)
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-ready]")
        self.page.wait_for_selector("#row h3")

    def violations(self) -> list[str]:
        """What axe finds that is serious or worse."""
        import axe_playwright_python

        script = Path(axe_playwright_python.__file__).with_name("axe.min.js").read_text(encoding="utf-8")
        self.page.evaluate(script)
        found = self.page.evaluate("axe.run()")["violations"]
        return [f"{v['id']}: {v['nodes'][0]['html'][:200]}" for v in found if v["impact"] in ("serious", "critical")]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(some_dataset(tmp_path_factory.mktemp("report") / "out"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_report_asks_for_nothing_complains_of_nothing_and_shuts_nobody_out(
    browser: Any, report: Path, scheme: Any
) -> None:
    opened = Opened(browser, report, color_scheme=scheme)
    assert opened.requests == [report.as_uri()]
    assert opened.complaints == []
    assert opened.page.locator("[data-chart] svg").count() == opened.page.locator("[data-chart]").count() > 3
    assert opened.violations() == []
    back = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (back == "rgb(18, 20, 23)") == (scheme == "dark")
    opened.page.close()


def test_the_token_under_the_pointer_shows_its_candidates_and_all_others(browser: Any, report: Path) -> None:
    page = Opened(browser, report).page
    tokens = page.locator(".strip [role=option]")
    tokens.nth(3).hover()
    assert "token\n4 of 5, answer" in page.locator(".inspect").inner_text().replace("\xa0", " ")
    bars = page.locator(".bars code").all_inner_texts()
    assert bars == ["{", "|", "}", "all others"]
    assert page.locator(".bars .p.sampled").inner_text().startswith("60.")
    page.close()


def test_a_token_of_an_answer_says_its_place_in_the_json(browser: Any, tmp_path: Path) -> None:
    text = 'ab{"a":{"b":[1,22],"c d":"x,\\"}"}, "e": null}'
    page = Opened(browser, write_report(write_dataset(tmp_path / "out", [[make_record(0, text)]]))).page
    tokens = page.locator(".strip [role=option]")
    # by pieces of the text, one of whose characters is pointed at
    for piece, place in {"1": "a.b.0", "22": "a.b.1", "x": "a.c d", ',\\"}': "a.c d", "null": "e"}.items():
        tokens.nth(text.index(piece)).hover()
        assert f"place\n{place}\n" in page.locator(".inspect dl").inner_text()
    tokens.nth(0).hover()
    assert "place" not in page.locator(".inspect dl").inner_text()
    page.close()


def test_arrow_keys_go_from_token_to_token(browser: Any, report: Path) -> None:
    page = Opened(browser, report).page
    strip = page.locator(".strip")
    strip.focus()
    for key, at in (("Home", 0), ("ArrowRight", 1), ("End", 4), ("ArrowLeft", 3)):
        page.keyboard.press(key)
        assert page.locator(".strip [aria-selected=true]").get_attribute("id") == f"t0-{at}"
    page.close()


def test_colour_by_entropy_and_the_least_certain_tokens_are_links(browser: Any, report: Path) -> None:
    page = Opened(browser, report).page
    page.get_by_role("radio", name="entropy").check()
    page.locator(".least button").nth(1).click()
    assert page.locator(".strip").evaluate("strip => strip === document.activeElement")
    assert page.locator(".strip [aria-selected=true]").count() == 1
    page.close()


def test_a_reason_opens_its_rows_and_the_filter_answers(browser: Any, report: Path) -> None:
    page = Opened(browser, report).page
    page.locator("button.reason").first.click()
    # by locators: whoever waits for a function needs `eval`, which the page's policy forbids
    page.locator("#row .mark", has_text="check/wrong_total").first.wait_for()
    assert "wrong_total: 3" in page.locator("#row").inner_text()
    assert page.locator("#list button").count() == 6
    page.locator("#f-reason").select_option("")
    page.locator("#f-task").select_option("")
    page.locator("#f-level").select_option("easy")
    assert page.locator("#list button").count() == 6
    page.locator("#f-text").fill("question 4")
    assert page.locator("#list button").count() == 1
    page.locator("#f-text").fill("nothing is like this")
    assert "No shown row is like this" in page.locator("#list").inner_text()
    page.close()


def test_the_theme_button_goes_round(browser: Any, report: Path) -> None:
    page = Opened(browser, report, color_scheme="light").page
    button = page.locator("#theme")
    assert [button.click() or button.inner_text() for _ in range(3)] == ["Theme: light", "Theme: dark", "Theme: auto"]
    page.close()


def test_a_narrow_screen_needs_no_sideways_scrolling(browser: Any, report: Path) -> None:
    opened = Opened(browser, report, viewport={"width": 390, "height": 800})
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert opened.violations() == []
    opened.page.close()


def test_hostile_rows_run_nothing_and_are_seen_as_they_are(browser: Any, tmp_path: Path) -> None:
    rows = [
        make_record(n, text[:2000], task=text[:60], messages=({"role": "user", "content": text},))
        for n, text in enumerate(HOSTILE)
    ]
    wrong = [make_rejection(50 + n, text[:2000], task=text[:60]) for n, text in enumerate(HOSTILE)]
    opened = Opened(browser, write_report(write_dataset(tmp_path / "out", [[*rows, *wrong]])))
    page = opened.page
    for number in range(page.locator("#list button").count()):
        page.locator("#list button").nth(number).click()
        page.wait_for_selector(f"#list li:nth-child({number + 1}) button[aria-current=true]")
    assert page.evaluate("window.broken") is None
    assert opened.complaints == []
    assert len(opened.requests) == 1
    page.locator("#f-text").fill("<script>window")
    page.locator("#list button").first.click()
    page.locator("#row", has_text="</script><script>window.broken = 1").wait_for()
    assert opened.violations() == []
    page.close()


@pytest.mark.parametrize(
    "kind", ["no_signals", "nothing_uncertain", "only_rejects", "only_errors", "scored", "curriculum"]
)
def test_a_report_of_any_kind_of_dataset_is_as_quiet(
    browser: Any, kind: str, workspace: Path, make_job: Callable[..., Job]
) -> None:
    opened = Opened(browser, write_report(make_dataset(kind, workspace, make_job)))
    assert opened.complaints == []
    assert len(opened.requests) == 1
    assert opened.violations() == []
    assert ("stages" in opened.page.locator("nav").inner_html()) == (kind == "curriculum")
    opened.page.close()


def test_two_datasets_show_a_row_of_each_below_the_other(browser: Any, tmp_path: Path) -> None:
    first = write_dataset(tmp_path / "first", [[make_record(0), make_rejection(1)]])
    second = write_dataset(tmp_path / "second", [[make_rejection(0), make_record(1)]])
    opened = Opened(browser, write_report(first, second))
    assert opened.complaints == []
    assert opened.violations() == []
    assert opened.page.locator("#row h3").count() == 2
    assert opened.page.locator("#list button").count() == 2
    opened.page.close()
