"""First stages in and out of the formats of others; the package says which."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.build import Parts, first_stage_model, window_size
from ldm.checkpoint import resume, weights
from ldm.convert import export as exports
from ldm.convert import first_stage_layouts, foreign
from ldm.diffusion.counter_random import normal
from ldm.errors import UserError
from ldm.first_stage.statistics import LatentStatistics
from ldm.run import Run, code_version

log = logging.getLogger(__name__)


def published(tree: dict[str, Any]) -> foreign.State:
    """The published state of a tree's first stage, on the meta device."""
    with torch.device("meta"):
        return foreign.published(foreign.FIRST_STAGE, first_stage_model(Parts(tree)).state_dict())


def import_state(
    state: foreign.State, step: int, tree: dict[str, Any], out: Path, scale_factor: float | None, source: str
) -> Run:
    """A first stage's run in `out` from the `state` of a file that holds one; see convert.import_checkpoint."""
    expected = published(tree)
    if scale_factor is None and foreign.SCALE_FACTOR in state:  # of the whole model that it is a part of
        scale_factor = float(state[foreign.SCALE_FACTOR])
    if scale_factor is not None and not 0 < scale_factor < float("inf"):
        raise UserError(f"{source}: its scale_factor is {scale_factor:g}, no scale; scale_factor= gives another")
    state = first_stage_layouts.in_published(state, expected, len(tree["autoencoder"]["multipliers"]), source)
    state, average = foreign.split_average(state)
    parts = Parts(tree)
    model = first_stage_model(parts)
    kept = {name: value for name, value in state.items() if not name.startswith(foreign.LEFT_OUT)}
    training = {name: value for name, value in kept.items() if name.startswith(foreign.LOSS)}
    theirs = {name: value.float() for name, value in kept.items() if name not in training}
    _check_fit(expected, theirs, source)
    own = foreign.ours(foreign.FIRST_STAGE, theirs)
    model.load_state_dict(own)
    ema = {name: value.float() for name, value in foreign.ours(foreign.FIRST_STAGE, average).items() if name in own}
    latent = _latent(parts, model, scale_factor, ema)

    run = Run(out, {**tree, "run": out.name, "runs_dir": str(out.parent), "max_steps": max(step, 1)})
    run.lineage = {"run": out.name, "parent": None, "code_version": code_version()}
    run.begin()
    states = {"raw": own} | ({"ema": {**own, **ema}} if ema else {})
    weights.save(out / "weights", step, states, {"step": step, "samples_seen": 0, "latent": latent})
    averages = {"num_updates": int(state.get("model_ema.num_updates", step)), "averages": ema} if ema else None
    trained = {**own, **foreign.ours(foreign.FIRST_STAGE_LOSS, training)}
    save_branch_point(out, step, {}, trained, averages)
    return run


def _check_fit(expected: foreign.State, theirs: foreign.State, source: str) -> None:
    try:
        weights.check_fit(expected, theirs, source)
    except ValueError as error:
        raise UserError(f"{error}{first_stage_layouts.facts(theirs)}") from None


def save_branch_point(
    out: Path, step: int, about: dict[str, Any], trained: dict[str, Tensor], averages: dict[str, Any] | None
) -> None:
    """A checkpoint to branch from; it has no optimizer, so that it cannot be resumed."""
    state = {"step": step, "about": about, "trained": trained, "ema": averages, "optimizer": None, "callbacks": {}}
    counted = {"step": step, "samples_seen": 0, "seconds": 0.0, "device_hours": 0.0}
    resume.save(out / "checkpoints", step, {**state, "counters": counted}, counted)


def _latent(parts: Parts, model: nn.ModuleDict, scale_factor: float | None, ema: Mapping[str, Tensor]) -> dict:
    """What whitens the latents: the given factor, the statistics of the data, or for VQ nothing."""
    channels = parts["regularizer"].latent_channels
    if scale_factor is None and parts.tree["data"]["train"] == "???":
        scale_factor = known_factor(parts)
    if scale_factor is not None:
        return {"mean": [0.0] * channels, "std": [1 / scale_factor] * channels, "count": 0}
    data = parts["data"]
    data.setup()
    statistics = LatentStatistics(channels)
    held = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict({**held, **ema})
    with torch.no_grad():
        for batch in data.statistics_loader(batch_size=16):
            moments = model["autoencoder"].encode(batch["image"])
            shape = (channels, *moments.shape[2:])
            noise = normal(parts.tree["seed"], "statistics", batch["index"], shape)
            statistics.update(model["regularizer"].sample(moments, noise))
    model.load_state_dict(held)
    asked = {key: parts.tree["task"][key] for key in ("single_factor", "whiten") if key in parts.tree["task"]}
    return statistics.summary(**asked) | {"data_fingerprint": data.fingerprint}


def known_factor(parts: Parts) -> float:
    """The factor published with a first stage like this one, logged as an assumption: the file does not hold it.

    Raises ValueError where none is known.
    """
    regularizer = parts["regularizer"]
    if regularizer.moment_channels == regularizer.latent_channels:
        log.warning("scale_factor=1 is assumed, as first stages with codes were published; scale_factor= sets another")
        return 1.0
    with torch.device("meta"):
        f = parts["autoencoder"].f
    factor = foreign.SCALE_FACTORS.get((f, regularizer.latent_channels))
    if factor is not None:
        log.warning(
            "scale_factor=%s is assumed, as published for f = %d and %d channels; scale_factor= sets another%s",
            factor, f, regularizer.latent_channels,
            ", as 0.13025 for a first stage of Stable Diffusion XL, whose keys are the same" if f == 8 else "",
        )  # fmt: skip
    else:
        raise UserError(
            "scale_factor: a KL first stage needs the factor it was published with, scale_factor=0.18215 for "
            "example, or data.train=... to measure the statistics of its latents"
        )
    return factor


def export(tree: dict[str, Any], found: weights.Weights, raw: weights.Weights, form: str, out: Path) -> list[Path]:
    """See convert.export_model; `found` are averages of the weights `raw`, or the same weights."""
    latent = found.metadata.get("latent")
    if form != "published" and latent is None:
        raise UserError(f"model={found.run}: has no latent statistics yet; let it finish (its own command resumes it)")
    state = in_order(tree, found.state)
    if form == "published":
        average = state if raw.path != found.path else {}
        exports.write_published(out / "model.ckpt", in_order(tree, raw.state), average, found.metadata["step"])
        return [out / "model.ckpt"]
    if form == "safetensors":
        exports.write_safetensors(out / "model.safetensors", state, {"latent": latent})
        return [out / "model.safetensors"]
    state, factor = exports.one_factor(state, latent, found.run)
    return exports.write_diffusers_autoencoder(out, state, tree["autoencoder"], factor, window_size(tree))


def in_order(tree: dict[str, Any], own: Mapping[str, Tensor]) -> foreign.State:
    """Our state of a first stage under the published names and in the published order; safetensors keeps none."""
    state = foreign.published(foreign.FIRST_STAGE, own)
    return {name: state[name] for name in published(tree)}
