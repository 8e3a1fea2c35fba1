"""A validated request to a drawer, ready to be sampled: from sample.py's command line or from Python's options."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ldm.conditioners.paint import FIELD
from ldm.config import takes, with_moved_keys
from ldm.config.keys import bare
from ldm.config.overrides import parse
from ldm.diffusion.interpolation import Frames
from ldm.drawer import TURNS, Drawer, batched, turns_of
from ldm.errors import UserError
from ldm.frames import Frame
from ldm.generate import Ask, finished
from ldm.given import check_given, class_number, collate, negatives
from ldm.given_files import asked_frame, files_of, read_given
from ldm.pasting import read_original
from ldm.phrases import check_paint, drawing_of, read_paint
from ldm.prompts import read_conditions
from ldm.starting import check_canvas, read_canvas, read_start, tiled_for


class Request:
    """What `tree`, with the keys of conf/sample.yaml, asks of a `drawer` on `device`; `words` are those that made it.

    Raises ValueError for what does not fit the model, OSError for a file that is not there; see ldm.given.
    """

    def __init__(self, drawer: Drawer, tree: Mapping[str, Any], words: Sequence[str], device: torch.device):
        rows = read_conditions(tree)
        check_paint(tree, words, rows)
        check_guides(tree, {bare(word).partition(".")[0] for word in words})
        self._turns = asked_turns(tree["turns"], drawer)
        drawer.decode_in_tiles(tree["tile"])
        on_canvas = read_canvas(tree)
        tree = tree if on_canvas is None else tiled_for(on_canvas.size, tree, words, drawer)
        self.sampling = drawer.sampling({**tree, "guidance": asked_guidance(words, tree["guidance"])})
        self.stages: dict[str, Tensor] = {}  # with keep_stages, what each but the last drew of the images made last
        if tree["keep_stages"]:
            if not self.sampling.later:
                raise UserError(f"keep_stages: {drawer.name} draws in one stage")
            self.sampling = replace(self.sampling, seen=self.stages.__setitem__)
        self._between_seeds = tree["to_seed"] is not None
        if self._between_seeds:
            self.sampling = replace(self.sampling, normal=Frames(tree["to_seed"], tree["num_images"]))
        if on_canvas is not None:
            check_canvas(on_canvas, drawer, self.sampling)
        check_given(tree, drawer, self.sampling, captioned="caption" in rows[0])
        if on_canvas is None:
            self._frame = asked_frame(tree, drawer, self.sampling)
        else:
            self._frame = Frame(on_canvas.size, on_canvas.size)
        self._given = read_given(tree, drawer, self._frame)
        self._original = read_original(tree, drawer, self._frame)
        self._edit = on_canvas or read_start(tree, self._frame)
        paint = read_paint(tree, drawer, self._frame)
        self._paint = {} if paint is None else {FIELD: paint}
        self._outlines = None if paint is None else drawing_of(tree, paint, self._frame)
        self.rows = [_numbered(row, drawer) for row in rows]
        self._drawer, self._seed, self._negatives, self._device = drawer, tree["seed"], negatives(tree), device
        values = {**collate(self.rows, device), **self._given.read}
        if paint is not None and not drawer.paintable({**values, **self._paint}, self.sampling):
            conditions = ", ".join(drawer.conditions(self.sampling)) or "nothing"
            raise UserError(
                f"paint: {drawer.name} has no cross-attention to words of a prompt; it is conditioned on {conditions}"
            )
        if self._negatives and "caption" in values:
            values["caption"] = [*values["caption"], *self._negatives.values()]
        drawer.check(values, self.sampling, {name: f"{key}={path}" for name, (key, path) in files_of(tree).items()})

    @property
    def drawing(self) -> Callable[[Image.Image], Image.Image] | None:
        """What shows on an image what was asked for, such as boxes; None where nothing would be seen."""
        return self._given.drawing or self._outlines

    def batch(self, places: Sequence[int], numbers: Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
        """What is given for the rows at `places` and samples of these `numbers`, int64 [B] on the device, and what
        guidance goes away from in its place.
        """
        batch = collate([self.rows[place] for place in places], self._device) | self._given.batch(numbers)
        batch |= self._paint
        return batch, {field: [text] * len(places) for field, text in self._negatives.items()}

    def images(self, part: Sequence[tuple[int, int]]) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] for pairs of (row, number); see Drawer.generate."""
        [draw] = self.begun([part])
        return draw()

    def begun(
        self, parts: Sequence[Sequence[tuple[int, int]]], tell: Callable[[str], Any] = lambda words: None
    ) -> Iterator[Callable[[], Tensor]]:
        """What makes the `images` of each of `parts`, to be called in their order, as they come; see Drawer.begun.

        Where experts come and go, `turns` of them wait for each other, and in memory; else none does.
        """
        for several in batched(parts, turns_of(self._drawer, self._turns)):
            for draw in self._drawer.begun([self._ask(part) for part in several], tell):
                yield partial(finished, draw, self._finish)

    def _ask(self, part: Sequence[tuple[int, int]]) -> Ask:
        numbers = torch.tensor([number for _, number in part], device=self._device)
        same = torch.zeros_like(numbers) if self._between_seeds else numbers  # what is made of an image by its number
        batch, negative = self.batch([place for place, _ in part], same)
        return Ask(self.sampling, batch, numbers, self._seed, self._frame.drawn, negative, self._edit)

    def _finish(self, images: Tensor) -> Tensor:
        """Drawn images in the size that was asked for, or in that of the picture that they are put back into."""
        images = self._frame.cut(images)
        return images if self._original is None else self._original.put(images)


def _numbered(row: Mapping[str, Any], drawer: Drawer) -> dict[str, Any]:
    """A row of conditions whose class is a number."""
    return {**row, **({"label": class_number(row["label"], drawer.data)} if "label" in row else {})}


def asked_turns(turns: int | None, drawer: Drawer) -> int:
    """How many batches wait for each other where experts come and go, None being `TURNS`.

    Raises UserError where none does.
    """
    if turns is not None and not drawer.residency:
        raise UserError(f"turns={turns}: is of experts that come and go; residency=one makes them")
    return TURNS if turns is None else turns


def check_guides(tree: Mapping[str, Any], asked: Collection[str]) -> None:
    """Raises UserError for a key `asked` for that only guidance by a loss takes, where none of `tree` does."""
    for key, example in {"operator": "image", "distance": "image", "alignment": "alignment"}.items():
        if key in asked and not any(takes(node, key) for node in (tree.get("loss_guidance") or {}).values()):
            raise UserError(f"{key}: only guidance by a loss takes it, such as loss_guidance=[{example}]; leave it out")


def asked_guidance(words: Sequence[str], guidance: dict[str, Any] | None) -> dict[str, Any] | None:
    """What the command line says of `guidance`: all of it by its name, else the keys that it sets; None is nothing."""
    words = with_moved_keys(words)
    if guidance is None or "guidance" in map(bare, words):
        return guidance
    set_here = parse([word for word in words if bare(word).startswith("guidance.")])
    paths = [[*word.key_or_group.split(".")[1:], *rest] for word in set_here for rest in _paths(word.value())]
    return _at(guidance, paths) or None


def _paths(value: Any) -> list[list[str]]:
    """The keys of a mapping, with those of mappings within it; one empty path for any other value."""
    if not isinstance(value, dict):
        return [[]]
    return [[str(key), *rest] for key, item in value.items() for rest in _paths(item)]


def _at(node: dict[str, Any], paths: Sequence[Sequence[str]]) -> dict[str, Any]:
    """What a part of a tree has at `paths`; parts within it keep their class."""
    found = {}
    for key in dict.fromkeys(first for first, *_ in paths if first in node):
        below, value = [rest for first, *rest in paths if first == key], node[key]
        if [] in below or not isinstance(value, dict):
            found[key] = value
        else:
            found[key] = {**{k: v for k, v in value.items() if k == "_target_"}, **_at(value, below)}
    return found
