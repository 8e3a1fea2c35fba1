"""A small segmenter, trained on real pictures and their maps, and how well a map agrees with another (mIoU).

Feature pyramid (Lin et al. 2017, arXiv 1612.03144) on the frozen EfficientNet-lite0: what is trained is small.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.metrics.features import IMAGENET_MEAN, IMAGENET_STD
from ldm.networks.efficientnet import EfficientNetLite0, pretrained_efficientnet

WIDTH = 48
BATCH = 16
LR = 2e-3
TAPS = {0: 16, 2: 24, 4: 40, 10: 112, 15: 320}  # blocks of the backbone, from fine to coarse, and their channels


class Segmenter(nn.Module):
    """Class scores [B, classes, H, W] of images [B, 3, H, W] in [-1, 1], sides multiples of 16."""

    def __init__(self, num_classes: int, backbone: EfficientNetLite0):
        super().__init__()
        self.backbone = backbone
        self.beside = nn.ModuleList(nn.Conv2d(channels, WIDTH, 1) for channels in TAPS.values())
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.GroupNorm(8, WIDTH), nn.SiLU()) for _ in TAPS
        )
        self.last = nn.Conv2d(WIDTH, num_classes, 3, padding=1)
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        x: Tensor | None = None
        for beside, block, found in reversed(list(zip(self.beside, self.blocks, self._maps(images), strict=True))):
            own = beside(found)
            x = block(own if x is None else own + F.interpolate(x, size=own.shape[2:]))
        return self.last(x)

    @torch.no_grad()
    def _maps(self, images: Tensor) -> list[Tensor]:
        """The backbone's maps [B, C, H / s, W / s], s = 1 to 16, of images enlarged twice."""
        x = F.interpolate(images, scale_factor=2.0, mode="bilinear")
        x = F.relu6(self.backbone.stem(((x + 1) / 2 - self.mean) / self.std))
        maps = []
        for place, block in enumerate(self.backbone.blocks):
            x = block(x)
            if place in TAPS:
                maps.append(x)
        return maps


def trained_segmenter(images: Tensor, maps: Tensor, num_classes: int, steps: int, device: torch.device) -> Segmenter:
    """A segmenter after `steps` on images [N, 3, H, W] and maps [N, H, W], mirrored and recoloured at random."""
    torch.manual_seed(0)
    model = Segmenter(num_classes, pretrained_efficientnet()).to(device)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, weight_decay=0.05)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=max(steps, 2))
    for _ in range(steps):
        chosen = torch.randint(len(images), (BATCH,))
        x, y = images[chosen].to(device), maps[chosen].to(device)
        if torch.rand(()) < 0.5:
            x, y = x.flip(3), y.flip(2)
        x = x * torch.empty(BATCH, 1, 1, 1, device=device).uniform_(0.8, 1.2)
        loss = F.cross_entropy(model(x + 0.05 * torch.randn_like(x)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
    return model.eval()


def confusion(found: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """Counts [N, classes of the truth, classes found] of pixels of maps [N, H, W]."""
    pairs = (truth * num_classes + found).flatten(1)
    counts = [torch.bincount(row, minlength=num_classes**2) for row in pairs]
    return torch.stack(counts).unflatten(1, (num_classes, num_classes))


def miou(counts: Tensor) -> Tensor:
    """The mean over classes, of those that occur, of intersection over union, in all N pictures of `confusion`."""
    total = counts.sum(0).double()
    inner = total.diagonal()
    union = total.sum(0) + total.sum(1) - inner
    return (inner[union > 0] / union[union > 0]).mean()
