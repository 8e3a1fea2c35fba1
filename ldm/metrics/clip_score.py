"""CLIP score (Hessel et al. 2021): cosine of a CLIP model's image and text embeddings, by open_clip.

Plain cosine, not scaled by 100 or 2.5 and not clamped. eDiff-I's curves are with ViT-g-14.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ClipScore(nn.Module):
    """Agreement of images with captions under an open_clip model; `name` goes beside every number."""

    metric = "clip_score"

    def __init__(self, model: nn.Module, tokenizer: Callable[[list[str]], Tensor], name: str) -> None:
        super().__init__()
        self.model, self.tokenizer, self.name = model.requires_grad_(False).eval(), tokenizer, name
        preprocess = open_clip.get_model_preprocess_cfg(model)
        size = preprocess["size"]
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        self.register_buffer("mean", torch.tensor(preprocess["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocess["std"]).view(1, 3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> "ClipScore":
        """Stays in evaluation mode, whatever a parent does."""
        return super().train(False)

    def embed_images(self, images: Tensor) -> Tensor:
        """Unit vectors [B, D] of images [B, 3, H, W] in [-1, 1]."""
        images = F.interpolate(images.float(), self.size, mode="bicubic", antialias=True)
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
    """CLIP score of an open_clip architecture; `weights` is a local file, or a tag that open_clip downloads."""
    local = Path(weights).expanduser().is_file()
    if not local and weights not in open_clip.list_pretrained_tags_by_model(model):
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(model)) or "no tags (is the model's name right?)"
        raise ValueError(f"weights={weights!r} is neither a file nor a tag of model={model!r}; open_clip has {tags}")
    network = open_clip.create_model(model, str(Path(weights).expanduser()) if local else weights)
    name = f"{model}:{Path(weights).stem if local else weights}"
    return ClipScore(network, open_clip.get_tokenizer(model), name)
