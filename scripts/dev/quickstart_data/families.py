"""Which emoji are variants of one: such belong on one side of the split, in all their styles."""

import re
from typing import Any

import numpy as np
from PIL import Image

# Words that tell variants of one emoji apart: who, which way, which colour, size or phase.
VARIANT_WORDS = """
man men woman women person people boy girl male female and santa mrs. mx
left right up down leftwards rightwards upwards downwards tilted facing
red orange yellow green blue light purple brown black grey white pink large small medium
new full first last quarter waxing waning crescent gibbous"""
PERSONS = {"1F468", "1F469", "1F9D1", "1F466", "1F467"}
JOINERS = {"200D", "FE0F", "2640", "2642"}
# One figure under three unlike names.
SAME_NAME = {"1F934": "crowned", "1F478": "crowned", "1FAC5": "crowned"}
# Two pictures nearer than this (root mean square of 0..255 at 32 px, mirrored or not) count as one emoji.
NEAR_DUPLICATE = 12.0


def assign_bases(samples: list[dict[str, Any]]) -> None:
    """Set `base`: the first hexcode (in emoji order) of all samples linked by name, code points or picture."""
    parent = list(range(len(samples)))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    first: dict[str, int] = {}
    for i, sample in enumerate(samples):
        for link in (family_name(sample), family_code(sample["hexcode"])):
            parent[root(i)] = root(first.setdefault(link, i))
    for i, j in near_duplicates([sample["picture"] for sample in samples]):
        parent[root(i)] = root(j)
    groups: dict[int, list[dict[str, Any]]] = {}
    for i, sample in enumerate(samples):
        groups.setdefault(root(i), []).append(sample)
    for group in groups.values():
        base = min(group, key=lambda sample: sample["order"])["hexcode"]
        for sample in group:
            sample["base"] = base


def family_name(sample: dict[str, Any]) -> str:
    """The name without what tells variants apart; a flag keeps its country."""
    label = sample["name"].lower()
    if sample["class"] == "flags":
        return f"name:{label}"
    if sample["subclass"] == "person":
        return "name:person"
    if "o\u2019clock" in label or label.endswith("-thirty"):
        return "name:clock face"
    if sample["hexcode"] in SAME_NAME:
        return f"name:{SAME_NAME[sample['hexcode']]}"
    variants = VARIANT_WORDS.split()
    words = [word for word in re.split(r"[\s\-]+", label.split(":")[0]) if word not in variants]
    return f"name:{' '.join(words) or label}"


def family_code(hexcode: str) -> str:
    """The code points without joiners, gender signs and the person: 'man farmer' and 'farmer' agree."""
    parts = hexcode.split("-")
    rest = [part for part in parts if part not in JOINERS | PERSONS]
    role = "role" if len(rest) < len([part for part in parts if part not in JOINERS]) else "code"
    return f"{role}:{'-'.join(rest) or hexcode}"


def near_duplicates(pictures: list[Image.Image]) -> list[tuple[int, int]]:
    """Pairs of pictures that are the same to the eye, mirrored or not."""
    small = [np.asarray(picture.resize((32, 32), Image.Resampling.BOX), np.float32) for picture in pictures]
    plain = np.stack(small).reshape(len(small), -1)
    mirrored = np.stack(small)[:, :, ::-1].reshape(len(small), -1)
    norm = (plain**2).sum(1)
    distance = np.minimum(*(norm[:, None] + norm[None] - 2 * plain @ other.T for other in (plain, mirrored)))
    rows, columns = np.nonzero(distance < NEAR_DUPLICATE**2 * plain.shape[1])
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if i < j]
