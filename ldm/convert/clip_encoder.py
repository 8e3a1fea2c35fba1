"""A folder with CLIP's text encoder, as transformers reads it: made from weights, and from open_clip's vocabulary."""

import gzip
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from ldm.files import replace, write_text

NUM_MERGES = 49152 - 256 - 2  # of the file's, as CLIP uses it
START, END = "<|startoftext|>", "<|endoftext|>"


def write_encoder(folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """config.json, model.safetensors and CLIP's tokenizer; `state` has the names of the installed transformers."""
    plain = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    replace(folder / "model.safetensors", lambda path: save_file(plain, path, metadata={"format": "pt"}))
    write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    write_tokenizer(folder, config["max_position_embeddings"], END if config["pad_token_id"] else "!")


def write_tokenizer(folder: Path, max_tokens: int, padding: str = END) -> None:
    """vocab.json, merges.txt and tokenizer_config.json of CLIP's byte-pair encoding."""
    from open_clip.tokenizer import SimpleTokenizer  # imported here: seconds that only its users pay

    packed = files("open_clip").joinpath("bpe_simple_vocab_16e6.txt.gz").read_bytes()
    merges = gzip.decompress(packed).decode("utf-8").split("\n")[1 : 1 + NUM_MERGES]
    special = {"<start_of_text>": START, "<end_of_text>": END}
    words = {special.get(word, word): number for word, number in SimpleTokenizer().encoder.items()}
    write_text(folder / "vocab.json", json.dumps(words, ensure_ascii=False))
    write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *merges]) + "\n")
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": max_tokens,
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": padding,
    }
    write_text(folder / "tokenizer_config.json", json.dumps(settings, indent=2) + "\n")
