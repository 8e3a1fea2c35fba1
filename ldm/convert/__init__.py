"""Models to and from the formats of others: the published layout, safetensors and diffusers folders.

An imported model is a run like any other: sampled, evaluated, used as a first stage, or branched from. What a first
stage needs is in first_stage.py, a whole diffusion model in diffusion.py.
"""

from pathlib import Path
from typing import Any

from ldm.build import is_first_stage
from ldm.checkpoint import weights
from ldm.checkpoint.finite import check_finite
from ldm.config import load_tree
from ldm.convert import (
    diffusers_pipeline,
    diffusion,
    diffusion_export,
    expert_export,
    first_stage,
    foreign,
    foreign_file,
    lora,
)
from ldm.errors import UserError
from ldm.files import sha256
from ldm.holding import held
from ldm.overwriting import FIRST, LAST, clear
from ldm.places import first_stage_of
from ldm.run import Run

FORMATS = ("safetensors", "published", "diffusers", "lora")


def layout(tree: dict[str, Any]) -> list[str]:
    """Lines ``key<TAB>shape`` of the published layout of what `tree` trains; nothing is allocated.

    A diffusion model's has the buffers of its schedule, the network, its average, the first stage and the conditioner.
    """
    state = first_stage.published(tree) if is_first_stage(tree) else diffusion.published(tree)
    return [f"{name}\t{list(tensor.shape)}" for name, tensor in state.items()]


def import_checkpoint(
    checkpoint: Path, tree: dict[str, Any], out: Path, scale_factor: float | None, anew: bool = False
) -> Run:
    """A run in `out` from a published file, or a folder of Stable Diffusion's pipeline, loaded strictly into the model
    of `tree`; with `anew` the remains of an interrupted import there are deleted first.

    Its latents are whitened by `scale_factor` as published (std 1 / scale_factor), else by the factor in the file or
    beside it, the one published with such a first stage, or by statistics of the tree's data; a VQ model's default is
    1. Raises ValueError naming keys that do not fit, what the file is if it is something else, a weight that is not
    finite, or an unknown factor.
    """
    if not anew and any((out / name).exists() for name in (*FIRST, LAST)):
        raise UserError(f"out={out}: there is a run already, or a part of one; give another folder")
    if scale_factor is not None and not 0 < scale_factor < float("inf"):
        raise UserError(f"scale_factor={scale_factor}: must be positive")
    job, source, step, more = first_stage if is_first_stage(tree) else diffusion, f"checkpoint={checkpoint}", 0, {}
    if job is diffusion and (checkpoint / diffusers_pipeline.INDEX).exists():
        state, factor, text = diffusers_pipeline.read(checkpoint, tree, source)
        scale_factor, more = scale_factor or factor, {"text": text}
        checkpoint = foreign_file.locate(checkpoint / "unet")
    else:
        checkpoint = foreign_file.locate(checkpoint)
        source = f"checkpoint={checkpoint}"
        state, step = foreign_file.read(checkpoint)
    used = {
        name: value for name, value in state.items() if not name.startswith((*foreign.IRREGULAR, *foreign.LEFT_OUT))
    }
    check_finite(used, source)
    if scale_factor is None and job is first_stage and (tree["data"] or {}).get("train", "???") == "???":
        scale_factor = foreign_file.factor_beside(checkpoint)
    tree = {**tree, "branch": None}  # of an experiment that fine-tunes
    with held(out, "importing into"):
        if anew:
            clear(out)
        run = job.import_state(state, step, tree, out, scale_factor, source, **more)
        imported = {"file": checkpoint.name, "sha256": sha256(checkpoint)}
        run.record(imported=imported, finished_step=run.tree["max_steps"])
    return run


def export_model(path: Path, form: str, out: Path) -> list[Path]:
    """Write the model of a run (or of one weights file) into the folder `out`; returns the files made.

    ``published``: model.ckpt; ``safetensors``: model.safetensors under the published names, or where these have no
    place for the model under ours with its config.yaml, the latent statistics in its header; ``diffusers``: a folder
    for from_pretrained, with the averaged weights and the measured statistics; of these an adapter is a part. ``lora``:
    the adapter alone, as diffusers loads it. Of an ensemble's manifest see expert_export.export.
    """
    if form not in FORMATS:
        raise UserError(f"format={form}: there are {', '.join(FORMATS)}")
    if path.suffix == ".yaml":
        return expert_export.export(path, form, out)
    found = weights.load(path)
    tree = load_tree(found.run / "config.yaml")
    tree["first_stage"] = first_stage_of(found.run)
    raw = weights.load(path, "raw") if path.suffix != ".safetensors" else found
    if form == "lora":
        return lora.export(tree, found, out)
    tree, [found, raw] = lora.merged(tree, found, raw)
    job = first_stage if is_first_stage(tree) else diffusion_export
    return job.export(tree, found, raw, form, out)
