"""The built-in emoji cut from their white ground: colours, and an opacity that is 0 outside.

The shards hold them on white. White that is joined to the border is ground, and the mixed colours of the edge are
unmixed; white inside an emoji is its own. What is pasted and what a map says of it are then the same by construction.
"""

import io
import json
import tarfile
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

BUILT_IN = Path(__file__).resolve().parents[1] / "quickstart"
SPLITS = ("train", "validation")
WHITE = 247  # of 255, in the darkest channel: what compression leaves of white
EDGE = 1.5  # px from the ground within which colours are mixed with it
UNSPOKEN = set(":,()")  # names with these are whole descriptions, and would make captions ambiguous
THINNEST = 0.04  # share of the picture that is left: of a white flag nothing is
SMALLEST = 12  # px of the longer side that is left


class Emoji(NamedTuple):
    """One of them, as its shard has it, and what is known of it."""

    content: bytes  # of its WebP
    key: str
    caption: str
    label: int  # of its group, 0 to 8
    group: str
    style: str


@lru_cache(maxsize=6000)
def cutout(one: Emoji) -> np.ndarray | None:
    """RGBA uint8 [h, w, 4], cut to its own box; None where too little is left, as of a white flag."""
    return cut(np.asarray(Image.open(io.BytesIO(one.content)).convert("RGB")))


def cut(picture: np.ndarray) -> np.ndarray | None:
    """RGBA uint8 [h, w, 4] of what is not ground in RGB uint8 [H, W, 3]; None where too little is."""
    white = np.pad(picture.min(2) >= WHITE, 1, constant_values=True)
    parts, _ = ndimage.label(white)
    ground = (parts == parts[0, 0])[1:-1, 1:-1]
    if (~ground).mean() < THINNEST:
        return None
    depth = ndimage.distance_transform_edt(~ground)
    mixed = (depth > 0) & (depth <= EDGE)
    if not (depth > EDGE).any():
        return None
    nearest = ndimage.distance_transform_edt(depth <= EDGE, return_distances=False, return_indices=True)
    inner = picture[tuple(nearest)].astype(np.float64)  # [H, W, 3], the colour that the edge was mixed from
    away, own = 255 - inner, 255 - picture.astype(np.float64)
    share = (away * own).sum(2) / np.maximum((away * away).sum(2), 1)
    known = (away * away).sum(2) > 32**2  # else the inner colour is nearly white itself, and tells nothing
    alpha = np.where(mixed & known, np.clip(share, 0, 1), ~ground)
    colours = np.where((mixed & known)[..., None], inner, picture)
    pixels = np.dstack([colours, np.rint(alpha * 255)]).astype(np.uint8)
    rows, columns = (np.flatnonzero((pixels[..., 3] >= 128).any(axis)) for axis in (1, 0))
    if max(len(rows), len(columns)) < SMALLEST:
        return None
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


@cache
def emoji(split: str) -> dict[int, list[Emoji]]:
    """Those of `train` or of `validation`, by group; no emoji is in both, whatever its style."""
    members: dict[str, dict[str, bytes]] = {}
    for path in sorted(BUILT_IN.glob(f"{split}-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                file = tar.extractfile(member)
                assert file is not None
                members.setdefault(key, {})[extension] = file.read()
    found: dict[int, list[Emoji]] = {}
    for key, own in sorted(members.items()):
        facts = json.loads(own["json"])
        if not set(facts["caption"]) & UNSPOKEN:
            one = Emoji(own["webp"], key, facts["caption"], facts["label"], facts["class"], facts["style"])
            found.setdefault(one.label, []).append(one)
    return dict(sorted(found.items()))


@cache
def few_emoji(split: str, names: int) -> dict[int, list[Emoji]]:
    """Of each group those that can be cut out, of `names` names (of all, where it has fewer), evenly spaced in the
    alphabet.
    """
    found = {}
    for label, group in emoji(split).items():
        usable = [one for one in group if cutout(one) is not None]
        said = sorted({one.caption for one in usable})
        count = min(names, len(said))
        kept = {said[(2 * place + 1) * len(said) // (2 * count)] for place in range(count)}
        found[label] = [one for one in usable if one.caption in kept]
    return found


def class_names() -> list[str]:
    """The names of the nine groups, by their numbers."""
    names: list[str] = json.loads((BUILT_IN / "manifest.json").read_bytes())["class_names"]
    return names
