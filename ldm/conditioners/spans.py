"""Which characters of a text each token of a tokenizer stands for; where a phrase occurs in a text."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

Span = tuple[int, int]  # from the one character of a text to before the other
NOTHING: Span = (0, 0)
MARKS = re.compile(r"^(##|[▁Ġ\s])+|(</w>|@@)$")  # with which tokenizers say where words begin or end


class Spans(NamedTuple):
    """The characters of each token, NOTHING of one that stands for none; how many of the text are read in all."""

    tokens: list[Span]
    read: int

    def meeting(self, found: Sequence[Span]) -> list[int]:
        """The places of the tokens that share a character with one of these."""
        return [
            place
            for place, (start, end) in enumerate(self.tokens)
            if any(start < other_end and other_start < end for other_start, other_end in found)
        ]


def spans_of(tokenizer: Any, text: str, max_tokens: int) -> Spans:
    """The spans of `text` in a Hugging Face tokenizer that pads it to `max_tokens`, or cuts it there."""
    cut = {"truncation": True, "max_length": max_tokens}
    if tokenizer.is_fast:
        whole = tokenizer(text, verbose=False, return_offsets_mapping=True).offset_mapping
        tokens = tokenizer(text, **cut, return_offsets_mapping=True).offset_mapping
    else:
        every = tokenizer(text, verbose=False).input_ids
        special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        pieces = [None if number in special else tokenizer.convert_ids_to_tokens(number) for number in every]
        whole = aligned(text, pieces)
        tokens = [*whole[: max_tokens - 1], NOTHING] if len(whole) > max_tokens else whole
    tokens = [(int(start), int(end)) for start, end in tokens]
    read = len(text) if len(whole) <= max_tokens else max(end for _, end in tokens)
    return Spans([*tokens, *[NOTHING] * (max_tokens - len(tokens))], read)


def aligned(text: str, pieces: Sequence[str | None]) -> list[Span]:
    """Where `pieces` of a text, as a tokenizer spells them, lie in it, one after the other; None lies nowhere.

    Case does not count. A piece that is spelt otherwise, such as an unknown word's, lies between its neighbours.
    """
    found: list[Span | None] = []
    at = 0
    for piece in pieces:
        letters = "" if piece is None else MARKS.sub("", piece)
        place = re.compile(re.escape(letters), re.IGNORECASE).search(text, at) if letters else None
        found.append(NOTHING if not letters else place.span() if place else None)
        at = place.end() if place else at
    ends = [span[1] if span else 0 for span in found]
    starts = [span[0] if span and span != NOTHING else len(text) for span in found]
    return [
        (max(ends[:place], default=0), min(starts[place + 1 :], default=len(text))) if span is None else span
        for place, span in enumerate(found)
    ]


def occurrences(phrase: str, text: str) -> list[Span]:
    """Every place of a phrase in a text, its words whole; neither case nor how many spaces are between words counts."""
    words = r"\s+".join(map(re.escape, phrase.split()))
    found = [each.span() for each in re.finditer(words, text, re.IGNORECASE)] if words else []
    return [span for span in found if not any(_joined(text, edge) for edge in span)]


def _joined(text: str, place: int) -> bool:
    """Whether the letters before and after a place are of one word; of scripts without capitals none are."""
    around = text[max(place - 1, 0) : place + 1]
    return len(around) == 2 and all(a.isdigit() or a.lower() != a.upper() for a in around)
