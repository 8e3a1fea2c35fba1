"""Checks the inputs of a denoiser's network against what it was built for."""

from typing import Protocol

from torch import Tensor

from ldm.errors import UserError
from ldm.networks.bias import Bias


class Built(Protocol):
    """Widths that a network takes, 0 for none, and what height and width of its input must be multiples of."""

    in_channels: int
    vector_width: int
    tokens_width: int
    concat_channels: int
    factor: int


def check_inputs(
    network: Built,
    x: Tensor,
    vector: Tensor | None,
    tokens: Tensor | None,
    tokens_bias: Tensor | Bias | None,
    concat: Tensor | None,
) -> None:
    """Raise ValueError naming what is missing, too much or of another size than `network` was built for."""
    expected = {
        "x": (network.in_channels, x.shape[1]),
        "vector": (network.vector_width, 0 if vector is None else vector.shape[-1]),
        "tokens": (network.tokens_width, 0 if tokens is None else tokens.shape[-1]),
        "concat": (network.concat_channels, 0 if concat is None else concat.shape[1]),
    }
    for name, (built_for, given) in expected.items():
        if given != built_for:
            raise UserError(f"{name}: the network was built for width {built_for} and got {given} (0: none)")
    if x.shape[-2] % network.factor or x.shape[-1] % network.factor:
        raise UserError(f"x: height and width {tuple(x.shape[-2:])} must be multiples of {network.factor}")
    if tokens_bias is not None:
        needed = (len(x), 0 if tokens is None else tokens.shape[1], *x.shape[-2:])
        given_bias = tuple(Bias.of(tokens_bias).values.shape)
        if given_bias != needed:
            raise UserError(f"tokens_bias of {given_bias}: must be of {needed}, [samples, tokens, height, width]")
