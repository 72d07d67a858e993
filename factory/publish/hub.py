"""The hub, as a push uses it: one dataset repository and one pull request, by huggingface_hub.

Where the hub is and who asks is its client's to know: `HF_ENDPOINT`, `HF_TOKEN`, `hf auth login`. Whatever a request
meets, it is asked again while there is hope (429, 5xx, a cut connection), and every step may be done twice.
"""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from factory.errors import DatasetError, JobError, one_line, redact
from factory.terminal import say

Result = TypeVar("Result")
TRIES: Final = 7
MOST_WAIT_S: Final = 300  # the hub counts requests in windows of five minutes
HOPE: Final = (408, 429, 500, 502, 503, 504)
MAIN: Final = "main"
TITLE: Final = re.compile(r"Rows [0-9a-f]{16} over [0-9a-f]{12}")
REPO: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, slots=True)
class Remote:
    """What lies at a path: `name` is its git hash, of a large file the SHA-256 of its bytes."""

    size: int
    name: str


class Repo:
    """A dataset repository."""

    def __init__(self, name: str) -> None:
        from huggingface_hub import HfApi

        if not REPO.fullmatch(name):
            raise JobError(f"{name}: not the name of a repository; give OWNER/NAME")
        self.name, self.api = name, HfApi(library_name="distillation-factory")
        self.about: dict[str, Any] = {"repo_id": name, "repo_type": "dataset"}

    def create(self, private: bool) -> None:
        """Make it, unless it is there; then it stays as visible as it is."""
        self._ask(
            "create it", lambda: self.api.create_repo(self.name, repo_type="dataset", private=private, exist_ok=True)
        )

    def accept(self, card: str) -> None:
        """Let the hub look at a card before anything is sent. Raises DatasetError with what is wrong in it."""
        from huggingface_hub import DatasetCard

        self._ask("accept the card", lambda: DatasetCard(card).validate(repo_type="dataset"))

    def head(self) -> str:
        """The commit that main is at."""
        return str(self._ask("tell what main is at", lambda: self.api.repo_info(**self.about, revision=MAIN).sha))

    def files(self, revision: str = MAIN) -> dict[str, Remote]:
        """What lies there, by path."""
        from huggingface_hub.hf_api import RepoFile

        def ask() -> dict[str, Remote]:
            entries = self.api.list_repo_tree(**self.about, recursive=True, revision=revision)
            found = [entry for entry in entries if isinstance(entry, RepoFile)]
            return {e.path: Remote(e.size, e.lfs.sha256 if e.lfs else e.blob_id) for e in found}

        return self._ask(f"list {revision}", ask)

    def request(self, state: str, head: str) -> str:
        """The revision of the open pull request for these rows over this commit of main, opened where there is none.

        One over an older main is of no use: merged, it would leave beside its rows what came to main meanwhile.
        """
        title = f"Rows {state[:16]} over {head[:12]}"

        def ask() -> int:
            for found in self._requests():
                if found.title == title:
                    return int(found.num)
            return int(self.api.create_pull_request(**self.about, title=title).num)

        return f"refs/pr/{self._ask('open a pull request', ask)}"

    def close_others(self) -> None:
        """Close the pull requests of pushes that were given up: main has moved on."""

        def ask() -> None:
            for found in self._requests():
                self.api.change_discussion_status(**self.about, discussion_num=found.num, new_status="closed")

        self._ask("close the pull requests of before", ask)

    def _requests(self) -> list[Any]:
        """The open pull requests that a push has made."""
        every = self.api.get_repo_discussions(**self.about, discussion_type="pull_request")
        return [found for found in every if found.status in ("draft", "open") and TITLE.fullmatch(found.title)]

    def send(self, revision: str, files: Mapping[str, Path | bytes], gone: Sequence[str], message: str) -> None:
        """One commit: files added, paths deleted."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        def ask() -> None:
            # made anew for each try: an operation remembers that it was sent
            adds = [
                CommitOperationAdd(path, str(file) if isinstance(file, Path) else file) for path, file in files.items()
            ]
            # a commit whose answer was lost has deleted them
            here = self.api.list_repo_tree(**self.about, recursive=True, revision=revision) if gone else ()
            there = {entry.path for entry in here}
            deletions = [CommitOperationDelete(path) for path in gone if path in there]
            self.api.create_commit(
                **self.about, operations=[*adds, *deletions], revision=revision, commit_message=message
            )

        self._ask(f"commit to {revision}", ask)

    def merge(self, revision: str, head: str) -> None:
        """Make the pull request the main branch, in one step. Raises DatasetError where main has left `head`."""
        number = int(revision.rpartition("/")[2])

        def ask() -> None:
            status = self.api.get_discussion_details(**self.about, discussion_num=number).status
            if status != "merged" and self.api.repo_info(**self.about, revision=MAIN).sha != head:
                raise ValueError("main has changed meanwhile")
            if status == "draft":
                # what a program opens is a draft, and drafts are not merged
                self.api.change_discussion_status(**self.about, discussion_num=number, new_status="open")
            if status != "merged":
                self.api.merge_pull_request(**self.about, discussion_num=number)

        self._ask(f"merge {revision}", ask)

    def _ask(self, what: str, ask: Callable[[], Result]) -> Result:
        """What the hub answers. Raises DatasetError where it refuses, or does not answer for long."""
        from tenacity import Retrying, retry_if_exception, stop_after_attempt

        tries = Retrying(
            retry=retry_if_exception(_may_pass),
            stop=stop_after_attempt(TRIES),
            wait=_wait,
            before_sleep=lambda state: self._tell_again(what, state),
            reraise=True,
        )
        try:
            return tries(ask)
        except Exception as error:
            met = _met(error)
            # what is none of these is a bug, and shows where it is
            if met is None:
                raise
            raise DatasetError(
                f"{self.name}: {self._tell(what, met)}; {_mend(met)}nobody sees what is half there, and the "
                "same command goes on"
            ) from error

    @property
    def hub(self) -> str:
        """Where the hub is."""
        return _hide(str(self.api.endpoint))

    def _tell(self, what: str, met: BaseException) -> str:
        """What could not be done, where, and why."""
        could = f"{self.hub} cannot be reached to" if _is_of_the_way(met) else f"the hub ({self.hub}) could not"
        return f"{could} {what}: {_hide(redact(one_line(met)))}"

    def _tell_again(self, what: str, state: Any) -> None:
        """That it is being asked again: a minute without a word looks like a program that hangs."""
        met = _met(state.outcome.exception())
        again = f"asked again in {state.upcoming_sleep:.0f} s (try {state.attempt_number + 1} of {TRIES})"
        say(f"{self.name}: {self._tell(what, met) if met else what}; {again}", sys.stderr)


def _hide(text: str) -> str:
    """A text without the passwords that may stand in addresses."""
    return re.sub(r"://[^/\s]*@", "://…@", text)


def _mend(met: BaseException) -> str:
    """What whoever pushes can do about it; nothing is known of most troubles."""
    if _is_of_the_way(met):
        return "look at the network, and at HF_ENDPOINT, which says where the hub is; "
    if _status(met) in (401, 403):
        return "log in with a token that may write there (`hf auth login`, or HF_TOKEN); "
    return ""


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _is_of_the_way(error: BaseException) -> bool:
    """Whether the connection failed. By name: which HTTP library it is, is for the hub's client to choose."""
    return any(base.__name__ == "TransportError" for base in type(error).__mro__)


def _met(error: BaseException | None) -> BaseException | None:
    """What a request has met: the client raises errors of its threads from others, which say less."""
    while error is not None and not (isinstance(error, OSError | ValueError) or _is_of_the_way(error)):
        error = error.__cause__
    return error


def _may_pass(error: BaseException) -> bool:
    met = _met(error)
    return met is not None and (_status(met) in HOPE or _is_of_the_way(met))


def _wait(state: Any) -> float:
    """Seconds until the next try: what the hub asks for, else longer each time."""
    response = getattr(state.outcome.exception(), "response", None)
    headers = getattr(response, "headers", {})
    asked = re.fullmatch(r"\s*(\d+)\s*", headers.get("retry-after", "")) or re.search(
        r";\s*t=(\d+)", headers.get("ratelimit", "")
    )
    return float(min(MOST_WAIT_S, int(asked[1]) if asked else 2 ** (state.attempt_number - 1)))
