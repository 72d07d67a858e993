"""A disk that is full or read-only: one clear line, nothing committed is harmed, and the same command goes on later.

A small file system in memory is mounted where only the commands of one test see it. Where that is not allowed, the
limit on the size of a file stands in for it.
"""

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import write_task
from dataset_support import read_tree, write_job

from factory.dataset.history import read_history
from factory.job.job import load_job
from factory.runs.run import run

VARIABLE = ("runs.jsonl", ".lock")
NAMESPACES = (["unshare", "-m"], ["unshare", "-rm"])  # for root, and for everybody where the kernel lets them
FACTORY = f"{sys.executable} -m factory.cli"
MENDED_BY_RESUMING = "resume the job, which will write it again"
FULL = """
mount -t tmpfs -o size={size} tmpfs small || exit 77
{factory} run job.toml --out small/out {flags} >first.out 2>first.err; echo $? >first.code
{factory} verify small/out >verify.out 2>verify.err; echo $? >verify.code
mount -o remount,size=100m small
{factory} run job.toml --out small/out >second.out 2>second.err; echo $? >second.code
cp -a small/out copy
"""
NO_CHECK = "--no-disk-check"
READ_ONLY = """
mount -t tmpfs -o size=100m tmpfs small || exit 77
cp -a {source} small/out
mount -o remount,ro small
{factory} run job.toml --out small/out >first.out 2>first.err; echo $? >first.code
{factory} run job.toml --out small/new >new.out 2>new.err; echo $? >new.code
{factory} verify small/out >verify.out 2>verify.err; echo $? >verify.code
{factory} status small/out >status.out 2>status.err; echo $? >status.code
cp -a small/out before
mount -o remount,rw small
{factory} run job.toml --out small/out >second.out 2>second.err; echo $? >second.code
cp -a small/out copy
"""


@dataclass(frozen=True)
class Scene:
    """What the commands of a script printed, and with which codes they ended."""

    folder: Path

    def code(self, name: str) -> int:
        return int((self.folder / f"{name}.code").read_text())

    def printed(self, name: str) -> str:
        return (self.folder / f"{name}.out").read_text()

    def told(self, name: str) -> str:
        """What a command said of itself, without the lines of progress that a slow machine gives time for."""
        lines = (self.folder / f"{name}.err").read_text().splitlines(keepends=True)
        return "".join(line for line in lines if not re.match(r"\d+/\d+ rows, ", line))

    def require_one_line(self, name: str) -> str:
        """The one line of a command that was refused."""
        told = self.told(name)
        assert (self.code(name), self.printed(name)) == (2, ""), told
        assert told.startswith("error: "), told
        assert told.count("\n") == 1, told
        return told


def mounted(script: str, folder: Path, **values: object) -> Scene:
    """Run a shell script that may mount, in a namespace of its own; the test is skipped where no way is open."""
    (folder / "small").mkdir()
    text = script.format(factory=FACTORY, **values)
    for namespace in NAMESPACES:
        if shutil.which(namespace[0]) is None:
            continue
        done = subprocess.run([*namespace, "sh", "-c", text], cwd=folder, capture_output=True, text=True)
        if (folder / "first.code").exists():
            assert done.returncode == 0, done.stderr
            return Scene(folder)
    pytest.skip("mounting is not allowed here")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a job of 160 rows in 20 shards, and in `whole` what it makes when nothing happens."""
    root = tmp_path_factory.mktemp("undisturbed")
    write_task(root)
    path = write_job(root, count=160, teacher="scripted = { wrong = 0.2, crash = 0.1 }")
    run(load_job(path), root, root / "whole")
    return root


@pytest.fixture
def folder(undisturbed: Path, tmp_path: Path) -> Path:
    """A copy of the workspace, without the dataset."""
    for name in ("prompts", "schemas"):
        shutil.copytree(undisturbed / name, tmp_path / name)
    shutil.copyfile(undisturbed / "job.toml", tmp_path / "job.toml")
    return tmp_path


def require_recovery(scene: Scene, undisturbed: Path, out: str = "copy") -> None:
    assert (scene.code("second"), scene.told("second")) == (0, "")
    assert scene.printed("second").splitlines()[0].endswith(": complete")
    assert read_tree(scene.folder / out, but=VARIABLE) == read_tree(undisturbed / "whole", but=VARIABLE)


def require_sound_so_far(scene: Scene) -> None:
    """Verify finds no fault but files and lines that were about to be written."""
    faults = scene.printed("verify").splitlines()
    if scene.code("verify") == 0:
        assert ": sound: " in faults.pop()
    assert [fault for fault in faults if not fault.endswith(MENDED_BY_RESUMING)] == []
    assert scene.told("verify") == ""


# from a disk that holds nothing to one on which only the last shards find no place
@pytest.mark.parametrize(
    "kilobytes",
    [
        16,
        *(pytest.param(k, marks=pytest.mark.sweep) for k in (4, 48)),
        *(pytest.param(k, marks=pytest.mark.long) for k in (32, 40, 192)),
    ],
)
def test_a_run_on_a_full_disk_stops_with_one_line_and_goes_on_when_there_is_room(
    kilobytes: int, folder: Path, undisturbed: Path
) -> None:
    scene = mounted(FULL, folder, size=f"{kilobytes}k", flags=NO_CHECK)
    told = scene.require_one_line("first")
    assert told.startswith("error: small/out: ")
    in_order = "stopped before the disk is full: " in told
    assert in_order or "cannot be written: No space left on device" in told
    assert "committed shards are whole" in told
    if kilobytes >= 96:
        assert in_order
        require_sound_so_far(scene)
    require_recovery(scene, undisturbed)


def test_a_job_that_the_disk_cannot_hold_is_not_started(folder: Path, undisturbed: Path) -> None:
    scene = mounted(FULL, folder, size="192k", flags="")
    told = scene.require_one_line("first")
    assert told.startswith("error: small/out: the disk cannot hold what is left of this job: ")
    assert "small/out: no " in scene.told("verify") or "No such file" in scene.told("verify")
    require_recovery(scene, undisturbed)


def test_a_disk_that_fills_up_late_keeps_what_was_committed(folder: Path, undisturbed: Path) -> None:
    scene = mounted(FULL, folder, size="640k", flags=NO_CHECK)
    assert "stopped before the disk is full: " in scene.require_one_line("first")
    runs = [run for run in read_history(folder / "copy") if run["event"] == "ended"]
    assert len(runs) in (1, 2), "the first run may have had no room for its line"
    assert 0 < runs[-1]["rows"] < 160, "the second run did not begin anew"
    require_recovery(scene, undisturbed)


def test_a_read_only_disk_is_one_line_and_its_datasets_can_still_be_read(folder: Path, undisturbed: Path) -> None:
    begun = folder / "begun"
    shutil.copytree(undisturbed / "whole", begun)
    lines = (begun / "ledger.jsonl").read_text().splitlines(keepends=True)
    (begun / "ledger.jsonl").write_text("".join(lines[:11]))
    for path in begun.rglob("train-*.parquet"):
        if int(path.stem[-5:]) >= 10:
            path.unlink()
    scene = mounted(READ_ONLY, folder, source=begun)
    told = "cannot be written: Read-only file system; choose another `out` or mend it\n"
    assert scene.require_one_line("first") == f"error: small/out: {told}"
    assert scene.require_one_line("new") == f"error: small/new: {told}"
    assert (scene.code("verify"), scene.printed("verify")) == (0, "small/out: sound: 10 of 20 shards, 80 rows\n")
    assert scene.code("status") == 0
    assert read_tree(folder / "before") == read_tree(begun)
    require_recovery(scene, undisturbed)


@pytest.mark.parametrize("blocks", [3, *(pytest.param(blocks, marks=pytest.mark.long) for blocks in (1, 8))])
def test_a_file_that_may_not_grow_stops_a_run_with_one_line_and_it_goes_on_later(
    blocks: int, folder: Path, undisturbed: Path
) -> None:
    """In blocks of 1,024 bytes: no room for a manifest, a ledger, a shard."""
    limited = f"ulimit -f {blocks}; exec {FACTORY} run job.toml --out out"
    commands = {"first": ["bash", "-c", limited], "verify": [*FACTORY.split(), "verify", "out"]}
    for name, command in commands.items():
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        for suffix, text in (("out", done.stdout), ("err", done.stderr), ("code", str(done.returncode))):
            (folder / f"{name}.{suffix}").write_text(text)
    scene = Scene(folder)
    assert "cannot be written: File too large; committed shards are whole" in scene.require_one_line("first")
    if (folder / "out/ledger.jsonl").exists():
        require_sound_so_far(scene)
    done = subprocess.run([*FACTORY.split(), "run", "job.toml", "--out", "out"], cwd=folder, capture_output=True)
    assert done.returncode == 0
    assert read_tree(folder / "out", but=VARIABLE) == read_tree(undisturbed / "whole", but=VARIABLE)
