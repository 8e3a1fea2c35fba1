"""Models to and from the formats of others: the published layout, safetensors and diffusers folders.

An imported model is a run like any other: sampled, evaluated, used as a first stage, or branched from.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.build import Parts, first_stage_model, is_first_stage
from ldm.checkpoint import export, foreign, resume, weights
from ldm.config import load_tree
from ldm.diffusion.draws import normal
from ldm.files import sha256
from ldm.first_stage.statistics import LatentStatistics
from ldm.run import Run, code_version

FORMATS = ("safetensors", "published", "diffusers")


def layout(tree: dict[str, Any]) -> list[str]:
    """Lines ``key<TAB>shape`` of the published layout of what `tree` trains; nothing is allocated.

    A diffusion model's has the buffers of its schedule, the network, its average, the first stage and the conditioner.
    """
    state = _published(tree) if is_first_stage(tree) else _published_diffusion(tree)
    return [f"{name}\t{list(tensor.shape)}" for name, tensor in state.items()]


def _published(tree: dict[str, Any]) -> foreign.State:
    """The published state of a tree's first stage, on the meta device."""
    with torch.device("meta"):
        return foreign.published(foreign.FIRST_STAGE, first_stage_model(Parts(tree)).state_dict())


def _published_diffusion(tree: dict[str, Any]) -> foreign.State:
    """The published state of a tree's whole latent diffusion model, on the meta device."""
    if not tree.get("network") or not tree.get("autoencoder"):
        raise ValueError("experiment: only first stages and the diffusion models of conf/experiment/ldm are published")
    parts = Parts(tree)
    length = len(parts["schedule"].sigmas)
    with torch.device("meta"):
        network, conditioner = parts["network"], parts["conditioner"]
        state = {name: torch.empty(length) for name in foreign.SCHEDULE}
        state |= {f"{foreign.NETWORK}{name}": value for name, value in network.state_dict().items()}
        if tree["ema"]:
            state |= {f"{foreign.AVERAGE}{name}": torch.empty(()) for name in ("decay", "num_updates")}
            state |= {
                foreign.average_name(f"diffusion_model.{name}"): value for name, value in network.named_parameters()
            }
        state |= {f"first_stage_model.{name}": value for name, value in _published(tree).items()}
        for part in conditioner.parts.values():
            state |= {f"cond_stage_model.{name}": value for name, value in part.state_dict().items()}
        if tree["task"]["single_factor"]:
            state["scale_factor"] = torch.empty(())
    return state


def import_checkpoint(checkpoint: Path, tree: dict[str, Any], out: Path, scale_factor: float | None) -> Run:
    """A run in `out` from a published file, loaded strictly into the model of `tree`.

    Its latents are whitened by `scale_factor` as published (std 1 / scale_factor), or by statistics of the tree's
    data; one of the two is needed for KL, and a VQ model's default is 1. Raises ValueError naming keys that do not fit.
    """
    if (out / "config.yaml").exists():
        raise ValueError(f"out={out}: there is a run already; give another folder")
    if not is_first_stage(tree):
        raise ValueError("experiment: only first stages can be imported so far")
    state, step = foreign.read(checkpoint)
    state, average = foreign.split_average(state)
    parts = Parts(tree)
    model = first_stage_model(parts)
    kept = {name: value for name, value in state.items() if not name.startswith(foreign.LEFT_OUT)}
    training = {name: value for name, value in kept.items() if name.startswith("loss.")}
    theirs = {name: value.float() for name, value in kept.items() if name not in training}
    weights.check_fit(_published(tree), theirs, f"checkpoint={checkpoint}")
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
    resumable = {
        "step": step,
        "about": {},
        "trained": {**own, **foreign.ours(foreign.FIRST_STAGE_LOSS, training)},
        "ema": averages,
        "optimizer": None,
        "callbacks": {},
    }
    counted = {"step": step, "samples_seen": 0, "seconds": 0.0, "device_hours": 0.0}
    resume.save(out / "checkpoints", step, {**resumable, "counters": counted}, counted)
    run.record(imported={"file": checkpoint.name, "sha256": sha256(checkpoint)}, finished_step=run.tree["max_steps"])
    return run


def _latent(parts: Parts, model: nn.ModuleDict, scale_factor: float | None, ema: Mapping[str, Tensor]) -> dict:
    """What whitens the latents: the given factor, the statistics of the data, or for VQ nothing."""
    channels = parts["regularizer"].latent_channels
    if scale_factor is not None:
        if not 0 < scale_factor < float("inf"):
            raise ValueError(f"scale_factor={scale_factor}: must be positive")
        return {"mean": [0.0] * channels, "std": [1 / scale_factor] * channels, "count": 0}
    if parts.tree["data"]["train"] == "???":
        if not parts["regularizer"].moment_channels == channels:
            raise ValueError(
                "scale_factor: a KL first stage needs the factor it was published with, scale_factor=0.18215 for "
                "example, or data.train=... to measure the statistics of its latents"
            )
        return {"mean": [0.0] * channels, "std": [1.0] * channels, "count": 0}
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
    return statistics.summary(parts.tree["task"].get("single_factor", False)) | {"data_fingerprint": data.fingerprint}


def export_model(path: Path, form: str, out: Path) -> list[Path]:
    """Write the model of a run (or of one weights file) into the folder `out`; returns the files made.

    ``published``: model.ckpt; ``safetensors``: model.safetensors under the published names, the latent statistics in
    its header; ``diffusers``: a folder for from_pretrained, with the averaged weights and the measured statistics.
    """
    if form not in FORMATS:
        raise ValueError(f"format={form}: there are {', '.join(FORMATS)}")
    found = weights.load(path)
    tree = load_tree(found.run / "config.yaml")
    if not is_first_stage(tree):
        raise ValueError(f"model={path}: only first stages can be exported so far")
    latent = found.metadata.get("latent")
    if form != "published" and latent is None:
        raise ValueError(f"model={path}: has no latent statistics yet; let it finish (its own command resumes it)")
    state = _in_order(tree, found)
    if form == "published":
        raw = weights.load(path, "raw") if path.suffix != ".safetensors" else found
        average = state if raw.path != found.path else {}
        export.write_published(out / "model.ckpt", _in_order(tree, raw), average, found.metadata["step"])
        return [out / "model.ckpt"]
    if form == "safetensors":
        export.write_safetensors(out / "model.safetensors", state, {"latent": latent})
        return [out / "model.safetensors"]
    export.write_diffusers_autoencoder(out, state, tree["autoencoder"], latent, tree["image_size"])
    return [out / "config.json", out / "diffusion_pytorch_model.safetensors"]


def _in_order(tree: dict[str, Any], found: weights.Weights) -> foreign.State:
    """A run's weights under the published names and in the published order; safetensors keeps none."""
    state = foreign.published(foreign.FIRST_STAGE, found.state)
    return {name: state[name] for name in _published(tree)}
