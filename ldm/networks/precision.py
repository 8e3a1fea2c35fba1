"""bf16 for a network that samples: its products are computed in it, and the weights of these are held in it.

Faster where a device multiplies bf16 itself, and half the memory; the mathematics around the network stays in fp32. The
result is that of autocast with fp32 weights, bit for bit, which casts them at every evaluation.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from ldm.errors import UserError

Precision = Literal["fp32", "bf16"]
PRECISIONS: Mapping[Any, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16}  # of products; None: as they are
PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def low_dtype(precision: Precision) -> torch.dtype | None:
    """What products are computed in; None is the weights' own type. Raises UserError for a precision there is not."""
    if precision not in PRECISIONS:
        raise UserError(f"precision={precision}: there are {', '.join(PRECISIONS)}")
    return PRECISIONS[precision]


def precision_told(precision: Precision) -> dict[str, str]:
    """What to say of it beside a result: nothing of fp32, as of results that are older than the choice."""
    return {} if precision == "fp32" else {"precision": precision}


def lower(network: nn.Module, precision: Precision) -> None:
    """Hold in place the weights of `network`'s products in `precision`; all others, as those of norms, stay in fp32."""
    dtype = low_dtype(precision)
    for module in network.modules() if dtype else ():
        for parameter in module.parameters(recurse=False) if isinstance(module, PRODUCTS) else ():
            parameter.data = parameter.data.to(dtype)
