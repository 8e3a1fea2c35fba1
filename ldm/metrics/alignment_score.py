"""Agreement of images with captions, from frozen EfficientNet-lite0 and MiniLM features joined by two linear heads.

The heads (alignment_heads.safetensors, made by scripts/dev/make_alignment_heads.py) know the quickstart's domain only.
This is not CLIP score and must not be called so.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ldm.metrics.features import Features, efficientnet_features
from ldm.networks.downloads import load_strict, locate
from ldm.networks.huggingface import load_model, load_tokenizer

HEADS = Path(__file__).with_name("alignment_heads.safetensors")


class SentenceEncoder(nn.Module):
    """Mean-pooled last hidden state of a BERT-like model, one vector a sentence."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_tokens: int = 128) -> None:
        super().__init__()
        self.model, self.tokenizer, self.max_tokens = model.requires_grad_(False).eval(), tokenizer, max_tokens

    def train(self, mode: bool = True) -> "SentenceEncoder":
        """Stays in evaluation mode: a parent's train() must not switch dropout on."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, sentences: Sequence[str]) -> Tensor:
        """Embeddings [B, D] of sentences."""
        return torch.cat([self._embed(sentences[i : i + 256]) for i in range(0, len(sentences), 256)])

    def _embed(self, sentences: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(
            list(sentences), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(self.model.device)
        hidden = self.model(**tokens).last_hidden_state.float()  # [B, T, D]
        mask = tokens["attention_mask"].unsqueeze(-1)
        return (hidden * mask).sum(1) / mask.sum(1)


class AlignmentHeads(nn.Module):
    """Two linear maps of image and text features into one space."""

    def __init__(self, image_dim: int = 1280, text_dim: int = 384, dim: int = 256) -> None:
        super().__init__()
        self.image = nn.Linear(image_dim, dim)
        self.text = nn.Linear(text_dim, dim)


class AlignmentScore(nn.Module):
    """Cosine of an image and a caption in the heads' space; `name` goes beside every number."""

    metric = "alignment_score"

    def __init__(self, features: Features, sentences: Callable[[Sequence[str]], Tensor], heads: AlignmentHeads) -> None:
        super().__init__()
        self.features, self.sentences, self.heads = features, sentences, heads.requires_grad_(False).eval()
        self.name = f"{features.name}+minilm"

    def embed_images(self, images: Tensor) -> Tensor:
        """Unit vectors [B, D] of images [B, 3, H, W] in [-1, 1]."""
        return F.normalize(self.heads.image(self.features(images)), dim=1)

    @torch.no_grad()
    def embed_captions(self, captions: Sequence[str]) -> Tensor:
        """Unit vectors [B, D] of captions."""
        return F.normalize(self.heads.text(self.sentences(captions)), dim=1)

    def forward(self, images: Tensor, captions: Sequence[str]) -> Tensor:
        """Cosine [B] in [-1, 1] of images [B, 3, H, W] in [-1, 1] and their captions."""
        return (self.embed_images(images) * self.embed_captions(captions)).sum(1)

    def rank(self, images: Tensor, captions: Sequence[str], all_captions: Sequence[str]) -> Tensor:
        """Place [B] (1 is best) of each image's own caption among it and every different caption of `all_captions`."""
        images = self.embed_images(images)
        own = (images * self.embed_captions(captions)).sum(1, keepdim=True)  # [B, 1]
        candidates = list(dict.fromkeys(all_captions))
        better = images @ self.embed_captions(candidates).T > own  # [B, N]
        other = torch.tensor([[caption != candidate for candidate in candidates] for caption in captions])
        return 1 + (better & other.to(better.device)).sum(1)


def sentence_encoder(path: str | Path | None = None) -> SentenceEncoder:
    """MiniLM sentence embeddings (384) from the folder `path` or the cache; never from the network."""
    folder = locate("minilm", path)
    return SentenceEncoder(load_model({"bert": "BertModel"}, folder, "path"), load_tokenizer(folder, "path"))


def alignment_score(path: str | Path | None = None) -> AlignmentScore:
    """The alignment score with the heads at `path` (those of the package by default) and the cached backbones."""
    heads = load_strict(AlignmentHeads(), Path(path) if path is not None else HEADS)
    return AlignmentScore(efficientnet_features(), sentence_encoder(), heads)
