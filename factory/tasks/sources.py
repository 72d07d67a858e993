"""Sources: scenarios that come from the user, one row of their data each, mapped to the scenario's fields."""

import random
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import AliasChoices, AliasPath, BaseModel

from factory.errors import JobError, nearest
from factory.job.data import SourceConfig
from factory.tasks.faults import TaskFault, blamed
from factory.tasks.tables import BadRow
from factory.tasks.user_rows import Rows, load_rows, pick
from factory.texts.personal import resolve_kinds, scrub, scrub_row

TRIED_ROWS = 64  # spread over the data
NO_LEVEL = "?"  # the level of a planned row whose data names none of the task's; no task can have one of that name


class Source:
    """Rows of a user's data, by the number of the planned row, each as the fields of a scenario.

    `order` has the place of each planned row's data. `levels` counts the planned rows of each level where a column
    says it, in the order in which they are numbered; it is empty where the job's weights do.
    """

    def __init__(self, config: SourceConfig, rows: Rows, order: Sequence[int], levels: dict[str, int]) -> None:
        self.config = config
        self.rows = rows
        self.order = order
        self.levels = levels
        self._last: tuple[int, dict[str, Any], Counter[str]] | None = None
        self._counts: dict[int, Counter[str]] = {}  # of rows that were read and are not told by `replaced` yet

    def __len__(self) -> int:
        """How many rows are planned."""
        return len(self.order)

    def digest(self) -> str:
        """A hash of the data, as it was when it was opened."""
        return self.rows.digest

    def where(self, number: int) -> str:
        """The file and line of the data that the `number`-th planned row is made from, for people."""
        return self.rows.where(self.order[number])

    def mark(self, number: int) -> str:
        """What that data is called in the dataset: its id or its number."""
        return self._clean(self.rows.mark(self.order[number]))

    def _clean(self, text: str) -> str:
        return scrub(text, resolve_kinds(self.config.scrub))[0] if self.config.scrub else text

    def scenario(self, number: int) -> Mapping[str, Any]:
        """Fields of the scenario for the `number`-th planned row: the mapped columns, then the constants.

        Without `fields` every column goes to the field of its own name. A null counts as absent. With `scrub`, what is
        personal in the columns' strings is replaced, nested ones too; the constants stay, they are the job's own.
        Raises BadRow.
        """
        mapped, counts = self._read(number)
        if self.config.scrub:
            self._counts[number] = counts
        return {**self.config.constants, **mapped}

    def replaced(self, number: int) -> Counter[str]:
        """How often each kind of personal data was replaced in the row that `scenario` gives for `number`."""
        known = self._counts.pop(number, None)
        if known is not None:
            return known
        try:
            return self._read(number)[1]
        except BadRow:
            return Counter()

    def _read(self, number: int) -> tuple[dict[str, Any], Counter[str]]:
        # the samples of a prompt ask for one row in turn, and to scrub costs more than all the rest of a prompt
        if self._last is None or self._last[0] != number:
            mapped, kinds = self._map(number), resolve_kinds(self.config.scrub)
            self._last = (number, *(scrub_row(mapped, kinds) if kinds else (mapped, Counter[str]())))
        return self._last[1], self._last[2]

    def _map(self, number: int) -> dict[str, Any]:
        row = self.rows[self.order[number]]
        # a row of Parquet has the null columns of all others; by their own names the rest are what no one else maps
        own = (name for name in row if name not in (self.config.level, self.config.id))
        columns = self.config.fields or {name: name for name in own}
        values = {field: pick(row, column) for field, column in columns.items()}
        return {field: value for field, value in values.items() if value is not None}

    def level_fault(self, number: int) -> str:
        """Why a row has no level."""
        level = pick(self.rows[self.order[number]], str(self.config.level))
        return self._clean(f"{self.config.level}: {level!r} is no level of the task")

    def bad_rows(self, problem: Callable[[Mapping[str, Any]], str | None]) -> Iterator[str]:
        """Each planned row that cannot become a prompt, and why; `problem` says what is wrong with a scenario's fields.

        As the data stands: what `scrub` would do to it is not looked at, but nothing personal is told.
        """
        unlevelled = len(self) - self.levels.get(NO_LEVEL, 0)
        for number in range(len(self)):
            try:
                wrong = problem({**self.config.constants, **self._map(number)})
                if wrong is None and number >= unlevelled:
                    wrong = self.level_fault(number)
            except BadRow as error:
                wrong = str(error)
            if wrong is not None:
                yield f"{self.where(number)}: {self._clean(wrong)[:200]}"


def open_source(
    config: SourceConfig,
    where: str,
    seed: int,
    needed: int | Literal["all"],
    scenario: type[BaseModel],
    levels: Sequence[str] = (),
) -> Source:
    """Open a source and check that it can give `needed` rows; the rows stay on disk. `levels` are the task's.

    Raises JobError naming the job's key `where` for a missing file, column or row, and for every name that the task's
    Scenario does not have: pydantic would drop it, and each row would be made without that data.
    """
    own = [path for path in (config.level, config.id) if path is not None]
    rows = load_rows(config, where, list(config.fields.values()) or None, own)
    columns = [name for name in rows.column_names if name not in own]
    problems = list(find_unknown(config, where, columns, scenario)) if len(rows) else []
    if reads_rows_itself(scenario):
        problems = list(find_ignored(config, where, rows, scenario))
    if problems:
        raise JobError("\n".join(problems))
    if not len(rows) or (needed != "all" and len(rows) < needed):
        step = "give it some" if not len(rows) else 'lower the count, or say count = "all"'
        told = "" if needed == "all" else f", the task's count is {needed}"
        raise JobError(f"{where}: {config.path} has {len(rows)} rows{told}; {step}")
    order = array("Q", range(len(rows)))
    if config.shuffle:
        random.Random(seed).shuffle(order)
    order = order[: None if needed == "all" else needed]
    if config.level is None:
        return Source(config, rows, order, {})
    return Source(config, rows, *_group(rows, order, config.level, levels))


def find_unknown(config: SourceConfig, where: str, columns: Iterable[str], scenario: type[BaseModel]) -> Iterator[str]:
    """A line for each name that would be dropped in silence, and for each field that no row could fill."""
    if reads_rows_itself(scenario):
        return
    takes = field_names(scenario)
    known = [name for names in takes.values() for name in names]
    mapped = set(config.fields or columns) | set(config.constants)
    lacking = {field: names for field, names in takes.items() if not mapped & set(names)}
    if scenario.model_config.get("extra") != "allow":
        for key, given in (("fields", list(config.fields)), ("constants", list(config.constants))):
            for name in given:
                if name not in known:
                    yield f"{where}.{key}: Scenario has no field {name!r} (has: {', '.join(known)}){_hint(name, known)}"
        if not config.fields:
            yield from _find_dropped(config, where, columns, scenario, lacking)
    for field, names in lacking.items():
        if scenario.model_fields[field].is_required():
            has = ", ".join(columns)
            yield f"{where}: nothing fills Scenario.{names[0]} ({config.path} has: {has}); add it to `fields`"


def reads_rows_itself(scenario: type[BaseModel]) -> bool:
    """Whether a validator of the model sees a row before its fields do: then it may read names that are no fields."""
    return any(one.info.mode != "after" for one in scenario.__pydantic_decorators__.model_validators.values())


def find_ignored(config: SourceConfig, where: str, rows: Rows, scenario: type[BaseModel]) -> Iterator[str]:
    """A line for each name of such a scenario that is no field and changes nothing in any tried row."""
    known = [name for names in field_names(scenario).values() for name in names]
    for key, given in (("fields", config.fields), ("constants", config.constants)):
        for name in given:
            if name not in known and _is_ignored(name, config, rows, scenario):
                has = ", ".join(known)
                yield f"{where}.{key}: Scenario does nothing with {name!r} (has: {has}){_hint(name, known)}"


def _is_ignored(name: str, config: SourceConfig, rows: Rows, scenario: type[BaseModel]) -> bool:
    tried = 0
    for place in range(0, len(rows), max(1, len(rows) // TRIED_ROWS)):
        try:
            row = rows[place]
            mapped = {field: pick(row, column) for field, column in config.fields.items()}
            values = {field: value for field, value in {**config.constants, **mapped}.items() if value is not None}
            if name not in values:
                continue
            with blamed("scenario_invalid"):
                whole = scenario.model_validate(dict(values)).model_dump_json()
                if scenario.model_validate({k: v for k, v in values.items() if k != name}).model_dump_json() != whole:
                    return False
        except (BadRow, TaskFault):  # this row tells nothing, or the name is needed
            return False
        tried += 1
    return tried > 0


def _find_dropped(
    config: SourceConfig, where: str, columns: Iterable[str], scenario: type[BaseModel], lacking: dict[str, list[str]]
) -> Iterator[str]:
    """Columns that go to no field of their own name, where that is an error or looks like a slip of the pen."""
    known = {name for names in field_names(scenario).values() for name in names}
    free = [names[0] for field, names in lacking.items() if not scenario.model_fields[field].is_required()]
    for name in columns:
        like = nearest(name, free)
        if name not in known and (like or scenario.model_config.get("extra") == "forbid"):
            told = f"{where}: Scenario has no field for the column {name!r} of {config.path}{like}"
            yield f"{told}; name the columns to take in `fields`"


def _hint(name: str, known: list[str]) -> str:
    if name == "level":
        return "; the column that says a row's level is named beside `fields`: level = ..."
    return nearest(name, known)


def field_names(model: type[BaseModel]) -> dict[str, list[str]]:
    """By field the names under which its value may come: its alias, and its own where the model takes that too."""
    config, found = model.model_config, dict[str, list[str]]()
    by_name = config.get("populate_by_name") or config.get("validate_by_name")
    for name, field in model.model_fields.items():
        alias = field.validation_alias or field.alias
        choices = alias.choices if isinstance(alias, AliasChoices) else [alias]
        firsts = [str(one.path[0]) if isinstance(one, AliasPath) else one for one in choices if one is not None]
        found[name] = list(dict.fromkeys([*firsts, *([name] if by_name or not firsts else [])]))
    return found


def _group(rows: Rows, order: Sequence[int], path: str, levels: Sequence[str]) -> tuple["array[int]", dict[str, int]]:
    """The same places, those of one level together, in the order of the task's levels; and how many each level has.

    So a plan counts on through the levels here as it does everywhere, and stays arithmetic over a few numbers.
    """
    places = {level: array("Q") for level in (*levels, NO_LEVEL)}
    for place in order:
        try:
            level = pick(rows[place], path)
        except BadRow:
            level = None
        places[level if isinstance(level, str) and level in levels else NO_LEVEL].append(place)
    grouped = array("Q")
    for level in places:
        grouped.extend(places[level])
    return grouped, {level: len(found) for level, found in places.items() if found}
