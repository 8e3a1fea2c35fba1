"""Tokens of encoders of different widths brought to the one width that a network attends to."""

from torch import nn


def projection(encoder_width: int, width: int | None) -> nn.Module:
    """Tokens [B, N, encoder_width] -> [B, N, width], learned, without a bias: zeros stay zeros. None: as they are."""
    return nn.Identity() if width is None else nn.Linear(encoder_width, width, bias=False)
