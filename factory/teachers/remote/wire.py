"""What the loop needs of a dialect: how a prompt is asked, and what its reply says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from factory.records import Generation, Prompt
from factory.signals import SignalSpec
from factory.teachers.remote.spelling import Spelling
from factory.usage import Usage

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Said:
    """What a job wants of each answer, the same for every dialect."""

    model: str
    signals: SignalSpec
    # by a prompt's task, as the dialect says it; empty where answers are not held to one
    schemas: Mapping[str, Body]
    # looked for in texts
    markers: Sequence[tuple[str, str]]
    # into every request, as the job has it
    body: Body = field(default_factory=dict)
    chat_template_kwargs: Body = field(default_factory=dict)
    # finds ids by bytes, where the endpoint sends no ids
    spelling: Spelling | None = None


class Wire(Protocol):
    """A dialect."""

    said: Said

    def path(self) -> str:
        """Where requests go, behind the endpoint's address."""
        ...

    def body(self, prompt: Prompt) -> Body:
        """The request of a prompt, logprobs and schema included."""
        ...

    def read(self, prompt: Prompt, reply: Body) -> Generation:
        """The generation that a reply is. Raises BadAnswer where it is none."""
        ...

    def usage(self, reply: Body) -> Usage | None:
        """What the endpoint has counted; None where it does not say."""
        ...

    def model_of(self, reply: Body) -> str:
        """Which model answered, by its own name; empty where it does not say."""
        ...
