"""How good what a run makes is while it trains: metrics of the averaged weights every few steps, on all ranks."""

import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.seed import isolate_rng

from ldm.data.module import ShardData
from ldm.errors import UserError
from ldm.measuring import FEWEST, Ranks, Row, Stopped
from ldm.metrics.directions import larger_is_better
from ldm.metrics.networks import MetricNetworks
from ldm.ranks import is_rank_zero
from ldm.training.callbacks.group import members
from ldm.training.callbacks.signals import StopOnSignal
from ldm.training.callbacks.watchdog import Watchdog
from ldm.training.distributed import broadcast, gather_objects, max_over_ranks, together
from ldm.training.judged import Asked, Company, Judged
from ldm.training.loggers import summarise
from ldm.training.quality_page import is_metric, log_quality
from ldm.training.task import Task

log = logging.getLogger(__name__)


class Quality(pl.Callback):
    """Every `every_steps` steps (null: never) log ``quality/METRIC/BACKBONE`` of what the task makes (`Task.judged`).

    `num_samples` images, from the same conditions and noise each time, are compared with `num_reference` training
    images (null: all); a rank makes `batch_size` at once. `scales` are those of guidance, null being the run's own.
    Where all measurements together would take more than `max_share` of the run's time, points are skipped: after each
    it is settled which one is the next. One that a signal stops is made when the run goes on. `keep_networks` lets the
    metrics' networks wait in the CPU's memory between two points; else they are loaded anew. `ensemble` is the manifest
    of others that an expert draws with, in the place of its parents; `residency` says where these are meanwhile: all on
    the device (null), ``one`` or ``disk``. The training goes on bit for bit as if nothing had been measured.
    """

    def __init__(
        self,
        data: ShardData,
        seed: int,
        metric_networks: MetricNetworks,
        company: Callable[[str | None, str | None], Company | None],
        samples_before: int,
        every_steps: int | None = 5000,
        num_samples: int = 256,
        num_reference: int | None = 2048,
        batch_size: int = 32,
        scales: list[float] | None = None,
        max_share: float = 0.1,
        keep_networks: bool = True,
        ensemble: str | None = None,
        residency: str | None = None,
    ):
        given = {"every_steps": (every_steps, 1), "batch_size": (batch_size, 1)}
        given |= {"num_samples": (num_samples, FEWEST), "num_reference": (num_reference, FEWEST)}
        for name, (value, fewest) in given.items():
            if value is not None and value < fewest:
                why = ": precision asks for the third neighbour" if fewest == FEWEST else ""
                raise UserError(f"callback.quality.{name}={value}: must be at least {fewest}{why}")
        if not 0 < max_share <= 1:
            raise UserError(f"callback.quality.max_share={max_share}: a share of the time, above 0 and at most 1")
        if scales is not None and (not scales or len(set(scales)) < len(scales)):
            raise UserError(
                f"callback.quality.scales={scales}: one or more different scales, or null for the run's own"
            )
        self.every_steps = every_steps
        self.max_share = max_share
        self.asked = Asked(
            data, metric_networks, seed, num_samples, num_reference, batch_size,
            None if scales is None else tuple(scales), keep_networks,
        )  # fmt: skip
        self.company, self.ensemble, self.residency = company, ensemble, residency
        self.samples_before = samples_before
        self.skip_until = 0  # points of earlier steps are skipped
        self.best: dict[str, float] = {}  # of each metric so far
        self.pending_step = -1  # of a point that a signal stopped, and that is made when the run goes on
        self._judged: Judged | None = None
        self._prepared = False

    def check(self, task: Task) -> None:
        """Raises UserError for what cannot be measured though it was asked for; says what is left out."""
        if self.every_steps is None or self.every_steps > task.max_steps:
            return
        self._judged = task.judged(replace(self.asked, company=self.company(self.ensemble, self.residency)))
        lacks = None if self._judged is None else self._judged.lacks()
        if lacks:
            self._judged = None
        if lacks and is_rank_zero():
            log.warning("callback.quality measures nothing: %s", lacks)
        task.quality = self if self._judged else None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the metrics that are logged, without those of time; networks are loaded for it."""
        return () if self._judged is None else tuple(f"quality/{name}" for name in self._judged.names)

    def on_train_start(self, trainer: pl.Trainer, task: Task) -> None:
        if self.every_steps is not None and trainer.world_size > 1:
            self._check_same()
        if self._judged is None:
            return
        asked, there = self.asked.num_samples, self._judged.num_images
        if trainer.world_size > there:
            few = "" if there == asked else f", of which there are {there}"
            raise UserError(
                f"callback.quality.num_samples={asked}{few}: at least one for each of the {trainer.world_size} ranks"
            )
        if task.step == self.pending_step:
            self.measure(trainer, task)

    def _check_same(self) -> None:
        """Raises UserError on all ranks if they would not measure the same: each has looked for weights by itself."""
        with together():
            own = self.names
        every = gather_objects(own)
        others = [rank for rank, names in enumerate(every) if names != every[0]]
        if others:
            unlike = sorted(set(every[0]) ^ set(every[others[0]]))
            raise UserError(
                f"callback.quality: rank{'s' * (len(others) > 1)} {', '.join(map(str, others))} would not measure what "
                f"rank 0 does ({', '.join(unlike)}): fetch the same weights on all nodes (python "
                "scripts/fetch_pretrained.py), or set callback.quality.every_steps=null"
            )

    def on_train_batch_end(self, trainer: pl.Trainer, task: Task, *_: Any) -> None:
        if self._judged is None or not task.stepped or task.step % self.every_steps:
            return
        if task.step >= self.skip_until:
            self.measure(trainer, task)
        elif trainer.is_global_zero:
            print(
                f"step {task.step}: quality is not measured, it would take more than callback.quality.max_share="
                f"{self.max_share:g} of the time; the next point is step {self.skip_until}",
                flush=True,
            )

    def measure(self, trainer: pl.Trainer, task: Task) -> None:
        """Measure the averaged weights as they are now, and log it; a signal on any rank ends it without a row."""
        began = time.monotonic()
        ranks = _ranks(trainer, task)
        devices = [task.device] if task.device.type == "cuda" else []
        row = None
        with isolate_rng(include_cuda=False), torch.random.fork_rng(devices), task.averaged(), suppress(Stopped):
            if not self._prepared:
                self._judged.prepare(ranks)
                self._prepared = True
            prepared = time.monotonic()
            row = self._judged.measure(ranks)
        if row is None:
            self._stop(trainer, task)
            return
        now = time.monotonic()
        task.measuring_seconds += now - began
        task.measured_step, self.pending_step = task.step, -1
        self.skip_until = broadcast(self._next(task, now - prepared))
        if trainer.is_global_zero:
            self._log(trainer, task, row, now - began)

    def _stop(self, trainer: pl.Trainer, task: Task) -> None:
        """End the run at this step, whose point is made when it goes on."""
        self.pending_step = task.step
        for callback in members(trainer):
            if isinstance(callback, StopOnSignal):
                callback.received = max_over_ranks(callback.received, task.device)
        trainer.should_stop = True
        if trainer.is_global_zero:
            print(f"step {task.step}: its quality is measured when the run goes on, it was asked to stop", flush=True)

    def _next(self, task: Task, cost: float) -> int:
        """The step before which no point is due, given the seconds that one takes; 0 if none has to be skipped."""
        total, spent = task.clock()["seconds"], task.measuring_seconds
        between = self.every_steps * max(total - spent, 1e-9) / max(task.step, 1)  # seconds from point to point
        points = math.ceil(((spent + cost) / self.max_share - cost - total) / between)
        return task.step + points * self.every_steps if points > 1 else 0

    def _log(self, trainer: pl.Trainer, task: Task, row: Row, seconds: float) -> None:
        clock = task.clock()
        times = {"seconds": seconds, "share": task.measuring_seconds / max(clock["seconds"], 1e-9)}
        places = {
            "samples_seen": self.samples_before + task.step * trainer.datamodule.batch_size,  # type: ignore[attr-defined]  # Lightning sets it
            "device_hours": clock["device_hours"],
        }
        task.measured = _named(row)
        log_quality(trainer.loggers, {**task.measured, **_named(times), **_named(places)}, task.step)
        for name, value in task.measured.items():
            if is_metric(name) and not math.isnan(value):
                self.best[name] = (max if larger_is_better(name) else min)(value, self.best.get(name, value))
        summarise(trainer.loggers, {f"best/{name}": value for name, value in self.best.items()})

    def state_dict(self) -> dict[str, Any]:
        if self._judged is None:
            return {}
        return {"skip_until": self.skip_until, "pending_step": self.pending_step, "best": dict(self.best)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skip_until, self.pending_step = state_dict["skip_until"], state_dict["pending_step"]
        self.best = dict(state_dict["best"])


def _named(values: Row) -> Row:
    return {f"quality/{name}": value for name, value in values.items()}


def _ranks(trainer: pl.Trainer, task: Task) -> Ranks:
    """This rank, which tells the watchdog of each batch, and stops where a signal asks the run to before its end."""
    dogs = [callback for callback in members(trainer) if isinstance(callback, Watchdog)]
    stops = [callback for callback in members(trainer) if isinstance(callback, StopOnSignal)]
    ends = task.step >= task.max_steps  # a run that has trained to its end does not go on later

    def advance(count: int) -> None:
        for dog in dogs:
            dog.alive()

    def stopped() -> bool:
        return not ends and any(callback.received for callback in stops)

    return Ranks(task.device, trainer.global_rank, trainer.world_size, advance, stopped)
