"""Words and layouts as the tokens of a transformer trained with the diffusion model (arXiv 2112.10752, table 17)."""

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.conditioners.base import Batch, Conditioner, field
from ldm.conditioners.layout_numbers import LayoutReader
from ldm.conditioners.spans import Spans, spans_of
from ldm.conditioners.unread import tell_unread
from ldm.errors import UserError
from ldm.networks.downloads import locate
from ldm.networks.huggingface import load_tokenizer
from ldm.networks.text_transformer import TextTransformer


class CaptionTransformer(Conditioner):
    """batch["caption"], B texts -> tokens [B, max_tokens, width]; the null is the encoding of ''.

    `tokenizer` is a fetched one by name (minilm has BERT's word pieces, as published) or the folder of another
    in Hugging Face's layout. Texts are padded to `max_tokens`, and padding is seen like any word, as published.
    """

    key = "caption"

    def __init__(
        self,
        width: int,
        depth: int,
        tokenizer: str = "minilm",
        vocabulary: int = 30522,
        max_tokens: int = 77,
        drop_prob: float = 0.1,
    ):
        super().__init__({"tokens": width}, drop_prob, num_tokens=max_tokens)
        self.tokenizer_at = tokenizer
        self.transformer = TextTransformer(vocabulary, max_tokens, width, depth)

    @cached_property
    def tokenizer(self) -> Any:
        """Read when the first caption comes: a layout is counted without it."""
        folder = Path(self.tokenizer_at).expanduser()
        if not folder.is_dir():
            folder = locate(self.tokenizer_at)
        found = load_tokenizer(folder, "conditioner.caption_transformer.tokenizer")
        if len(found) > self.transformer.token_emb.num_embeddings:
            raise UserError(
                f"conditioner.caption_transformer.vocabulary={self.transformer.token_emb.num_embeddings}: "
                f"the tokenizer in {folder} has {len(found)} words"
            )
        return found

    def check(self, batch: Batch) -> None:
        key = "conditioner.caption_transformer.max_tokens"
        tell_unread(self.tokenizer, batch[self.key], self.num_tokens, key)

    def spans(self, text: str) -> Spans | None:
        return spans_of(self.tokenizer, text, self.num_tokens)

    def forward(self, batch: Batch, drop: Tensor) -> dict[str, Tensor]:
        captions = [""] * len(drop)
        if not drop.all():
            given = field(batch, "caption", "caption_transformer")
            captions = ["" if dropped else text for text, dropped in zip(given, drop.tolist(), strict=True)]
        ids = self.tokenizer(captions, padding="max_length", truncation=True, max_length=self.num_tokens).input_ids
        return {"tokens": self.transformer(torch.tensor(ids).to(drop.device, non_blocking=True))}


class LayoutTransformer(LayoutReader):
    """batch["layout"] [B, num_tokens] of token numbers (data.fields.Layout) -> tokens [B, num_tokens, width].

    The null is a layout without objects: its last number, none, everywhere.
    """

    name = "layout_transformer"
    size = "num_tokens"

    def __init__(self, width: int, depth: int, vocabulary: int = 8192, num_tokens: int = 92, drop_prob: float = 0.0):
        super().__init__({"tokens": width}, drop_prob, num_tokens, num_tokens, vocabulary)
        self.transformer = TextTransformer(vocabulary, num_tokens, width, depth)

    def forward(self, batch: Batch, drop: Tensor) -> dict[str, Tensor]:
        return {"tokens": self.transformer(self.numbers_of(batch, drop))}
