"""Published weights as the start of a run: ``init=`` a whole model, or ``first_stage=`` a published autoencoder.

They are imported once, into a run of their own in runs_dir that all runs with the same model share, and a run branches
from that. A run that has begun no longer needs the published files.
"""

import json
import time
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from ldm.config import compose, load_tree
from ldm.convert import import_checkpoint
from ldm.convert.foreign import SCALE_FACTORS
from ldm.errors import UserError
from ldm.files import read_json
from ldm.ranks import is_rank_zero

Tree = dict[str, Any]
DESCRIBED = ("task", "autoencoder", "regularizer", "network", "schedule", "precond", "conditioner")
TEXT, TEXT_ENCODER = "clip_text", "text_encoder"  # the conditioner whose encoder comes with published weights
FIRST_STAGE = "experiment=ldm/first_stage/kl_f8"  # describes a published first stage where the tree does not
FILES = (".ckpt", ".pt", ".pth", ".safetensors", ".bin")
FOLDERS = ("model_index.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
WAIT_SECONDS = 3600


def begun_from_published(tree: Tree, name: str) -> Tree:
    """The tree with published weights replaced by the runs they are imported into; unchanged if it names none.

    Raises a one-line ValueError if they do not fit the model that the tree describes.
    """
    saved = Path(tree["runs_dir"]).expanduser() / name / "config.yaml"
    begun = load_tree(saved) if saved.exists() and not tree["overwrite"] else {}
    if not tree["init"]:
        _check_text_encoder(tree)
        return _with_first_stage(tree, begun)
    if tree["branch"]:
        raise UserError("init=, branch=: a run begins from one of them; branch= takes runs, init= published weights")
    if begun.get("init") == tree["init"]:
        folder = Path(begun["branch"])
    else:
        folder = _imported(tree, Path(tree["init"]).expanduser(), "init")
    conditioner = dict(tree["conditioner"] or {})
    encoder = conditioner.get(TEXT)
    if encoder and encoder["path"] is None:
        conditioner[TEXT] = {**encoder, "path": str(folder / TEXT_ENCODER)}
    return _with_first_stage({**tree, "branch": str(folder), "conditioner": conditioner}, begun)


def _check_text_encoder(tree: Tree) -> None:
    encoder = (tree["conditioner"] or {}).get(TEXT)
    if encoder and encoder["path"] is None:
        raise UserError(
            "conditioner.clip_text.path: has to be given, a folder with CLIP's text encoder and tokenizer; or init= "
            "names published weights that have one"
        )


def _with_first_stage(tree: Tree, begun: Tree) -> Tree:
    path = Path(tree["first_stage"]).expanduser() if tree["first_stage"] else None
    if (
        path is not None
        and not path.exists()
        and _name(begun.get("first_stage")).startswith(_named("first_stage", path))
    ):
        return {**tree, "first_stage": begun["first_stage"]}
    if path is None or not _is_published(path):
        return tree
    described = compose("config", [FIRST_STAGE], complete=False)
    if tree["autoencoder"]:
        described |= {group: tree[group] for group in ("autoencoder", "regularizer")}
    if not _has_factor(described):  # then its latents are measured
        described |= {key: tree[key] for key in ("data", "derived", "image_size", "crop_size", "seed")}
    described["runs_dir"] = tree["runs_dir"]
    return {**tree, "first_stage": str(_imported(described, path, "first_stage"))}


def _named(key: str, source: Path) -> str:
    """The prefix of the name of the run that the weights at `source` are imported into."""
    return f"{key}-{source.name.removesuffix(source.suffix) if source.suffix in FILES else source.name}-"


def _name(path: str | None) -> str:
    return Path(path or "").name


def _has_factor(tree: Tree) -> bool:
    """Whether such a first stage was published with a factor for its latents."""
    f = 2 ** (len(tree["autoencoder"]["multipliers"]) - 1)
    return "num_codes" in tree["regularizer"] or (f, tree["regularizer"]["channels"]) in SCALE_FACTORS


def _is_published(path: Path) -> bool:
    """Whether a path holds published weights, rather than a run of ours or one of its weights files."""
    if path.is_dir():
        return any((path / name).is_file() for name in FOLDERS) and not (path / "config.yaml").exists()
    beside = path.with_name(f"{path.name.split('.')[0]}.json")
    return path.is_file() and path.suffix in FILES and not beside.exists()


def _imported(tree: Tree, source: Path, key: str) -> Path:
    """The run that the weights at `source` are imported into, made if it is not there. Other ranks wait for it."""
    if not source.exists():
        raise UserError(f"{key}={source}: no such file or folder")
    digest = _digest(tree, source, DESCRIBED if key == "init" else (*DESCRIBED, "data"))
    folder = Path(tree["runs_dir"]).expanduser() / f"{_named(key, source)}{digest}"
    source = source / "vae" if key == "first_stage" and (source / FOLDERS[0]).is_file() else source
    if not is_rank_zero():
        _wait(folder)
    elif not _is_whole(folder):
        print(f"{key}={source}: is imported into {folder}, once", flush=True)
        whole = {"adapter": None, "init": None, "branch": None, "branch_changes": None, "first_stage": None,
                 "overwrite": False}  # fmt: skip
        try:
            import_checkpoint(source, {**tree, **whole}, folder, None, anew=True)
        except ValueError as error:
            raise UserError(str(error).replace("checkpoint=", f"{key}=", 1)) from error
    return folder


def _is_whole(folder: Path) -> bool:
    return (folder / "lineage.json").is_file() and "imported" in read_json(folder / "lineage.json")


def _wait(folder: Path) -> None:
    """Wait for rank zero, which imports, and ends the other ranks if it fails."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not _is_whole(folder):
        if time.monotonic() > deadline:
            raise UserError(f"{folder}: rank zero has not imported it in {WAIT_SECONDS} s")
        time.sleep(0.2)


def _digest(tree: Mapping[str, Any], source: Path, keys: Iterable[str]) -> str:
    """Digest of the files, by size and time, and of the tree's keys that decide what they are imported as."""
    files = sorted(path for path in source.rglob("*") if path.is_file()) if source.is_dir() else [source]
    stats = [(str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    content = json.dumps([stats, {key: tree[key] for key in keys}], sort_keys=True)
    return sha256(content.encode()).hexdigest()[:8]
