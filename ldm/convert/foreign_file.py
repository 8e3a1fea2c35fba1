"""Files of published weights: the state dict that one holds, wherever it lies in it. Executes nothing.

The mapping of names is foreign.py, what a file is if it is not what was asked for kinds.py.
"""

import logging
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ldm.checkpoint import safe_load
from ldm.convert.foreign import AVERAGE, State, average_name
from ldm.errors import UserError
from ldm.files import read_json

log = logging.getLogger(__name__)
# Where trainers put the weights, and their average, among optimizers and counters.
WEIGHTS = (
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "net",
    "network",
    "params",
    "weights",
)
AVERAGES = (
    "ema",
    "model_ema",
    "ema_model",
    "ema_state_dict",
    "model_ema_state_dict",
    "state_dict_ema",
    "params_ema",
)
MAX_DEPTH = 3
# Classes of objects in whole trainers' files, which are replaced by inert ones: nothing here needs them.
INERT = (
    "pytorch_lightning.",
    "lightning.",
    "lightning_fabric.",
    "lightning_utilities.",
    "omegaconf.",
    "argparse.",
    "typing.",
    "pathlib.",
    "collections.",
    "numpy.",
    "datetime.",
    "builtins.dict",
    "builtins.list",
    "builtins.tuple",
    "builtins.set",
    "builtins.int",
    "builtins.str",
    "builtins.float",
    "builtins.bool",
)
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.")
DATA_PARALLEL = "module."  # of DDP, before every name
# Files that are saved in place of a checkpoint by mistake: how they begin, and what they are.
MISTAKEN = (
    (b"version https://git-lfs", "a pointer of Git LFS and not the file; fetch that with: git lfs pull"),
    (b"<!doctype html", "a web page and not the file; download it again"),
    (b"<html", "a web page and not the file; download it again"),
    (b"GGUF", "a GGUF file of quantised weights; take the file in full precision"),
)


def read(path: Path) -> tuple[State, int]:
    """The state dict of a published file, and its ``global_step`` (else 0).

    Found under the names that trainers give it, an average beside it as ``model_ema.*``, without the prefixes of DDP,
    FSDP and torch.compile. Raises ValueError if it cannot be read so, or holds no state dict.
    """
    shown = f"checkpoint={path}"
    content = _content(path, shown)
    place, state = _state(content)
    if not state:
        raise UserError(f"{shown}: {_without_state(content)}")
    state = _plain(state)
    for name, tensor in state.items():
        if strange := _strange(tensor):
            raise UserError(f"{shown}: {name} is {strange}; save the weights as plain tensors of fp32, fp16 or bf16")
    averages = {} if place.split(".")[-1] in AVERAGES else _averages(content, state)
    if place not in ("", "state_dict"):
        beside = ", their average beside them" if averages else ""
        log.warning("%s: the weights are taken from its %r%s", shown, place, beside)
    step = content.get("global_step", 0)
    return {**state, **averages}, step if isinstance(step, int) else 0


def locate(path: Path) -> Path:
    """The file of weights that a path names: itself, or in a model's folder of diffusers or transformers.

    Raises ValueError if there is none.
    """
    if path.is_dir():
        if (path / "model_index.json").exists():
            raise UserError(f"checkpoint={path}: a pipeline of diffusers; name one of its models, as {path}/vae")
        names = (
            "diffusion_pytorch_model.safetensors",
            "diffusion_pytorch_model.fp16.safetensors",
            "model.safetensors",
            "diffusion_pytorch_model.bin",
        )
        found = [path / name for name in names if (path / name).exists()]
        if not found:
            raise UserError(f"checkpoint={path}: a folder without {' or '.join(names)}; name the file of weights")
        return found[0]
    if not path.is_file():
        raise UserError(f"checkpoint={path}: no such file")
    return path


def factor_beside(path: Path) -> float | None:
    """The factor of a first stage in a folder of diffusers, from the config.json beside its weights; None elsewhere."""
    config = path.with_name("config.json")
    if not path.name.startswith("diffusion_pytorch_model") or not config.exists():
        return None
    try:
        factor = read_json(config).get("scaling_factor")
    except ValueError as error:
        raise UserError(f"{config}: not the description of a first stage; scale_factor= gives its factor") from error
    known = isinstance(factor, int | float) and 0 < factor < float("inf")
    if known:
        log.warning("scale_factor=%s is taken from %s", factor, config)
    return float(factor) if known else None


def _content(path: Path, shown: str) -> Any:
    """What the file holds, by its first bytes and not by its name."""
    with path.open("rb") as file:
        start = file.read(64)
    for beginning, words in MISTAKEN:
        if start.lstrip().lower().startswith(beginning.lower()):
            raise UserError(f"{shown}: {words}")
    if path.name.endswith(".json"):
        raise UserError(f"{shown}: names the parts of a model in several files; join them into one safetensors file")
    zipped, headed = start.startswith(b"PK"), start[8:9] == b"{"  # as torch and safetensors begin
    if zipped and path.suffix == ".safetensors":
        raise UserError(f"{shown}: torch's format under the name of safetensors; rename it to {path.stem}.ckpt")
    if zipped or not (headed or path.suffix == ".safetensors"):
        return _unpickle(path, shown)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{shown}: damaged, or not a file that can be read without running code") from error


def _state(content: object, depth: int = 0) -> tuple[str, State]:
    """(where it lies, the state dict); an empty one where there is none. Values that are no tensors are left."""
    if not isinstance(content, Mapping) or depth > MAX_DEPTH:
        return "", {}
    for name in (*WEIGHTS, *AVERAGES):
        place, state = _state(content.get(name), depth + 1)
        if state:
            return f"{name}.{place}".rstrip("."), state
    return "", {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}


def _strange(tensor: Tensor) -> str | None:
    """Why a tensor cannot be used as weights; None if it can."""
    if tensor.is_meta:
        return "without values, on the meta device"
    if tensor.is_quantized or (tensor.dtype in (torch.int8, torch.uint8) and tensor.ndim > 1):
        return "quantised"
    return "complex" if tensor.is_complex() else None


def _without_state(content: object) -> str:
    if isinstance(content, Mapping) and "param_groups" in content:
        return "the state of an optimizer alone, without weights; name the file of the model"
    if isinstance(content, Mapping) and "string_to_param" in content:
        return "a textual inversion, the embedding of a word for another model; there is no model in it"
    return "holds no state dict (a mapping of names to tensors)"


def _plain(state: Mapping[str, Tensor]) -> State:
    """A state under the names of the model itself, whatever was wrapped around it or its parts."""
    state = {WRAPPERS.sub("", key): value for key, value in state.items()}
    while state and all(key.startswith(DATA_PARALLEL) for key in state):
        state = {key.removeprefix(DATA_PARALLEL): value for key, value in state.items()}
    return state


def _averages(content: Mapping[str, Any], state: State) -> State:
    """An average that lies beside the weights, under the names of one in a published state."""
    found = next((held for name in AVERAGES if (held := _state(content.get(name))[1])), {})
    # Of a whole model it is that of its part `model`, of a first stage that of all.
    averages = {
        average_name(key.removeprefix("model.")): value
        for key, value in _plain(found).items()
        if key in state and value.is_floating_point() and not key.startswith(AVERAGE)
    }
    if found and not averages:
        log.warning("the average beside the weights has other names than they, and is left")
    return averages


class _Inert:
    """A placeholder for a trainer's object in a file: it takes any arguments and does nothing."""

    def __init__(self, *_: object):
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _unpickle(path: Path, shown: str) -> object:
    """``torch.load`` with ``weights_only``; objects of trainers, which it would refuse, become inert."""
    strange = safe_load.classes(path, shown)
    refused = [name for name in strange if not name.startswith(INERT)]
    if refused:
        raise UserError(f"{shown}: would have to run {refused[0]}; save its state dict as safetensors instead")
    # Hyper-parameters of Lightning are a dictionary of its own, which only a dictionary can stand for.
    inert: list[Any] = [(OrderedDict if name.endswith(".AttributeDict") else _Inert, name) for name in strange]
    with torch.serialization.safe_globals(inert):
        return safe_load.load(path, shown)
