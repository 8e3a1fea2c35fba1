"""CLIP score (Hessel et al. 2021): cosine of a CLIP model's image and text embeddings, by open_clip.

Plain cosine, not scaled by 100 or 2.5 and not clamped. eDiff-I's curves are with ViT-g-14.
"""

import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from ldm.errors import UserError

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")  # the last four are read as torch's, without code
PIXELS = ("mean", "std", "interpolation")
NO_WEIGHTS = (UnpicklingError, SafetensorError, RuntimeError, LookupError, AttributeError, TypeError, StopIteration)


class ClipScore(nn.Module):
    """Agreement of images with captions under an open_clip model; `name` goes beside every number."""

    metric = "clip_score"

    def __init__(self, model: nn.Module, tokenizer: Callable[[list[str]], Tensor], name: str) -> None:
        super().__init__()
        self.model, self.tokenizer, self.name = model.requires_grad_(False).eval(), tokenizer, name
        preprocess = open_clip.get_model_preprocess_cfg(model)
        size = preprocess["size"]
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        self.interpolation = preprocess["interpolation"]
        self.register_buffer("mean", torch.tensor(preprocess["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocess["std"]).view(1, 3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> "ClipScore":
        """Stays in evaluation mode, whatever a parent does."""
        return super().train(False)

    def embed_images(self, images: Tensor) -> Tensor:
        """Unit vectors [B, D] of images [B, 3, H, W] in [-1, 1]."""
        images = F.interpolate(images.float(), self.size, mode=self.interpolation, antialias=True)
        images = (images.clamp(-1, 1) + 1) / 2
        return self.model.encode_image((images - self.mean) / self.std, normalize=True).float()

    @torch.no_grad()
    def embed_captions(self, captions: Sequence[str]) -> Tensor:
        """Unit vectors [B, D] of captions."""
        return self.model.encode_text(self.tokenizer(list(captions)).to(self.mean.device), normalize=True).float()

    def forward(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        """Cosine [B] in [-1, 1] of images [B, 3, H, W] in [-1, 1] and their captions."""
        return (self.embed_images(images) * self.embed_captions(captions)).sum(1)


def open_clip_score(model: str, weights: str) -> ClipScore:
    """CLIP score of one of open_clip's own architectures; `weights` is a local file, or a tag that open_clip downloads.

    Raises ValueError for any other name: folders and repositories may bring code of their own with them; and for a tag
    that was trained with another activation, under which open_clip would give other embeddings. Pixels are those that
    the weights were trained on, in a file too.
    """
    own = open_clip.list_models()
    if model not in own:  # exactly: with the prefix local-dir: or hf-hub:, open_clip reads a model from elsewhere
        near = ", ".join(difflib.get_close_matches(model, own, n=3)) or "ViT-B-32, ViT-L-14, ..."
        raise UserError(
            f"model={model!r} is none of open_clip's own architectures ({near}); folders and repositories are not "
            "read, because they can have code run"
        )
    tags = open_clip.list_pretrained_tags_by_model(model)
    if weights in tags:
        _check_activation(model, weights)
    file = Path(weights).expanduser()
    if weights not in tags and (not file.is_file() or file.suffix not in SUFFIXES):
        raise UserError(
            f"weights={weights!r} is neither a file ({', '.join(SUFFIXES)}) nor a tag of model={model!r}; open_clip "
            f"has {', '.join(tags) or 'no tags'}"
        )
    try:
        network = open_clip.create_model(
            model,
            weights if weights in tags else str(file.resolve()),
            weights_only=True,
            force_preprocess_cfg={} if weights in tags else _pixels_of(model, file),
        )
    except NO_WEIGHTS as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"weights={weights!r}: no weights of {model}, or not without running code ({said})") from error
    text = open_clip.get_model_config(model)["text_cfg"]
    plain = {"trust_remote_code": False} if text.get("hf_tokenizer_name") else {}
    name = f"{model}:{weights if weights in tags else file.stem}"
    return ClipScore(network, open_clip.get_tokenizer(model, **plain), name)


def _check_activation(model: str, tag: str) -> None:
    """Raises UserError for weights that were trained with QuickGELU under the architecture's name that has GELU."""
    own, theirs = open_clip.get_model_config(model), open_clip.get_pretrained_cfg(model, tag)
    if theirs.get("quick_gelu", False) and not own.get("quick_gelu", False):
        raise UserError(
            f"weights={tag!r}: were trained with QuickGELU, and model={model!r} computes GELU: the embeddings would be "
            f"others; take model={model}-quickgelu"
        )


def _pixels_of(model: str, file: Path) -> dict[str, Any]:
    """How weights in a file are given pixels, which the file does not say: as the tag that its name begins with is, or
    as all tags of the architecture are. Raises UserError where these differ and the name begins with none.
    """
    own = open_clip.get_model_config(model).get("quick_gelu", False)
    every = {tag: open_clip.get_pretrained_cfg(model, tag) for tag in open_clip.list_pretrained_tags_by_model(model)}
    ways = {
        tag: {key: config[key] for key in PIXELS}
        for tag, config in every.items()
        if config.get("quick_gelu", False) == own
    }
    name = file.stem.lower().replace("-", "_")
    named = max((tag for tag in ways if name.startswith(tag)), key=len, default=None)
    found = list(ways.values()) if named is None else [ways[named]]
    if any(way != found[0] for way in found):
        raise UserError(
            f"weights={file}: weights of model={model!r} are given pixels in several ways; let the file's name begin "
            f"with its tag: {', '.join(ways)}"
        )
    return found[0] if found else {}
