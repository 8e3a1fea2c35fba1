"""What diagnostics draw with and for: a model on its device, held-out pictures with their conditions, a folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.data.module import ShardData
from ldm.drawer import Drawer
from ldm.ensemble_model import Ensemble
from ldm.errors import UserError
from ldm.evaluation.samples_of import samples_of
from ldm.loading import load_drawer
from ldm.model import Model
from ldm.request import asked_guidance
from ldm.sampling import Sampling


def opened(tree: Mapping[str, Any], words: Sequence[str], device: torch.device) -> tuple[Drawer, Sampling]:
    """The model of `tree`, which `words` made, and how it is to be sampled. Raises UserError for what does not fit."""
    for key in ("num_samples", "batch_size"):
        if tree[key] < 1:
            raise UserError(f"{key}={tree[key]}: must be at least 1")
    for key in ("seed", "resamples"):
        if tree[key] < 0:
            raise UserError(f"{key}={tree[key]}: must be at least 0")
    model = load_drawer(Path(tree["model"]).expanduser(), tree["first_stage"], tree["ema"], tree["residency"])
    model = model.to(device).tuned()
    sampling = model.sampling({**tree, "guidance": asked_guidance(words, tree["guidance"])})
    model.left_out(sampling)
    return model, sampling


def members_of(model: Drawer, tree: Mapping[str, Any]) -> list[Model]:
    """The models that a drawer with one latent is made of. Raises UserError for what is drawn in stages."""
    if isinstance(model, Model):
        return [model]
    if isinstance(model, Ensemble):
        return model.members
    raise UserError(f"model={tree['model']}: neither a run nor an ensemble; name one of those that it is made of")


def held_out(model: Drawer, tree: Mapping[str, Any]) -> ShardData:
    """The samples that ``data=`` names (see `samples_of`). Raises UserError unless they are enough."""
    data = samples_of(model.data, tree["data"])
    if data is None:
        raise UserError(f"model={tree['model']}: it has no held-out images; name shards with data=")
    data.setup()
    if data.num_train < tree["num_samples"]:
        raise UserError(f"num_samples={tree['num_samples']}: there are {data.num_train} such samples")
    return data


def folder_of(tree: Mapping[str, Any], model: Drawer, name: str) -> Path:
    """Where files go: ``out=``, or NAME-MODEL in the model's folder."""
    path = Path(tree["model"]).expanduser()
    return Path(tree["out"]) if tree["out"] else (path if path.is_dir() else path.parent) / f"{name}-{model.name}"


def on(device: torch.device, batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch with its tensors on a device."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
