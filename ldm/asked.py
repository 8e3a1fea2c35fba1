"""Checks of a command line that need no torch, whose import takes seconds."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm.config import meant
from ldm.config.keys import bare, is_path
from ldm.config.numbers import check_above_zero, check_least
from ldm.config.registry import root
from ldm.errors import UserError

RUNS = (
    "first_stage",
    "runs",
    "members",
    "models",
    "stages",
)  # root keys that name one run or several, and that every command reads
# What may be said beside again=: where something is, and what no picture's recipe is trusted with.
BESIDE_AGAIN = ("again", "device", "plugins", "alignment", "distance", "residency")

# Keys of conf/cluster_plan.yaml that are divided by.
ABOVE_ZERO = ("samples", "sample_bytes", "tflops", "mfu", "memory_gb", "memory_gb_s", "link_gb_s", "network_gb_s",
              "gpus_per_node")  # fmt: skip
MOST_COUNTED = 1_000_000_000  # GPUs, and samples of a step, in a plan


def check_training(tree: Mapping[str, Any]) -> None:
    """Raises UserError if a tree of conf/config.yaml trains nothing, or has keys that do not go together."""
    if not 0 <= tree["seed"] < 1 << 32:
        raise UserError(f"seed={tree['seed']}: must be between 0 and {(1 << 32) - 1}")
    for key in ("task", "data"):
        if tree[key] is None:
            raise UserError(f"{key}: nothing is chosen; experiment= chooses it (python train.py --help lists them)")
    if tree["branch_changes"] and not tree["branch"]:
        raise UserError("branch_changes: says what may be another than the parent's, but no branch= names one")
    if tree["adapter"] and not (tree["network"] and (tree["branch"] or tree["init"])):
        raise UserError("adapter: adapts the network of a trained model, which branch= or init= has to name")


def check_first_stage(tree: Mapping[str, Any], name: str) -> None:
    """Raises UserError if the first stage of a run that does not exist yet is missing."""
    if not (Path(tree["runs_dir"]).expanduser() / name).exists():
        check_there({"first_stage": tree["first_stage"]})


def check_reference(tree: Mapping[str, Any]) -> None:
    """Raises ValueError for a tree of conf/reference.yaml that names no images, or no file to write."""
    if Path(tree["out"]).suffix != ".safetensors":
        raise UserError(f"out={tree['out']}: a reference is written as FILE.safetensors")
    if tree["model"] is None and (tree["shards"] is None or tree["image_size"] is None):
        raise UserError("model: name a run whose images are looked at, or shards= and image_size=")
    if tree["model"] is not None and tree["image_size"] is not None:
        raise UserError(f"image_size={tree['image_size']}: images are read as model= reads them; leave one of them out")
    check_least(tree, {"num_workers": 0})


def check_scores(tree: Mapping[str, Any]) -> None:
    """Raises UserError for a tree of conf/score_shards.yaml that chooses nothing to score by."""
    if tree["alignment"] is None and tree["aesthetic"] is None:
        raise UserError("alignment: nothing to score by is chosen; alignment=open_clip, aesthetic=laion, or both")


def check_there(tree: Mapping[str, Any]) -> None:
    """Raises UserError for a run or a manifest that is named at the root of a tree and does not exist, or is a file of
    another kind.
    """
    if "model" in tree:
        models = named_models(tree["model"])
        for model in models if isinstance(models, list) else [models]:
            _check_kind("model", there(model))
    for key in RUNS:
        value = tree.get(key) or []
        for path in value if isinstance(value, list) else [value]:
            if not Path(path).expanduser().exists():
                raise UserError(f"{key}={path}: no weights found, there is no such run")
            _check_kind(key, Path(path).expanduser())


def _check_kind(key: str, path: Path) -> None:
    if path.is_file() and path.suffix not in (".yaml", ".safetensors"):
        raise UserError(f"{key}={path}: is none of a run's folder, its weights (.safetensors) and a manifest (.yaml)")
    if path.is_dir() and not (path / "config.yaml").exists():
        raise UserError(f"{key}={path}: no weights found, it is not a run's folder, which has a config.yaml")


def split(config_name: str, words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words whose keys ``conf/<config_name>.yaml`` has, and the others."""
    keys = root(config_name)[0]
    own = [word for word in words if bare(word).partition(".")[0] in keys]
    return own, [word for word in words if word not in own]


def named_models(model: str) -> str | list[str]:
    """What ``model=`` of scripts/evaluate.py names: several as [a,b], unless something of such a name is there."""
    return meant("members", model) if model.startswith("[") else model


def is_again(words: Sequence[str]) -> bool:
    """Whether the words of sample.py name a picture to make anew. Raises UserError for one that makes it another."""
    keys = [bare(word) for word in words]
    if "again" not in keys or not {"again=null", "~again"}.isdisjoint(words):
        return False
    for key in keys:
        if not is_path(key) and key.partition(".")[0] not in BESIDE_AGAIN:
            raise UserError(f"{key}: again= makes a picture as its recipe says; leave one of them out")
    return True


def there(model: str | Path) -> Path:
    """The path of a model. Raises UserError if nothing is there."""
    path = Path(model).expanduser()
    if not path.exists():
        raise UserError(f"model={path}: no such run or manifest")
    return path


def check_folder(key: str, text: str) -> None:
    """Raises UserError if no files can be written into the folder that ``key=`` names, or it cannot be made."""
    path = Path(text).expanduser()
    for place in (path, *path.parents):
        if place.is_symlink() and not place.exists():
            raise UserError(f"{key}={text}: {place} is a link that leads nowhere; name another folder")
        if place.exists():
            if not place.is_dir():
                raise UserError(f"{key}={text}: {place} is a file; name a folder")
            if not os.access(place, os.W_OK | os.X_OK):
                raise UserError(f"{key}={text}: no permission to write into {place}; name another folder")
            return


def check_plan(tree: dict[str, Any]) -> None:
    """Raises UserError for numbers of a tree of conf/cluster_plan.yaml that cannot be."""
    check_above_zero(tree, *ABOVE_ZERO)
    for key in ("price", "latency_us"):
        if not 0 <= tree[key] < math.inf:
            raise UserError(f"{key}={tree[key]}: must be at least 0, and a number")
    for key in ("mfu", "overlap"):
        if not 0 <= tree[key] <= 1:
            raise UserError(f"{key}={tree[key]}: is a share, between 0 and 1")
    for key in ("per_gpu", "batch_size"):
        if tree[key] is not None and not 1 <= tree[key] <= MOST_COUNTED:
            raise UserError(f"{key}={tree[key]}: must be 1 to {MOST_COUNTED:,}, or null")
    counts = tree["gpus"]
    if not counts or not all(type(n) is int and 0 < n <= MOST_COUNTED for n in counts):
        raise UserError(f"gpus={counts}: a list of how many there are, such as [8,64,256], up to {MOST_COUNTED:,}")
    if not tree["experiments"]:
        raise UserError("experiments=[]: a list of what is trained, by the names of conf/experiment")
    check_folder("out", tree["out"])
    if not tree["strategies"] or not set(tree["strategies"]) <= {"ddp", "fsdp"}:
        raise UserError(f"strategies={tree['strategies']}: a list of ddp, fsdp")
