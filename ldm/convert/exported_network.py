"""A denoiser's network in a folder of diffusers: as one of its U-Nets, or as a class of ours that travels with it."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from ldm.convert import diffusers_unet
from ldm.convert.diffusers_unet import VERSION
from ldm.convert.export import write_diffusers_model
from ldm.convert.foreign import State
from ldm.errors import UserError
from ldm.files import write_text
from ldm.networks.dit import NOISE_WIDTH

UNET, DIT = "ldm.networks.unet.UNet", "ldm.networks.dit.DiT"
# The arguments of a network that determine what it computes.
UNET_KEYS = (
    "channels",
    "multipliers",
    "num_blocks",
    "attention_factors",
    "num_heads",
    "head_channels",
    "transformer_depth",
    "linear_projections",
    "scale_shift_norm",
    "resblock_updown",
    "legacy_attention_order",
    "norm_groups",
    "patch_size",
    "project_vector",
)
DIT_KEYS = ["patch_size", "width", "depth", "num_heads", "mlp_ratio", "cross_attention_every"]

# A U-Net of UNet2DModel's config has heads of one width; ours, as published, may have one number of heads.
HEADS_MODULE, HEADS_CLASS = "unet_heads", "UNet2DModelOfHeads"
HEADS = '''"""UNet2DModel with {num_heads} heads of attention at every width, which its config cannot say."""

from functools import wraps

from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention


class UNet2DModelOfHeads(UNet2DModel):
    @wraps(UNet2DModel.__init__)
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for module in self.modules():
            if isinstance(module, Attention):
                module.heads = {num_heads}
'''


@dataclass(frozen=True)
class ExportedNetwork:
    """What is written into the folder `place`; `code` of `module` is a file beside the weights, '' for a class of
    diffusers.
    """

    place: str
    config: dict[str, Any]
    state: State
    module: str = ""
    code: str = ""

    @property
    def index(self) -> list[str]:
        """Its entry in model_index.json."""
        return [self.module or "diffusers", self.config["_class_name"]]

    def write(self, out: Path, sample_size: int) -> list[Path]:
        """Write its folder into `out`; returns the files."""
        folder = out / self.place
        code = [write_text(folder / f"{self.module}.py", self.code)] if self.module else []
        return code + write_diffusers_model(folder, {**self.config, "sample_size": sample_size}, self.state)


def check_known(network: Mapping[str, Any]) -> None:
    """Raises ValueError if a tree's network cannot be exported."""
    if network["_target_"] not in (UNET, DIT):
        name = network["_target_"].rpartition(".")[2]
        raise UserError(
            f"network: diffusers is known to hold network=unet and network=dit, not {name}; sample it with sample.py, "
            "or export format=safetensors"
        )


def exported(network: Mapping[str, Any], state: State, channels: int, widths: Mapping[str, int]) -> ExportedNetwork:
    """The form of a tree's network with these weights, for latents of `channels`.

    `widths` are those of its conditions (Conditioners.widths).
    """
    check_known(network)
    if is_of_diffusers(network, widths):
        return _of_diffusers(network, state, channels, widths)
    shared = {
        "_diffusers_version": VERSION,
        "in_channels": channels + widths["concat_channels"],
        "out_channels": channels,
        "tokens_width": widths["tokens_width"],
        "vector_width": widths["vector_width"],
    }
    if network["_target_"] == UNET:
        own = {"_class_name": "LatentUNet", **shared, **{key: network[key] for key in UNET_KEYS if key in network}}
        return ExportedNetwork("unet", own, state, "latent_unet", remote_code("latent_unet"))
    own = {"_class_name": "LatentDiT", **shared, **{key: network[key] for key in DIT_KEYS if key in network}}
    own["noise_width"] = NOISE_WIDTH
    return ExportedNetwork("transformer", own, state, "latent_dit", remote_code("latent_dit"))


def is_of_diffusers(network: Mapping[str, Any], widths: Mapping[str, int]) -> bool:
    """Whether a tree's network can be one of diffusers' U-Nets."""
    return network["_target_"] == UNET and diffusers_unet.holds(network, widths)


def _of_diffusers(
    network: Mapping[str, Any], state: State, channels: int, widths: Mapping[str, int]
) -> ExportedNetwork:
    config = diffusers_unet.config(network, channels, widths)
    theirs = diffusers_unet.names(state, network, bool(widths["tokens_width"]))
    if widths["tokens_width"] or diffusers_unet.is_head_width_enough(network):
        return ExportedNetwork("unet", config, theirs)
    code = HEADS.format(num_heads=network["num_heads"])
    return ExportedNetwork("unet", {**config, "_class_name": HEADS_CLASS}, theirs, HEADS_MODULE, code)


def remote_code(module: str) -> str:
    """The text of a file of ldm.convert.remote."""
    return files("ldm.convert").joinpath("remote", f"{module}.py").read_text()
