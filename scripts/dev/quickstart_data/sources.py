"""The pinned packages, and what is read from them: one sample for each emoji and style, on white.

Skin tones are left out: the names list them apart. So are the swatches of skin and hair, which stand for no thing.
"""

import io
import json
import re
import shutil
import subprocess
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from ldm.data.writing import sha256_of

SIZE = 64  # of two of the three styles as they come
NAMES = {
    "package": "emojibase-data",
    "version": "17.0.0",
    "file": "emojibase-data-17.0.0.tgz",
    "sha256": "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    "licence": "MIT",
}
STYLES = {
    "fluent": {
        "package": "@lobehub/fluent-emoji-3d",
        "version": "1.1.0",
        "file": "lobehub-fluent-emoji-3d-1.1.0.tgz",
        "sha256": "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        "images": "package/assets/*.webp",
        "licence": "MIT (artwork: Microsoft Fluent Emoji, MIT)",
    },
    "noto": {
        "package": "emoji-datasource-google",
        "version": "16.0.0",
        "file": "emoji-datasource-google-16.0.0.tgz",
        "sha256": "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
        "images": "package/img/google/64/*.png",
        "licence": "Apache-2.0 (artwork: Google Noto Emoji)",
    },
    "twemoji": {
        "package": "emoji-datasource-twitter",
        "version": "16.0.0",
        "file": "emoji-datasource-twitter-16.0.0.tgz",
        "sha256": "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
        "images": "package/img/twitter/64/*.png",
        "licence": "CC-BY-4.0 (artwork: Twemoji)",
    },
}
SWATCHES = "component"  # the group of skin tones and hair


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
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if not path.exists():
        raise SystemExit(f"{path} does not exist; fetch it with `npm pack {package['package']}@{package['version']}`")
    if sha256_of(path) != package["sha256"]:
        raise SystemExit(f"{path} has sha256 {sha256_of(path)}, not the pinned {package['sha256']}; delete it")
    return path


def read_samples(names: Path, styles: dict[str, Path]) -> list[dict[str, Any]]:
    """Pictures and facts of every emoji in every style, joined by code points, sorted by key."""
    rows, groups = read_names(names)
    facts = {code_points(row["hexcode"]): facts_of(row, groups) for row in rows if "group" in row}
    samples: dict[str, dict[str, Any]] = {}
    for style, path in styles.items():
        with tarfile.open(path) as tar:
            for member in tar:
                name = PurePosixPath(member.name)
                found = facts.get(code_points(name.stem))
                if not name.match(STYLES[style]["images"]) or found is None or found["class"] == SWATCHES:
                    continue
                key = f"{style}-{code_points(name.stem)}"
                if key in samples:  # one picture under two names, with and without fe0f
                    continue
                file = tar.extractfile(member)
                assert file is not None
                samples[key] = {"key": key, "style": style, "picture": on_white(file.read()), **found}
    return [samples[key] for key in sorted(samples)]


def read_names(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The English rows and the names of groups and subgroups."""
    with tarfile.open(path) as tar:
        files = [tar.extractfile(f"package/{name}") for name in ("en/data.json", "meta/groups.json")]
        rows, groups = (json.load(file) for file in files if file is not None)
    return rows, groups


def facts_of(row: dict[str, Any], groups: dict[str, Any]) -> dict[str, Any]:
    """What all styles of one emoji share."""
    return {
        "hexcode": row["hexcode"],
        "name": row["label"],
        "caption": caption_of(row["label"]),
        "tags": row.get("tags", []),
        "class": groups["groups"][str(row["group"])],
        "subclass": groups["subgroups"][str(row["subgroup"])],
        "order": row["order"],
    }


def code_points(name: str) -> str:
    """The form in which all packages' names of one emoji agree."""
    return "-".join(part.lstrip("0") for part in name.lower().replace("_", "-").split("-") if part != "fe0f")


def caption_of(label: str) -> str:
    """Plain lower-case text: 'flag: Japan' -> 'flag of japan', 'man: red hair' -> 'man with red hair'."""
    text = label.lower().replace("\u2019", "'").replace("\u201c", "").replace("\u201d", "")
    text = re.sub(r"^flag: ", "flag of ", text)
    text = re.sub(r"^keycap: ", "keycap ", text)
    return re.sub(r"^(man|woman|person): ", r"\1 with ", text)


def on_white(content: bytes) -> Image.Image:
    """RGB, SIZE x SIZE, antialiased."""
    image = Image.open(io.BytesIO(content)).convert("RGBA")
    side = max(image.size)
    square = Image.new("RGBA", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    white = Image.new("RGB", square.size, "white")
    white.paste(square, mask=square)
    return white if side == SIZE else white.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
