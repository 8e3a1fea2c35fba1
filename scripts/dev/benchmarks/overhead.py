"""What a run costs beside its arithmetic: fit with logs, EMA and callbacks against a bare loop over the same task.

Both draw the same batches and do forward, backward, clipping, optimizer and EMA; the bare loop does nothing else. They
take turns, a step each. Steps of a toy show milliseconds of overhead, larger ones the share that is left for the work.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from benchmarks.findings import Row, judged
from benchmarks.measure import spread
from ldm.build import Parts
from ldm.config import compose, instantiate, overriding
from ldm.fit import quieten
from ldm.training.callbacks.group import Group
from ldm.training.callbacks.signals import handlers_kept
from ldm.training.loggers import CSVLog, close

GOAL_MS, GOAL_SHARE = 1.5, 0.98
WARM_UP = 10  # steps at the beginning that do not count
ROOT = Path(__file__).resolve().parents[3]
# Pixels, no conditions: as little work beside the network as a task can have.
COMMON = [
    "experiment=quickstart/diffusion", "conditioner=[]", "image_size=32", "data.batch_size=4", "max_steps=1000000",
    "lr=constant", "lr.warmup_steps=0", "trainer.precision=32-true", "trainer.accelerator=cpu", "data.num_workers=0",
    "data.memo_samples=64", "data.max_samples=64", f"data.train={ROOT}/data/quickstart/train-00000.tar",
    "callback.checkpoint.every_steps=1000000", "callback.validation.every_steps=1000000",
    "callback.panels.every_steps=1000000", "callback.progress.log_every_seconds=1.0e+9",
]  # fmt: skip
SIZES = {  # name -> (network, steps for each of `repeats`)
    "toy step": (["network.width=8", "network.depth=1", "network.num_heads=1"], 50),
    "step of 0.1 s": (["network.width=192", "network.depth=4", "network.num_heads=4", "data.batch_size=8"], 10),
}


def run(options: dict) -> None:
    """Print the suite's table."""
    torch.set_num_threads(1)
    quieten()
    print(f"torch {torch.__version__}, lightning {pl.__version__}, one thread")
    for name, (network, num_steps) in SIZES.items():
        turns = _measured(compose("config", overriding([*COMMON, *network])), WARM_UP + num_steps * options["repeats"])
        ours, bare = (1e3 * statistics.median(times[WARM_UP:]) for times in (turns.fitted, turns.bare))
        own = [1e3 * (a - b) for a, b in zip(turns.fitted, turns.bare, strict=True)]
        row = Row(f"overhead, {name}", statistics.median(own), GOAL_MS, at_most=True, unit="ms", spread=spread(own))
        print(f"{name:<22} {'fit':<28} {ours:9.2f} ms\n{'':<22} {'bare loop':<28} {bare:9.2f} ms", flush=True)
        print(f"{'':<22} overhead a step: {judged(row)}")
    print(f"{'':<22} {judged(Row(f'speed of a bare loop, {name}', bare / ours, GOAL_SHARE))}")


class _Turns(pl.Callback):
    """At the end of each step, after all other callbacks, a step of the bare loop; CPU seconds of both."""

    def __init__(self, bare: Iterator[None], num_steps: int):
        self._bare_steps = bare
        self._num_steps = num_steps
        self._began = 0.0
        self.fitted: list[float] = []
        self.bare: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        ended = time.process_time()
        next(self._bare_steps)
        self.fitted.append(ended - self._began)
        self._began = time.process_time()
        self.bare.append(self._began - ended)
        trainer.should_stop = len(self.bare) == self._num_steps


def bare_steps(tree: dict[str, Any]) -> Iterator[None]:
    """Steps of a loop over a task of its own."""
    parts = Parts(tree)
    task, data = parts["task"], parts["data"]
    optimizer, parameters = task.make_optimizer(task.trained), list(task.trained.parameters())
    for batch in data.train_loader():
        task.training_step(batch, 0).backward()
        torch.nn.utils.clip_grad_norm_(parameters, tree["trainer"]["gradient_clip_val"])
        optimizer.step()
        optimizer.zero_grad()
        task.ema.update()
        yield


def _measured(tree: dict[str, Any], num_steps: int) -> _Turns:
    """What ldm.fit.fit does, in a run's folder that is deleted, with a turn of the bare loop after each step."""
    turns = _Turns(bare_steps(tree), num_steps)
    with tempfile.TemporaryDirectory() as folder:
        parts = Parts(tree, folder=Path(folder), run_name="overhead", run_id="overhead-00000000")
        csv = CSVLog(Path(folder) / "metrics.csv")
        csv.rewind(0)
        loggers = [csv, parts["logger"]]
        make_trainer = instantiate({**tree["trainer"], "_partial_": True}, parts, "trainer")
        trainer = make_trainer(callbacks=[Group([*parts.callbacks, turns])], logger=loggers)
        with handlers_kept():
            trainer.fit(parts["task"], datamodule=parts["data"])
        close(loggers)
    return turns
