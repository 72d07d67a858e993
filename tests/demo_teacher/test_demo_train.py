"""Training of the demo teacher, with a tiny model: it steps, goes on where it was cut off, exports what it trained."""

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from demo_support import TINY
from safetensors import safe_open

from factory.demo_teacher import train
from factory.demo_teacher.recipe import TASKS, Recipe
from factory.demo_teacher.tokenizer import CHAT_TEMPLATE
from factory.demo_teacher.train import Trainer, main
from factory.errors import TeacherError


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny sums are not worth a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def open_trainer(out: Path, recipe: Recipe = TINY) -> Trainer:
    return Trainer(out, recipe, "cpu", compiled=False)


def read_log(out: Path) -> list[dict[str, Any]]:
    lines = (out / "training.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """A run of four steps that nobody disturbed."""
    trainer = open_trainer(tmp_path_factory.mktemp("whole"))
    trainer.run()
    return trainer


def test_a_step_has_a_loss_near_that_of_guessing_and_changes_every_weight(tmp_path: Path) -> None:
    trainer = open_trainer(tmp_path)
    before = copy.deepcopy(trainer.model.state_dict())
    loss, tokens = trainer.train_step()
    assert loss == pytest.approx(torch.tensor(400.0).log().item(), rel=0.05)
    assert tokens > 100
    assert trainer.step == 1
    assert [name for name, value in trainer.model.state_dict().items() if torch.equal(value, before[name])] == []


def test_only_the_completion_carries_loss(tmp_path: Path) -> None:
    trainer = open_trainer(tmp_path)
    for batch in trainer._batches():
        for ids, targets in zip(batch.ids, batch.targets, strict=True):
            places = (targets != -100).nonzero()[:, 0]
            text = trainer.tokenizer.decode(targets[places])
            assert text.startswith("<think>")
            assert text.endswith("<|im_end|>")
            assert places.tolist() == list(range(int(places[0]), int(places[-1]) + 1))
            assert torch.equal(ids[places[:-1] + 1], targets[places[:-1]])


def test_a_run_that_was_cut_off_ends_in_the_same_bits_and_the_same_log(
    trained: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "CHECKPOINT_STEPS", 2)
    broken = open_trainer(tmp_path)
    step = broken.train_step

    def cut_off_in_the_fourth() -> tuple[float, int]:
        if broken.step == 3:
            raise KeyboardInterrupt
        return step()

    monkeypatch.setattr(broken, "train_step", cut_off_in_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        broken.run()
    again = open_trainer(tmp_path)
    assert again.step == 2
    again.run()
    assert (again.step, again.tokens) == (trained.step, trained.tokens)
    for name, value in trained.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    assert read_log(tmp_path) == read_log(trained.out)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "model" / name).read_bytes() == (trained.out / "model" / name).read_bytes()


def test_a_finished_run_only_exports_again(trained: Trainer) -> None:
    weights = trained.out / "model" / "model.safetensors"
    before = weights.read_bytes()
    weights.unlink()
    again = open_trainer(trained.out)
    assert again.step == TINY.steps
    again.run()
    assert weights.read_bytes() == before


def test_the_log_tells_every_validation(trained: Trainer) -> None:
    log = read_log(trained.out)
    assert [line["step"] for line in log] == [2, 4]
    assert len(log[-1]["validation"]) == 3 * len(TASKS)
    assert all(0 < loss < 10 and exact == 0 for loss, exact in log[-1]["validation"].values())
    assert log[-1]["tokens"] == trained.tokens > log[0]["tokens"] > 0


def test_what_is_exported_is_what_was_trained(trained: Trainer) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = trained.out / "model"
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rounded = copy.deepcopy(trained.model).to(torch.bfloat16).to(torch.float32).eval()
    ids = torch.tensor([[1, 7, 300, 41, 3, 250, 250, 4, 399, 2], [5, 5, 5, 0, 1, 2, 3, 4, 398, 6]])
    with torch.inference_mode():
        torch.testing.assert_close(loaded(ids).logits, rounded(ids).logits, rtol=1e-4, atol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert (loaded.config.eos_token_id, loaded.config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id


def test_the_exported_weights_are_bfloat16_and_the_embeddings_are_there_once(trained: Trainer) -> None:
    path = trained.out / "model" / "model.safetensors"
    with safe_open(path, "pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.bfloat16}  # noqa: SIM118
        assert "lm_head.weight" not in weights.keys()  # noqa: SIM118
    assert path.stat().st_mode & 0o777 == 0o644


def test_an_attention_of_matrix_products_is_the_attention_of_transformers(trained: Trainer) -> None:
    ids = torch.randint(0, 400, (3, 50), generator=torch.Generator().manual_seed(1))
    model = copy.deepcopy(trained.model).eval()
    with torch.inference_mode():
        ours = model(ids).logits
        model.set_attn_implementation("eager")
        torch.testing.assert_close(model(ids).logits, ours, rtol=1e-4, atol=1e-5)


def test_how_long_it_goes_on_may_be_changed_while_it_does(tmp_path: Path) -> None:
    first = open_trainer(tmp_path, replace(TINY, steps=2))
    first.run()
    again = open_trainer(tmp_path, replace(TINY, steps=3))
    assert again.step == 2
    again.run()
    assert again.step == 3
    assert json.loads((tmp_path / "recipe.json").read_text())["steps"] == 3


def test_another_begins_with_its_matrices_and_the_embeddings_of_shared_pieces(trained: Trainer, tmp_path: Path) -> None:
    start = trained.out / "model"
    begun = Trainer(tmp_path, replace(TINY, tokenizer_examples=2), "cpu", compiled=False, start=start)
    assert begun.tokenizer.get_vocab() != trained.tokenizer.get_vocab(), "nothing to compare"
    earlier, ours = trained.model.to(torch.bfloat16).float().state_dict(), begun.model.state_dict()
    embedding = "model.embed_tokens.weight"
    assert all(torch.equal(ours[name], earlier[name]) for name in ours if "embed" not in name and "head" not in name)
    pieces = trained.tokenizer.get_vocab()
    shared = {piece: place for piece, place in begun.tokenizer.get_vocab().items() if piece in pieces}
    assert 100 < len(shared) < len(pieces)
    assert all(torch.equal(ours[embedding][at], earlier[embedding][pieces[piece]]) for piece, at in shared.items())
    with pytest.raises(TeacherError, match=r"trained by another recipe \(start: "):
        Trainer(tmp_path, replace(TINY, tokenizer_examples=2), "cpu", compiled=False)


def test_another_recipe_is_refused_in_one_line(trained: Trainer) -> None:
    with pytest.raises(
        TeacherError, match=r"trained by another recipe \(step_examples: was 2, is 3\); remove it or name another"
    ):
        open_trainer(trained.out, replace(TINY, step_examples=3))
    sizes = dict(TINY.model) | {"hidden_size": 8}
    with pytest.raises(TeacherError, match=r"model\.hidden_size: was 16, is 8"):
        open_trainer(trained.out, replace(TINY, model=sizes))


def test_other_shares_of_the_tasks_are_another_recipe(trained: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "TASK_WEIGHTS", train.TASK_WEIGHTS | {"stories": 0.5})
    with pytest.raises(TeacherError, match=r"trained by another recipe \(tasks\.stories: was 0\.06, is 0\.5\)"):
        open_trainer(trained.out)


@pytest.mark.parametrize("name", ["checkpoint.pt", "tokenizer.json"])
def test_what_tells_no_recipe_is_not_gone_on_with(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(TeacherError, match=r"has a model but no recipe\.json; remove it or name another OUT"):
        open_trainer(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_command_refuses_another_recipe_with_one_line_and_2(
    trained: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(trained.out), "--start", str(trained.out / "model"), "--device", "cpu", "--no-compile"]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {trained.out}: trained by another recipe (")
    assert told.count("\n") == 1


def test_a_row_weighs_as_the_root_of_its_tokens() -> None:
    none = -100
    targets = torch.tensor([[none, 5, 6, 7, 8], [none, none, none, none, 9], [none] * 5])
    weights = train.token_weights(targets)
    assert weights.tolist() == [0.5, 0.5, 0.5, 0.5, 1.0]  # a row of 4 tokens weighs 2, one of 1 weighs 1, none nothing


@pytest.mark.parametrize("steps", ["0", "-1", "many"])
def test_the_command_refuses_steps_that_are_none(tmp_path: Path, steps: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "out"), "--steps", steps])
    assert list(tmp_path.iterdir()) == []


def test_the_command_trains_and_goes_on_with_nothing_where_it_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "Recipe", lambda steps=4: replace(TINY, steps=steps))
    command = [str(tmp_path / "out"), "--steps", "1", "--device", "cpu", "--no-compile"]
    assert main(command) == 0
    log = read_log(tmp_path / "out")
    assert [line["step"] for line in log] == [1]
    assert main(command) == 0
    assert read_log(tmp_path / "out") == log == read_log(tmp_path / "out" / "model")
