"""The PatchGAN discriminator (pix2pix, arXiv 1611.07004), with the names of the published first stages."""

from torch import Tensor, nn


class PatchDiscriminator(nn.Module):
    """A logit for each patch: image [B, image_channels, H, W] in [-1, 1] -> [B, 1, h, w]; positive means real.

    `num_layers` convolutions of stride 2, the width doubling from `channels` up to 8 times that.
    """

    def __init__(self, channels: int = 64, num_layers: int = 3, image_channels: int = 3):
        super().__init__()
        widths = [channels * min(2**n, 8) for n in range(num_layers + 1)]
        layers = [nn.Conv2d(image_channels, channels, 4, 2, 1), nn.LeakyReLU(0.2)]
        for n in range(1, num_layers + 1):
            stride = 2 if n < num_layers else 1
            layers.append(nn.Conv2d(widths[n - 1], widths[n], 4, stride, 1, bias=False))
            layers += [nn.BatchNorm2d(widths[n]), nn.LeakyReLU(0.2)]
        layers.append(nn.Conv2d(widths[-1], 1, 4, 1, 1))
        self.main = nn.Sequential(*layers)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Convolutions from N(0, 0.02), normalisation scales from N(1, 0.02)."""
        for layer in self.main:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, 0.0, 0.02)
            elif isinstance(layer, nn.BatchNorm2d):
                nn.init.normal_(layer.weight, 1.0, 0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, image: Tensor) -> Tensor:
        return self.main(image)
