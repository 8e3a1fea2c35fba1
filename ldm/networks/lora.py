"""Low-rank adapters (LoRA, arXiv 2106.09685) beside the linear layers of any network, by peft.

A layer W x + b becomes W x + b + (alpha / rank) B A x with A [rank, in] random and B [out, rank] zero: at the start the
network computes what it did. In its state W is `LAYER.base_layer.weight`, A `LAYER.lora_A.default.weight`.
"""

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn

from ldm.errors import UserError

BASE, A, B = ".base_layer", ".lora_A.default", ".lora_B.default"
SHOWN = 6  # names of layers in an error


class LoRA:
    """Adapts networks: of `rank`, scaled by `alpha` / rank (None: by 1), with `dropout` of what they read.

    `targets` are patterns of layers' names, as ``*attn*``; a layer that matches one of them is adapted.
    """

    def __init__(
        self,
        rank: int = 16,
        alpha: float | None = None,
        dropout: float = 0.0,
        targets: Sequence[str] = ("*attn*", "*cross*"),
    ):
        if rank < 1:
            raise UserError(f"adapter.rank={rank}: must be at least 1")
        if not 0 <= dropout < 1:
            raise UserError(f"adapter.dropout={dropout}: must be in [0, 1)")
        self.rank = rank
        self.alpha = float(rank if alpha is None else alpha)
        self.dropout = dropout
        self.targets = tuple(targets)

    def __call__(self, network: nn.Module) -> nn.Module:
        """The same network with adapters in it, which alone are trained. Raises ValueError if no layer matches."""
        # Its subclasses, as in nn.MultiheadAttention, are not called but have their weights taken.
        linear = [name for name, layer in network.named_modules() if type(layer) is nn.Linear]
        chosen = [name for name in linear if any(fnmatchcase(name, pattern) for pattern in self.targets)]
        if not chosen:
            raise UserError(
                f"adapter.targets={list(self.targets)}: match none of the network's {len(linear)} linear layers, such "
                f"as {', '.join(linear[:: max(1, len(linear) // SHOWN)][:SHOWN])}"
            )
        from peft import LoraConfig, inject_adapter_in_model  # imported here: seconds that only its users pay

        exactly = "|".join(map(re.escape, chosen))
        config = LoraConfig(
            r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=exactly, bias="none"
        )
        return inject_adapter_in_model(config, network.requires_grad_(False))

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / self.rank


def adapted_layers(state: Mapping[str, Tensor]) -> list[str]:
    """The names of the layers in a state that have adapters."""
    return [name.removesuffix(f"{A}.weight") for name in state if name.endswith(f"{A}.weight")]


def merged(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The state of the same network without adapters that computes the same: W + scale B A."""
    layers = adapted_layers(state)
    plain = {name.replace(f"{BASE}.", "."): value for name, value in state.items() if A not in name and B not in name}
    for layer in layers:
        product = state[f"{layer}{B}.weight"].double() @ state[f"{layer}{A}.weight"].double()
        weight = plain[f"{layer}.weight"]
        plain[f"{layer}.weight"] = (weight.double() + scale * product).to(weight.dtype)
    return plain


def with_adapters(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` of a network as that of the same one with the adapters in `own`, whose values they keep.

    As it is if it has adapters itself, or `own` has none.
    """
    layers = set(adapted_layers(own))
    if not layers or adapted_layers(state):
        return dict(state)
    below = {_below(name, layers): value for name, value in state.items()}
    return below | {name: value for name, value in own.items() if A in name or B in name}


def _below(name: str, layers: set[str]) -> str:
    layer, _, kind = name.rpartition(".")
    return f"{layer}{BASE}.{kind}" if layer in layers else name
