"""Text encoders, and their tokenizers, as parts of a folder of diffusers: those of transformers, and LDMBertModel."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.convert import export as exports
from ldm.convert import ldm_bert
from ldm.files import write_json
from ldm.networks.text_transformer import HEAD_WIDTH, NUM_HEADS, TextTransformer


@dataclass(frozen=True)
class Encoder:
    """An encoder, or a tokenizer, to be written: [library, class] of model_index.json, and what makes its folder."""

    index: list[str]
    write: Callable[[Path], list[Path]]


def pretrained(part: Any) -> Encoder:
    """A model or tokenizer of transformers."""

    def write(folder: Path) -> list[Path]:
        part.save_pretrained(folder)
        return sorted(folder.iterdir())

    return Encoder(["transformers", type(part).__name__], write)


def bert(transformer: TextTransformer) -> Encoder:
    """The transformer of captions or layouts that is trained with the diffusion model."""

    def write(folder: Path) -> list[Path]:
        state = transformer.state_dict()
        exports.write_safetensors(folder / "model.safetensors", ldm_bert.names(state), {"format": "pt"})
        write_json(folder / "config.json", ldm_bert.config(state, NUM_HEADS, HEAD_WIDTH))
        return [folder / "config.json", folder / "model.safetensors"]

    return Encoder(["latent_diffusion", "LDMBertModel"], write)
