"""T5's tokens for cross-attention, zero where dropped, as eDiff-I takes them (arXiv 2211.01324); there is no vector."""

from functools import cache, partial
from pathlib import Path
from typing import Literal

import torch

from ldm.conditioners.caption_encoder import CaptionEncoder, Memo
from ldm.conditioners.lazy import Described, Source, find
from ldm.conditioners.text import FrozenText, TextEncoder
from ldm.errors import UserError
from ldm.networks.huggingface import load_model, load_tokenizer

LONGEST = 512  # tokens that T5 was trained on; its positions are relative, so its weights set no bound
KINDS = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def t5_tokens(
    path: str,
    max_tokens: int = 113,
    dtype: Literal["bf16", "fp32"] = "bf16",
    width: int | None = None,
    zero_null: bool = True,
    drop_prob: float = 0.25,
    memo_captions: int = 0,
) -> FrozenText:
    """Text conditioning by the encoder half of a T5, mT5 or UMT5 in the Hugging Face folder `path`.

    An encoder that an earlier run has described in the cache is loaded when a caption needs it.
    """
    encoder, memo = _find(Path(path).expanduser(), max_tokens, dtype)
    return FrozenText(CaptionEncoder(encoder, memo_captions, memo, zero_null), ("tokens",), width, drop_prob)


@cache
def _find(folder: Path, max_tokens: int, dtype: str) -> tuple[Described, Memo]:
    """The encoder, read or known, and its memo; one of each per process, however many models use them."""
    if not 2 <= max_tokens <= LONGEST:
        raise UserError(f"conditioner.t5.max_tokens={max_tokens}: must lie in 2 to {LONGEST}")
    load = partial(_load, folder, max_tokens, DTYPES[dtype])
    return find(Source(folder, {"max_tokens": max_tokens, "dtype": dtype}, load)), {}


def _load(folder: Path, max_tokens: int, dtype: torch.dtype) -> TextEncoder:
    model = load_model(KINDS, folder, "conditioner.t5.path", dtype, "is not a T5; see conditioner=[text]")
    return TextEncoder(model, load_tokenizer(folder, "conditioner.t5.path"), max_tokens, name="t5")
