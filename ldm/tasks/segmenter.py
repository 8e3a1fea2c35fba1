"""A small segmenter of ground and things, trained on real pictures, and how well a map agrees with another (mIoU)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 32
FINE = 8  # channels at full resolution, for sharp edges
BATCH = 16
LR = 3e-3


def _block(before: int, after: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (before, after):
        layers += [nn.Conv2d(width, after, 3, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
    return nn.Sequential(*layers)


class Segmenter(nn.Module):
    """Class scores [B, classes, H, W] of images [B, 3, H, W] in [-1, 1], sides multiples of 8: a small U-Net."""

    def __init__(self, num_classes: int):
        super().__init__()
        widths = (WIDTH, 2 * WIDTH, 4 * WIDTH)
        self.first = nn.Conv2d(3, WIDTH, 5, stride=2, padding=2)
        self.down = nn.ModuleList(_block(a, b) for a, b in zip((WIDTH, *widths[:-1]), widths, strict=True))
        self.up = nn.ModuleList(_block(a + b, b) for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.fine = nn.Conv2d(3, FINE, 3, padding=1)
        self.last = nn.Sequential(
            nn.Conv2d(WIDTH + FINE, 2 * FINE, 3, padding=1), nn.SiLU(), nn.Conv2d(2 * FINE, num_classes, 1)
        )

    def forward(self, images: Tensor) -> Tensor:
        x, kept = self.first(images), []
        for place, block in enumerate(self.down):
            x = block(F.avg_pool2d(x, 2) if place else x)
            kept.append(x)
        for block, beside in zip(self.up, kept[-2::-1], strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0), beside], dim=1))
        x = F.interpolate(x, size=images.shape[2:], mode="bilinear")
        return self.last(torch.cat([x, F.silu(self.fine(images))], dim=1))


def trained_segmenter(images: Tensor, maps: Tensor, num_classes: int, steps: int, device: torch.device) -> Segmenter:
    """A segmenter after `steps` on images [N, 3, H, W] and maps [N, H, W], mirrored and recoloured at random."""
    torch.manual_seed(0)
    model = Segmenter(num_classes).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.05)
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
