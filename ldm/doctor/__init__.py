"""Checks of a run before it is started: each passes, warns or fails, and says what to do.

Everything the run will use is built, samples are decoded, and two steps are done for real: on one device, with one
rank's share of a micro-batch. Nothing is written, neither a run's folder nor a W&B run, but the import of published
weights that the run begins from.
"""

import math
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ldm.build import Parts
from ldm.checkpoint import resume
from ldm.checks import check_parts
from ldm.config import instantiate
from ldm.data.errors import ShardError
from ldm.data.module import ShardData
from ldm.data.plan import BatchPlan
from ldm.data.shards import ShardSet
from ldm.doctor import machine
from ldm.doctor.finding import FAIL, PASS, WARN, Finding, attempt
from ldm.errors import UserError
from ldm.fine_tuning import begun_from_published
from ldm.fit import quieten, read_cache
from ldm.ranks import check_ranks
from ldm.run import branch_point, inherit, open_run, settle_precision
from ldm.training.dry_run import Trial, try_steps
from ldm.training.sharded import FullySharded, check_shardable
from ldm.training.trainer import check_trainer, make_trainer

SAMPLED = 64  # training samples that are decoded


def examine(tree: dict[str, Any], name: str) -> list[Finding]:
    """All findings on the run `name` of a tree; checks that need what a failed one did not give are left out."""
    quieten()
    tree = settle_precision(begun_from_published(tree, name), name)
    findings: list[Finding] = []
    world_size = num_ranks(tree["trainer"])
    for check, look in (("versions", machine.versions), ("device", lambda: _devices(tree)),
                        ("W&B", lambda: machine.wandb(tree)), ("run", lambda: _run(tree, name))):  # fmt: skip
        findings.append(attempt(findings, check, look))
    data = attempt(findings, "shards", _data, tree)
    if data is not None:
        findings.append(_shards(data))
        findings.append(attempt(findings, "samples", _samples, data))
        findings.append(attempt(findings, "plan", _plan, tree, data, world_size))
    findings = [finding for finding in findings if finding is not None]
    if {"shards", "samples", "plan"} & {finding.check for finding in findings if finding.status == FAIL}:
        return findings
    trial = attempt(findings, "training step", _trial, tree, name, world_size)
    return findings if trial is None else findings + _learned(tree, trial, world_size)


def num_ranks(trainer: dict[str, Any]) -> int:
    """Processes that a trainer's keys ask for; as many a node as there are GPUs where they leave it open."""
    devices = trainer["devices"]
    if isinstance(devices, list):
        devices = len(devices)
    elif not isinstance(devices, int) or devices < 1:
        devices = max(torch.cuda.device_count(), 1)
    return devices * trainer["num_nodes"]


def _devices(tree: dict[str, Any]) -> Finding:
    found = machine.devices(tree)
    if found.status != FAIL:
        make = instantiate({**tree["trainer"], "_partial_": True}, {}, "trainer")
        check_trainer(tree["trainer"], make)
    return found


def _run(tree: dict[str, Any], name: str) -> Finding:
    check_ranks(tree["trainer"])
    run = open_run(tree, name)
    if run.finished:
        return Finding("run", WARN, f"{run.folder} has finished; {run.way_on}")
    newest = None if run.anew else resume.newest(run.folder / "checkpoints")
    return Finding("run", PASS, f"{run.folder}: {f'goes on from {newest.name}' if newest else 'new'}")


def _data(tree: dict[str, Any]) -> ShardData:
    """With every shard's headers read. Raises ShardError naming all that cannot be."""
    data = Parts(tree)["data"]
    try:
        data.setup()
    except ShardError as first:
        problems = []
        for path in data.locations():
            try:
                ShardSet.open([path])
            except ShardError as error:
                problems.append(str(error))
        raise ShardError("\n".join(problems[:5] + [f"... {len(problems) - 5} more"] * (len(problems) > 5))) from first
    return data


def _shards(data: ShardData) -> Finding:
    said = f"{data.num_train} training and {data.num_validation} held-out samples, every header read"
    if not data.num_validation:
        return Finding("shards", WARN, f"{said}; without data.validation nothing tells over-fitting")
    return Finding("shards", PASS, said)


def _samples(data: ShardData) -> Finding:
    decoded = sum(len(batch["key"]) for batch in data.statistics_loader(batch_size=8, num_samples=SAMPLED))
    if data.skipped:
        rows = "; ".join(f"{row['kind']}: {row['shard']} {row['key']}" for row in data.skipped[:3])
        return Finding("samples", WARN, f"{len(data.skipped)} of {decoded + len(data.skipped)} are bad ({rows})")
    return Finding("samples", PASS, f"{decoded} decoded; {', '.join(f'{k} {v}' for k, v in data.batch_spec.items())}")


def _plan(tree: dict[str, Any], data: ShardData, world_size: int) -> Finding:
    if world_size < 1:
        asked = ", ".join(f"trainer.{key}={tree['trainer'][key]}" for key in ("devices", "num_nodes"))
        raise UserError(f"{asked}: no process would train; ask for one at least")
    share = BatchPlan(data.batch_size, 0, world_size, tree["accumulation"], 0)
    steps, epochs = data.num_train / data.batch_size, tree["max_steps"] * data.batch_size / data.num_train
    said = (
        f"{world_size} ranks x {tree['accumulation']} micro-batches of {share.rank_batch} = {data.batch_size}; "
        f"{steps:.1f} steps an epoch, {epochs:.1f} epochs in {tree['max_steps']} steps"
    )
    if data.batch_size > data.num_train:
        return Finding("plan", WARN, f"{said}: a step sees samples twice; lower data.batch_size")
    return Finding("plan", PASS, said)


def _trial(tree: dict[str, Any], name: str, world_size: int) -> Trial:
    """Two steps of one rank's micro-batch, without the run's callbacks and loggers."""
    tree = inherit(tree, name)
    trainer = {"devices": 1, "num_nodes": 1, "strategy": "auto", "accumulate_grad_batches": 1}
    alone = {
        **tree,
        "accumulation": 1,
        "trainer": {**tree["trainer"], **trainer},
        "data": {**tree["data"], "batch_size": tree["data"]["batch_size"] // (world_size * tree["accumulation"])},
        "logger": None,
    }
    if "keep_latents" in alone["task"]:
        alone["task"] = {**alone["task"], "keep_latents": False}  # it would encode all images first
    torch.manual_seed(tree["seed"])  # the weights that the run will begin with
    parts = Parts(alone, folder=Path(tree["runs_dir"]) / name, run_name=name, run_id="")
    if tree["trainer"]["strategy"] == FullySharded.strategy_name:
        check_shardable(parts["task"].model, tree["trainer"]["precision"])
    parts["data"].setup()
    if parts["data"].cache is not None:
        read_cache(parts)
    check_parts(parts)
    checkpoint = branch_point(tree["branch"])
    parent = (resume.load_checked(checkpoint), str(checkpoint)) if checkpoint else None
    make = instantiate({**alone["trainer"], "_partial_": True}, parts, "trainer")
    return try_steps(partial(make_trainer, alone["trainer"], make), parts["task"], parts["data"], parent)


def _learned(tree: dict[str, Any], trial: Trial, world_size: int) -> list[Finding]:
    shapes = "\n".join(f"{stage} {shape}" for stage, shape in trial.shapes.items())
    findings = [_step(tree, trial, world_size), _parameters(trial), Finding("shapes", PASS, shapes)]
    findings.append(machine.memory(_rank_memory(tree, trial, world_size)))
    disk = attempt(findings, "disk", machine.disk, tree, trial.checkpoint, trial.weights, trial.memory["averages"])
    return [*findings, disk] if disk else findings


def _rank_memory(tree: dict[str, Any], trial: Trial, world_size: int) -> dict[str, int]:
    """What one rank holds of each part; of sharded ones its rows. Gradients count as whole, as they are for a while."""
    if tree["trainer"]["strategy"] != FullySharded.strategy_name:
        return trial.memory
    shared = {name: trial.memory[name] // world_size for name in ("optimizer", "averages")}
    weights = trial.memory["weights"] - trial.trained + trial.trained // world_size
    return {**trial.memory, **shared, "weights": weights}


def _step(tree: dict[str, Any], trial: Trial, world_size: int) -> Finding:
    seconds = trial.seconds * tree["accumulation"]
    said = (
        f"losses {', '.join(f'{loss:.4f}' for loss in trial.losses)}, gradient norm {trial.gradient_norm:.3g}; "
        f"{trial.seconds:.2f} s a micro-batch here: {tree['data']['batch_size'] / seconds:.1f} samples/s and "
        f"{tree['max_steps'] * seconds / 3600:.1f} h in all, if {world_size} such ranks took no longer; "
        f"{trial.flop / 1e9:.4g} GFLOP a sample"
    )
    if not all(map(math.isfinite, [*trial.losses, trial.gradient_norm])):
        return Finding("training step", FAIL, f"{said}: not finite; lower optimizer.lr or look at the data")
    return Finding("training step", PASS, said)


def _parameters(trial: Trial) -> Finding:
    counts = {name: found for name, found in trial.parameters.items() if any(found)}
    said = [f"{name} {_count(trained)}" + (f" and {_count(frozen)} frozen" if frozen else "")
            for name, (trained, frozen) in counts.items()]  # fmt: skip
    total = sum(trained for trained, _ in counts.values())
    return Finding("parameters", PASS if total else FAIL, f"{_count(total)} trained: {', '.join(said)}")


def _count(number: int) -> str:
    return f"{number / 1e6:.2f} M" if number >= 1e5 else str(number)
