"""The first steps of a run, done for real and thrown away: what they compute, cost and need in memory."""

import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ldm.training import flops
from ldm.training.task import Task

NUM_STEPS = 2  # the first includes one-time costs
STAGES = ("encoder", "decoder", "network", "discriminator")  # modules whose inputs and outputs are shown, by their name


@dataclass
class Trial:
    """What was found; sizes in bytes."""

    losses: list[float] = field(default_factory=list)
    gradient_norm: float = 0.0
    seconds: float = 0.0  # of the last step
    flop: float = 0.0  # of forward and backward on one sample
    memory: dict[str, int] = field(default_factory=dict)  # by part; the last is all that a step makes
    checkpoint: int = 0
    weights: int = 0  # one set of weights files
    trained: int = 0  # the weights that the optimizer moves
    parameters: dict[str, tuple[int, int]] = field(default_factory=dict)  # part -> (trained, frozen)
    shapes: dict[str, str] = field(default_factory=dict)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are made within it: `peak` is the most that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._counted: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            address = storage._cdata
            if address not in given and address not in self._counted:
                self._counted.add(address)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._freed, address, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _freed(self, address: int, num_bytes: int) -> None:
        self._counted.discard(address)
        self.now -= num_bytes


def _tensors(nested: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(nested) if isinstance(leaf, Tensor)]


Parent = tuple[dict[str, Any], str]


def try_steps(make_trainer: Callable, task: Task, data: pl.LightningDataModule, parent: Parent | None) -> Trial:
    """Train `NUM_STEPS` steps from the start, or from `parent` (a checkpoint's state and its name)."""
    look = _Look(parent)
    trainer = make_trainer(callbacks=[look], logger=False)
    trainer.fit(task, datamodule=data)
    return look.trial


class _Look(pl.Callback):
    def __init__(self, parent: Parent | None):
        self.parent = parent
        self.trial = Trial()
        self._live = LiveBytes()
        self._began = 0.0

    def on_fit_start(self, trainer: pl.Trainer, task: Task) -> None:
        if self.parent:
            task.branch_from(*self.parent, keep_optimizer=False)
        task.started = time.monotonic()
        trainer.datamodule.start(0)  # type: ignore[attr-defined]  # Lightning sets it

    def on_train_start(self, trainer: pl.Trainer, task: Task) -> None:
        for name, part in task.named_children():
            if name not in ("model", "trained"):  # these hold the other parts once more
                sizes = [0, 0]
                for parameter in part.parameters():
                    sizes[not parameter.requires_grad] += parameter.numel()
                self.trial.parameters[name] = (sizes[0], sizes[1])
        for name, module in task.named_modules():
            if name.rpartition(".")[2] in STAGES:
                module.register_forward_hook(self._shapes_of(name.rpartition(".")[2]), with_kwargs=True)

    def on_train_batch_start(self, trainer: pl.Trainer, task: Task, batch: dict[str, Any], batch_index: int) -> None:
        if "image" in batch:
            self.trial.shapes.setdefault("image", _shape(batch["image"]))
        if not self.trial.flop:
            self.trial.flop = flops.count(task, batch) / trainer.datamodule.batch_size  # type: ignore[attr-defined]
        self._began = time.monotonic()
        if task.device.type == "cuda":
            torch.cuda.synchronize(task.device)
            torch.cuda.reset_peak_memory_stats(task.device)
        else:
            self._live = LiveBytes()
            self._live.__enter__()

    def on_train_batch_end(self, trainer: pl.Trainer, task: Task, *_: Any) -> None:
        self.trial.losses.append(task.logs["loss"].item())
        self.trial.gradient_norm = task.logs["gradient_norm"].item() if "gradient_norm" in task.logs else 0.0
        self.trial.seconds = time.monotonic() - self._began
        optimizer = _num_bytes(_tensors([*trainer.optimizers[0].state.values()]))
        averages = _num_bytes(_tensors(task.ema.averages())) if task.ema else 0
        weights = _num_bytes([*task.parameters(), *task.buffers()])
        if task.device.type == "cuda":
            working = torch.cuda.max_memory_allocated(task.device) - optimizer - averages - weights
        else:
            self._live.__exit__(None, None, None)
            working = self._live.peak
        self.trial.memory = {
            "weights": weights,
            "optimizer": optimizer,
            "averages": averages,
            "activations and gradients": working,
        }
        self.trial.trained = _num_bytes(p for p in task.trained.parameters() if p.requires_grad)
        self.trial.checkpoint = _num_bytes(task.trained.state_dict().values()) + optimizer + averages
        self.trial.weights = len(task.weights()) * _num_bytes(task.model.state_dict().values())
        if task.step >= NUM_STEPS:
            trainer.should_stop = True

    def _shapes_of(self, name: str) -> Callable:
        def hook(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> None:
            given = {key: value for key, value in kwargs.items() if isinstance(value, Tensor)}
            slots = "".join(f", {key} {_shape(value)}" for key, value in given.items())
            self.trial.shapes.setdefault(name, f"{_shape(args[0])}{slots} -> {_shape(output)}")

        return hook


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape[1:]))


def _num_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
