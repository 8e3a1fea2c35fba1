"""A small run from its YAML, through Lightning and all callbacks: what its steps wait for.

How often that is the device is told by torch, which warns of operations that synchronize; they are counted over steps
that do not log. The seconds are those that callback.speed logs.
"""

import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from gpu_checks.table import NEEDS_GPU, Row
from ldm.build import Parts
from ldm.config import compose, instantiate, overriding
from ldm.fit import quieten
from ldm.training.callbacks.group import Group
from ldm.training.callbacks.signals import handlers_kept
from ldm.training.loggers import CSVLog, close
from ldm.training.task import PHASES, Task

ROOT = Path(__file__).resolve().parents[3]
FIRST = 10  # steps before those that count: optimizer and averages are made, kernels chosen
COMMON = [
    "experiment=quickstart/diffusion", "conditioner=[]", "image_size=32", "max_steps=1000000", "lr=constant",
    "lr.warmup_steps=0", "data.memo_samples=0", "task.keep_latents=false", "~logger",
    f"data.train={ROOT}/data/quickstart/train-00000.tar", "callback.quality.every_steps=null",
    *(f"callback.{name}.every_steps=1000000" for name in ("metrics", "speed", "update_ratio", "checkpoint",
                                                          "validation", "panels")),
    "callback.progress.log_every_seconds=1.0e+9",
]  # fmt: skip
SIZES = {
    "sd2": (["data.batch_size=128", "data.num_workers=4", "network.width=768", "network.depth=12",
             "network.num_heads=12"], 60),
    "tiny": (["data.batch_size=4", "data.num_workers=1", "network.width=8", "network.depth=1", "network.num_heads=1",
              "data.max_samples=16"], 10),
}  # fmt: skip


def measure(device: torch.device, size: str, out: Path) -> list[Row]:
    """Milliseconds of a step by its phases, and host syncs a step."""
    quieten()
    words, num_steps = SIZES[size]
    on_gpu = device.type == "cuda"
    own = [
        f"trainer.accelerator={'gpu' if on_gpu else 'cpu'}",
        f"trainer.precision={'bf16-mixed' if on_gpu else '32-true'}",
    ]
    watch = _Watch(num_steps, device)
    with tempfile.TemporaryDirectory() as folder:
        tree = compose("config", overriding([*COMMON, *words, *own]))
        parts = Parts(tree, folder=Path(folder), run_name="gpu_check", run_id="gpu_check-00000000")
        csv = CSVLog(Path(folder) / "metrics.csv")
        csv.rewind(0)
        trainer = instantiate({**tree["trainer"], "_partial_": True}, parts, "trainer")(
            callbacks=[Group([*parts.callbacks, watch])], logger=[csv]
        )
        with handlers_kept():
            trainer.fit(parts["task"], datamodule=parts["data"])
        close([csv])
    rows = [Row(f"a step's {phase}", 1e3 * watch.seconds.get(phase, 0.0) / num_steps, "ms") for phase in PHASES]
    whole = sum(watch.seconds.values())
    rows.append(Row("waits for data", 100 * watch.seconds.get("data", 0.0) / max(whole, 1e-9), "%", 2.0, at_most=True))
    if not on_gpu:
        return [*rows, Row("host syncs a step", None, note=NEEDS_GPU)]
    places = ", ".join(f"{place} x{count}" for place, count in watch.places.most_common(5))
    return [*rows, Row("host syncs a step", watch.places.total() / num_steps, "", 0.0, at_most=True, note=places)]


class _Watch(pl.Callback):
    """Looks at `num_steps` steps after the `FIRST`, then ends the fit without what a run's end would write."""

    comes_last = True

    def __init__(self, num_steps: int, device: torch.device):
        self._num_steps, self._device = num_steps, device
        self._caught: Any = None
        self._warned: list[warnings.WarningMessage] = []
        self.seconds: dict[str, float] = {}
        self.places: Counter[str] = Counter()

    def on_train_batch_end(self, trainer: pl.Trainer, task: Task, *_: Any) -> None:
        if task.step == FIRST:
            task.stopwatch.start(task.device)
            self._caught = warnings.catch_warnings(record=True)
            self._warned = self._caught.__enter__()
            warnings.simplefilter("always")
            self._debug("warn")
        if task.step == FIRST + self._num_steps:
            self._debug("default")
            self._caught.__exit__(None, None, None)
            told = [each for each in self._warned if "synchronizing CUDA operation" in str(each.message)]
            self.places = Counter(f"{Path(each.filename).name}:{each.lineno}" for each in told)
            self.seconds = task.stopwatch.read()
            trainer.should_stop = True

    def _debug(self, mode: str) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_sync_debug_mode(mode)
