"""What the attentions of networks look at, recorded from outside while they work: eDiff-I's figure 3.

Nothing of a network is changed: queries and keys are seen where they enter PyTorch's attention, and their softmax is
computed again. So networks of any package are seen, as long as they use that function and project its result.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ldm.diffusion.denoiser import Denoise
from ldm.errors import UserError
from ldm.model import Model

PROJECTIONS = (F.linear, F.conv1d, F.conv2d)


@dataclass
class Layer:
    """One attention of N positions. `shares` {condition: [B]} of a cross-attention, None of a self-attention.

    `added` [B] is the norm of what it gives to each sample after its output projection; None before that is seen.
    """

    positions: int
    shares: dict[str, Tensor] | None
    added: Tensor | None = None


@dataclass(frozen=True)
class Looked:
    """What one evaluation of a network looked at, per sample.

    `shares` {condition: [B]}: of the probability of its cross-attentions, the mean over layers, heads and positions;
    they sum to 1. `own` [B]: the size of what a self-attention adds, over that and what the cross-attention behind it
    adds, the mean over blocks that have both; None without any.
    """

    shares: dict[str, Tensor]
    own: Tensor | None


class AttentionRecord(TorchFunctionMode):
    """Looks into networks; see `recorded`."""

    def __init__(self) -> None:
        super().__init__()
        self._looking = False
        self._seen: list[Looked] = []
        self._layers: list[Layer] = []
        self._groups: dict[str, int] | None = None  # condition -> number of tokens, inside of a network

    @torch.no_grad()
    def look(self, denoise: Denoise, x: Tensor, sigma: Tensor) -> Looked | None:
        """What the network looks at in denoise(x, sigma), one evaluation of it; None where it has no tokens to look at.

        What `denoise` binds must be evaluated by no one else before: its conditions are counted when they are encoded.
        """
        self._looking, self._seen = True, []
        try:
            with self:
                denoise(x, sigma)
        finally:
            self._looking = False
        assert len(self._seen) <= 1, "a guided denoiser evaluates several"
        return self._seen[0] if self._seen else None

    def encoded(self, groups: dict[str, int], name: str, part: nn.Module, args: Any, given: dict[str, Tensor]) -> None:
        """A condition is: keep how many tokens it has, in the order that they are joined in."""
        if self._looking and "tokens" in given:
            groups[name] = given["tokens"].shape[1]

    def begin(self, groups: dict[str, int], network: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """A network is about to work."""
        if not self._looking:
            return
        tokens = kwargs.get("tokens")
        count = 0 if tokens is None else tokens.shape[1]
        if count != sum(groups.values()):
            raise UserError(f"{type(network).__name__}: is given {count} tokens, and its conditions have {groups}")
        self._layers, self._groups = [], dict(groups)

    def end(self, network: nn.Module, args: Any, output: Tensor | None) -> None:
        """It has, or it failed, and there is no output."""
        layers, self._groups, self._layers = self._layers, None, []
        crossed = [layer.shares for layer in layers if layer.shares is not None]
        if output is None or not crossed:
            return
        shares = {name: torch.stack([layer[name] for layer in crossed]).mean(0) for name in crossed[0]}
        own = [
            one.added / (one.added + other.added).clamp_min(1e-30)
            for one, other in pairwise(layers)
            if one.shares is None and other.shares is not None and one.positions == other.positions
            and one.added is not None and other.added is not None
        ]  # fmt: skip
        self._seen.append(Looked(shares, torch.stack(own).mean(0) if own else None))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self._groups is None:
            return result
        if func is F.scaled_dot_product_attention:
            self._attended(*args, **(kwargs or {}))
        elif func in PROJECTIONS and self._layers and self._layers[-1].added is None:
            self._layers[-1].added = result.float().flatten(1).norm(dim=1)
        return result

    def _attended(self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *_: Any, **more: Any) -> None:
        assert self._groups is not None
        queries, keys, tokens = q.shape[-2], k.shape[-2], sum(self._groups.values())
        if keys == tokens and (attn_mask is not None or queries != keys):  # tokens always come with a mask
            visible = probabilities(q, k, attn_mask).mean((1, 2)).split(list(self._groups.values()), dim=1)
            shares = {name: part.sum(1) for name, part in zip(self._groups, visible, strict=True)}
            self._layers.append(Layer(queries, shares))
        elif keys == queries:
            self._layers.append(Layer(queries, None))
        else:
            raise UserError(
                f"an attention of {queries} positions has {keys} keys, which are neither these nor the {tokens} tokens "
                "of the conditions: what it looks at cannot be told"
            )


def probabilities(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(d)) [B, heads, N, M] in fp32; `mask` is bool (True = visible) or added to the scores."""
    scores = (q.float() * q.shape[-1] ** -0.5) @ k.float().transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.float()
    return scores.softmax(-1)


@contextmanager
def recorded(members: Sequence[Model]) -> Iterator[AttentionRecord]:
    """While it is entered, what the networks of `members` look at can be seen; nothing of them stays changed."""
    record = AttentionRecord()
    with ExitStack() as stack:
        for member in members:
            groups: dict[str, int] = {}
            network = member.denoiser.network
            hooks = [
                part.register_forward_hook(partial(record.encoded, groups, name))
                for name, part in member.conditioner.parts.items()
            ]
            hooks.append(network.register_forward_pre_hook(partial(record.begin, groups), with_kwargs=True))
            hooks.append(network.register_forward_hook(record.end, always_call=True))
            for hook in hooks:
                stack.callback(hook.remove)
        yield record
