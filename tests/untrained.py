"""Folders of untrained toy runs, complete with weights, for what loads and samples models; quicker than training."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldm.build import Parts
from ldm.checkpoint import weights
from ldm.config import compose, dump, overriding
from ldm.diffusion.experts import Expert

ATTENDS = "network.attention_factors=[]"
OVERRIDES = [
    "task=diffusion", "data=quickstart", "network=unet", "schedule=edm", "precond=edm",
    "noise=log_normal", "weighting=native", "expert=default", "sigmas=karras", "sampler=euler",
    "guidance=classifier_free", "callback=[]", "~logger", "image_size=8", "num_steps=3", "network.channels=4",
    "network.multipliers=[1,1]", "network.num_blocks=1", ATTENDS, "network.head_channels=4",
    "network.norm_groups=2",
]  # fmt: skip
LABEL = ["conditioner=[label]", "conditioner.label.num_classes=5", "conditioner.label.width=4"]


def untrained_run(folder: Path, *overrides: str, seed: int = 0, finished: bool = True, shared: int = 0) -> Path:
    """A run of a U-Net in pixel space, its weights drawn by `seed`, its conditioner (a label) by `shared`.

    Of an Efficient U-Net, network=efficient_unet, which has these for both kinds, the factors are as it comes.
    """
    chosen = any(word.startswith("conditioner=") for word in overrides)
    own = [word for word in OVERRIDES if word != ATTENDS or "network=efficient_unet" not in overrides]
    tree = compose("config", overriding([*own, *([] if chosen else LABEL), *overrides]))
    parts = Parts(tree)
    model = nn.ModuleDict({"network": parts["denoiser"].network, "conditioner": parts["conditioner"]})
    randomise(model["network"], 0.2, seed)
    randomise(model["conditioner"], 5.0, shared)  # so large that labels are seen
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump(tree))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    counters = {"samples_seen": 64, "seconds": 1.0}
    kinds = ("raw",) if "ema=null" in overrides else ("ema", "raw")
    weights.save(folder / "weights", 1, dict.fromkeys(kinds, state), counters)
    if finished:
        weights.amend(folder / "weights", facts(parts))
    return folder


def facts(parts: Parts) -> dict[str, Any]:
    """What a finished diffusion run adds to the description of its weights."""
    expert: Expert = parts["expert"]
    return {"intervals": expert.intervals(parts["noise"]), "latent": parts["first_stage"].spec.to_dict()}


def randomise(module: nn.Module, std: float, seed: int) -> None:
    """Random weights everywhere, so that zero-initialised outputs say something too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
