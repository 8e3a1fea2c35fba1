"""Images and masks as extra input channels (arXiv 2112.10752, sections 4.4 and 4.5)."""

import torch.nn.functional as F
from torch import Tensor

from ldm.conditioners.base import Batch, Conditioner, field


class ImageConcat(Conditioner):
    """batch[key] [B, channels, H, W] -> [B, channels, H / downscale, W / downscale]; the null is zero.

    `downscale` is the first stage's f where the field has the size of the image. `smooth` averages and interpolates
    (images); otherwise the nearest value is taken (masks).
    """

    def __init__(self, key: str, channels: int, downscale: int = 1, smooth: bool = True, drop_prob: float = 0.0):
        super().__init__("concat", channels, drop_prob)
        self.key = key
        self.downscale = downscale
        self.smooth = smooth

    def forward(self, batch: Batch, drop: Tensor) -> dict[str, Tensor]:
        image = field(batch, self.key, f"concat of {self.key}").to(drop.device)
        if image.shape[1] != self.width or image.shape[2] % self.downscale or image.shape[3] % self.downscale:
            raise ValueError(
                f"{self.key} {list(image.shape[1:])}: expected {self.width} channels and sides that "
                f"downscale={self.downscale} divides"
            )
        size = [side // self.downscale for side in image.shape[2:]]
        if self.smooth:
            image = F.interpolate(image.float(), size, mode="bilinear", antialias=True)
        else:
            image = F.interpolate(image.float(), size, mode="nearest")
        return {"concat": image.masked_fill(drop.view(-1, 1, 1, 1), 0.0)}
