"""Rebuild data/quickstart: emoji in three styles as WebDataset shards, from four pinned npm packages.

    python scripts/dev/make_quickstart_data.py
    python scripts/dev/make_quickstart_data.py --source FOLDER_WITH_ALL_TGZ --out data/quickstart

Without --source the packages are fetched with `npm pack` into --cache; all are checked by sha256. The same packages
give the same bytes with the Pillow version that the manifest names (its WebP encoder decides the last bit).
"""

import argparse
import hashlib
import io
import json
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image
from rich.console import Console
from rich.progress import track

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from quickstart_data.families import assign_bases  # noqa: E402
from quickstart_data.sources import NAMES, SIZE, STYLES, locate, read_samples  # noqa: E402

from ldm.data.writing import write_manifest, write_shard  # noqa: E402

# Of WebP. A tar's member takes whole blocks, so each picture has the best of these that fits into those of the worst.
QUALITIES = (95, 90, 85, 80)
BLOCK = 512
TRAIN_SHARDS = 6
VALIDATION_SHARE = 0.1
# The report's prompts: it shows what the model has learnt, so their pictures are always trained on.
PINNED = {
    "2764": "red heart",
    "1F499": "blue heart",
    "1F600": "grinning face",
    "23F0": "alarm clock",
    "1F355": "pizza",
    "1F431": "cat face",
    "1F680": "rocket",
    "26BD": "soccer ball",
    "1F511": "key",
    "1F333": "deciduous tree",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, help="folder that already holds all .tgz files")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "ldm" / "packages")
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "quickstart")
    options = parser.parse_args()
    console = Console()
    names = locate(NAMES, options.source, options.cache)
    styles = {style: locate(package, options.source, options.cache) for style, package in STYLES.items()}
    options.out.mkdir(parents=True, exist_ok=True)
    manifest = build(names, styles, options.out)
    for split, facts in manifest["splits"].items():
        size = sum(shard["bytes"] for shard in facts["shards"]) / 1e6
        console.print(f"{split}: {facts['samples']} samples of {facts['bases']} base emoji, {size:.1f} MB")


def build(names: Path, styles: dict[str, Path], out: Path) -> dict[str, Any]:
    """Write all shards, the manifest and the notice; returns the manifest."""
    samples = read_samples(names, styles)
    classes = list(dict.fromkeys(sample["class"] for sample in sorted(samples, key=lambda s: s["order"])))
    assign_bases(samples)
    pinned = {sample["base"] for sample in samples if sample["hexcode"] in PINNED}
    split = {
        base: "validation" if base not in pinned and fraction(base) < VALIDATION_SHARE else "train"
        for base in sorted({sample["base"] for sample in samples})
    }
    parts = {"train": TRAIN_SHARDS, "validation": 1}
    splits = {}
    for name, num_shards in parts.items():
        # ordered by hash: each shard holds a fair mixture of classes for readers that only shuffle shards
        chosen = sorted((s for s in samples if split[s["base"]] == name), key=lambda s: fraction(s["key"]))
        bounds = np.linspace(0, len(chosen), num_shards + 1).round().astype(int)
        shards = [
            write_shard(out / f"{name}-{i:05d}.tar", encode(chosen[lo:hi], classes, f"{name} {i}"))
            for i, (lo, hi) in enumerate(pairwise(bounds))
        ]
        splits[name] = {"samples": len(chosen), "bases": len({s["base"] for s in chosen}), "shards": shards}
    manifest = {
        "name": "quickstart",
        "image_size": SIZE,
        "samples": len(samples),
        "styles": dict(Counter(sample["style"] for sample in samples)),
        "fields": {
            "webp": f"RGB {SIZE}x{SIZE} on white, quality {min(QUALITIES)} to {max(QUALITIES)}",
            "json": "caption, tags, class, subclass, label (place in class_names), hexcode, base (of its variants), "
            "style; all but the style are shared by the styles of an emoji",
        },
        "class_names": classes,
        "split_rule": "all variants of one base emoji (style, gender, hair, direction, colour, phase, near-identical "
        f"picture) are on one side; validation = hash of the base below {VALIDATION_SHARE}",
        "pinned_to_train": sorted(PINNED.values()),
        "pinned_reason": "the report's ten prompts show what the model has learnt, not that it generalises",
        "splits": splits,
        "sources": [*STYLES.values(), NAMES],
        "made_with": {"pillow": PIL.__version__},
    }
    write_manifest(out, manifest)
    (out / "NOTICE.txt").write_text(notice(names), encoding="utf-8")
    return manifest


def encode(samples: list[dict[str, Any]], classes: list[str], title: str) -> Iterator[dict[str, Any]]:
    """Samples as webdataset's writer takes them."""
    for sample in track(samples, description=title, transient=True):
        fields = {name: sample[name] for name in ("caption", "tags", "class", "subclass", "hexcode", "base", "style")}
        fields["label"] = classes.index(sample["class"])
        text = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
        yield {"__key__": sample["key"], "webp": webp(sample["picture"]), "json": text.encode()}


def webp(picture: Image.Image) -> bytes:
    """The picture at the best quality that takes no more blocks of a tar than the worst."""
    worst = at_quality(picture, QUALITIES[-1])
    room = -(-len(worst) // BLOCK) * BLOCK
    tried = (at_quality(picture, quality) for quality in QUALITIES[:-1])
    return next((content for content in tried if len(content) <= room), worst)


def at_quality(picture: Image.Image, quality: int) -> bytes:
    """As WebP."""
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=quality, method=6)
    return file.getvalue()


def fraction(text: str) -> float:
    """A number in [0, 1) that depends on nothing but the text."""
    return int.from_bytes(hashlib.sha256(f"quickstart/{text}".encode()).digest()[:8], "big") / 2**64


def notice(names: Path) -> str:
    """The sources, what was changed, and the licence text that came with the names."""
    with tarfile.open(names) as tar:
        file = tar.extractfile("package/LICENSE")
        assert file is not None
        licence = file.read().decode()
    fluent, noto, twemoji, data = (
        f"npm {row['package']}@{row['version']}, sha256 of the package\n  {row['sha256']}."
        for row in (*STYLES.values(), NAMES)
    )
    return f"""The shards in this folder are derived from four packages; scripts/dev/make_quickstart_data.py makes them.
Changes to the pictures of all three styles: put on white, recompressed; those of Fluent are also scaled to {SIZE} px.

Pictures of style "fluent": {fluent}
  The package declares the MIT licence and carries no licence file; the artwork is Microsoft's Fluent Emoji,
  Copyright (c) Microsoft Corporation, MIT licence (below).

Pictures of style "noto": {noto}
  Noto Emoji, Copyright Google LLC, licensed under the Apache License, Version 2.0: LICENSE-APACHE-2.0.txt in this
  folder, or https://www.apache.org/licenses/LICENSE-2.0.

Pictures of style "twemoji": {twemoji}
  Twemoji, Copyright Twitter, Inc and other contributors, CC-BY 4.0: https://creativecommons.org/licenses/by/4.0/

Captions, tags and classes: {data}
  MIT licence. Changes: lower-cased, punctuation simplified.

The MIT licence as it came with the last (it is also the first's, with the copyright line above):

{licence}"""


if __name__ == "__main__":
    main()
