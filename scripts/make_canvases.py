"""Shards of canvases: built-in emoji on a plain or textured ground, with their boxes, maps, names and a caption.

    python scripts/make_canvases.py out=shards/canvases size=64
    python scripts/make_canvases.py out=shards/wide size=[128,256] 'objects=[8,16]' 'sides=[0.15,0.25]' samples=0
    python scripts/make_canvases.py out=shards/plain size=32 samples=9000 textured=0 seed=1

No emoji is both in the canvases to train on and in those that are held out; all nine groups are in both. A sample has
png, json (caption, objects with category, box, phrase and its place in the caption), segmentation.png (0 the ground,
k + 1 the group of number k), instances.png (k the k-th object) and mask.png (white where an object is). The same words
give the same bytes; a finished folder is confirmed, never changed. data=canvases needs no shards.
"""

import glob
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.config import compose, guarded, helped

LAYOUT_OBJECTS = 4  # that data=canvases reads (conf/data/canvases.yaml)


def main(arguments: list[str]) -> int:
    """Write what is not written yet."""
    if helped("make_canvases", __doc__, arguments):
        return 0
    tree = compose("make_canvases", arguments)
    from ldm.data.making.canvas_shards import asked_for, make_canvas_shards
    from ldm.data.making.report import quoted

    out = Path(tree["out"]).expanduser()
    manifest = make_canvas_shards(out, asked_for(tree))
    for name, part in manifest["splits"].items():
        print(f"{out}: {part['samples']} canvases of {name} in {len(part['shards'])} shards")
    print(f"train with: {' '.join(map(quoted, _words(out, manifest['splits'], tree['objects'][1])))}")
    return 0


def _words(out: Path, splits: Mapping[str, Mapping[str, Any]], most: int) -> list[str]:
    """Those of train.py: of a split that was not made, data=canvases has its own."""
    keys = {"train": "data.train", "validation": "data.validation"}
    place = glob.escape(str(out))  # a folder may be called draft*
    words = [f"{key}={place}/{split}-*.tar" for split, key in keys.items() if splits[split]["samples"]]
    more = [f"data.fields.layout.max_objects={most}"] if most > LAYOUT_OBJECTS else []
    return ["data=canvases", *words, *more]


if __name__ == "__main__":
    guarded(main)
