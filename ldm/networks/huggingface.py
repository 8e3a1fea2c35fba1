"""Models and tokenizers in local folders of Hugging Face's layout, which are untrusted: they are read as data.

The caller names the classes of transformers that may be built; of config.json only the numbers and words of
that class are taken. Nothing is downloaded, no pickle is read and no code of a folder is run.
"""

import inspect
import json
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.networks.bounded import check_described, line, uncounted

BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError)  # what transformers raises for malformed files
UNUSED = "pooler."  # encoders of tokens go without it, and some published files lack it
MAX_JSON_BYTES = 1 << 20
# Keys that make transformers run code or read pickles of the folder; refused at any depth.
CODE = frozenset(
    {
        "auto_map",
        "custom_pipelines",
        "quantization_config",
        "fusion_config",
        "kernel_config",
        "use_kernels",
        "transformers_weights",
        "experts_implementation",
        "_experts_implementation",
        "adapters",
        "peft_config",
        "trust_remote_code",
    }
)
ATTENTION = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
OWN_ATTENTION = (None, "eager", "sdpa")
# Arguments of every configuration, which would change how a model answers, not what it is.
GENERAL = frozenset(
    {
        "transformers_version",
        "architectures",
        "output_hidden_states",
        "output_attentions",
        "return_dict",
        "dtype",
        "torch_dtype",
        "chunk_size_feed_forward",
        "problem_type",
        "id2label",
        "label2id",
        "is_encoder_decoder",
        "kwargs",
        "self",
    }
)
TOKENIZERS = frozenset(
    {
        "AlbertTokenizer",
        "BertTokenizer",
        "CamembertTokenizer",
        "CLIPTokenizer",
        "DebertaTokenizer",
        "DebertaV2Tokenizer",
        "DistilBertTokenizer",
        "ElectraTokenizer",
        "MPNetTokenizer",
        "PreTrainedTokenizerFast",
        "RobertaTokenizer",
        "T5Tokenizer",
        "TokenizersBackend",
        "XLMRobertaTokenizer",
    }
)
# The tokenizers of folders whose tokenizer_config.json names none.
TOKENIZER_OF = {
    "albert": "AlbertTokenizer", "bert": "BertTokenizer", "camembert": "CamembertTokenizer",
    "clip": "CLIPTokenizer", "clip_text_model": "CLIPTokenizer", "deberta": "DebertaTokenizer",
    "deberta-v2": "DebertaV2Tokenizer", "distilbert": "BertTokenizer", "electra": "BertTokenizer",
    "mpnet": "MPNetTokenizer", "mt5": "T5Tokenizer", "roberta": "RobertaTokenizer", "t5": "T5Tokenizer",
    "umt5": "T5Tokenizer", "xlm-roberta": "XLMRobertaTokenizer",
}  # fmt: skip
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model")


def load_model(
    kinds: Mapping[str, str], folder: Path, key: str, dtype: torch.dtype = torch.float32, refusal: str = ""
) -> nn.Module:
    """The model of `folder`, on the CPU; `kinds` are the classes of transformers by the model_type they are taken for.

    `refusal` is the message for another model_type. Raises ValueError beginning with `key` if it is not there or of
    another kind, asks for code, or its weights are pickles, broken or incomplete.
    """
    import transformers  # here and below: seconds that only its users pay
    from huggingface_hub.errors import StrictDataclassError
    from transformers.utils.logging import disable_progress_bar

    asked = _config(folder, key)
    files = _weights(folder, key)
    disable_progress_bar()  # of reading 0.1 s of weights
    logging.getLogger("transformers").setLevel(logging.ERROR)  # it lists what a file has besides; the rest is said here
    try:
        named = asked.get("model_type")
        if named not in kinds:
            raise UserError(f"its model_type {str(named)[:60]} {refusal or 'is none of ' + ', '.join(kinds)}")
        kind, config = _described(asked, getattr(transformers, kinds[named]))
        shapes, state = _read(files)
        check_described(lambda: kind(config), shapes, f"{key}={folder}")
        with uncounted(), torch.device("cpu"):  # also while a model is counted on the meta device
            model, found = kind.from_pretrained(
                None, config=config, state_dict=state, dtype=dtype, output_loading_info=True,
                ignore_mismatched_sizes=True,
            )  # fmt: skip
    except (*BROKEN, RuntimeError, SafetensorError, StrictDataclassError) as error:
        said = line(error)
        raise UserError(said if said.startswith(f"{key}=") else f"{key}={folder}: {said}") from error
    unfound = {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}  # and filled at random
    lost = sorted(name for name in unfound if not name.startswith(UNUSED))
    if lost:
        raise UserError(
            f"{key}={folder}: not the weights of a {type(model).__name__}: {len(lost)} are missing or of another "
            f"shape, such as {lost[0]}"
        )
    return model.eval()


def load_tokenizer(folder: Path, key: str) -> Any:
    """The tokenizer of `folder`, of a class named here.

    Raises ValueError beginning with `key` if it has none that can be read, or another.
    """
    import transformers

    settings = _json(folder / "tokenizer_config.json", key, {})
    config = _json(folder / "config.json", key, {})
    named = settings.get("tokenizer_class") or TOKENIZER_OF.get(str(config.get("model_type")))
    named = str(named or "PreTrainedTokenizerFast").removesuffix("Fast")
    named = "PreTrainedTokenizerFast" if named == "PreTrainedTokenizer" else named
    if named not in TOKENIZERS:
        raise UserError(
            f"{key}={folder}: no tokenizer that can be read there; its class {named[:60]!r} is none of "
            f"{', '.join(sorted(TOKENIZERS))}"
        )
    try:
        if not any((folder / name).is_file() for name in TOKENIZER_FILES):
            raise UserError(f"none of {', '.join(TOKENIZER_FILES)}")
        return getattr(transformers, named).from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (*BROKEN, ImportError, RuntimeError) as error:
        raise UserError(f"{key}={folder}: no tokenizer that can be read there ({line(error)})") from error
    except Exception as error:
        if type(error) is not Exception:  # which the Rust code of tokenizers raises for a malformed file
            raise
        raise UserError(f"{key}={folder}: no tokenizer that can be read there ({line(error)})") from error


def _config(folder: Path, key: str) -> dict[str, Any]:
    """config.json of a folder, checked not to have a key that runs code."""
    if not (folder / "config.json").exists():
        raise UserError(f"{key}={folder}: no encoder there (a folder with config.json and weights)")
    return _json(folder / "config.json", key)


def _json(path: Path, key: str, default: dict[str, Any] | None = None) -> dict[str, Any]:
    """A JSON object of a folder. Raises ValueError beginning with `key` if it is none, or asks to run code."""
    if default is not None and not path.exists():
        return default
    try:
        if not path.is_file() or path.stat().st_size > MAX_JSON_BYTES:
            raise UserError(f"no regular file, or larger than {MAX_JSON_BYTES} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise UserError("no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{key}={path.parent}: {path.name} cannot be read ({line(error)})") from error
    for name, value in _entries(content):
        if (name in CODE and value not in (None, {}, [], False)) or (name in ATTENTION and value not in OWN_ATTENTION):
            raise UserError(
                f"{key}={path.parent}: {path.name} asks for {name}={str(value)[:80]!r}, which may run code that is not "
                "transformers' own; such encoders are not read"
            )
    return content


def _entries(node: Any) -> Iterator[tuple[str, Any]]:
    nodes = [node]
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict):
            yield from node.items()
            nodes += node.values()
        elif isinstance(node, list):
            nodes += node


def _described(asked: dict[str, Any], kind: Any) -> tuple[Any, Any]:
    """A class of transformers and its configuration from a config.json: its own arguments, no others."""
    part = getattr(kind.config_class, "base_config_key", "")
    if part and asked.get("model_type") != kind.config_class.model_type:  # the whole of which it is a part
        asked = asked.get(part) or {}
    own = inspect.signature(kind.config_class).parameters.keys() - GENERAL
    return kind, kind.config_class(**{name: value for name, value in asked.items() if name in own})


def _weights(folder: Path, key: str) -> list[Path]:
    """The files with a folder's weights."""
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"{key}={folder}: no weights in safetensors there, and pickles (.bin, .pt) are not read, because they can "
            "run code; save the model anew with a current transformers"
        )
    names = ["model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if not (folder / names[0]).is_file() and index.is_file():
        parts = _json(index, key).get("weight_map")
        names = sorted(set(map(str, parts.values()))) if isinstance(parts, dict) else []
    if not names or not all(re.fullmatch(r"[\w-][\w.-]*\.safetensors", name) for name in names):
        raise UserError(f"{key}={folder}: {index.name} names no safetensors of this folder")
    lost = [name for name in names if not (folder / name).is_file()]
    if lost:
        raise UserError(f"{key}={folder}: no file named {lost[0]} there")
    return [folder / name for name in names]


def _read(files: list[Path]) -> tuple[dict[str, list[int]], dict[str, Tensor]]:
    """Shapes and tensors, mapped into memory; what is not used of a whole model is never read."""
    shapes, state = {}, {}
    for file in files:
        with safe_open(file, "pt") as content:
            for name in content.keys():  # noqa: SIM118 - no mapping
                state[name] = content.get_tensor(name)
                shapes[name] = list(state[name].shape)
    return shapes, state
