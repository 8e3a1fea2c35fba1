"""Fit one run: open its folder, build its parts, let Lightning train them, record the results."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from ldm.asked import check_training
from ldm.build import Parts, is_first_stage
from ldm.checkpoint import weights
from ldm.checkpoint.identity import check_finished
from ldm.checks import check_parent, check_parts, doubts
from ldm.config import instantiate, load_tree, with_begun_fields
from ldm.data.errors import TooManyBadSamples
from ldm.data.module import ShardData
from ldm.data.plan import BatchPlan
from ldm.data.selection import describe
from ldm.data.workers import failures_named
from ldm.data_places import bad_shards, check_data, with_saved_places
from ldm.device import computes_bf16, keep_memory
from ldm.errors import UserError
from ldm.expert_company import company_of
from ldm.files import read_json
from ldm.fine_tuning import begun_from_published
from ldm.holding import Hold, check_launch, held
from ldm.lineage import begun_from, note_plugins, root, samples_before
from ldm.places import relative
from ldm.ranks import check_ranks, is_rank_zero, warn_of_shared_store, way_out
from ldm.redaction import redacted
from ldm.run import Run, inherit, open_run, settle_precision
from ldm.training.callbacks.checkpoint import Checkpoint, Restore
from ldm.training.callbacks.group import Group
from ldm.training.callbacks.held import WhileHeld
from ldm.training.callbacks.signals import handlers_kept
from ldm.training.distributed import end_process_group, lost_ranks_named
from ldm.training.loggers import CSVLog, close, forget
from ldm.training.sharded import FullySharded
from ldm.training.task import Task
from ldm.training.trainer import check_trainer, make_trainer
from ldm.training.wandb_links import alert, failure_told, introduce, refer_to_weights

REPRESENTATION = "representation"  # among the encoders of a cache, beside those of conditioners
# Messages of Lightning and W&B about choices that are made on purpose here.
QUIET = (
    ".*does not have many workers",
    ".*LeafSpec",
    ".*Tip:",
    "Found .* module.* in eval mode",
    "You have overridden `on_before_batch_transfer`",
)


@lost_ranks_named()
def fit(tree: dict[str, Any], name: str) -> Run:
    """Train the run `name` of `tree`, resuming from what its folder holds. A finished run returns at once.

    Nothing is written, and no old run deleted, before all that the run is made of has been built. Raises FolderHeld if
    another process trains it.
    """
    check_training(tree)
    check_ranks(tree["trainer"])
    asked = tree
    tree = begun_from_published(tree, name)
    tree = with_begun_fields(settle_precision(inherit(tree, name), name), name)
    run = open_run(tree, name)
    if _finished(run):
        return run
    if tree["trainer"] != asked["trainer"] and is_rank_zero():
        print(f"{name}: trainer.precision=auto is {tree['trainer']['precision']}")
    if not is_rank_zero():
        check_launch(run.folder)
        return _fit(run, None)
    with held(run.folder, "training") as hold:
        run = open_run(tree, name)  # until now it may have been another process's
        return run if _finished(run) else _fit(run, hold)


def _finished(run: Run) -> bool:
    """Whether the run has finished. Raises ValueError if the finished run is not the one that is asked for."""
    if run.finished:
        check_finished(run.folder, run.lineage["finished_step"])
        saved, asked = load_tree(run.folder / "config.yaml"), redacted(run.tree)
        if with_saved_places(asked, saved, run.lineage) != asked:  # the paths of its data have changed
            data = Parts(run.tree)["data"]
            data.setup()
            check_data(dict(run.lineage), run.folder, data)
    if run.finished and is_rank_zero():
        print(f"{run.name}: finished at step {run.lineage['finished_step']}; {run.way_on}")
    return run.finished


def _fit(run: Run, hold: Hold | None) -> Run:
    """Train a run that has not finished; rank zero holds its folder."""
    quieten()
    warn_of_shared_store()
    tree = run.tree
    make = instantiate({**tree["trainer"], "_partial_": True}, {}, "trainer")
    check_trainer(tree["trainer"], make)
    pl.seed_everything(tree["seed"], workers=True, verbose=False)
    own: dict[str, Any] = {"run_name": run.name, "run_id": run.lineage["wandb_id"], "root_run": root(run.lineage)}
    own |= {"samples_before": samples_before(run.lineage)}
    own["weightless"] = tree["trainer"]["strategy"] == FullySharded.strategy_name and not is_rank_zero()
    own["company"] = lambda manifest, residency: company_of(
        run.name, run.folder, run.lineage, parts, manifest, residency
    )
    parts: Parts = Parts(tree, folder=run.folder, **own)
    task, data = parts["task"], parts["data"]
    data.setup()
    if data.cache is not None:
        read_cache(parts)
    _check_shards(run, data)
    _note_first_stage(run, parts)
    _check(run, parts)
    if is_rank_zero():
        _note_decoder(run, data.decoder.libraries)
        note_plugins(run.lineage, tree)
        if tree["network"] and not tree["first_stage"]:
            print(f"{run.name}: no first_stage=, so it trains on pixels, {tree['image_size']} px, and not on latents")
        if data.removed:
            print(f"{run.name}: trains on {data.num_train} samples; data.filters removed {describe(data.removed)}")
    trainer = _trainer(run, parts, make, hold)
    # a worker that is killed interrupts whatever is being done
    with handlers_kept(), failures_named(), failure_told(trainer.loggers, run.name):
        try:
            trainer.fit(task, datamodule=data)
        except TooManyBadSamples:
            _note_bad_shards(run, data)
            raise
    if task.step >= task.max_steps:
        _conclude(run, trainer, task, parts, hold)
        refer_to_weights(trainer.loggers, run.folder / "weights", run.name)
        alert(trainer.loggers, f"{run.name} finished", f"step {task.step}")
    elif trainer.is_global_zero:
        said = f"stopped and saved at step {task.step} of {task.max_steps}; the same command goes on there"
        print(f"{run.name}: {said}")
        alert(trainer.loggers, f"{run.name} stopped", said)
    close(trainer.loggers)
    end_process_group()
    return run


def _trainer(run: Run, parts: Parts, make: Callable[..., pl.Trainer], hold: Hold | None) -> pl.Trainer:
    """Lightning's trainer with the run's callbacks and loggers. Raises ValueError for what cannot be trained so."""
    tree, csv = run.tree, CSVLog(run.folder / "metrics.csv")
    saving = [callback for callback in parts.callbacks if isinstance(callback, Checkpoint)]
    if not saving:
        raise UserError("callback: without checkpoint nothing of the run would be saved; put it into callback=[...]")
    restore = Restore(
        run.folder, csv, begun_from(run.lineage, run.folder), keep_optimizer=tree["branch_optimizer"] == "keep",
        averaged=tree["branch_weights"] == "ema", begin=run.begin, anew=run.anew, read=run.lineage.get("first_stage"),
    )  # fmt: skip
    callbacks = [restore, *parts.callbacks]
    if hold is not None:
        callbacks = [WhileHeld(hold, saving), *callbacks]
    loggers = [csv, *([parts["logger"]] if parts["logger"] else [])]
    introduce(loggers, redacted(tree), run.lineage["parent"])
    if run.anew:
        forget(loggers)
    trainer = make_trainer(tree["trainer"], make, callbacks=[Group(callbacks)], logger=loggers)
    if trainer.is_global_zero != is_rank_zero():
        raise UserError(f"trainer: rank {trainer.global_rank} of {trainer.world_size} by its keys; {way_out()}")
    BatchPlan(parts["data"].batch_size, 0, trainer.world_size, tree["accumulation"], 0)  # whether it is whole
    parts["data"].check_room(trainer.world_size, trainer.num_devices)
    if trainer.strategy.root_device.type == "cpu":
        keep_memory()
        if tree["task"].get("offload_activations") and trainer.is_global_zero:
            print("task.offload_activations=true: on a CPU they are in its memory anyway; it only copies them")
    if (
        trainer.precision == "bf16-mixed"
        and not computes_bf16(tree["trainer"]["accelerator"])
        and trainer.is_global_zero
    ):
        print("trainer.precision=bf16-mixed: this processor only emulates bf16; 32-true is many times faster here")
    return trainer


def read_cache(parts: Parts) -> None:
    """Read the run's latents and embeddings from data.cache. Raises ValueError if the cache does not fit the run."""
    if is_first_stage(parts.tree):
        raise UserError("data.cache: a first stage trains on images, not on latents; leave it out")
    conditioner, fingerprint = parts["conditioner"], parts["first_stage"].spec.fingerprint
    keys, own, aligned = parts["data"].keys, conditioner.encoders(), parts["representation"]
    own |= {} if aligned is None else {REPRESENTATION: aligned.encoder}
    encoders = {name: {**encoder.describe(), **keys.own_pixels(encoder.key)} for name, encoder in own.items()}
    images = [name for name, part in conditioner.parts.items() if keys.of_image & {part.key, *part.also}]
    images += [] if aligned is None else [REPRESENTATION]
    images += [] if parts.tree["first_stage"] else ["first_stage"]  # a cache without a first stage has no latents
    for name in parts["data"].read_cache(fingerprint, encoders, images):
        if is_rank_zero():
            where = name if name == REPRESENTATION else f"conditioner.{name}"
            print(f"data.cache has nothing of {where}: its encoder is asked while the run trains")


def _check(run: Run, parts: Parts) -> None:
    """Raises ValueError for what is sure to fail, before anything of a new run is written."""
    check_parts(parts)
    parent = begun_from(run.lineage, run.folder)
    begins = run.anew or not any((run.folder / "checkpoints").glob("*.ckpt"))
    if parent and begins and parent.exists():
        check_parent(parent, parts["task"])
    for line in doubts(parts) if is_rank_zero() else ():
        print(f"{run.name}: {line}")


def _check_shards(run: Run, data: ShardData) -> None:
    """Raises ValueError if the data is not the same as before, whatever its paths."""
    repaired = check_data(run.lineage, run.folder, data)
    if repaired and is_rank_zero():
        print(f"{run.name}: goes on with what was repaired since it stopped: {', '.join(repaired)}")


def _note_bad_shards(run: Run, data: ShardData) -> None:
    """Record the shards that stop the run, from the process that read them: once repaired, they are accepted."""
    run.lineage = read_json(run.folder / "lineage.json")  # as rank zero wrote it
    run.record(stopped_by=bad_shards(data))


def _note_first_stage(run: Run, parts: Parts) -> None:
    """Record in the lineage which first-stage weights the latents are from, and their path."""
    if parts.tree.get("first_stage"):
        place = relative(Path(parts.tree["first_stage"]), run.folder)
        run.lineage |= {"first_stage": parts["first_stage"].spec.fingerprint, "first_stage_path": place}


def _note_decoder(run: Run, libraries: str) -> None:
    """Report a change of decoder versions: they may round a pixel differently, but resuming is allowed."""
    before = run.lineage.get("decoder", libraries)
    if before != libraries:
        print(f"{run.name}: images were decoded by {before}, now by {libraries}; pixels may differ by rounding")
    run.lineage["decoder"] = libraries


def _conclude(run: Run, trainer: pl.Trainer, task: Task, parts: Parts, hold: Hold | None) -> None:
    """Record what is known only at the end: latent statistics of a first stage, and the totals of the lineage."""
    data = parts["data"]
    task.to(trainer.strategy.root_device)  # Lightning leaves it on the CPU
    with task.averaged():
        metadata = task.conclude(data.statistics_loader(trainer.global_rank, trainer.world_size, batch_size=64))
    if not trainer.is_global_zero:
        run.lineage["finished_step"] = task.step  # for this process's exit status; rank zero saves it
        return
    hold.check()
    fingerprint = data.fingerprint
    weights.amend(run.folder / "weights", {**metadata, "data_fingerprint": fingerprint})
    samples = task.step * data.batch_size
    run.record(
        finished_step=task.step,
        samples_seen=samples,
        samples_seen_total=samples_before(run.lineage) + samples,
        device_hours=task.clock()["device_hours"],
        data_fingerprint=fingerprint,
        first_stage=run.lineage.get("first_stage"),
        skipped_samples=data.skipped,
        removed_samples=data.removed,
    )


def quieten() -> None:
    """Silence messages of Lightning and W&B that do not help: advertisements, and remarks on deliberate choices."""
    for name in ("pytorch_lightning", "pytorch_lightning.utilities.rank_zero", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in QUIET:
        warnings.filterwarnings("ignore", text)
