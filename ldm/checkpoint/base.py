"""The frozen weights of a run, such as those under adapters: saved once, in the folder of the run's weights.

Weights files and checkpoints hold what is trained, and the digest of this file, which completes them.
"""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm.errors import UserError
from ldm.files import replace, sha256

NAME = "base.safetensors"


def save(folder: Path, state: Mapping[str, Tensor]) -> str:
    """Write the frozen weights durably; returns the file's sha256."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    replace(folder / NAME, lambda temporary: save_file(plain, temporary))
    return sha256(folder / NAME)


def load(folder: Path, digest: str, asked: Path) -> dict[str, Tensor]:
    """The frozen weights of this digest, which `asked` needs. ValueError if they are missing, or of another digest."""
    path = folder / NAME
    if not path.is_file():
        raise UserError(f"{asked}: an adapter without the weights it adapts, {path}")
    if sha256(path) != digest:
        raise UserError(f"{path}: damaged, or not the weights that {asked} adapts (its hash is not the one recorded)")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: not a whole safetensors file ({error})") from error
