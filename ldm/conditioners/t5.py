"""T5's tokens for cross-attention, zero where dropped, as eDiff-I takes them (arXiv 2211.01324); there is no vector."""

from functools import cache, partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ldm.conditioners.base import Batch, Conditioner
from ldm.conditioners.text import CaptionEncoder, Memo, TextEncoder
from ldm.conditioners.unread import Described, Source, find
from ldm.errors import UserError
from ldm.networks.huggingface import load_model, load_tokenizer

LONGEST = 512  # tokens that T5 was trained on; its positions are relative, so its weights set no bound
KINDS = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class T5Tokens(Conditioner):
    """batch["caption"], B texts -> tokens [B, N, width] and their mask; the null is zero tokens, all of them seen.

    The encoder is frozen and not saved.
    """

    key = "caption"

    def __init__(self, encoder: Described, drop_prob: float = 0.25, memo_captions: int = 0, memo: Memo | None = None):
        super().__init__("tokens", encoder.width, drop_prob)
        self.num_tokens = encoder.max_tokens
        self.frozen = CaptionEncoder(encoder, memo_captions, memo)

    def forward(self, batch: Batch, drop: Tensor) -> dict[str, Tensor]:
        if drop.all():
            tokens = torch.zeros(len(drop), self.num_tokens, self.width, device=drop.device)
            return {"tokens": tokens, "tokens_mask": torch.ones_like(tokens[..., 0], dtype=torch.bool)}
        tokens, mask = self.frozen(batch, torch.zeros_like(drop))
        return {"tokens": tokens.masked_fill(drop[:, None, None], 0.0), "tokens_mask": mask | drop[:, None]}


def t5_tokens(
    path: str,
    max_tokens: int = 113,
    dtype: Literal["bf16", "fp32"] = "bf16",
    drop_prob: float = 0.25,
    memo_captions: int = 0,
) -> T5Tokens:
    """Text conditioning by the encoder half of a T5, mT5 or UMT5 in the Hugging Face folder `path`.

    One that is known from an earlier run is read when a caption needs it.
    """
    encoder, memo = _find(Path(path).expanduser(), max_tokens, dtype)
    return T5Tokens(encoder, drop_prob, memo_captions, memo)


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
