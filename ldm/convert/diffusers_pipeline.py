"""A diffusers' folder of Stable Diffusion 1 or 2 as the published state that its parts make. Runs nothing of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.checkpoint import kinds
from ldm.convert import diffusers_unet, diffusion, first_stage_layouts, foreign, foreign_file, text_encoders
from ldm.convert.exported_network import UNET
from ldm.convert.schedulers import PREDICTIONS
from ldm.errors import UserError
from ldm.files import read_json

INDEX = "model_index.json"
FAMILY, OTHERS = "StableDiffusion", ("StableDiffusionXL", "StableDiffusion3")
WORDS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


def read(
    folder: Path, tree: dict[str, Any], source: str
) -> tuple[foreign.State, float | None, text_encoders.Write | None]:
    """Of a pipeline's folder: (published state of the network and the first stage, the factor of the latents, what
    writes its text encoder into a folder, unless the tree has one).

    Raises ValueError if the folder is of another model than the tree's, or a part of it is not there.
    """
    kind = str(read_json(folder / INDEX).get("_class_name"))
    if not kind.startswith(FAMILY) or kind.startswith(OTHERS) or tree["network"]["_target_"] != UNET:
        raise UserError(f"{source}: a {kind[:60]}; of pipelines only those of Stable Diffusion 1 and 2 are read")
    for part in ("unet", "vae"):
        if not (folder / part).is_dir():
            raise UserError(f"{source}: no {part} there, as a folder that {kind[:60]} has saved")
    _check_prediction(folder, tree, source)
    encoder = (tree["conditioner"] or {}).get(diffusion.TEXT)
    text = None if encoder is None or diffusion.has_encoder(encoder) else text_encoders.of_folder(folder, source)
    described = diffusion.published(tree, text_encoder=False)
    unet, _ = foreign_file.read(foreign_file.locate(folder / "unet"))
    if not any(name.startswith("conv_in.") for name in unet):
        raise kinds.refusal(unet, f"{source}/unet", "a U-Net as diffusers names it")
    place = foreign_file.locate(folder / "vae")
    vae, _ = foreign_file.read(place)
    shapes = foreign.below(described, foreign.LATENT)
    vae = first_stage_layouts.in_published(vae, shapes, len(tree["autoencoder"]["multipliers"]), f"{source}/vae")
    own = foreign.below(described, foreign.NETWORK)
    theirs = dict(zip(diffusers_unet.names(own, tree["network"], by_tokens=True), own, strict=True))
    state = {f"{foreign.NETWORK}{theirs.get(name, name)}": value for name, value in unet.items()}
    state |= {f"{foreign.LATENT}{name}": value for name, value in vae.items()}
    return state, foreign_file.factor_beside(place), text


def _check_prediction(folder: Path, tree: Mapping[str, Any], source: str) -> None:
    """Check that the network was trained to predict what the tree says, which its weights do not show."""
    path = folder / "scheduler" / "scheduler_config.json"
    said = str(read_json(path).get("prediction_type", "epsilon")) if path.is_file() else None
    if said is not None and said != PREDICTIONS.get(tree["precond"]["_target_"]):
        raise UserError(
            f"{source}: its scheduler says {said[:30]}, so precond={WORDS.get(said, 'another')}, and the experiment's "
            "precond is another; experiment=finetune/sd21 is for v, sd15 and sd21_base are for eps"
        )
