"""What every kind of run has in common: own counters, one optimizer, EMA, its state for resuming and for use.

Lightning counts batches and optimizer calls; here ``step`` counts optimizer steps and ``step * batch_size`` samples,
and everything is scheduled, logged and saved by them.
"""

import hashlib
import logging
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn

from ldm.charts import Curve
from ldm.checkpoint.weights import load_strict
from ldm.conditioners.classes import OutOfRange
from ldm.errors import UserError
from ldm.networks.lora import adapted_layers, with_adapters
from ldm.ranks import is_rank_zero
from ldm.training.ema import Averages
from ldm.training.guard import Guard
from ldm.training.judged import Asked, Judged, Measuring
from ldm.training.optim import LRSchedule, go_on_from, load_state
from ldm.training.sharded import FullySharded, check_shardable
from ldm.training.stopwatch import Stopwatch

log = logging.getLogger(__name__)

Batch = dict[str, Any]
# Parts of a step, one after the other: waiting for data, first stage and conditions, losses, gradients, clipping with
# step and average, and what callbacks do.
PHASES = ("data", "encode", "forward", "backward", "optimizer", "callbacks")


class Task(pl.LightningModule):
    """Abstract run. A subclass gives the losses; `model` is what saved weights, EMA and branching cover.

    `trained` holds everything the optimizer moves (the model, and what only training needs, as a discriminator). `kind`
    says what a run yields, by which it is loaded (ldm.loading) and, of one that serves others, given to them.
    """

    kind: str

    def __init__(
        self,
        *,
        model: nn.Module,
        trained: nn.Module,
        optimizer: Callable,
        lr: LRSchedule,
        ema: partial | None,
        max_steps: int,
        seed: int,
        guard: partial | None = None,
    ):
        super().__init__()
        self.model = model
        self.trained = trained
        self.frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        self.base_digest: str | None = None  # of the file with them, once it is written (checkpoint/base.py)
        self.make_optimizer = optimizer
        self.lr_factor = lr
        self.ema: Averages | None = ema(model) if ema else None
        self.guard = guard(trained) if guard else Guard(trained)
        self.stopwatch = Stopwatch()
        self._moved: list[nn.Parameter] = []
        self.max_steps = max_steps
        self.seed = seed
        self.step = 0  # optimizer steps done, along all resumes
        self.stepped = False  # whether the current micro-batch ended an optimizer step
        self.seconds_before = 0.0  # wall time of this run before the last resume
        self.hours_before = 0.0  # that times the devices there were, in hours
        self.started = 0.0
        self.logs: dict[str, Tensor] = {}  # named values of the last micro-batch, on the device
        self.latest: dict[str, float] = {}  # what was last written to the log
        self.validated: dict[str, float] = {}  # held-out means at `validated_step`
        self.validated_step = -1
        self.quality: Measuring | None = None  # callback.quality, where it measures this run
        self.measured: dict[str, float] = {}  # what it logged at `measured_step`
        self.measured_step = -1
        self.measuring_seconds = 0.0  # what that took, along all resumes

    # What a subclass gives

    @abstractmethod
    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Loss of one micro-batch, a scalar; named values for the log go to `self.logs`."""

    @abstractmethod
    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """Values per sample, name -> [B], of a held-out batch; the same draws every time."""

    @property
    @abstractmethod
    def held_out(self) -> tuple[str, ...]:
        """The names that `validate` gives."""

    @abstractmethod
    def panels(self, batch: Batch) -> dict[str, Tensor]:
        """Pictures of a held-out batch, name -> image grid [3, H, W] in [-1, 1]."""

    @abstractmethod
    def curves(self) -> dict[str, Curve]:
        """Curves over the noise that the training has learned so far, by name."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What the model was made with and for; it goes into every checkpoint and beside all weights."""

    @abstractmethod
    def accept(self, description: dict[str, Any]) -> None:
        """Raises ValueError if a model with this `description` cannot be resumed, or branched from, here."""

    @abstractmethod
    def conclude(self, batches: Iterable[Batch]) -> dict[str, Any]:
        """What a finished run adds to the metadata of its weights, from one pass over the training data."""

    # What a subclass may give

    def judged(self, asked: Asked) -> Judged | None:
        """What callback.quality measures of this run, and by what is `asked`; None for nothing."""
        return None

    # What Lightning asks

    def log(self, name: str, *_: Any, **__: Any) -> None:
        """Refused: Lightning would log at its own count of batches, which restarts at every resume."""
        raise UserError(
            f"log({name!r}): Lightning counts other steps than the run; put it into task.logs[{name!r}], a tensor "
            "without dimensions, which callback.metrics logs as train/... (of a callback that says comes_first = True)"
        )

    def log_dict(self, dictionary: Any, *_: Any, **__: Any) -> None:
        """Refused like `log`."""
        self.log(next(iter(dictionary), ""))

    def setup(self, stage: str) -> None:
        strategy = self.trainer.strategy
        if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy):
            raise UserError(f"trainer.strategy={type(strategy).__name__}: take ddp, or fsdp to shard the weights")
        if self.sharded and self.frozen:
            raise UserError("trainer.strategy: fsdp shards weights that are all trained; with adapter= take ddp")
        if self.sharded:
            check_shardable(self.model, self.trainer.precision)  # type: ignore[arg-type]  # what is sharded is a ModuleDict

    @property
    def sharded(self) -> bool:
        """Whether each rank holds rows of the weights only; then all ranks have to compute together."""
        return isinstance(self.trainer.strategy, FullySharded)

    def on_sharded(self) -> None:
        """To be called after sharding: the trained weights are new tensors, rows of the former ones."""
        if self.ema:
            self.ema.follow()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.guard.spike_ratio and self.trainer.precision == "16-mixed":
            raise UserError("guard=spikes with trainer.precision=16-mixed: its gradients are scaled; take bf16-mixed")
        optimizer = self.make_optimizer(self.trained)
        self._moved = list(self.trained.parameters())  # walking through the modules takes a millisecond a step
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
        return optimizer

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * self.lr_factor(self.step)
        if self.ema:
            self.ema.join()

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: Any = None,
    ) -> None:
        """Clip by the norm over all that is trained; Lightning's own clipping refuses fused optimizers.

        A step whose norm is not finite is skipped: in fp16 by the gradient scaler, else by the guard.
        """
        scaled = self.trainer.precision == "16-mixed" and optimizer.defaults["fused"]  # the kernel itself unscales
        if scaled and gradient_clip_val:
            raise UserError("trainer.gradient_clip_val with trainer.precision=16-mixed needs optimizer.fused=false")
        if scaled:
            return
        parameters = [parameter for parameter in self._moved if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters], foreach=True)
        if self.sharded:
            norm = norm.full_tensor()  # type: ignore[attr-defined]  # a DTensor
        if gradient_clip_val:
            torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm, foreach=True)
        if self.trainer.precision != "16-mixed":
            self.guard.judge(norm, optimizer)
        self.logs["gradient_norm"] = norm.detach()

    def on_train_start(self) -> None:
        self.stopwatch.start(self.device)

    def on_train_batch_start(self, batch: Batch, batch_index: int) -> None:
        self.stopwatch.lap("data")
        self.stepped = False
        # Draws inside layers (dropout) are the only ones not addressed by sample: a resumed run must repeat them too.
        part = batch_index % self.trainer.accumulate_grad_batches
        address = f"{self.seed}/layers/{self.step}/{part}/{self.global_rank}"
        seed = int.from_bytes(hashlib.sha256(address.encode()).digest()[:4], "little")
        torch.default_generator.manual_seed(seed)  # torch.manual_seed costs 1.5 ms where CUDA is not in use
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def on_before_backward(self, loss: Tensor) -> None:
        self.stopwatch.lap("forward")

    def on_after_backward(self) -> None:
        self.stopwatch.lap("backward")

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_index: int) -> None:
        self.stopwatch.lap("callbacks")

    def optimizer_step(self, *arguments: Any, **named: Any) -> None:
        super().optimizer_step(*arguments, **named)
        self.guard.settle()
        self.stepped = True
        self.step += 1
        if self.ema:
            self.ema.update(beside=True)
        self.stopwatch.lap("optimizer")
        if self.step >= self.max_steps:
            self.trainer.should_stop = True

    @contextmanager
    def samples_named(self, batch: Batch, held_out: bool = False) -> Iterator[None]:
        """In errors about a value out of range, name the shard and key of its sample."""
        try:
            yield
        except OutOfRange as error:
            where = self.trainer.datamodule.place(int(batch["index"][error.place]), held_out)  # type: ignore[attr-defined]  # Lightning sets it
            raise UserError(f"{where}: {error}") from error

    # State

    def clock(self) -> dict[str, float]:
        """Wall seconds spent training, their product with the number of devices at the time, and those of them spent on
        measuring quality, along all resumes.
        """
        passed = time.monotonic() - self.started
        hours = self.hours_before + passed * self.trainer.world_size / 3600
        seconds = self.seconds_before + passed
        return {"seconds": seconds, "device_hours": hours, "measuring_seconds": self.measuring_seconds}

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Evaluation mode with the averaged weights, where there is an average, in the run's precision."""
        training = [module for module in self.modules() if module.training]  # a frozen part never is
        self.eval()
        precision = self.trainer.precision_plugin.forward_context()
        with self.ema.swapped() if self.ema else nullcontext(), precision, torch.no_grad():
            yield
        for module in training:
            module.training = True

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """Weights for use: ``raw`` and, with EMA, ``ema`` and the kinds beside it; without those that are frozen."""
        found = {"raw": self.model.state_dict()} | (self.ema.weights() if self.ema else {})
        return {kind: self._moving(state) for kind, state in found.items()}

    def base(self) -> dict[str, Tensor]:
        """The frozen weights; {} where all are trained."""
        return {name: tensor for name, tensor in self.model.state_dict().items() if name in self.frozen}

    def _moving(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in state.items() if name not in self.frozen}

    def resume_state(self) -> dict[str, Any]:
        """All that a resumed run needs besides its configuration."""
        return {
            "step": self.step,
            "about": self.describe(),
            "trained": self._moving(self.trained.state_dict()),
            "ema": self.ema.state_dict() if self.ema else None,
            "optimizer": self.trainer.optimizers[0].state_dict(),
            "guard": self.guard.state_dict(),
            **({"base": self.base_digest} if self.frozen else {}),
        }

    def load_resume_state(self, state: dict[str, Any], source: str) -> None:
        """Continue from `state`. Raises ValueError naming what does not fit."""
        self.accept(state["about"])
        if state["optimizer"] is None:
            raise UserError(f"{source}: imported, it cannot be resumed; start a run from it with branch=")
        load_strict(self.trained, state["trained"], source)
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        load_state(self.trainer.optimizers[0], state["optimizer"])
        self.guard.load_state_dict(state["guard"])
        self.base_digest = state.get("base")
        self.step = state["step"]

    def branch_from(self, state: dict[str, Any], source: str, keep_optimizer: bool, averaged: bool = False) -> None:
        """Start from another run's model: weights, EMA (from the weights where it has none), its optimizer if asked.

        A part that only training needs (a discriminator) starts fresh where the parent has none of it, as an imported
        model, and is dropped where this run has none. What is frozen here, and all if `averaged`, is the parent's
        average, as it is sampled, and adapters that the parent lacks start fresh, as does an average that goes with a
        fresh optimizer's steps.
        """
        self.accept(state["about"])
        if averaged and not state["ema"]:
            raise UserError(f"branch_weights=ema: {source} has no average; leave it out")
        own = self.trained.state_dict()
        averages = with_adapters((state["ema"] or {}).get("averages", {}), own) if self.frozen or averaged else {}
        averages = {name: tensor for name, tensor in averages.items() if averaged or name in self.frozen}
        parents = with_adapters(state["trained"], own) | averages
        parts = {name for name, _ in self.trained.named_children()}
        fresh = parts - {name for name, _ in self.model.named_children()} - {_part(name) for name in parents}
        taken = {name: tensor for name, tensor in parents.items() if _part(name) in parts}
        load_strict(self.trained, taken | {n: t for n, t in own.items() if _part(n) in fresh}, source)
        adapted = bool(adapted_layers(own)) and not adapted_layers(state["trained"])  # the parent averaged other things
        if self.ema and state["ema"] and not adapted and (keep_optimizer or self.ema.of is None):
            self.ema.start_from(state["ema"])
        elif self.ema:
            self.ema.follow()
        if keep_optimizer:
            if state["optimizer"] is None:
                raise UserError(f"branch_optimizer=keep: {source} is imported and has no optimizer's state")
            try:
                go_on_from(self.trainer.optimizers[0], state["optimizer"])
            except ValueError as error:
                raise UserError(f"branch_optimizer=keep: {source}: {error}; use fresh") from error
            if self.ema and not self.ema.follows(self.trainer.optimizers[0]) and is_rank_zero():
                log.warning(
                    "branch_optimizer=keep: the parent's steps had other rates; ema=schedule_free goes on as if they "
                    "had had this run's, so that the average is not quite that of the optimizer"
                )


def _part(name: str) -> str:
    """The part of what is trained that a tensor's name belongs to."""
    return name.partition(".")[0]
