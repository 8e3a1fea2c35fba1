"""Save and restore a run: what is written when, and how a fit begins where the run stands."""

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from ldm.checkpoint import base, resume, weights
from ldm.checkpoint import rows as shards
from ldm.checkpoint.finite import not_finite
from ldm.errors import UserError
from ldm.metrics.directions import larger_is_better
from ldm.training.background import Writer, copied
from ldm.training.callbacks.group import members
from ldm.training.distributed import broadcast, gather_objects, together
from ldm.training.loggers import CSVLog
from ldm.training.task import Task

log = logging.getLogger(__name__)
State = dict[str, Any]


class Checkpoint(pl.Callback):
    """A checkpoint and weights every `every_steps` steps and at the end.

    Of the checkpoints the newest `keep` stay, of the weights the newest `keep_weights`; with `keep_every_steps` and
    `keep_weights_every_steps` those of every so many steps too, and with `best` the weights whose held-out value of
    that name (``loss``) is the smallest, or whose metric (``quality/kid/...``) is the best. Snapshots of averages that
    are to be combined afterwards all stay.
    `background` writes while the training goes on, from a copy in the CPU's memory; null does so on GPUs. An error is
    raised at the next checkpoint. Snapshots, and the rows of a sharded run's ranks, are written at once.
    """

    comes_last = True  # after all callbacks whose state and log entries of this step a checkpoint includes

    def __init__(
        self,
        folder: Path,
        every_steps: int = 1000,
        keep: int = 2,
        keep_weights: int = 2,
        keep_every_steps: int | None = None,
        keep_weights_every_steps: int | None = None,
        best: str | None = None,
        background: bool | None = None,
    ):
        given = {"every_steps": every_steps, "keep": keep, "keep_weights": keep_weights}
        given |= {"keep_every_steps": keep_every_steps, "keep_weights_every_steps": keep_weights_every_steps}
        for name, value in given.items():
            if value is not None and value < 1:
                raise UserError(f"callback.checkpoint.{name}={value}: must be at least 1")
        for name in ("keep_every_steps", "keep_weights_every_steps"):
            value = given[name]
            if value is not None and value % every_steps and every_steps % value:
                raise UserError(
                    f"callback.checkpoint.{name}={value}: must be a multiple of callback.checkpoint.every_steps="
                    f"{every_steps}, or divide it; of other steps nothing is saved that could stay"
                )
        self.folder = folder
        self.every_steps = every_steps
        self.keep = keep
        self.keep_weights = keep_weights
        self.keep_every_steps = keep_every_steps
        self.keep_weights_every_steps = keep_weights_every_steps
        self.best = best
        self.background = background
        self.saved_step = -1
        self.before_writing: Callable[[], None] = nothing  # may raise a ValueError: then nothing is written
        self._known: dict[str, float] = {}  # of the step that is saved: its held-out values from before the run went on
        self._writer = Writer()

    def check(self, task: Task) -> None:
        """Raises UserError if there will be no value of the name of `best`, or none where weights are saved."""
        if not self.best or self.best in task.held_out:
            return  # ldm.checks looks at held-out values
        names = task.quality.names if task.quality else ()
        if self.best not in names:
            without = "" if task.quality else " (callback.quality measures nothing)"
            known = ", ".join((*task.held_out, *names))
            raise UserError(f"callback.checkpoint.best={self.best}: choose one of {known}{without}")
        every = task.quality.every_steps
        if every % self.every_steps:
            raise UserError(
                f"callback.quality.every_steps={every}: for callback.checkpoint.best={self.best} it must be a multiple "
                f"of callback.checkpoint.every_steps={self.every_steps}, so that the weights measured are saved"
            )

    def on_train_batch_end(self, trainer: pl.Trainer, task: Task, *_: Any) -> None:
        if not task.stepped:
            return
        if task.ema and task.ema.snapshot_every_steps and task.step % task.ema.snapshot_every_steps == 0:
            self.snapshot(trainer, task)
        if task.step % self.every_steps == 0:
            self.save(trainer, task)

    def on_train_start(self, trainer: pl.Trainer, task: Task) -> None:
        if task.measured_step == task.step:  # only now: its weights are saved with what was measured
            with together():
                known = weights.validation(self.folder / "weights", task.step) if trainer.is_global_zero else {}
            self._known = known
            self.save(trainer, task)
            self._known = {}
        inherited = task.step == 0 and task.ema and task.ema.num_updates
        if inherited and task.ema.snapshot_every_steps:  # what the parent's training adds to the averages
            self.snapshot(trainer, task)

    def on_train_end(self, trainer: pl.Trainer, task: Task) -> None:
        self.save(trainer, task)
        with together():
            self._writer.finish()

    def on_exception(self, trainer: pl.Trainer, task: Task, exception: BaseException) -> None:
        try:
            self._writer.finish()
        except Exception as error:
            log.error("the last checkpoint was not written: %s", error)

    def save(self, trainer: pl.Trainer, task: Task) -> None:
        """Write checkpoint and weights of this step, once; a model with a non-finite number is never saved."""
        if task.step == self.saved_step:
            return
        self.saved_step = task.step
        with together():
            if trainer.is_global_zero and task.frozen and task.base_digest is None:
                self.before_writing()
                task.base_digest = base.save(self.folder / "weights", task.base())
        callbacks = {callback.state_key: callback.state_dict() for callback in members(trainer)}
        state = {**task.resume_state(), "callbacks": {key: value for key, value in callbacks.items() if value}}
        with together():  # so that no rank waits for one that raised, or writes before rank zero has removed leftovers
            self._writer.finish()
            check_finite(state, task.step)
        for logger in trainer.loggers:
            logger.save()
        states = shards.whole(task.weights(), keep=trainer.is_global_zero)
        state, digests = self._rows_apart(trainer, task, state) if task.sharded else (state, [])
        with together():
            if trainer.is_global_zero:
                self._save(trainer, task, state, states, digests)

    def _save(
        self, trainer: pl.Trainer, task: Task, state: State, states: dict[str, State], digests: list[str]
    ) -> None:
        """Rank zero's part: all but the other ranks' rows."""
        counters = {"step": task.step, "samples_seen": task.step * trainer.datamodule.batch_size, **task.clock()}  # type: ignore[attr-defined]  # Lightning sets it
        facts = {**counters, **task.describe(), **(task.ema.describe() if task.ema else {})}
        facts |= {"base": task.base_digest} if task.frozen else {}
        facts["validation"] = {
            **self._known,
            **(task.validated if task.validated_step == task.step else {}),
            **(task.measured if task.measured_step == task.step else {}),
        }
        background = task.device.type == "cuda" if self.background is None else self.background
        if background:
            state, states = (copied(state), states) if task.sharded else copied((state, states))
            self._writer.start(partial(self._write, task.step, state, states, counters, facts, digests))
        else:
            self._write(task.step, state, states, counters, facts, digests)

    def _write(
        self, step: int, state: State, states: dict[str, State], counters: State, facts: State, digests: list[str]
    ) -> None:
        self.before_writing()
        # the checkpoint comes last: a run killed between the two repeats this step, and writes both again
        weights.save(self.folder / "weights", step, states, facts)
        resume.save(self.folder / "checkpoints", step, {**state, "counters": counters}, counters, digests)
        resume.retain(self.folder / "checkpoints", self.keep, self.keep_every_steps)
        weights.retain(self.folder / "weights", self.keep_weights, self.keep_weights_every_steps, *self._best)

    @property
    def _best(self) -> tuple[str | None, bool]:
        """The name of what the best weights are the best by, and whether that is the largest."""
        return self.best, self.best is not None and larger_is_better(self.best)

    def _rows_apart(self, trainer: pl.Trainer, task: Task, state: State) -> tuple[State, list[str]]:
        """The state without sharded tensors, whose rows are written here, and the digest of each rank's."""
        state, rows = shards.split(state)
        with together():
            place = (self.folder / "checkpoints", task.step, trainer.global_rank, trainer.world_size)
            digest = resume.save_rows(*place, rows)
        return state, gather_objects(digest)

    def snapshot(self, trainer: pl.Trainer, task: Task) -> None:
        """Keep the averages of this step."""
        averages = shards.whole(task.ema.averages(), keep=trainer.is_global_zero)
        if trainer.is_global_zero:
            weights.save(self.folder / "snapshots", task.step, averages, task.ema.describe())


def check_finite(state: dict[str, Any], step: int) -> None:
    """Raises ValueError naming the first tensor with a NaN or infinity."""
    name = not_finite(state)
    if name is not None:
        raise UserError(
            f"step {step}: {name} is not finite; the checkpoints before it are intact (lower optimizer.lr?)"
        )


def nothing() -> None:
    """The default of what is called before writing: do nothing."""


class Restore(pl.Callback):
    """A fit resumes from the run's newest whole checkpoint, else starts from its branch point, else from step 0.

    `folder` is the run's; with `anew` its checkpoints are of an old run, which `begin` deletes: it is called on rank
    zero once all that it starts from has been read. `read` names what each rank has read by itself.
    """

    def __init__(
        self,
        folder: Path,
        csv: CSVLog,
        branch: Path | None,
        keep_optimizer: bool,
        averaged: bool = False,
        begin: Callable[[], None] = nothing,
        anew: bool = False,
        read: str | None = None,
    ):
        self.folder = folder
        self.csv = csv
        self.branch = branch
        self.keep_optimizer = keep_optimizer
        self.averaged = averaged
        self.begin = begin
        self.anew = anew
        self.read = read

    def on_fit_start(self, trainer: pl.Trainer, task: Task) -> None:
        if len(set(gather_objects(self.read))) > 1:
            raise UserError("first_stage: its weights changed while the ranks started; start the same command again")
        found = None
        with together():
            if trainer.is_global_zero and not self.anew:
                found = resume.newest(self.folder / "checkpoints")
        found, branch = broadcast((found, self.branch))
        if found:
            self._resume(trainer, task, found)
        elif branch:
            self._branch(trainer, task, branch)
        with together():
            if trainer.is_global_zero:
                self.begin()
        task.started = time.monotonic()
        trainer.datamodule.start(task.step * trainer.datamodule.batch_size)  # type: ignore[attr-defined]  # Lightning sets it
        self.csv.rewind(task.step)

    def _resume(self, trainer: pl.Trainer, task: Task, found: Path) -> None:
        state = resume.load_checked(found, lazy=task.sharded)
        task.load_resume_state(state, str(found))
        task.seconds_before = state["counters"]["seconds"]
        task.hours_before = state["counters"]["device_hours"]
        task.measuring_seconds = state["counters"].get("measuring_seconds", 0.0)
        for callback in members(trainer):
            if callback.state_key in state["callbacks"]:
                callback.load_state_dict(state["callbacks"][callback.state_key])
        # killed after its last step's checkpoint, a run has nothing left to train but still has to be concluded
        trainer.should_stop = task.step >= task.max_steps

    def _branch(self, trainer: pl.Trainer, task: Task, branch: Path) -> None:
        with together():
            if not task.sharded:
                state = resume.load(branch)
            elif trainer.is_global_zero:
                resume.check(branch)
        if task.sharded:
            state = resume.load_checked(branch, lazy=True)
        task.branch_from(state, str(branch), self.keep_optimizer, self.averaged)
