"""The manifest: everything that decides what a dataset's rows are, written once and held against every later run.

Its sections come when they are known: job, tasks and sources before the engine starts, `teacher` and `signals` once it
has, `fidelity` at the end. A section that is there is compared with the run's own and never changed by it (but for
`publish` and the result of the self-test, which are replaced), so a resumed run adds rows of the same meaning or none.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter

from factory.dataset.shards import sync_directory
from factory.errors import DatasetError
from factory.hashing import canonical_json, content_hash
from factory.signals import SignalSpec

MANIFEST = "manifest.json"
# which scheme of digests and sections a manifest has; a dataset of another scheme is read and not resumed
MANIFEST_VERSION = 2
COPIES = "copies"  # by task and name: digests of the files under templates/, as they are there
PUBLISH = "publish"  # what the card says of licence and terms; it decides no row, and the latest run's holds
DIGEST = "digest"  # one name for the job, see `digest_job`
MOST_CHANGES = 20
SHOWN_CHARACTERS = 80
HASH = re.compile(r"[0-9a-f]{24,64}")  # of a file: that it differs says all
ADDRESS: Final = re.compile(r"[a-z][a-z0-9+.-]+:/+")  # of two letters at least: one is a drive
# what `datasets` does not take as it stands in a path: wildcards, `$NAME` of the environment, `::` between chained URLs
WILD: Final = re.compile(r"[\[\]*?{}$]|::")
READ_AS: Final = {"$": "the name of a variable", "::": "a chain of URLs"}
PLAIN: Final = "choose a path without any of [ ] * ? { } $ ::"


def require_plain_path(out: Path) -> None:
    """Raise DatasetError for a directory whose path, made absolute, `datasets` and others take for a pattern.

    They would load no row of it, or in silence those of a directory beside it.
    """
    require_no_address(out)
    path = os.path.realpath(out)  # Path.resolve raises at a link that leads to itself
    if wild := find_wild(path):
        raise DatasetError(
            f"{out}: its path {path} has {wild[0]}, which readers of datasets take for {wild[1]}; {PLAIN}"
        )


def require_no_address(out: str | Path) -> None:
    """Raise DatasetError for an address, also one that a Path has taken a slash of."""
    if found := ADDRESS.match(str(out)):
        told = f"is an address ({found[0]}), and what is made is written to a directory"
        raise DatasetError(
            f"{out}: {told}; mount the store and give its path, or write to a disk and copy it afterwards"
        )


def find_wild(path: str) -> tuple[str, str] | None:
    """What readers of datasets do not take as it stands in a path, and what for; None where there is nothing."""
    found = WILD.search(path)
    return (f"a {found[0]!r}", READ_AS.get(found[0], "a wildcard")) if found else None


def seal(value: dict[str, Any]) -> dict[str, Any]:
    """A JSON object with its own checksum as `sum`, so that any changed byte in it shows."""
    # sealing what is sealed is no change, so a file may be checked by sealing what was read from it
    body = {key: item for key, item in value.items() if key != "sum"}
    return body | {"sum": content_hash(body)}


def sealed_text(value: dict[str, Any], allow_nan: bool = True) -> str:
    """The text of a sealed JSON file: sorted, indented, with its own checksum."""
    return json.dumps(seal(value), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=allow_nan) + "\n"


def read_sealed(path: Path) -> dict[str, Any]:
    """What a sealed JSON file says, without its checksum.

    Raises FileNotFoundError or NotADirectoryError where there is none, DatasetError where any byte of it is not as it
    was written.
    """
    try:
        text = path.read_bytes().decode("utf-8")
        value = json.loads(text)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: damaged: {error}") from None
    if not isinstance(value, dict):
        raise DatasetError(f"{path}: damaged: not a JSON object")
    if sealed_text(value) != text:
        raise DatasetError(f"{path}: damaged: changed since it was written")
    del value["sum"]
    return value


def read_manifest(out: Path) -> dict[str, Any]:
    """The manifest of a dataset. Raises DatasetError where there is none or it is damaged."""
    try:
        return read_sealed(out / MANIFEST)
    except (FileNotFoundError, NotADirectoryError):
        require_directory(out)
        raise no_dataset(out) from None


def no_dataset(place: object) -> DatasetError:
    """What every command says of a place where no dataset is."""
    return DatasetError(f"{place}: no {MANIFEST}, so not a dataset of the factory; `factory run` makes one")


def require_directory(out: Path) -> None:
    """Raise DatasetError for a file where a dataset's directory is wanted."""
    if out.is_file():
        near = f": {out.parent}" if (out.parent / MANIFEST).exists() else ""
        raise DatasetError(f"{out}: is a file, and a dataset is a directory; give the directory{near}")


def section(name: str, teacher: str) -> str:
    """What a section of one of several teachers is called: `signals.big`; the only one has no name."""
    return f"{name}.{teacher}" if teacher else name


def run_command(manifest: dict[str, Any]) -> str:
    """Which command makes the rows of a dataset and goes on with it."""
    job = manifest.get("job")
    return "factory score" if isinstance(job, dict) and job.get("transcripts") else "factory run"


def command_of(out: Path) -> str:
    """The same of a dataset as far as its manifest can be read, be it damaged."""
    try:
        manifest = json.loads((out / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        manifest = None
    return run_command(manifest if isinstance(manifest, dict) else {})


def teachers_of(manifest: dict[str, Any]) -> list[str]:
    """The teachers that have made rows of a dataset, by name, in the job's order; [""] where there is one only."""
    job = manifest.get("job")
    names = list(job.get("teachers") or {}) if isinstance(job, dict) else []
    return [name for name in names if section("signals", name) in manifest] or [""]


def of_teacher(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    """The manifest as it would be if this teacher were the only one."""
    if not name:
        return manifest
    own = {part: manifest.get(section(part, name)) for part in ("teacher", "signals", "fidelity")}
    job = {key: value for key, value in manifest["job"].items() if key != "teachers"}
    job["teacher"] = manifest["job"]["teachers"][name]
    return manifest | {"job": job} | {part: value for part, value in own.items() if value is not None}


def top_k_of(manifest: dict[str, Any]) -> int | None:
    """How many ids its rows keep at each position, as a manifest says that may be another release's; None: none."""
    signals = manifest.get("signals")
    return signals.get("top_k") or None if isinstance(signals, dict) else None


def read_signals(manifest: dict[str, Any]) -> SignalSpec | None:
    """The signals that a dataset's rows have; None before its teacher has started. Raises DatasetError."""
    # these four have been there from the first; later ones may be absent, and have defaults that mean what was
    manifest = of_teacher(manifest, teachers_of(manifest)[0])  # of several, all keep the same, of layers of their own
    if "signals" not in manifest:
        return None
    kept = manifest["signals"]
    try:
        if not {"top_k", "layers", "final_norm", "pairs"} <= kept.keys():
            raise ValueError("incomplete")
        return TypeAdapter(SignalSpec).validate_python(kept)
    except (AttributeError, ValueError) as error:
        told = " ".join(str(error).split())
        raise DatasetError(f"{MANIFEST}: damaged: signals is not what was written ({told})") from None


def reconcile_manifest(out: Path, manifest: dict[str, Any], anew: bool = False) -> None:
    """Write the manifest of a new dataset, or check that a resumed one is the same job; sections may come later.

    `anew` writes it in place of whatever is there.
    Raises DatasetError with every difference, and leaves the directory untouched.
    """
    path = out / MANIFEST
    # anew: nothing was made with the old one, so there is nothing it could contradict
    before = read_manifest(out) if path.exists() and not anew else {}
    require_same_job(out, before, manifest)
    # with no section to add the file is not touched: a resumed run leaves the same bytes
    if manifest.keys() - before.keys():
        # what is there wins: both say the same but for COPIES, which tells of the files that lie beside the first rows
        write_atomically(path, sealed_text(manifest | before).encode())


def replace_section(out: Path, name: str, value: Any) -> None:
    """Put one section of a dataset's manifest in place of what it was."""
    write_atomically(out / MANIFEST, sealed_text(read_manifest(out) | {name: value}).encode())


def require_same_job(out: Path, before: dict[str, Any], manifest: dict[str, Any]) -> None:
    """Raise DatasetError with the differences between two manifests, one a line, in the sections that both have."""
    changes = list_changes(before, manifest)
    if changes:
        most = [*changes[:MOST_CHANGES], *([f"and {len(changes) - MOST_CHANGES} more"] * (len(changes) > MOST_CHANGES))]
        head = f"{out}: made by another job, cannot resume; undo this, or choose another `out`:"
        raise DatasetError("\n".join([head, *(f"  {line}" for line in most)]))


def list_changes(before: dict[str, Any], manifest: dict[str, Any]) -> list[str]:
    """Every place where two manifests differ that decides rows; in the sections that both have."""
    manifest = json.loads(canonical_json(manifest))  # as it would be read back: tuples are lists
    if "versions" in before and "versions" in manifest:
        told, here = (m["versions"].get("manifest", 1) for m in (before, manifest))
        if told != here:
            # every digest differs then, and none of them would say why
            return [
                f"versions.manifest: was {told}, is {here}: this release tells in another way what decides rows; the "
                "rows are whole and can be read, verified and published; only the release that began them adds more"
            ]
    shared = (before.keys() & manifest.keys()) - {COPIES, DIGEST, PUBLISH}
    changes = list(find_changes({k: before[k] for k in shared}, {k: manifest[k] for k in shared}))
    # the digest is of the other sections, so it says nothing that they do not, unless they were tampered with
    both = DIGEST in before and DIGEST in manifest
    return changes or (list(find_changes(before[DIGEST], manifest[DIGEST], DIGEST)) if both else [])


def digest_job(manifest: dict[str, Any]) -> str:
    """One name for all that decides which rows a job makes."""
    return content_hash([manifest.get(section) for section in ("job", "tasks", "sources")])


def find_changes(before: Any, after: Any, where: str = "") -> Iterator[str]:
    """Every place where two JSON values differ, as `path: was OLD, is NEW`."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({*before, *after}):
            path = f"{where}.{key}" if where else key
            if key in before and key in after:
                yield from find_changes(before[key], after[key], path)
            else:
                yield f"{path}: was {_show(before, key)}, is {_show(after, key)}"
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from find_changes(old, new, f"{where}.{index}")
    # 1 == 1.0 == True in Python, and a row that was made with one of them may differ from the others'
    elif before != after or type(before) is not type(after):
        both = [text for text in (before, after) if isinstance(text, str) and HASH.fullmatch(text)]
        told = "has changed" if len(both) == 2 else f"was {_shorten(before)}, is {_shorten(after)}"
        yield f"{where}: {told}"


def _show(values: dict[str, Any], key: str) -> str:
    return _shorten(values[key]) if key in values else "absent"


def _shorten(value: Any) -> str:
    if isinstance(value, str) and HASH.fullmatch(value):
        return "there"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 1]}…"


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file in one step: readers see the old text or the new one, never a part.

    A file that holds these bytes already is left alone. Raises OSError that names the file, and leaves nothing then.
    """
    # a run that has nothing to add leaves the file's time as well
    if path.is_file() and path.read_bytes() == data:
        return
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        # synced before the rename, or a power cut may leave the new name with no bytes behind it
        with temporary.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        # of the file that was asked for: the other is nobody's business, and gone
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    sync_directory(path.parent)
