"""Schedules of trees: which row is trained from which, for which noise and how long, and which rows draw together.

A file of conf/tree or of a user's own. It is data: nothing here builds anything.
"""

import hashlib
import inspect
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ldm.config import check_words_of_file, load_plain, named_file
from ldm.errors import UserError

WHAT = "a tree's schedule"


@dataclass(frozen=True)
class Row:
    """One training of `steps`: from another row's weights, or anew without `origin` (``from`` in a file).

    `node`, `interval` and `exclude` are keys of conf/expert; `within` is an option of expert=, by default its own.
    """

    name: str
    steps: int
    origin: str | None = None
    node: list[int] | None = None
    interval: Mapping[str, Any] | None = None
    exclude: list[Any] = field(default_factory=list)
    within: str = "default"
    overrides: str = ""

    @property
    def cuts(self) -> bool:
        """Whether it is for a part of the noise."""
        return not (self.node is None and self.interval is None and not self.exclude)


@dataclass(frozen=True)
class Schedule:
    """Rows in the order in which they are best begun, and by name the rows that are one model together.

    `experiment` trains rows without an origin, `branch_experiment` (by default the same) those with one, `first_stage`
    what they are trained on if none is given; `overrides` are for all, `branch_overrides` for those with an origin.
    `control` is the row that an ensemble is held against, `quoted` what papers report of an ensemble, by name, and
    `hypothesis` what was expected of a measurement before its first run.
    """

    name: str
    rows: list[Row]
    ensembles: Mapping[str, list[str]] = field(default_factory=dict)
    experiment: str | None = None
    branch_experiment: str | None = None
    first_stage: str | None = None
    overrides: str = ""
    branch_overrides: str = ""
    control: str | None = None
    quoted: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    hypothesis: str | None = None

    @property
    def recipe(self) -> str:
        """A digest of what is trained, steps aside, and of what draws together; not of what is said about it."""
        said = asdict(replace(self, rows=[replace(row, steps=0) for row in self.rows], quoted={}, hypothesis=None))
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:8]

    def row(self, name: str) -> Row:
        """The row of that name."""
        return next(row for row in self.rows if row.name == name)

    def line(self, name: str) -> list[Row]:
        """A row after those that it comes from, first to last."""
        row = self.row(name)
        return [*(self.line(row.origin) if row.origin else []), row]

    def total(self, names: Iterable[str]) -> int:
        """Steps of these rows and of all that they come from, each row counted once."""
        return sum({row.name: row.steps for name in names for row in self.line(name)}.values())

    def scaled(self, root_steps: int | None) -> "Schedule":
        """The same with so many steps in the first row, and in the others in proportion. UserError for broken ones."""
        if root_steps is None:
            return self
        first = self.rows[0].steps
        for row in self.rows:
            if root_steps < 1 or row.steps * root_steps % first:
                raise UserError(
                    f"root_steps={root_steps}: row {row.name!r} would have {row.steps * root_steps / first:g} steps "
                    f"where {self.name} has {row.steps} of {first}; whole steps are of multiples of "
                    f"{_whole(first, [row.steps for row in self.rows])}"
                )
        return replace(self, rows=[replace(row, steps=row.steps * root_steps // first) for row in self.rows])


def _whole(first: int, steps: list[int]) -> int:
    """The least number of steps of the first row with which all others are whole."""
    return next(count for count in range(1, first + 1) if all(own * count % first == 0 for own in steps))


def read_schedule(given: str, asked_by: tuple[Path, ...] = ()) -> Schedule:
    """The schedule of a file, or of a name in conf/tree. Raises UserError, naming file and row, for what is none.

    `asked_by` are the files whose rows_of led here.
    """
    path = named_file("schedule", given, "tree")
    content = dict(load_plain(path, WHAT))
    like = content.pop("rows_of", None)
    known = {each.name for each in fields(Schedule)} - {"name"}
    for key in content:
        if key not in known:
            raise UserError(f"{path}: {key}: no such key; there are {', '.join(sorted([*known, 'rows_of']))}")
    rows = content.pop("rows", None)
    if (like is None) == (rows is None):
        raise UserError(f"{path}: rows or rows_of: one of them says what is trained")
    for key, kind in {"ensembles": dict, "quoted": dict, "overrides": str, "branch_overrides": str}.items():
        if key in content and not isinstance(content[key], kind):
            raise UserError(f"{path}: {key} is {content[key]!r}; expected {_word(kind)}")
    names = ("experiment", "branch_experiment", "first_stage", "control", "hypothesis")
    texts = {key: content.get(key) for key in names} | {"rows_of": like}
    for key, own in texts.items():
        if own is not None and not isinstance(own, str):
            raise UserError(f"{path}: {key} is {own!r}; expected {_word(str)}")
    if rows is not None and not isinstance(rows, list):
        raise UserError(f"{path}: rows is {rows!r}; expected {_word(list)}")
    line = (*asked_by, path.resolve())
    if like is not None and (back := named_file("schedule", like, "tree")).resolve() in line:
        raise UserError(f"{path}: rows_of: leads back to {back}; one of them has to have rows of its own")
    own = [_row(row, f"{path}: rows[{n}]") for n, row in enumerate(rows or [])]
    parsed = own if like is None else read_schedule(like, line).rows
    schedule = Schedule(path.stem, parsed, **content)
    _check(schedule, path)
    for key, text in (("overrides", schedule.overrides), ("branch_overrides", schedule.branch_overrides)):
        check_words_of_file(text, f"{path}: {key}")
    for row in schedule.rows:
        check_words_of_file(row.overrides, f"{path}: row {row.name!r}")
    return _needed(schedule) if like else schedule


def _row(given: Any, place: str) -> Row:
    if not isinstance(given, dict):
        raise UserError(f"{place}: {given!r} is no row; write {{name: low, from: base, node: [1, 0], steps: 100}}")
    own = {"origin" if key == "from" else key: value for key, value in given.items()}
    known = inspect.signature(Row).parameters
    for key in own:
        if key not in known or (key == "origin" and "origin" in given):
            names = ", ".join("from" if name == "origin" else name for name in known)
            raise UserError(f"{place}: {key}: no such key; a row has {names}")
    for key, kind in {"name": str, "steps": int}.items():
        if type(own.get(key)) is not kind:
            raise UserError(f"{place}: {key} is {own.get(key)!r}; expected {_word(kind)}")
    for key, kind in {"origin": str, "node": list, "interval": dict, "exclude": list, "within": str,
                      "overrides": str}.items():  # fmt: skip
        if own.get(key) is not None and not isinstance(own[key], kind):
            raise UserError(f"{place}: {'from' if key == 'origin' else key} is {own[key]!r}; expected {_word(kind)}")
    row = Row(**{key: value for key, value in own.items() if value is not None})
    if row.steps < 1:
        raise UserError(f"{place}: steps is {row.steps}; a row is trained for one at least")
    return row


def _word(kind: type) -> str:
    return {str: "text", int: "a whole number", list: "a list", dict: "a mapping"}[kind]


def _check(schedule: Schedule, path: Path) -> None:
    """Raises UserError for rows that do not form trees, and for names that are no row's."""
    names = [row.name for row in schedule.rows]
    if not names:
        raise UserError(f"{path}: rows: names no training")
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{path}: two rows are called {name!r}")
    origins = {row.name: row.origin for row in schedule.rows}
    for name, origin in origins.items():
        if origin is not None and origin not in origins:
            raise UserError(f"{path}: row {name!r} comes from {origin!r}, and there is no such row")
    for name in names:
        line = [name]
        while (origin := origins[line[-1]]) is not None:
            if origin in line:
                raise UserError(f"{path}: rows come from each other: {' from '.join([*line, origin])}")
            line.append(origin)
    for ensemble, members in schedule.ensembles.items():
        if not isinstance(ensemble, str):
            raise UserError(f"{path}: ensembles has {ensemble!r} for a name; write it in quotes")
        if not isinstance(members, list) or not members:
            raise UserError(f"{path}: ensembles.{ensemble} is {members!r}; expected a list of rows")
        for member in members:
            if member not in names:
                raise UserError(f"{path}: ensembles.{ensemble} has {member!r}, and there is no such row")
    if schedule.control is not None and schedule.control not in names:
        raise UserError(f"{path}: control is {schedule.control!r}, and there is no such row")
    for name in schedule.quoted:
        if name not in schedule.ensembles:
            raise UserError(f"{path}: quoted.{name} is of no ensemble of it")
        if not isinstance(schedule.quoted[name], dict):
            raise UserError(f"{path}: quoted.{name} is {schedule.quoted[name]!r}; expected {_word(dict)}")


def _needed(schedule: Schedule) -> Schedule:
    """The rows that its ensembles and its control are made of, with what these come from."""
    asked = [name for members in schedule.ensembles.values() for name in members]
    asked += [schedule.control] if schedule.control else []
    kept = {row.name for name in asked for row in schedule.line(name)}
    return replace(schedule, rows=[row for row in schedule.rows if row.name in kept])
