"""The tools of the assistant_actions task, and the situation in which a user speaks."""

import datetime as dt
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Setting = Literal["wifi", "bluetooth", "flashlight", "do_not_disturb", "airplane_mode"]
Way = Literal["walk", "bike", "car", "transit"]
When = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT([01]\d|2[0-3]):[0-5]\d$", description="YYYY-MM-DDTHH:MM")]


class Tool(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SetTimer(Tool):
    """Start a timer that rings after some minutes."""

    minutes: int = Field(ge=1, le=1440)
    label: str | None = Field(default=None, max_length=40, description="what it is for, if the user says so")


class SendMessage(Tool):
    """Send a text message to one contact."""

    to: str = Field(min_length=1, max_length=60, description="the contact's whole name, as in the contacts")
    text: str = Field(min_length=1, max_length=300, description="the words of the user, as they are to be sent")


class AddReminder(Tool):
    """Remind the user of something at a time."""

    text: str = Field(min_length=1, max_length=120)
    at: When


class PlayMusic(Tool):
    """Play a song, an album or an artist."""

    what: str = Field(min_length=1, max_length=120)
    shuffle: bool = False


class ChangeSetting(Tool):
    """Switch a setting of the phone on or off."""

    setting: Setting
    on: bool


class Navigate(Tool):
    """Show the way to a place."""

    to: str = Field(min_length=1, max_length=120)
    by: Way = "car"


TOOLS: list[type[Tool]] = [SetTimer, SendMessage, AddReminder, PlayMusic, ChangeSetting, Navigate]


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Reminder(Frozen):
    text: str = Field(max_length=120)
    at: dt.datetime


class Call(Frozen):
    """A call as it is stored: the tool's class and its arguments."""

    tool: Literal["SetTimer", "SendMessage", "AddReminder", "PlayMusic", "ChangeSetting", "Navigate"]
    arguments: dict[str, Any]

    def build(self) -> Tool:
        made: Tool = next(tool for tool in TOOLS if tool.__name__ == self.tool).model_validate(self.arguments)
        return made


class Expected(Frozen):
    """What is right: these calls in this order; or, with `ask`, a question; or, with `unserved`, saying so."""

    calls: tuple[Call, ...] = Field(default=(), max_length=8)
    ask: str = Field(default="", max_length=120)
    # words of which the question has one
    ask_words: tuple[str, ...] = Field(default=(), max_length=20)
    unserved: str = Field(default="", max_length=120)
    steps: tuple[str, ...] = Field(default=(), max_length=20)


class Scenario(Frozen):
    now: dt.datetime
    contacts: tuple[str, ...] = Field(max_length=60)
    # what the screen shows, in its order
    shown: tuple[str, ...] = Field(default=(), max_length=20)
    shown_kind: Literal["places", "songs", "nothing"] = "nothing"
    last_message_from: str | None = Field(default=None, max_length=60)
    last_reminder: Reminder | None = None
    utterance: str = Field(min_length=1, max_length=1000)
    expected: Expected | None = None
