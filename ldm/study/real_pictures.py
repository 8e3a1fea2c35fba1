"""The real pictures that come with a set of prompts: files, or members of tars, cut as training images are.

The set may be somebody else's, and the pictures go into pages that are sent out: nothing outside its folder is read.
"""

import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ldm.data.decoding import PilDecoder
from ldm.data.errors import BadSample
from ldm.data.making.inside import Folder
from ldm.data.transforms import View
from ldm.errors import UserError
from ldm.study.prompt_set import Prompt

MAX_BYTES = 1 << 27  # of a picture


def real_pictures(prompts: Sequence[Prompt], folder: Path, image_size: int) -> list[np.ndarray]:
    """The picture of each prompt, as by `real_picture`, whose UserError names the row too."""
    found = []
    for row, prompt in enumerate(prompts, 1):
        try:
            found.append(real_picture(prompt, folder, image_size))
        except UserError as error:
            raise UserError(f"prompts: row {row}: {error}") from error
    return found


def real_picture(prompt: Prompt, folder: Path, image_size: int) -> np.ndarray:
    """The picture of a prompt, uint8 [image_size, image_size, 3], resized and cut in the middle as training images are.

    `folder` is that of the prompts' file. Raises UserError if it is not there, leads out of the folder, or is broken.
    """
    try:
        pixels = PilDecoder()(_content(folder, prompt.image), image_size)
    except BadSample as error:
        raise UserError(f"{prompt.image}: {error.kind} ({error})") from error
    return View().crop(pixels, image_size)


def _content(folder: Path, image: str) -> bytes:
    """The bytes of an image: of a file, or SHARD.tar/MEMBER."""
    path = folder / image
    shard = next((above for above in path.parents if above.suffix == ".tar" and above.is_file()), None)
    try:
        Folder(folder.absolute()).inside(str((shard or path).absolute()))
    except BadSample as error:
        raise UserError(f"image {image}: leads out of {folder}, the folder of the file, or nowhere") from error
    if shard is None:
        if not path.is_file():
            raise UserError(f"no image {path}; images are named from the folder of the file")
        with path.open("rb") as file:
            return file.read(MAX_BYTES)
    try:
        with tarfile.open(shard, "r:") as members:
            return members.extractfile(path.relative_to(shard).as_posix()).read(MAX_BYTES)
    except (KeyError, AttributeError, tarfile.TarError) as error:
        raise UserError(f"no image {path.relative_to(shard)} in {shard}") from error
