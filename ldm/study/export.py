"""A study of a suite's pictures as one page for people to answer on, and its key, which stays here.

The page holds the pictures as bare pixels in random order: what is real, and whose the others are, is in key.json only.
"""

import base64
import hashlib
import io
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from ldm.errors import UserError
from ldm.files import read_json, write_bytes, write_json
from ldm.report.templates import style, template
from ldm.study.names import INDEX, KEY, file_name
from ldm.study.pairs import TASKS, Pair, Shown, planned
from ldm.study.prompt_set import Prompt

PAGE = "study.html"


def export_study(tree: Mapping[str, Any]) -> Path:
    """Write the study that `tree` (conf/study_export.yaml) asks for; returns its page.

    The same words give the same page. Raises UserError for what the suite does not have, and for a folder that has the
    key of another study, whose answers would be lost with it.
    """
    suite = Path(tree["suite"]).expanduser()
    index = read_suite(suite)
    counts = {name: len(table[0]) for name, table in index["scores"].items()}
    asked = [tree["models"]] if isinstance(tree["models"], str) else list(tree["models"] or counts)
    for name in asked:
        if name not in counts:
            raise UserError(f"models: no {name} in {suite}; there are {', '.join(counts)}")
    if tree["seconds"] is not None and not 0 < tree["seconds"] <= 3600:
        raise UserError(f"seconds={tree['seconds']}: how long a pair is seen; null is for as long as it takes")
    if not tree["tasks"]:
        raise UserError(f"tasks=[]: at least one of {', '.join(TASKS)}")
    prompts = [Prompt(**row) for row in index["prompts"]]
    counts = {name: counts[name] for name in asked}
    pairs = planned(prompts, counts, list(dict.fromkeys(tree["tasks"])), tree["num_pairs"], tree["seed"])
    images = {shown: _pixels(suite, place, each) for place, each, shown in _all_shown(pairs)}
    digests = [hashlib.sha256(image.tobytes()).hexdigest() for image in images.values()]
    facts = [tree["title"], tree["seconds"], tree["seed"], index, digests, [repr(pair) for pair in pairs]]
    study = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
    names = [hashlib.sha256(f"{study}/{place}".encode()).hexdigest()[:10] for place in range(len(pairs))]
    key = {
        "study": study,
        "metric": index["metric"],
        "pairs": [_truth(name, pair, index) for name, pair in zip(names, pairs, strict=True)],
    }
    folder = Path(tree["out"]).expanduser() if tree["out"] else suite / "study"
    _check_place(folder / KEY, study)
    items = [
        {"id": name, "task": pair.task, "prompt": prompts[pair.place].prompt, **_sides(pair, images)}
        for name, pair in zip(names, pairs, strict=True)
    ]
    questions = {task: text for task, text in TASKS.items() if any(pair.task == task for pair in pairs)}
    content = {"study": study, "seconds": tree["seconds"], "questions": questions, "items": items}
    write_json(folder / KEY, key)
    return write_bytes(folder / PAGE, _page(tree["title"], content).encode("utf-8", "replace"))


def read_suite(folder: Path) -> dict[str, Any]:
    """The index that scripts/prompt_suite.py wrote last of all. Raises UserError if there is none."""
    if not (folder / INDEX).is_file():
        raise UserError(
            f"suite={folder}: no {INDEX} in it; scripts/prompt_suite.py out={folder} has not finished there"
        )
    return read_json(folder / INDEX)


def _all_shown(pairs: list[Pair]) -> list[tuple[int, Shown, tuple[int, Shown]]]:
    return [(pair.place, each, (pair.place, each)) for pair in pairs for each in (pair.left, pair.right)]


def _pixels(suite: Path, place: int, shown: Shown) -> Image.Image:
    file = suite / "images" / shown.model / file_name(place, shown.number)
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except OSError as error:
        raise UserError(f"{file}: not a picture; scripts/prompt_suite.py draws it again once it is deleted") from error


def _sides(pair: Pair, images: Mapping[tuple[int, Shown], Image.Image]) -> dict[str, str]:
    """Both pictures of a pair as addresses that hold them, in the smaller size of the two: size tells nothing."""
    both = [images[pair.place, shown] for shown in (pair.left, pair.right)]
    size = min((image.size for image in both), key=lambda size: size[0] * size[1])
    return {side: _address(image, size) for side, image in zip(("left", "right"), both, strict=True)}


def _address(image: Image.Image, size: tuple[int, int]) -> str:
    if image.size != size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _truth(name: str, pair: Pair, index: Mapping[str, Any]) -> dict[str, Any]:
    def side(shown: Shown) -> dict[str, Any]:
        score = index["scores"][shown.model][pair.place][shown.number]
        return {"model": shown.model, "number": shown.number, "score": score}

    return {"id": name, "task": pair.task, "place": pair.place, **index["prompts"][pair.place], "left": side(pair.left),
            "right": side(pair.right)}  # fmt: skip


def _check_place(key: Path, study: str) -> None:
    if not key.exists():
        return
    other = None
    with suppress(UserError):
        other = read_json(key).get("study")
    if other != study:
        raise UserError(f"out={key.parent}: has the key of study {other}, which its answers need; say another out=")


def _page(title: str, content: Mapping[str, Any]) -> str:
    """One file that works from a disk: style, script and pictures are in it, and nothing else is allowed."""
    script = template("study.js.j2").render()
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    data = json.dumps(content).replace("<", "\\u003c")  # no text of it ends the element
    more = template("study.css").render()
    return template("study.html.j2").render(
        title=title, script=Markup(script), allowed=allowed, data=Markup(data), style=style() + Markup(more),
        seconds=content["seconds"], count=len(content["items"]), questions=content["questions"],
    )  # fmt: skip
