"""What `make worth` measures by: a softened teacher, rows that are drawn alike, intervals, and what a row replaces."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from worth import cells, describe, require_same, write_page
from worth_arms import ARMS, cut_student, train
from worth_data import copy_tasks, draw_ids, scaled_job, soften_teacher, without_taught
from worth_figures import curves, gain, passes, read_results, replaced, span, table, tell_passes, text_rows
from worth_measure import calibration_error, compare, log_probabilities
from worth_settings import HERE, read_settings
from worth_text import COMPLETION, HELD_OUT, PROMPT, cut_pieces, split_pieces

from factory.curriculum.config import load_config
from factory.errors import JobError
from factory.job.job import load_job
from factory.tasks.tasks import discover
from factory.teachers.demo import FOLDER

JOBS = ("data", "draws", "held_out", "passes")


@pytest.fixture(scope="module")
def soft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("soft") / "teacher"
    soften_teacher(FOLDER, folder, 1.5)
    return folder


def open_model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def test_a_softened_teacher_says_the_same_at_a_higher_temperature(soft: Path) -> None:
    ids = torch.tensor([[5, 90, 17, 400, 33]])
    with torch.no_grad():
        one, other = (open_model(folder)(ids).logits for folder in (FOLDER, soft))
    # its norm is bfloat16, so each of a logit's summands may be off by one part in 256
    torch.testing.assert_close(other, one / 1.5, rtol=1e-2, atol=3e-2)


def test_a_student_begins_with_the_teachers_own_blocks(soft: Path) -> None:
    teacher = open_model(soft)
    student, states = cut_student(teacher, [1, 6]), teacher.state_dict()
    for name, value in student.state_dict().items():
        source = name.replace("layers.1.", "layers.5.")
        torch.testing.assert_close(value, states[source])
    assert student.config.num_hidden_layers == 2
    whole = cut_student(teacher, range(1, 7))
    ids = torch.tensor([[5, 90, 17, 400, 33]])
    torch.testing.assert_close(whole(ids).logits, teacher(ids).logits)


def test_what_a_model_says_of_a_row_stands_at_its_completion_tokens(soft: Path) -> None:
    model = open_model(soft)
    row = SimpleNamespace(prompt_token_ids=np.array([5, 90, 17]), completion_token_ids=np.array([400, 33]))
    with torch.no_grad():
        logits = model(torch.tensor([[5, 90, 17, 400, 33]])).logits[0]
    torch.testing.assert_close(log_probabilities(model, row), logits[2:4].log_softmax(-1))


def test_the_workspace_has_the_tasks_without_their_system_turn(tmp_path: Path) -> None:
    copy_tasks(tmp_path / "workspace")
    found = discover(tmp_path / "workspace")
    named = {task.name: task for task in found.tasks.values() if task.schema_path.is_relative_to(tmp_path)}
    assert set(named) == {"photo_edits", "scheduling", "summarization"}
    assert not list((tmp_path / "workspace").rglob("system.j2"))


@pytest.mark.parametrize("name", JOBS)
def test_every_job_file_is_one_and_is_scaled_inside_its_folder(name: str, tmp_path: Path) -> None:
    whole, scaled = load_job(HERE / f"{name}.toml"), scaled_job(name, tmp_path, 0.25)
    assert scaled["out"].startswith(str(tmp_path))
    assert scaled["teacher"]["model"] == f"{tmp_path}/teacher"
    for one, other in zip(whole.tasks, scaled.get("tasks", ()), strict=True):
        asked = one.count or one.accepted
        assert other.get("count", other.get("accepted")) == math.ceil(int(asked or 0) / 4)


def test_the_settings_and_the_stages_are_right_and_name_what_there_is() -> None:
    settings = read_settings()
    load_config(HERE / "stages.toml")
    for scale in settings.scales.values():
        assert set(scale.arms) <= set(ARMS)
        most = max(scale.rows)
        assert scale.teacher == "real" or sum(math.ceil(n * scale.share) for n in (1680, 1260, 1260)) >= most
    assert {arm.loss for arm in ARMS.values()} <= set(train.LOSSES)
    assert settings.scales["full"].rows == [250, 1000, 4000]


def test_results_of_other_settings_are_not_added_to(tmp_path: Path) -> None:
    settings = read_settings()
    quick = settings.scales["quick"]
    require_same(tmp_path, settings, quick, FOLDER)
    require_same(tmp_path, settings, quick.model_copy(update={"seeds": 9, "arms": ["text"]}), FOLDER)
    with pytest.raises(JobError, match=r"made with other settings \(.*steps.*\); remove it, or put them back"):
        require_same(tmp_path, settings, quick.model_copy(update={"steps": 7}), FOLDER)


def test_all_arms_of_a_seed_learn_from_the_same_rows_and_fewer_are_the_first_of_more() -> None:
    ids = [str(number) for number in range(50)]
    some, more = draw_ids(ids, 10, seed=3), draw_ids(ids, 30, seed=3)
    assert more is not None
    assert some == more[:10]
    assert len(set(more)) == 30
    assert draw_ids(ids, 10, seed=4) != some
    assert draw_ids(ids, 51, seed=3) is None


def test_rows_that_were_learnt_from_are_not_held_out() -> None:
    rows = [{"scenario": "a"}, {"scenario": "b"}]
    assert without_taught(rows, {"scenario": ["b", "c"]}) == [{"scenario": "a"}]


def test_free_text_is_cut_into_pieces_and_none_of_a_held_out_topic_is_learnt_from() -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    of_topics = cut_pieces(tokenizer)
    taught, held_out = split_pieces(of_topics)
    assert len(held_out) == HELD_OUT
    assert len(taught) >= max(read_settings().scales["real"].rows)
    topics = [{piece["id"].split("/")[0] for piece in pieces} for pieces in (taught, held_out)]
    assert topics[0].isdisjoint(topics[1])
    assert len({piece["id"] for piece in taught}) == len(taught)
    for piece in (*taught, *held_out):
        assert (len(piece["prompt_token_ids"]), len(piece["completion_token_ids"])) == (PROMPT, COMPLETION)
    first = next(pieces for pieces in of_topics if pieces and pieces[0]["id"] == "assert/0")[0]
    assert tokenizer.decode(first["prompt_token_ids"]).startswith('The "assert" statement')
    assert cut_pieces(tokenizer) == of_topics


def test_what_decides_nothing_for_a_teacher_is_not_held_against_its_results(tmp_path: Path) -> None:
    settings = read_settings()
    require_same(tmp_path / "full", settings, settings.scales["full"], FOLDER)
    require_same(tmp_path / "real", settings, settings.scales["real"], FOLDER)
    wider = settings.model_copy(update={"fresh": settings.fresh.model_copy(update={"layers": 3})})
    require_same(tmp_path / "full", wider, settings.scales["full"], FOLDER)
    with pytest.raises(JobError, match="fresh"):
        require_same(tmp_path / "real", wider, settings.scales["real"], FOLDER)


def test_the_first_seed_of_every_arm_comes_before_the_second_of_any() -> None:
    found = cells([250, 1000], ["text", "drawn"], 2)
    assert [cell.name for cell in found[:4]] == ["text-250-0", "drawn-250-0", "text-1000-0", "drawn-1000-0"]
    assert len(found) == len(set(found)) == 8


def test_kl_and_confidence_are_means_over_tokens() -> None:
    log_p = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]]).log()
    log_q = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]]).log()
    found = compare([(log_p[:1], log_q[:1]), (log_p[1:], log_q[1:])])
    assert found["kl"] == pytest.approx(float((log_p.exp() * (log_p - log_q)).sum(-1).mean()))
    assert found["confidence"] == pytest.approx(0.55)
    assert found["right"] == pytest.approx(0.5)  # the teacher gives 0.7 and 0.3 to what the student holds likeliest
    assert found["calibration"] == pytest.approx((0.2 + 0.3) / 2)
    assert found["tokens"] == 2
    same = compare([(log_p, log_p)])
    assert same["kl"] == pytest.approx(0, abs=1e-6)
    assert same["calibration"] == pytest.approx(0, abs=1e-6)


def test_confidences_of_one_range_may_make_up_for_each_other_and_those_of_two_may_not() -> None:
    assert calibration_error(torch.tensor([0.91, 0.92]), torch.tensor([1.0, 0.83])) == pytest.approx(0, abs=1e-6)
    assert calibration_error(torch.tensor([0.91, 0.50]), torch.tensor([1.0, 0.41])) == pytest.approx(0.09)
    assert calibration_error(torch.tensor([1.0]), torch.tensor([1.0])) == 0


def test_an_interval_is_students_t_over_seeds() -> None:
    assert span([0.4]).half is None
    middle, half = span([1.0, 2.0, 3.0])
    assert (middle, half) == (2.0, pytest.approx(4.303 / math.sqrt(3)))
    assert span([1.0, 2.0, 3.0]).text(digits=2) == "2.00 ± 2.48"


CURVE = {250: 0.8, 1000: 0.6, 4000: 0.5}


def test_rows_of_text_are_read_off_between_those_that_were_tried_and_never_beyond() -> None:
    assert text_rows(CURVE, 0.6) == pytest.approx(1000)
    assert text_rows(CURVE, 0.7) == pytest.approx(500)  # half of the way, in the logarithm
    assert text_rows(CURVE, 0.8) == pytest.approx(250)
    assert text_rows(CURVE, 0.4) == math.inf
    assert text_rows(CURVE, 0.9) == 0


def result(arm: str, rows: int, seed: int, kl: float) -> dict[str, Any]:
    return {"arm": arm, "rows": rows, "seed": seed, "kl": kl, "calibration": 0.1, "confidence": 0.9, "right": 0.8}


@pytest.fixture
def work(tmp_path: Path) -> Path:
    found = [result("text", rows, seed, kl + seed / 100) for rows, kl in CURVE.items() for seed in (0, 1)]
    found += [result("topk_tail", 250, seed, 0.7 + seed / 100) for seed in (0, 1)]
    found += [result("topk_tail", 1000, 0, 0.3), result("drawn", 250, 0, 0.95)]
    found += [result("topk_tail", 4000, 0, 0.2)]
    for folder in ("results", "passes"):
        (tmp_path / folder).mkdir()
    for one in found:
        name = f"{one['arm']}-{one['rows']}-{one['seed']}.json"
        (tmp_path / "results" / name).write_text(json.dumps(one))
    (tmp_path / "passes" / "topk_tail-250-0.json").write_text(json.dumps({"a/easy": [3, 10], "a/hard": [1, 10]}))
    (tmp_path / "passes" / "teacher.json").write_text(json.dumps({"a/easy": [5, 10]}))
    return tmp_path


def test_an_arm_is_compared_with_text_seed_by_seed_and_in_rows(work: Path) -> None:
    results = read_results(work)
    less = gain(results, "topk_tail", 250)
    assert less is not None
    assert less.middle == pytest.approx(((1 - 0.7 / 0.8) + (1 - 0.71 / 0.81)) / 2)
    assert gain(results, "text", 250) is None
    assert replaced(results, "topk_tail", 250) == (pytest.approx(2.0), False)
    assert replaced(results, "topk_tail", 1000) == (4.0, True)
    assert replaced(results, "drawn", 250) == (0.0, False)
    assert passes(results["topk_tail", 250]) == (4, 20)
    # of a seed without a whole curve of text nothing is read off
    (work / "results" / "text-4000-1.json").unlink()
    assert replaced(read_results(work), "topk_tail", 250) == (pytest.approx(2.0), False)
    (work / "results" / "text-4000-0.json").unlink()
    (work / "results" / "text-1000-0.json").unlink()
    assert replaced(read_results(work), "topk_tail", 1000) is None


def test_the_table_has_a_line_for_each_arm_and_number_of_rows_and_says_what_was_not_measured(work: Path) -> None:
    text = describe(work)
    assert "| top-20, the tail as one bucket | 250 | 2 | 0.705 ± 0.064 | 12 ± 1 % | 0.100 ± 0.000 |" in text
    assert "| 20.0 % (8.1 to 41.6) |" in text
    assert "| text | 4,000 | 2 |" in text
    assert "The teacher itself: 50.0 %" in text
    assert "- top-20, the tail as one bucket, 250 rows: each worth 2.0 rows of text alone" in text
    assert "- top-20, the tail as one bucket, 1,000 rows: each worth more than 4.0 rows of text alone" in text
    assert "- 12 random draws, 250 rows: worth less than the fewest rows of text" in text
    assert "- top-20, the tail as one bucket, 4,000 rows: better than as many rows of text; more" in text
    assert tell_passes(0, 0) == ""
    assert len(table(read_results(work), {"text": "text"}).splitlines()) == 2 + 3


def test_curves_are_drawn_of_what_there_is(work: Path) -> None:
    pytest.importorskip("altair")
    curves(read_results(work), {name: arm.told for name, arm in ARMS.items()}, work / "kl.svg")
    drawn = (work / "kl.svg").read_text(encoding="utf-8")
    assert "rows to learn from" in drawn
    assert "top-20, the tail as one bucket" in drawn


def test_results_go_between_their_marks_and_nowhere_else(tmp_path: Path) -> None:
    page = tmp_path / "worth.md"
    page.write_text("before\n<!-- results: quick -->\nold\n<!-- end: quick -->\nafter\n")
    for _ in range(2):
        write_page("quick", "| new |", page)
        assert page.read_text() == "before\n<!-- results: quick -->\n| new |\n<!-- end: quick -->\nafter\n"
    with pytest.raises(JobError, match="has no <!-- results: full -->"):
        write_page("full", "| new |", page)
