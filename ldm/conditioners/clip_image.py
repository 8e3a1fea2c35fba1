"""CLIP's embedding of the image itself, for variations of it and its style (eDiff-I, arXiv 2211.01324)."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.conditioners.base import Conditioner, field
from ldm.conditioners.frozen import Batch, FrozenEncoder
from ldm.conditioners.projection import projection
from ldm.networks.fingerprint import fingerprint
from ldm.networks.huggingface import load_model
from ldm.networks.layers import Frozen

# Of the pixels in [0, 1] that CLIP was trained on.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
KINDS = dict.fromkeys(("clip", "clip_vision_model"), "CLIPVisionModelWithProjection")


class PictureEncoder(FrozenEncoder):
    """What gives a picture, batch["style"] [B, 3, H, W] in [-1, 1], one "embedding" [B, `width`] in fp32."""

    key = "style"
    name: str  # its conditioner's, for messages
    width: int
    model: Frozen


class ImageEncoder(PictureEncoder):
    """CLIP's vision tower with its projection; `model(pixel_values).image_embeds` is used."""

    name = "clip_image"

    def __init__(self, model: nn.Module):
        self.width = model.config.projection_dim
        self.model = Frozen(model)

    def identity(self) -> dict[str, Any]:
        """The tower's."""
        return {"model": type(self.model.module).__name__, "weights": fingerprint(self.model.module)}

    @torch.no_grad()
    def encode(self, batch: Batch, device: torch.device) -> dict[str, Tensor]:
        """The embedding [B, width] in fp32 of batch["style"] [B, 3, H, W] in [-1, 1]."""
        model = self.model.on(device)
        pixels = preprocess(field(batch, self.key, self.name).to(device), model.config.image_size)
        with torch.autocast(device.type, enabled=False):
            return {"embedding": model(pixel_values=pixels).image_embeds}


def preprocess(image: Tensor, size: int) -> Tensor:
    """The middle square of an image [B, 3, H, W] in [-1, 1], as CLIP takes it: [B, 3, size, size]."""
    side = min(image.shape[2:])
    top, left = ((length - side) // 2 for length in image.shape[2:])
    square = image[:, :, top : top + side, left : left + side].float()
    small = F.interpolate(square, (size, size), mode="bicubic", antialias=True).clamp(-1, 1)
    mean, std = (torch.tensor(own).view(3, 1, 1).to(image.device, non_blocking=True) for own in (MEAN, STD))
    return ((small + 1) / 2 - mean) / std


class ClipImage(Conditioner):
    """batch["style"] [B, 3, H, W] in [-1, 1] -> a vector [B, V], one token [B, 1, width], or both; the null is zero.

    With `width` the token, V wide, is brought to it by a learned projection. The encoder is frozen and not saved. A
    style need not be given in sampling.
    """

    key = "style"
    optional = True
    frozen: PictureEncoder

    def __init__(
        self,
        encoder: PictureEncoder,
        slots: Sequence[str] = ("vector",),
        width: int | None = None,
        drop_prob: float = 0.9,
    ):
        widths = {"vector": encoder.width, "tokens": width or encoder.width}
        super().__init__({slot: widths[slot] for slot in slots}, drop_prob, num_tokens=int("tokens" in slots))
        self.frozen = encoder
        self.project = projection(encoder.width, width if "tokens" in slots else None)

    def forward(self, batch: Batch, drop: Tensor) -> dict[str, Tensor]:
        embedding = torch.zeros(len(drop), self.frozen.width, device=drop.device)
        known = self.frozen.known(batch)
        if known is not None:
            embedding = known["embedding"].to(drop.device).float().masked_fill(drop[:, None], 0.0)
        elif not drop.all():
            kept = torch.tensor([place for place, dropped in enumerate(drop.tolist()) if not dropped])
            kept = kept.to(drop.device, non_blocking=True)
            given = field(batch, self.key, self.frozen.name).to(drop.device)[kept]
            embedding[kept] = self.frozen.encode({"style": given}, drop.device)["embedding"].float()
        filled = {"vector": embedding, "tokens": self.project(embedding[:, None])}
        return {slot: filled[slot] for slot in self.widths}


def clip_image(
    path: str,
    slots: Sequence[Literal["vector", "tokens"]] = ("vector",),
    width: int | None = None,
    drop_prob: float = 0.9,
) -> ClipImage:
    """Conditioning on a picture by the CLIP in the Hugging Face folder `path`: all of it or its vision tower."""
    return ClipImage(_load(Path(path).expanduser()), slots, width, drop_prob)


@cache
def _load(folder: Path) -> ImageEncoder:
    """One frozen encoder per process, however many models use it."""
    return ImageEncoder(load_model(KINDS, folder, "conditioner.clip_image.path", refusal="is no CLIP of images"))
