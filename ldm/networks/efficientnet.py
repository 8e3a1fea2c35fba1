"""EfficientNet-lite0: EfficientNet-B0 (Tan and Le 2019) without squeeze-excitation, with ReLU6 and a fixed stem.

Serves as a frozen ImageNet feature extractor for metrics (1280 pooled features); not for training.
"""

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from ldm.networks.downloads import load_strict, locate

# (repeats, kernel, stride of the first, expansion, width)
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class ConvNorm(nn.Module):
    """Convolution with TensorFlow's "same" padding (the odd pixel goes right and below), then batch norm."""

    def __init__(self, c_in: int, c_out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        even = kernel // 2 if stride == 1 else 0
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, padding=even, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(c_out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        (kernel, _), (stride, _) = self.conv.kernel_size, self.conv.stride
        if stride > 1:
            height, width = (max(kernel - (side % stride or stride), 0) for side in x.shape[-2:])
            x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        return self.norm(self.conv(x))

    def fold(self) -> None:
        """Merge the norm into the convolution: the same map to rounding, 1.4 times faster on CPU."""
        self.conv, self.norm = fuse_conv_bn_eval(self.conv, self.norm), nn.Identity()  # type: ignore[assignment]  # folded away


class InvertedResidual(nn.Module):
    """Expand by a 1x1 convolution, filter each channel, project; with a skip where the shape stays."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = c_in * expansion
        if expansion > 1:
            self.expand = ConvNorm(c_in, hidden)
        self.depthwise = ConvNorm(hidden, hidden, kernel, stride, groups=hidden)
        self.project = ConvNorm(hidden, c_out)
        self.expands, self.skips = expansion > 1, stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu6(self.expand(x), inplace=True) if self.expands else x
        h = self.project(F.relu6(self.depthwise(h), inplace=True))
        return x + h if self.skips else h

    def fold(self) -> None:
        """Merge every norm into its convolution."""
        for layer in self.children():
            layer.fold()


class EfficientNetLite0(nn.Module):
    """ImageNet classifier on images normalised with ImageNet's mean and std; frozen."""

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 32, kernel=3, stride=2)
        blocks, c_in = [], 32
        for repeats, kernel, stride, expansion, width in STAGES:
            for repeat in range(repeats):
                blocks.append(InvertedResidual(c_in, width, kernel, stride if repeat == 0 else 1, expansion))
                c_in = width
        self.blocks = nn.Sequential(*blocks)
        self.head = ConvNorm(c_in, 1280)
        self.classifier = nn.Linear(1280, num_classes)
        self.requires_grad_(False).eval()

    def features(self, x: Tensor) -> Tensor:
        """Spatially averaged last features [B, 1280] of x [B, 3, H, W]."""
        x = self.blocks(F.relu6(self.stem(x), inplace=True))  # [B, 320, H / 32, W / 32]
        return F.relu6(self.head(x), inplace=True).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Class logits [B, num_classes] of x [B, 3, H, W]."""
        return self.classifier(self.features(x))

    def fold(self) -> "EfficientNetLite0":
        """Merge every norm into its convolution, once the weights are loaded; returns itself."""
        for part in (self.stem, *self.blocks, self.head):
            part.fold()
        return self


def pretrained_efficientnet(path: str | Path | None = None) -> EfficientNetLite0:
    """EfficientNet-lite0 with the published weights, norms folded, from `path` (safetensors) or the cache."""
    return load_strict(EfficientNetLite0(), locate("efficientnet_lite0", path)).fold()
