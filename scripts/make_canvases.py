"""Shards of canvases: built-in emoji on a plain or textured ground, with their boxes, maps, names and a caption.

    python scripts/make_canvases.py out=shards/canvases size=64
    python scripts/make_canvases.py out=shards/wide size=[128,256] 'objects=[8,16]' 'sides=[0.15,0.25]' samples=0
    python scripts/make_canvases.py out=shards/plain size=32 samples=9000 textured=0 seed=1

No emoji is both in the canvases to train on and in those that are held out; all nine groups are in both. A sample has
png, json (caption, objects with category, box, phrase and its place in the caption), segmentation.png (0 the ground,
k + 1 the group of number k), instances.png (k the k-th object) and mask.png (white where an object is). The same words
give the same bytes; a finished folder is confirmed, never changed. data=canvases needs no shards.
"""

from pathlib import Path

from ldm.config import compose, guarded, helped


def main(arguments: list[str]) -> int:
    """Write what is not written yet."""
    if helped("make_canvases", __doc__, arguments):
        return 0
    tree = compose("make_canvases", arguments)
    from ldm.data.making.canvas_shards import asked_for, make_canvas_shards

    out = Path(tree["out"]).expanduser()
    manifest = make_canvas_shards(out, asked_for(tree))
    for name, part in manifest["splits"].items():
        print(f"{out}: {part['samples']} canvases of {name} in {len(part['shards'])} shards")
    print(f"train with: data=canvases data.train={out}/train-*.tar data.validation={out}/validation-*.tar")
    return 0


if __name__ == "__main__":
    guarded(main)
