"""LPIPS v0.1 (Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric").

ImageNet AlexNet or VGG16 trunk with torchvision's key names, and the five published linear heads.
A frozen distance: heads are not trained here, so there is no dropout and train() changes nothing.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.networks.downloads import load_strict, locate


def _unit(x: Tensor, eps: float = 1e-10) -> Tensor:
    # vector_norm has gradient 0 at 0, where sqrt(sum of squares) gives NaN: dead positions do occur on flat images.
    return x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + eps)


def _alexnet() -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)]
    layers += [nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)]
    for c_in, c_out in ((192, 384), (384, 256), (256, 256)):
        layers += [nn.Conv2d(c_in, c_out, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers)


def _vgg16() -> nn.Sequential:
    layers: list[nn.Module] = []
    c_in = 3
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        layers += [nn.MaxPool2d(2, 2)] if layers else []
        for _ in range(depth):
            layers += [nn.Conv2d(c_in, width, 3, padding=1), nn.ReLU()]
            c_in = width
    return nn.Sequential(*layers)


# name: (trunk, indices of the ReLUs whose outputs are compared, their channels, smallest side that leaves no map empty)
TRUNKS = {
    "alex": (_alexnet, (1, 4, 7, 9, 11), (64, 192, 384, 256, 256), 31),
    "vgg": (_vgg16, (3, 8, 15, 22, 29), (64, 128, 256, 512, 512), 16),
}


class LPIPS(nn.Module):
    """Perceptual distance of two images; net is "alex" (metric) or "vgg" (loss of the LDM autoencoders).

    Gradients reach the images only. Below 64 px the deepest maps of alex are single pixels: the value is then well
    defined, but says little about where things are.
    """

    def __init__(self, net: str) -> None:
        super().__init__()
        if net not in TRUNKS:
            raise UserError(f"net={net!r}: LPIPS has the trunks {' and '.join(TRUNKS)}")
        trunk, self.taps, channels, self.min_size = TRUNKS[net]
        self.name = f"lpips_{net}"
        self.features = trunk()
        self.heads = nn.ModuleList(nn.Conv2d(c, 1, 1, bias=False) for c in channels)
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance [B] >= 0 of images a and b [B, 3, H, W] in [-1, 1] (their eq. 1)."""
        if a.shape != b.shape or min(a.shape[-2:]) < self.min_size:
            raise UserError(
                f"{self.name} compares images of one shape, {self.min_size} px or more a side; "
                f"got {tuple(a.shape)} and {tuple(b.shape)}"
            )
        distance = torch.zeros(len(a), device=a.device)
        # Two passes, not one of 2B images: a target without gradients then keeps no activations.
        for head, fa, fb in zip(self.heads, self.maps(a), self.maps(b), strict=True):
            with torch.autocast(a.device.type, enabled=False):
                difference = (_unit(fa.float()) - _unit(fb.float())).square().mean((2, 3))  # [B, C]
                distance = distance + difference @ head.weight.float().flatten()
        return distance

    def maps(self, image: Tensor) -> list[Tensor]:
        """Features [B, C, h, w] of an image [B, 3, H, W] in [-1, 1] at the five depths that are compared."""
        maps, x = [], (image - self.shift) / self.scale
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                maps.append(x)
        return maps


def pretrained_lpips(net: str, path: str | Path | None = None) -> LPIPS:
    """LPIPS with the published weights, from `path` (safetensors) or the cache."""
    return load_strict(LPIPS(net), locate(f"lpips_{net}", path))
