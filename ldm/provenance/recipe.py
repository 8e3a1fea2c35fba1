"""The recipe of a picture: all that it is a function of, inside its PNG file and as JSON beside it.

Read back, by reading.py, it is data of anyone. A seal tells edits from damage, not who wrote it.
"""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import PIL
import torch
from PIL import Image
from torch import Tensor

from ldm.config import versions
from ldm.config.keys import is_path
from ldm.config.plain import plain_part
from ldm.config.registry import root
from ldm.data.seals import sealed
from ldm.drawer import Drawer
from ldm.files import sha256, write_json
from ldm.images import picture_of, save_image
from ldm.installed import version
from ldm.phrases import plain_phrases
from ldm.places import digests, relative
from ldm.sampling import Sampling

FORMAT = 1
KEY = "recipe"  # of the PNG's text
RUNS = ("first_stage", "weak_model", "classifier")  # keys that name one, beside `model`
# Keys that say where something lies, or how many images are made at once: no image depends on them.
BESIDE = (
    "model", "again", "out", "device", "plugins", "given", "batch_size", "turns", "residency", "keep_stages",
    *RUNS,
)  # fmt: skip
OF_LOSS_GUIDANCE = ("operator", "distance", "alignment")
ASKED_BY = {**dict.fromkeys(OF_LOSS_GUIDANCE, "loss_guidance"), "painting": "paint"}  # groups without which none counts


class Recipes:
    """The recipes of the images that `drawer` makes on `device` by a `sampling` of `tree`, for files in `folder`.

    `rows` are the prompts and labels that are drawn, `tree` has the keys of conf/sample.yaml.

    What they have in common is looked up once: hashes of weights as they were read, and of the files of conditions.
    """

    def __init__(
        self, drawer: Drawer, rows: Sequence[Mapping[str, Any]], sampling: Sampling, tree: Mapping[str, Any],
        device: torch.device, folder: Path,
    ):  # fmt: skip
        self._rows, self._enlarge, self._drawer = rows, tree["enlarge"], drawer
        self._words = {"seed": tree["seed"], "model": drawer.name}
        self._common = {
            "model": {**model_facts(drawer), "path": relative(Path(tree["model"]), folder)},
            "runs": {key: {"path": relative(Path(tree[key]), folder), "sha256": sorted(digests(Path(tree[key])))}
                     for key in RUNS if tree[key]},
            "files": {key: _file(Path(path), folder) for key, path in files_in(tree).items()},
            **{group: part for group, part in _parts(tree, sampling).items() if part},
            "levels": levels(sampling),
            "options": {key: tree[key] for key in root("sample")[0] if key not in BESIDE and not is_path(key)}
            | ({"phrases": plain_phrases(tree["phrases"])} if tree["phrases"] else {}),
            "made_with": surroundings(drawer, tree, device),
        }  # fmt: skip

    def save(self, path: Path, image: Tensor, batch: Sequence[tuple[int, int]], at: int) -> Path:
        """Write image `at` of those made together, each a pair of (row, number); [3, H, W] in [-1, 1]. Returns `path`.

        Its batch goes along: of another one the last bits may be others.
        """
        place, number = batch[at]
        words = {**self._rows[place], **self._words, "number": number}
        return self._save(path, image, batch, {"at": at, "number": number}, words)

    def save_sheet(
        self, path: Path, sheet: Tensor, made: Sequence[tuple[int, int]], shown: int, columns: int, size: int
    ) -> Path:
        """Write a grid of the first `shown` of all images, made `size` at a time."""
        return self._save(path, sheet, made, {"shown": shown, "columns": columns, "batch_size": size}, {})

    def _save(
        self,
        path: Path,
        image: Tensor,
        made: Sequence[tuple[int, int]],
        more: Mapping[str, Any],
        words: Mapping[str, Any],
    ) -> Path:
        used = sorted({place for place, _ in made})
        places = [[used.index(place), number, count] for place, number, count in _runs(made)]
        rows = [self._rows[place] for place in used]
        options = self._common["options"]
        if options["prompts"] is not None:  # a file of them, of which these are drawn together
            options = {**options, "prompts": [row["caption"] for row in rows]}
        label = options["label"]
        if any(isinstance(one, str) for one in (label if isinstance(label, list) else [label])):
            numbers = list(dict.fromkeys(row["label"] for row in rows))  # names are what the data of the run tells
            options = {**options, "label": numbers if isinstance(label, list) else numbers[0]}
        recipe = sealed(
            {
                "format": FORMAT,
                "condition": self._rows[made[more["at"]][0]] if "at" in more else None,
                "seed": self._words["seed"],
                **self._common,
                **({"residency": moved} if (moved := self._drawer.residency) else {}),
                "options": options,
                "drawn": {"rows": rows, "places": places, **more},
                "pixels": pixels_digest(picture_of(image, self._enlarge)),
            }
        )
        write_json(path.with_suffix(".json"), recipe)
        return save_image(path, image, factor=self._enlarge, text={**words, KEY: json.dumps(recipe)})


def _runs(made: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """(row, first number, count) of pairs of (row, number) whose numbers follow each other."""
    found: list[tuple[int, int, int]] = []
    for place, number in made:
        if found and found[-1][0] == place and sum(found[-1][1:]) == number:
            found[-1] = (*found[-1][:2], found[-1][2] + 1)
        else:
            found.append((place, number, 1))
    return found


def model_facts(drawer: Drawer) -> dict[str, Any]:
    """What tells a model from others: hashes of its weights, its trees and its first stage."""
    used = drawer.weights
    return {
        "name": drawer.name,
        "weights": [{"file": w.path.name, "sha256": w.digest, "config": sha256(w.run / "config.yaml")} for w in used],
        "first_stage": ((used[0].metadata.get("latent") or {}) if used else {}).get("fingerprint"),
        **({"settings": drawer.settings} if drawer.settings else {}),
    }


def files_in(tree: Mapping[str, Any]) -> dict[str, str]:
    """{key: path} of all files whose content an image depends on; runs are not among them."""
    named = {key: value for key, value in tree.items() if is_path(key) and key not in BESIDE and value is not None}
    return named | {f"given.{name}": path for name, path in tree["given"].items()}


def _file(path: Path, folder: Path) -> dict[str, Any]:
    return {"path": relative(path, folder), "bytes": path.stat().st_size, "sha256": sha256(path)}


def _parts(tree: Mapping[str, Any], sampling: Sampling) -> dict[str, Any]:
    """Each group as it was used, {option: keys}, the run's own where nothing was asked for."""
    found = {}
    for group, default in root("sample")[1].items():
        node = sampling.chosen.get(group, tree[group])
        if group in ASKED_BY and not tree[ASKED_BY[group]]:
            continue
        if isinstance(default, list):
            found[group] = {name: plain_part(group, part) for name, part in (node or {}).items()}
        elif node:
            found[group] = plain_part(group, node)
    return found


def levels(sampling: Sampling) -> list[float]:
    """The noise levels that sampling goes through, highest first."""
    return [float(f"{sigma:.9g}") for sigma in sampling.sigmas.tolist()]


def surroundings(drawer: Drawer, tree: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """What may change the last bits, and nothing else, of what a recipe gives."""
    states = [tensor for weights in drawer.weights for tensor in weights.state.values() if tensor.is_floating_point()]
    return {
        "ldm": version(), "torch": torch.__version__, "numpy": numpy.__version__, "pillow": PIL.__version__,
        "plugins": versions(tree),
        "device": device.type,
        "processor": processor(device),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "precision": str(states[0].dtype).removeprefix("torch.") if states else None,
        "float32_matmul": torch.get_float32_matmul_precision(),
    }  # fmt: skip


def processor(device: torch.device) -> str:
    """The kind of GPU, or the instructions that torch uses of the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def pixels_digest(picture: Image.Image) -> str:
    """The sha256 of a picture's size and its pixels in RGB, whatever file they are in."""
    content = f"{picture.width}x{picture.height} ".encode() + picture.convert("RGB").tobytes()
    return hashlib.sha256(content).hexdigest()
