"""Phrases of a prompt painted on the image, as regions for the tokens of each conditioner (paint-with-words)."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.conditioners.frozen import Batch
from ldm.conditioners.spans import Spans, occurrences
from ldm.errors import UserError

FIELD = "paint"  # of a batch, one Paint for all of its samples


class Reader(Protocol):
    """A conditioner, as far as it matters here: it reads `key` of a batch and gives `num_tokens` tokens."""

    key: str | None
    num_tokens: int

    def spans(self, text: str) -> Spans | None:
        """Which characters of a text each of its tokens stands for; None where they stand for no words."""


@dataclass(frozen=True)
class Paint:
    """Where on the image each phrase is painted, {phrase: [H, W]}: the strength of each place, below 0 where it is
    kept out.
    """

    regions: Mapping[str, Tensor]

    def at(self, size: tuple[int, int]) -> "Paint":
        """The same on a grid of this (height, width), bilinearly; a place takes the mean of what it covers."""
        return Paint({phrase: _resized(region, size) for phrase, region in self.regions.items()})


def _resized(region: Tensor, size: tuple[int, int]) -> Tensor:
    if region.shape == size:
        return region
    return F.interpolate(region[None, None], size, mode="bilinear", antialias=True)[0, 0]


def on_grid(batch: Batch, size: tuple[int, ...]) -> dict[str, Any]:
    """A batch whose paint, if it has any, lies on latents of this (height, width)."""
    return {**batch, FIELD: batch[FIELD].at(size[-2:])} if FIELD in batch else dict(batch)


def without_paint(batch: Batch) -> dict[str, Any]:
    """For a reference that is not painted."""
    return {key: value for key, value in batch.items() if key != FIELD}


def of_words(parts: Mapping[str, Reader], batch: Batch) -> dict[str, Reader]:
    """Those of `parts` whose tokens stand for words of a text that the batch has."""
    return {name: part for name, part in parts.items() if part.key in batch and part.spans("") is not None}


def painted_tokens(parts: Mapping[str, Reader], batch: Batch) -> dict[str, Tensor]:
    """How much each place looks at each token, {name: [B, N, h, w]}: the sum over the phrases that a token is of, at
    every occurrence; nothing if nothing is painted.
    """
    if FIELD not in batch:
        return {}
    found = {}
    for name, part in of_words(parts, batch).items():
        texts = batch[part.key]
        own = {text: _regions(batch[FIELD], _spans(part, text), text) for text in dict.fromkeys(texts)}
        found[name] = torch.stack([own[text] for text in texts])
    return found


def _regions(paint: Paint, spans: Spans, text: str) -> Tensor:
    """[N, h, w] of the tokens of one text."""
    like = next(iter(paint.regions.values()))
    found = torch.zeros(len(spans.tokens), *like.shape)
    for phrase, region in paint.regions.items():
        found[spans.meeting(occurrences(phrase, text))] += region
    return found


def _spans(part: Reader, text: str) -> Spans:
    spans = part.spans(text)
    assert spans is not None
    return spans


def takes_paint(network: nn.Module) -> bool:
    """Whether its cross-attention can be drawn to tokens, place by place."""
    return "tokens_bias" in inspect.signature(network.forward).parameters


def check_painted(parts: Mapping[str, Reader], batch: Batch) -> bool:
    """Whether any of `parts` has tokens of a text to paint by.

    Raises UserError for a phrase that is not in a text, or only where one of them does not read it.
    """
    readers = of_words(parts, batch)
    for text in {text: None for part in readers.values() for text in batch[part.key]}:
        for phrase in batch[FIELD].regions:
            found = occurrences(phrase, text)
            if not found:
                raise UserError(f"phrases: {phrase!r} is not in the prompt, {text[:200]!r}")
            for name, part in readers.items():
                spans = _spans(part, text)
                if not any(end <= spans.read and spans.meeting([(start, end)]) for start, end in found):
                    raise UserError(
                        f"phrases: conditioner.{name} does not read {phrase!r}: its {part.num_tokens} tokens end after "
                        f"{text[: spans.read][-40:]!r}; shorten the prompt"
                    )
    return bool(readers)
