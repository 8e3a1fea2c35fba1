"""Prompts of composed emoji by category, each with the truth: what eDiff-I's figures 10 to 12 are about, in small.

Prompts are captions of canvases that the generator composes; a rule says whether a picture shows what it says.
"""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from ldm.data.making.canvases import Canvas, CanvasSettings, canvas_of, relation
from ldm.data.making.cutouts import Emoji, cutout, emoji
from ldm.diagnostics.emoji_judge import Judge, Thing
from ldm.errors import UserError

COLOURS = frozenset(("red", "orange", "yellow", "green", "blue", "purple", "brown", "black", "white", "grey", "pink"))
WRITTEN = frozenset(
    [*(f"keycap {digit}" for digit in range(10)),
     *(f"{word} button" for word in ("cl", "cool", "free", "id", "new", "ng", "ok", "vs"))]
)  # fmt: skip
ORDINARY = 6  # names of each group that the other categories are made of
MOST = 4  # objects on a canvas
MOST_PROMPTS = 10_000  # of a category
TRIES = 40  # canvases for each that is asked for


@dataclass(frozen=True, eq=False)
class Item:
    """A prompt, the canvas that it is the caption of, and its category."""

    category: str
    canvas: Canvas

    @property
    def prompt(self) -> str:
        return self.canvas.caption

    @property
    def names(self) -> list[str]:
        """What it asks for."""
        return [found["phrase"] for found in self.canvas.objects]


def all_there(item: Item, things: Sequence[Thing]) -> bool:
    """Whether everything that is asked for is among the things."""
    return Counter(item.names) <= Counter(thing.name for thing in things)


def counted(item: Item, things: Sequence[Thing]) -> bool:
    """Whether there are as many things as are asked for, whatever they are."""
    return len(things) == len(item.names)


def related(item: Item, things: Sequence[Thing]) -> bool:
    """Whether both are there, and lie to each other as is asked for."""
    if not all_there(item, things):
        return False
    one, other = (next(thing.box for thing in things if thing.name == name) for name in item.names)
    return relation(one, other) == relation(*(found["box"] for found in item.canvas.objects))


class Vocabulary:
    """The names of the emoji of a `split`, by what categories they serve; only those that can be cut out."""

    def __init__(self, split: str):
        self._by_name: dict[str, list[Emoji]] = {}
        for one in (one for group in emoji(split).values() for one in group):
            self._by_name.setdefault(one.caption, []).append(one)

    def pictures(self, name: str) -> list[Emoji]:
        """Those of a name, of all styles."""
        return [one for one in self._by_name[name] if cutout(one) is not None]

    @cached_property
    def coloured(self) -> dict[str, list[str]]:
        """Things that there are in several colours, "heart", and their names, "red heart"."""
        found: dict[str, list[str]] = {}
        for name in sorted(self._by_name):
            colour, _, thing = name.partition(" ")
            if colour in COLOURS and thing and " " not in thing and self.pictures(name):
                found.setdefault(thing, []).append(name)
        return {thing: names for thing, names in found.items() if len(names) >= 3}

    @cached_property
    def written(self) -> list[str]:
        """Names of what has letters or a digit on it."""
        return [name for name in sorted(WRITTEN & self._by_name.keys()) if self.pictures(name)]

    @cached_property
    def ordinary(self) -> list[str]:
        """Some names of each group, evenly among those of one word."""
        groups: dict[str, list[str]] = {}
        for name, own in sorted(self._by_name.items()):
            if " " not in name and "-" not in name:
                groups.setdefault(own[0].group, []).append(name)
        places = {group: np.linspace(0, len(names) - 1, min(ORDINARY, len(names))) for group, names in groups.items()}
        chosen = [groups[group][int(place)] for group, own in places.items() for place in own]
        return [name for name in chosen if self.pictures(name)]


Choose = Callable[[Vocabulary, np.random.Generator, int], list[str]]


@dataclass(frozen=True)
class Category:
    """What a category asks for: the names of the place-th prompt, what they are told from, the rule, and whether there
    are `enough` names to choose of.
    """

    choose: Choose
    among: Callable[[Vocabulary], Collection[str]]
    rule: Callable[[Item, Sequence[Thing]], bool]
    enough: Callable[[Vocabulary], bool]


def _of_two_colours(words: Vocabulary, draw: np.random.Generator, place: int) -> list[str]:
    """Two things of different kinds and colours."""
    pairs = list(combinations(sorted(words.coloured), 2))
    both = pairs[draw.integers(len(pairs))]
    while True:
        names = [str(draw.choice(words.coloured[thing])) for thing in both]
        if len({name.partition(" ")[0] for name in names}) == 2:
            return [names[at] for at in draw.permutation(2)]


def _some(words: Vocabulary, draw: np.random.Generator, count: int) -> list[str]:
    return [str(name) for name in draw.choice(words.ordinary, count, replace=False)]


def _ordinary(words: Vocabulary) -> bool:
    return len(words.ordinary) >= MOST


CATEGORIES = {
    "colour": Category(
        _of_two_colours,
        lambda words: {name for own in words.coloured.values() for name in own},
        all_there,
        lambda words: len(words.coloured) >= 2,
    ),
    "counting": Category(
        lambda words, draw, place: _some(words, draw, 1 + place % MOST),
        lambda words: words.ordinary,
        counted,
        _ordinary,
    ),
    "relation": Category(
        lambda words, draw, place: _some(words, draw, 2), lambda words: words.ordinary, related, _ordinary
    ),
    "spelling": Category(
        lambda words, draw, place: [str(name) for name in draw.choice(words.written, 1 + place % 2, replace=False)],
        lambda words: words.written,
        all_there,
        lambda words: len(words.written) >= 2,
    ),
    "long": Category(
        lambda words, draw, place: _some(words, draw, MOST), lambda words: words.ordinary, all_there, _ordinary
    ),
}


class ComposedSet:
    """`count` different prompts of each of `categories` on canvases of `settings`, which says the split of the emoji.

    A prompt whose own canvas the rule would not pass is left out: what is asked for can then be told. Raises UserError
    where there are too few, or too few names for a category.
    """

    def __init__(self, settings: CanvasSettings, categories: Sequence[str], count: int):
        unknown = [name for name in categories if name not in CATEGORIES]
        if unknown or not categories or len(set(categories)) < len(categories):
            raise UserError(f"categories={list(categories)}: choose of {', '.join(CATEGORIES)}, each once")
        if not 1 <= count <= MOST_PROMPTS:
            raise UserError(f"num_prompts={count}: must be at least 1, and at most {MOST_PROMPTS}")
        self.settings = replace(settings, textured=0.0)  # things are found on a plain ground
        self.words = Vocabulary(settings.split)
        lacking = [name for name in categories if not CATEGORIES[name].enough(self.words)]
        if lacking:
            raise UserError(
                f"categories: emoji of split={settings.split} have too few names for {', '.join(lacking)}; leave that "
                "out, or take another split"
            )
        self.among = {name: set(CATEGORIES[name].among(self.words)) for name in categories}
        names = sorted(set().union(*self.among.values()))
        self.judge = Judge([one for name in names for one in self.words.pictures(name)])
        self.items = [item for name in categories for item in self._made(name, count)]

    def passes(self, item: Item, image: Tensor) -> bool:
        """Whether an image [3, H, W] in [-1, 1] shows what an item asks for."""
        return CATEGORIES[item.category].rule(item, self.things(item, image))

    def things(self, item: Item, image: Tensor) -> list[Thing]:
        """What is seen on it, told among the names of the item's category."""
        return self.judge.things(image, self.among[item.category])

    def _made(self, name: str, count: int) -> list[Item]:
        found: dict[str, Item] = {}
        for number in range(count * TRIES):
            draw = np.random.default_rng([self.settings.seed, sorted(CATEGORIES).index(name), number])
            names = CATEGORIES[name].choose(self.words, draw, len(found))
            chosen = [own[draw.integers(len(own))] for own in (self.words.pictures(each) for each in names)]
            item = Item(name, canvas_of(self.settings, number, chosen))
            if item.prompt not in found and self.passes(item, truth(item)):
                found[item.prompt] = item
            if len(found) == count:
                return list(found.values())
        size = "x".join(map(str, self.settings.size))
        raise UserError(f"num_prompts={count}: of {name} only {len(found)} canvases of {size} px can be told apart")


def truth(item: Item) -> Tensor:
    """The canvas of an item, [3, H, W] in [-1, 1]."""
    return torch.from_numpy(item.canvas.image.copy()).permute(2, 0, 1).float() / 127.5 - 1
