"""Pictures for a page: drawn batch by batch, each step told, written with their recipes."""

import logging
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.drawer import Drawer
from ldm.provenance.recipe import Recipes
from ldm.request import Request
from ldm.sampling import Sampling

Tell = Callable[[float, str], Any]  # a share of the work in [0, 1], and what is done


def new_folder(out: Path) -> Path:
    """The next folder in `out`, named by a number."""
    out.mkdir(parents=True, exist_ok=True)
    last = max((int(path.name) for path in out.iterdir() if path.name.isdecimal()), default=0)
    while True:
        folder = out / f"{last + 1:04d}"
        try:
            folder.mkdir()
        except FileExistsError:
            last += 1
        else:
            return folder


def pictures(
    drawer: Drawer, tree: Mapping[str, Any], words: Sequence[str], device: torch.device, folder: Path, tell: Tell,
    say: Callable[[str], Any],
) -> Iterator[list[Path]]:  # fmt: skip
    """All files that are written by now, batch after batch, for what `tree` (conf/sample.yaml, by `words`) asks.

    `say` gets what sample.py tells of the request beside: what of a prompt is not read, that a file is resized or cut.
    Raises what Request raises, and NotFinite for images that are not.
    """
    with heard(say):
        request = Request(drawer, tree, words, device)
    recipes = Recipes(drawer, request.rows, request.sampling, tree, device, folder)
    pairs = [(row, number) for row in range(len(request.rows)) for number in range(tree["num_images"])]
    starts, sampling = range(0, len(pairs), tree["batch_size"]), request.sampling
    files: list[Path] = []
    for done, start in enumerate(starts):
        part = pairs[start : start + tree["batch_size"]]

        def told(share: float, done: int = done, start: int = start) -> None:
            tell((done + share) / len(starts), f"{start} of {len(pairs)} images")

        request.sampling = with_steps(sampling, told)
        images = request.images(part).cpu()
        files += [recipes.save(folder / f"{len(files) + at:04d}.png", images[at], part, at) for at in range(len(part))]
        yield list(files)


@contextmanager
def heard(say: Callable[[str], Any]) -> Iterator[None]:
    """Within the block `say` gets what is logged as a warning, too."""
    logger, handler = logging.getLogger("ldm"), _Heard(say)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _Heard(logging.Handler):
    """Gives what is logged to a function."""

    def __init__(self, say: Callable[[str], Any]):
        super().__init__(logging.WARNING)
        self.say = say

    def emit(self, record: logging.LogRecord) -> None:
        self.say(record.getMessage())


def with_steps(sampling: Sampling, tell: Callable[[float], Any]) -> Sampling:
    """The same sampling, which tells at each evaluation what share of its sigma schedules is behind it."""
    every = (sampling, *sampling.later)

    def told(place: int, sigmas: Tensor, sigma: Tensor) -> None:
        behind = (sigmas > sigma.flatten()[0].item()).sum().item() / max(len(sigmas) - 1, 1)
        tell((place + behind) / len(every))

    first, *later = (replace(own, evaluating=partial(told, place)) for place, own in enumerate(every))
    return replace(first, later=tuple(later))


def packed(folder: Path) -> Path:
    """A zip of all in a folder, in it: pictures, their recipes, and the files that they were made with."""
    path = folder / "pictures.zip"
    with zipfile.ZipFile(path, "w") as file:
        for each in sorted(each for each in folder.iterdir() if each != path):
            file.write(each, each.name)
    return path
