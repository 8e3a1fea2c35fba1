"""LAION's aesthetic predictor: a linear map of CLIP ViT-L/14's image embeddings to a score from about 1 to 10.

Both public files are read: `sa_0_4_vit_l_14_linear.pth` (weight [1, 768], bias [1]) and
`sac+logos+ava1-l14-linearMSE.pth` (layers.N.weight and bias: linear layers with nothing between them that acts in use,
which are one linear map too).
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.metrics.clip_score import open_clip_score

LAYER = re.compile(r"layers\.(\d+)\.(weight|bias)")
BROKEN = (UnpicklingError, SafetensorError, RuntimeError, LookupError, AttributeError, TypeError, ValueError, EOFError)


class AestheticScore(nn.Module):
    """weight . e + bias of unit embeddings e [B, D], which `embed` makes of images."""

    metric = "aesthetic_score"

    def __init__(self, embed: Callable[[Tensor], Tensor], weight: Tensor, bias: Tensor, name: str):
        super().__init__()
        self.embed, self.name = embed, name
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Scores [B] of images [B, 3, H, W] in [-1, 1]."""
        return (F.normalize(self.embed(images).float(), dim=1) @ self.weight.T + self.bias)[:, 0]


def read_predictor(path: Path) -> tuple[Tensor, Tensor]:
    """Weight [1, D] and bias [1] of a predictor's file, .pth or .safetensors, which can run no code."""
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        return _folded(state)
    except FileNotFoundError:
        raise FileNotFoundError(f"aesthetic.path={path}: no such file") from None
    except BROKEN as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"aesthetic.path={path}: no linear predictor of aesthetics ({said})") from error


def _folded(state: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """One linear map of one layer, or of several that are named layers.N."""
    state = {key: value.float() for key, value in state.items()}
    if state.keys() == {"weight", "bias"}:
        layers = [(state["weight"], state["bias"])]
    else:
        numbers = sorted({int(LAYER.fullmatch(key)[1]) for key in state})
        layers = [(state[f"layers.{number}.weight"], state[f"layers.{number}.bias"]) for number in numbers]
    weight, bias = torch.eye(layers[0][0].shape[1]), torch.zeros(layers[0][0].shape[1])
    for own, shift in layers:
        weight, bias = own @ weight, own @ bias + shift
    if weight.shape[0] != 1:
        raise UserError(f"it gives {weight.shape[0]} numbers for an image, not one")
    return weight, bias


def aesthetic_score(path: str | Path, model: str, weights: str) -> AestheticScore:
    """The predictor in the file `path` on one of open_clip's own architectures; `weights`: a local file, or a tag."""
    found, bias = read_predictor(Path(path).expanduser())
    clip = open_clip_score(model, weights)
    width = clip.embed_images(torch.zeros(1, 3, *clip.size)).shape[1]
    if width != found.shape[1]:
        raise UserError(f"aesthetic.path={path}: takes embeddings {found.shape[1]} wide, those of {model} are {width}")
    score = AestheticScore(clip.embed_images, found, bias, f"{Path(path).stem}:{clip.name}")
    score.clip = clip  # moved with it
    return score
