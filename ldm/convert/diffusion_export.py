"""Diffusion models out: as published, as one safetensors file, or as a folder of diffusers (pipelines.py)."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.build import Parts, kind_of, load_autoencoder
from ldm.checkpoint import weights
from ldm.convert import export as exports
from ldm.convert import first_stage as first_stages
from ldm.convert import foreign, own_layout, pipelines
from ldm.convert.diffusion import KEPT, averages_beside, condition, network_names, published
from ldm.convert.pipelines import Codec
from ldm.convert.schedule_buffers import buffers, discrete
from ldm.diffusion.schedule import Discrete
from ldm.errors import UserError


def export(tree: dict[str, Any], found: weights.Weights, raw: weights.Weights, form: str, out: Path) -> list[Path]:
    """See convert.export_model; `found` are averages of the weights `raw`, or the same weights."""
    if kind_of(tree) != "diffusion" and form != "safetensors":
        raise UserError(f"format={form}: a {kind_of(tree)} has no such form; export format=safetensors")
    if form == "diffusers":
        return as_pipeline(tree, found, out)
    if not tree.get("first_stage"):
        if form == "safetensors":
            return own_layout.export(tree, found, out)
        raise UserError(
            f"format={form}: a model in pixel space has no published layout, from which such exports are made; its "
            f"weights are safetensors already, {found.path}"
        )
    described, first_stage, latent = _described(tree)
    if form == "safetensors" and not _has_place(described, first_stage, latent):
        return own_layout.export(tree, found, out)
    tree = described
    first_stage, factor = exports.one_factor(first_stage, latent, tree["first_stage"])
    if tree["network"].get("patch_size", 1) != 1:
        raise UserError(
            f"format={form}: the published layout has no patches; set network.patch_size=1 or take format=safetensors"
        )
    kept = weights.read_tensors(found.run / KEPT) if (found.run / KEPT).exists() else None
    state = buffers(discrete(Parts(tree))) if kept is None else kept
    average = found.state if raw.path != found.path else {}
    if form == "safetensors" or (average and not averages_beside(tree)):
        raw, average = found, {}
    parts = Parts({**tree, "first_stage": None})
    names = network_names(parts)
    state = {**state, **_theirs(parts, raw.state)}
    if average:
        state = {"model_ema.decay": torch.tensor(tree["ema"]["decay"]),
                 "model_ema.num_updates": torch.tensor(found.metadata["step"], dtype=torch.int), **state}  # fmt: skip
        state |= {foreign.average_name(f"diffusion_model.{theirs}"): average[name] for name, theirs in names.items()}
    state |= {f"{foreign.LATENT}{name}": value for name, value in first_stage.items()}
    held = condition(Parts(tree), first_stage)
    state = {**{f"{foreign.CONDITIONER}{name}": value.clone() for name, value in held.items()}, **state}
    # A factor is a buffer of theirs where it was measured, and has to be one where it is not 1.
    measured = tree["task"]["single_factor"] if kept is not None else factor != 1 or tree["task"]["single_factor"]
    task = {**tree["task"], "single_factor": measured}
    layout = list(published({**tree, "task": task, "ema": tree["ema"] if average else None}))
    if kept is None:
        state[foreign.SCALE_FACTOR] = torch.tensor(factor)
    state = {name: state[name] for name in [foreign.LOG_VARIANCE, *layout] if name in state or name in layout}
    if form == "safetensors":
        exports.write_safetensors(out / "model.safetensors", state, {"latent": latent})
        return [out / "model.safetensors"]
    exports.write_published(out / "model.ckpt", state, {}, found.metadata["step"])
    return [out / "model.ckpt"]


def as_pipeline(tree: dict[str, Any], found: weights.Weights, out: Path, is_expert: bool = False) -> list[Path]:
    """The folder of a pipeline; see pipelines.export."""
    if not tree.get("first_stage"):
        return pipelines.export(tree, found, None, out, is_expert)
    described, first_stage, latent = _described(tree)
    return pipelines.export(described, found, _codec(first_stage, latent, tree["first_stage"]), out, is_expert)


def _described(tree: dict[str, Any]) -> tuple[dict[str, Any], foreign.State, dict[str, Any]]:
    """A tree that describes its first stage too, the first stage under the published names, what its latents are."""
    parts, stage = load_autoencoder(Path(tree["first_stage"]))
    described = {**tree, **{name: parts.tree[name] for name in ("autoencoder", "regularizer")}}
    return described, first_stages.in_order(parts.tree, stage.state), stage.metadata["latent"]


def _codec(first_stage: foreign.State, latent: Mapping[str, Any], source: str) -> Codec:
    """The first stage with one factor; of a VQ model that has several its codes stay, and latents are whitened."""
    if "quantize.embedding.weight" in first_stage and not exports.has_one_factor(latent):
        return Codec(first_stage, mean=latent["mean"], std=latent["std"])
    return Codec(*exports.one_factor(first_stage, latent, source))


def _has_place(tree: dict[str, Any], first_stage: foreign.State, latent: Mapping[str, Any]) -> bool:
    """Whether the published layout can hold a model of latents: without patches, under a chain of steps, of one
    factor, with one condition that has weights.
    """
    is_vq = "quantize.embedding.weight" in first_stage
    if kind_of(tree) != "diffusion" or tree["network"].get("patch_size", 1) != 1:
        return False
    if not isinstance(Parts(tree)["schedule"], Discrete) or (is_vq and not exports.has_one_factor(latent)):
        return False
    try:
        published(tree)
    except UserError:
        return False
    return True


def _theirs(parts: Parts, own: Mapping[str, Tensor]) -> foreign.State:
    """Our state of the model under the published names."""
    names = network_names(parts)
    rest = {re.sub(r"^conditioner\.parts\.\w+\.", foreign.CONDITIONER, name): value for name, value in own.items()
            if name.startswith("conditioner.") and name not in names}  # fmt: skip
    return {f"{foreign.NETWORK}{theirs}": own[name] for name, theirs in names.items() if name in own} | rest
