"""Models and tokenizers in local folders of Hugging Face's layout; nothing is downloaded and no pickle is read."""

import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError)  # what transformers raises for files of no sense
UNUSED = "pooler."  # encoders of tokens go without it, and some published files lack it


def load_model(kind: Any, folder: Path, key: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The model of `folder` as `kind`, a class of transformers, on the CPU.

    Raises ValueError beginning with `key` if it is not there, or its weights are pickles, broken or incomplete.
    """
    # Imported here: seconds that only its users pay.
    from huggingface_hub.errors import StrictDataclassError
    from transformers.utils.logging import disable_progress_bar

    if not (folder / "config.json").exists():
        raise ValueError(f"{key}={folder}: no encoder there (a folder with config.json and weights)")
    if not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{key}={folder}: no weights in safetensors there, and pickles (.bin, .pt) are not read, because they can "
            "run code; save the model anew with a current transformers"
        )
    disable_progress_bar()  # of reading 0.1 s of weights
    logging.getLogger("transformers").setLevel(logging.ERROR)  # it lists what a file has besides; the rest is said here
    try:
        with torch.device("cpu"):  # also while a model is counted on the meta device
            model, found = kind.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, dtype=dtype,
                output_loading_info=True, ignore_mismatched_sizes=True,
            )  # fmt: skip
    except (*BROKEN, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise ValueError(f"{key}={folder}: {_line(error)}") from error
    lost = {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}  # and filled at random
    lost = sorted(name for name in lost if not name.startswith(UNUSED))
    if lost:
        raise ValueError(
            f"{key}={folder}: not the weights of a {type(model).__name__}: {len(lost)} are missing or of another "
            f"shape, such as {lost[0]}"
        )
    return model


def load_tokenizer(folder: Path, key: str) -> Any:
    """The tokenizer of `folder`. Raises ValueError beginning with `key` if it has none that can be read."""
    from transformers import AutoTokenizer  # imported here: seconds that only its users pay

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (*BROKEN, ImportError) as error:
        raise ValueError(f"{key}={folder}: no tokenizer that can be read there ({_line(error)})") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
