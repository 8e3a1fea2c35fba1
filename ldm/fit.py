"""Fit one run: open its folder, build its parts, let Lightning train them, write down what came of it."""

import logging
import os
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from data.module import ShardData
from data.selection import describe
from data.workers import failures_named
from ldm.build import Parts, is_first_stage
from ldm.checkpoint import weights
from ldm.checks import check_parent, check_parts, doubts
from ldm.config import instantiate
from ldm.device import computes_bf16, keep_memory
from ldm.run import Run, inherit, is_rank_zero, open_run
from ldm.training.callbacks.checkpoint import Restore
from ldm.training.callbacks.group import Group
from ldm.training.callbacks.signals import handlers_kept
from ldm.training.distributed import lost_ranks_named
from ldm.training.loggers import CSVLog, close
from ldm.training.sharded import FullySharded
from ldm.training.task import Task

log = logging.getLogger(__name__)

# Values of trainer.strategy that are not Lightning's.
STRATEGIES = {FullySharded.strategy_name: FullySharded}
# Messages of Lightning and W&B about choices that are made on purpose here.
QUIET = (
    ".*does not have many workers",
    ".*LeafSpec",
    ".*Tip:",
    "Found .* module.* in eval mode",
)


@lost_ranks_named()
def fit(tree: dict[str, Any], name: str) -> Run:
    """Train the run `name` as `tree` says, from wherever its folder stands. A finished run returns at once."""
    for key in ("task", "data"):
        if tree[key] is None:
            raise ValueError(f"{key}: nothing is chosen; experiment= chooses it (python train.py --help lists them)")
    tree = inherit(tree, name)
    run = open_run(tree, name)
    if run.finished:
        if is_rank_zero():
            print(f"{run.name}: finished at step {run.lineage['finished_step']}; a larger max_steps goes on from there")
        return run
    quieten()
    if os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0" and is_rank_zero():
        warn_of_shared_store()
    pl.seed_everything(tree["seed"], workers=True, verbose=False)
    parts = Parts(tree, folder=run.folder, run_name=run.name, run_id=run.lineage["wandb_id"])
    task, data = parts["task"], parts["data"]
    data.setup()
    if data.cache is not None:
        _read_cache(parts)
    _check_shards(run, data)
    _check(run, parts)
    if is_rank_zero():
        _note_decoder(run, data.decoder.libraries)
        run.begin()
        if data.removed:
            print(f"{run.name}: trains on {data.num_train} samples; data.filters removed {describe(data.removed)}")
    csv = CSVLog(run.folder / "metrics.csv")
    parent = run.lineage["parent"]
    branch = Path(parent["checkpoint"]) if parent else None  # the one it began from, whatever the parent did since
    restore = Restore(run.folder, csv, branch, keep_optimizer=tree["branch_optimizer"] == "keep")
    make_trainer = instantiate({**tree["trainer"], "_partial_": True}, parts.__getitem__, "trainer")
    loggers = [csv, *([parts["logger"]] if parts["logger"] else [])]
    own = STRATEGIES.get(tree["trainer"]["strategy"])
    try:
        chosen = {"strategy": own()} if own else {}
        trainer = make_trainer(**chosen, callbacks=[Group([restore, *parts.callbacks])], logger=loggers)
    except MisconfigurationException as error:
        raise ValueError(f"trainer: {error}") from error
    if trainer.strategy.root_device.type == "cpu":
        keep_memory()
    if trainer.precision == "bf16-mixed" and not computes_bf16() and trainer.is_global_zero:
        print("trainer.precision=bf16-mixed: this processor only emulates bf16; 32-true is many times faster here")
    with handlers_kept(), failures_named():  # a worker that is killed interrupts whatever is being done
        trainer.fit(task, datamodule=data)
    close(trainer.loggers)
    if task.step >= task.max_steps:
        _conclude(run, trainer, task, parts)
    elif trainer.is_global_zero:
        print(f"{run.name}: stopped and saved at step {task.step} of {task.max_steps}; the same command goes on there")
    return run


def _read_cache(parts: Parts) -> None:
    """Let the run's latents and embeddings come from data.cache. Raises ValueError if they are not its own."""
    if is_first_stage(parts.tree):
        raise ValueError("data.cache: a first stage trains on images, not on latents; leave it out")
    conditioner, fingerprint = parts["conditioner"], parts["first_stage"].spec.fingerprint
    encoders = {name: encoder.describe() for name, encoder in conditioner.encoders().items()}
    images = [name for name, part in conditioner.parts.items() if part.key == "image"]
    for name in parts["data"].read_cache(fingerprint, encoders, images):
        if is_rank_zero():
            print(f"data.cache has nothing of conditioner.{name}: its encoder is asked while the run trains")


def _check(run: Run, parts: Parts) -> None:
    """Raises ValueError for what can be known to go wrong, while nothing of a new run is written yet."""
    check_parts(parts)
    parent = run.lineage["parent"]
    begins = not any((run.folder / "checkpoints").glob("*.ckpt"))
    if parent and begins and Path(parent["checkpoint"]).exists():
        check_parent(Path(parent["checkpoint"]), parts["task"])
    for line in doubts(parts["data"]) if is_rank_zero() else ():
        print(f"{run.name}: {line}")


def _check_shards(run: Run, data: ShardData) -> None:
    """Raises ValueError if the training shards are not those that the run has seen so far, whatever their names."""
    now = data.train_layout
    if run.lineage.setdefault("train_layout", now) != now:
        raise ValueError(
            f"data.train: the shards' members have other names, sizes or places than when the run in {run.folder} "
            "began, so it cannot be gone on with exactly: put the old shards back, go on with the new ones under "
            "branch= and another run=, or start anew with overwrite=true"
        )


def _note_decoder(run: Run, libraries: str) -> None:
    """Other versions may round a pixel otherwise: resuming under them is allowed, but said."""
    before = run.lineage.get("decoder", libraries)
    if before != libraries:
        print(f"{run.name}: images were decoded by {before}, now by {libraries}; pixels may differ by rounding")
    run.lineage["decoder"] = libraries


def _conclude(run: Run, trainer: pl.Trainer, task: Task, parts: Parts) -> None:
    """What is known only now: latent statistics of a first stage, and the totals of the lineage."""
    data = parts["data"]
    task.to(trainer.strategy.root_device)  # Lightning leaves it on the CPU
    with task.averaged():
        metadata = task.conclude(data.statistics_loader(trainer.global_rank, trainer.world_size, batch_size=64))
    if not trainer.is_global_zero:
        run.lineage["finished_step"] = task.step  # for this process's exit status; rank zero writes it down
        return
    weights.amend(run.folder / "weights", {**metadata, "data_fingerprint": data.fingerprint})
    samples = task.step * data.batch_size
    before = (run.lineage.get("parent") or {}).get("samples_seen_total", 0)
    run.record(
        finished_step=task.step,
        samples_seen=samples,
        samples_seen_total=before + samples,
        device_hours=task.clock()["device_hours"],
        data_fingerprint=data.fingerprint,
        first_stage=parts.tree.get("first_stage") and parts["first_stage"].spec.fingerprint,
        skipped_samples=data.skipped,
        removed_samples=data.removed,
    )


def warn_of_shared_store() -> None:
    """Torchrun serves all attempts from one store, where the next finds the last one's addresses (pytorch #135712)."""
    if os.environ.get("TORCH_DISABLE_SHARE_RDZV_TCP_STORE") != "1":
        log.warning("torchrun --max-restarts: a restart connects only with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 set")


def quieten() -> None:
    """Leave out what Lightning and W&B say that is no news: advertisements, and choices made on purpose here."""
    for name in ("pytorch_lightning", "pytorch_lightning.utilities.rank_zero", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in QUIET:
        warnings.filterwarnings("ignore", text)
