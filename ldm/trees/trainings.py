"""The rows of a schedule as trainings: words of train.py, where their runs lie, and whether they can train at all."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.build import Parts
from ldm.compatibility import check_branch
from ldm.config import compose, load_tree, overriding, with_begun_fields
from ldm.diffusion.experts import Interval, check_cover, subtract
from ldm.ensemble import WHOLE, share
from ldm.errors import UserError
from ldm.files import read_json
from ldm.lineage import NAME as LINEAGE
from ldm.lineage import RUN_NAME, begun_from, branch_point, branched_run, read_lineage
from ldm.run import inherit, open_run, settle_precision
from ldm.trees.schedule import Row, Schedule

Tree = dict[str, Any]


class Growth:
    """A schedule under `tree` (conf/grow_tree.yaml): each row is a run of its own, `NAME-ROW`.

    ``base`` of the tree, a run, takes the place of the schedule's first row.
    """

    def __init__(self, tree: Tree, schedule: Schedule):
        self.tree = tree
        self.schedule = schedule.scaled(tree["root_steps"])
        self.name = tree["name"] or schedule.name
        self.runs = Path(tree["runs_dir"]).expanduser()
        self.folder = self.runs / self.name
        for name in (self.name, *(row.name for row in schedule.rows), *schedule.ensembles):
            if not RUN_NAME.fullmatch(name):
                raise UserError(f"{name!r}: names of runs are made of letters, digits, '-', '_' and '.'")

    @property
    def rows(self) -> list[Row]:
        """Those that are trained here."""
        return self.schedule.rows[1:] if self.tree["base"] else self.schedule.rows

    def run(self, name: str) -> Path:
        """The run of a row."""
        if self.tree["base"] and name == self.schedule.rows[0].name:
            return branched_run(self.tree["base"])
        return self.runs / f"{self.name}-{name}"

    def manifest(self, ensemble: str) -> Path:
        """Where an ensemble's manifest is written."""
        return self.folder / f"{ensemble}.yaml"

    def words(self, row: Row) -> list[str]:
        """Of train.py, for a row."""
        tree, schedule, run = self.tree, self.schedule, self.run(row.name)
        begun = row.origin is not None
        found = [f"experiment={self.experiment(row)}", f"run={run.name}", f"runs_dir={self.runs}"]
        found += [f"seed={tree['seed']}", "trainer.precision=auto", f"logger.mode={tree['logger']['mode']}"]
        found += [f"logger.project={tree['logger']['project']}", f"logger.group={self.name}"]
        if begun:
            first = self.tree["base"] and row.origin == schedule.rows[0].name
            found.append(f"branch={self.tree['base'] if first else self.run(row.origin)}")
        elif tree["first_stage"]:
            found.append(f"first_stage={tree['first_stage']}")
        found += _cuts(row)
        texts = [schedule.overrides, schedule.branch_overrides if begun else "", row.overrides, tree["overrides"]]
        texts.append(tree["branch_overrides"] if begun else "")
        found += [word for text in texts for word in text.split()]
        return overriding([*found, f"max_steps={row.steps}"])

    def experiment(self, row: Row) -> str:
        """That trains a row. Raises UserError where none is named."""
        named = self.tree["experiment"] or self.schedule.experiment
        if row.origin is not None:
            named = self.tree["branch_experiment"] or self.schedule.branch_experiment or named
        if named is None:
            raise UserError(
                f"experiment: schedule {self.schedule.name} names none for row {row.name!r}; say what trains it"
            )
        return named

    # What could not train, or not draw together

    def check(self) -> list[str]:
        """Raises UserError naming the row for what could not train, or the ensemble for a gap; nothing is written.

        Returns the names of rows that have finished.
        """
        trees = {row.name: self._composed(row) for row in self.rows}
        first, base = self.schedule.rows[0], self.tree["base"]
        if base:
            if first.origin is not None:
                raise UserError(f"base={base}: takes the place of row {first.name!r}, which comes from another")
            branch_point(base)
            trees[first.name] = load_tree(self.run(first.name) / "config.yaml")
        intervals = {name: self._intervals(name, tree) for name, tree in trees.items()}
        for row in self.rows:
            if row.origin is not None:
                try:
                    check_branch(trees[row.name], trees[row.origin], str(self.run(row.origin)))
                except ValueError as error:
                    raise UserError(f"row {row.name!r}: {error}") from error
                self._tell_of_unseen(row, intervals)
        for ensemble, members in self.schedule.ensembles.items():
            try:
                check_cover(share([intervals[member] for member in members]))
            except ValueError as error:
                raise UserError(f"ensembles.{ensemble} of {members}: {error}") from error
        self._check_begun()
        return [row.name for row in self.rows if is_done(self.run(row.name), trees[row.name], f"row {row.name!r}")]

    def _check_begun(self) -> None:
        """Raises UserError for a row whose run has begun from fewer, or more, steps of its origin than others would."""
        first, base = self.schedule.rows[0].name, self.tree["base"]
        begun = [(row, self._begun_at(row)) for row in self.rows if row.origin is not None]
        steps: dict[str, int | None] = {row.name: row.steps for row in self.schedule.rows}
        if base:
            left = any(row.origin == first and at is None for row, at in begun)
            steps[first] = step_of(branch_point(base)) if left else None
        for row, at in begun:
            if at is not None and steps[row.origin] not in (None, at):
                raise UserError(
                    f"{self.run(row.name)}: began from step {at} of {row.origin!r}, and in this tree it comes from "
                    f"step {steps[row.origin]}; choose another name="
                )

    def _begun_at(self, row: Row) -> int | None:
        """The step of its origin that the run of a row began from; None where it has not begun."""
        run = self.run(row.name)
        parent = begun_from(read_lineage(run, "none"), run) if (run / LINEAGE).exists() else None
        return None if parent is None else step_of(parent)

    def is_finished(self, name: str) -> bool:
        """Whether the run of a row has done its steps; of one that is only taken, those that it was begun for."""
        steps = next((row.steps for row in self.rows if row.name == name), 0)
        return is_finished(self.run(name), steps)

    def _composed(self, row: Row) -> Tree:
        try:
            return compose("config", self.words(row))
        except ValueError as error:
            raise UserError(f"row {row.name!r}: {error}") from error

    def _intervals(self, name: str, tree: Tree) -> list[Interval]:
        """What of the noise a row is for; of one that is for nothing, or next to nothing, UserError."""
        parts = Parts(tree)
        try:
            noise, expert = parts["noise"], parts["expert"]
            if noise is None:
                raise UserError("no diffusion model, which has no noise to cut; choose another experiment=")
            if expert is None:
                return WHOLE
            expert.restrict(noise)
            return expert.intervals(noise)
        except ValueError as error:
            raise UserError(f"row {name!r}: {error}") from error

    @staticmethod
    def _tell_of_unseen(row: Row, intervals: Mapping[str, list[Interval]]) -> None:
        """Say it where a row is for noise that its origin was not trained on: it need not be meant."""
        left = intervals[row.name]
        for seen in intervals[row.origin]:
            left = subtract(left, seen)
        if left:
            where = ", ".join(f"[{lo:.6g}, {hi:.6g})" for lo, hi in left)
            print(f"row {row.name!r}: {row.origin!r}, which it comes from, was not trained on sigma {where}")


def is_finished(run: Path, steps: int = 0) -> bool:
    """Whether a run has done the steps that it was begun for, and `steps` at least."""
    path = run / LINEAGE
    return path.exists() and read_json(path).get("finished_step", -1) >= steps


def is_done(run: Path, tree: Tree, asked: str) -> bool:
    """Whether the training of a `tree` into `run` has finished. Raises UserError for a run of other keys, or of more
    steps than are `asked` for by what it names, in its place.
    """
    if not (run / "config.yaml").exists():
        return False
    found = open_run(with_begun_fields(settle_precision(inherit(tree, run.name), run.name), run.name), run.name)
    steps = found.lineage.get("finished_step", 0)
    if steps > tree["max_steps"]:
        raise UserError(f"{run}: has {steps} steps, and {asked} asks for {tree['max_steps']}; choose another name=")
    return found.finished


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint, by its name."""
    return int(checkpoint.stem.removeprefix("step_"))


def _cuts(row: Row) -> list[str]:
    """The words of train.py that say which part of the noise a row is for."""
    found = [f"expert={row.within}"] if row.cuts else []
    for key in ("node", "interval", "exclude"):
        value = getattr(row, key)
        if value:
            found.append(f"expert.{key}={_word(value)}")
    return found


def _word(value: Any) -> str:
    """A value as Hydra reads it."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_word(own)}" for key, own in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_word, value)) + "]"
    return "null" if value is None else repr(value)
