"""What of a text an encoder does not read, because it is longer than the encoder's number of tokens."""

import logging
from collections.abc import Sequence
from typing import Any

log = logging.getLogger(__name__)


def unread(tokenizer: Any, text: str, max_tokens: int) -> str:
    """The end of `text` that a Hugging Face tokenizer cuts off at `max_tokens`; '' where it keeps all."""
    ids = tokenizer(text, verbose=False).input_ids
    if len(ids) <= max_tokens:
        return ""
    if not tokenizer.is_fast:  # it does not tell which letters a token stands for
        return tokenizer.decode(ids[max_tokens - 1 :], skip_special_tokens=True)
    kept = tokenizer(text, truncation=True, max_length=max_tokens, return_offsets_mapping=True)
    return text[max(end for _, end in kept.offset_mapping) :].strip()


def tell_unread(tokenizer: Any, texts: Sequence[str], max_tokens: int, key: str) -> None:
    """Log a line for each of `texts` that is cut, with what of it is not read; `key` is where max_tokens stands."""
    for text in dict.fromkeys(texts):
        cut = unread(tokenizer, text, max_tokens)
        if cut:
            log.warning("prompt %r: %s=%d, so that the end is not read: %r", text[:80], key, max_tokens, cut[:200])
