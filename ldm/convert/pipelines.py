"""A diffusion model as a folder of diffusers: network, first stage, scheduler, conditions, model_index.json.

Where a pipeline of diffusers takes what the model is, the folder is for that one: unconditional, text and
super-resolution U-Nets under a chain of steps. All others have a pipeline of ours, and those that such a U-Net is a
part of sample.py besides, which samples from the same parts. Nothing of diffusers is imported here.
"""

import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ldm.build import Parts, window_size
from ldm.checkpoint import weights
from ldm.convert import conditions, own_conditions, own_pipeline, sample_script, schedulers
from ldm.convert import export as exports
from ldm.convert.conditions import Latent, Written
from ldm.convert.diffusers_unet import VERSION
from ldm.convert.exported_network import ExportedNetwork, check_known, exported, is_of_diffusers
from ldm.convert.foreign import State
from ldm.convert.schedulers import INSTEAD
from ldm.errors import UserError
from ldm.files import TEMPORARY, write_json, write_text

log = logging.getLogger(__name__)


class Codec(NamedTuple):
    """A first stage under the published names; its latents times `factor` are whitened by `mean` and `std`."""

    state: State
    factor: float = 1.0
    mean: float | list[float] = 0.0
    std: float | list[float] = 1.0


def export(
    tree: Mapping[str, Any], found: weights.Weights, codec: Codec | None, out: Path, is_expert: bool = False
) -> list[Path]:
    """Write the model into the folder `out`; returns the files made.

    `tree` describes the first stage too; without a `codec` the model is one of pixels. One that `is_expert` may be for
    a part of the noise, and always is a pipeline of ours. Raises ValueError naming what diffusers cannot hold, before
    anything is in `out`.
    """
    check_known(tree["network"])
    intervals = found.metadata.get("intervals")
    if not is_expert and intervals and [tuple(pair) for pair in intervals] != [(0.0, math.inf)]:
        raise UserError(f"expert: one expert of several is no model for all of the noise; {INSTEAD}")
    parts = Parts({**tree, "first_stage": None})  # described by the tree
    scheduler, conditioner = schedulers.scheduler(tree, parts), parts["conditioner"]
    latent, widths = _latent(tree, parts, codec), conditioner.widths()
    network = exported(tree["network"], _split(parts, found), latent.channels, widths)
    targets = {name: part["_target_"] for name, part in (tree["conditioner"] or {}).items()}
    is_theirs = (
        not is_expert
        and codec is not None
        and codec.std == 1.0
        and schedulers.is_chain(tree, parts)
        and is_of_diffusers(tree["network"], widths)
        and conditions.has_form(conditioner.parts, targets, latent)
    )
    with into(out) as folder:
        written = conditions.write(conditioner.parts, targets, latent, folder) if is_theirs else Written()
        files = _parts(tree, codec, network, scheduler.config, written, latent, folder)
        index: dict[str, Any] = {
            network.place: network.index,
            "scheduler": ["diffusers", scheduler.config["_class_name"]],
        }
        if codec is not None:
            place = written.first_stage if written.pipeline else "vae"
            index = {place: ["diffusers", "VQModel" if latent.is_vq else "AutoencoderKL"], **index}
        if written.pipeline:
            index = {"_class_name": written.pipeline, "_diffusers_version": VERSION, **index, **written.components}
            files.append(write_json(folder / "model_index.json", index))
        else:
            described = own_conditions.describe(conditioner, targets)
            facts = own_pipeline.facts(tree, scheduler, latent)
            if codec is not None:
                facts |= {"latents_mean": codec.mean, "latents_std": codec.std}
            files += own_pipeline.write(index, conditioner, described, facts, folder)
        if written.script:
            text = sample_script.text(
                written.script, network.config["_class_name"], network.module, index["vae"][1],
                channels=latent.channels, side=latent.side, scale=(tree.get("guidance") or {}).get("scale", 1.0),
                num_steps=tree["num_steps"], length=scheduler.config["num_train_timesteps"],
            )  # fmt: skip
            files.append(write_text(folder / "sample.py", text))
    return [out / path.relative_to(folder) for path in files]


def _parts(
    tree: Mapping[str, Any], codec: Codec | None, network: ExportedNetwork, scheduler: Mapping[str, Any],
    written: Written, latent: Latent, out: Path,
) -> list[Path]:  # fmt: skip
    """The folders of first stage, network and scheduler, beside what is `written` of conditions."""
    files = list(written.files)
    if written.note:
        log.warning(written.note)
    if codec is not None:
        if not written.divides:
            codec = Codec(exports.fold_factor(codec.state, codec.factor))
        place = written.first_stage if written.pipeline else "vae"
        files += exports.write_diffusers_autoencoder(
            out / place, codec.state, tree["autoencoder"], codec.factor, window_size(tree)
        )
    files += network.write(out, written.sample_size or latent.side)
    return [*files, write_json(out / "scheduler" / "scheduler_config.json", scheduler)]


@contextmanager
def into(out: Path) -> Iterator[Path]:
    """A folder beside `out` whose files are moved into it at the end, and only if there was no error."""
    folder = out.with_name(f"{TEMPORARY}{os.getpid()}-{out.name}")
    try:
        yield folder
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            target = out / path.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _latent(tree: Mapping[str, Any], parts: Parts, codec: Codec | None) -> Latent:
    side = window_size(tree)
    if codec is None:
        return Latent(parts["first_stage"].spec.channels, side, 1, is_vq=False)
    with torch.device("meta"):
        f = parts["autoencoder"].f
    if side % f:
        raise UserError(f"image_size={side}: must be a multiple of the first stage's f = {f}")
    return Latent(parts["regularizer"].latent_channels, side // f, f, "quantize.embedding.weight" in codec.state)


def _split(parts: Parts, found: weights.Weights) -> State:
    """The network's part of the weights; the conditioner takes its own. Raises ValueError if they do not fit."""
    with torch.device("meta"):
        network = parts["network"].state_dict()
    conditioner = parts["conditioner"].state_dict()
    own = {f"network.{name}": value for name, value in network.items()}
    own |= {f"conditioner.{name}": value for name, value in conditioner.items()}
    weights.check_fit(own, found.state, str(found.path))
    parts["conditioner"].load_state_dict({name: found.state[f"conditioner.{name}"] for name in conditioner})
    return {name: found.state[f"network.{name}"] for name in network}
