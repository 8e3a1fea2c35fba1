"""Which inputs a model's page has, by the fields that it reads; what a visitor filled in, as words of sample.py.

Knows no page: whoever shows it needs only the kinds of inputs.
"""

import json
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageColor, ImageOps

from ldm.conditioners.paint import FIELD, Paint
from ldm.config import compose
from ldm.config.keys import bare, is_path
from ldm.config.plugins import named
from ldm.data.classes import class_names
from ldm.data.colours import rgb
from ldm.errors import UserError
from ldm.given_files import FILES

# Kinds of inputs.
TEXT, CLASS, FILE, BOXES, PICTURE_AND_HOLE = "text", "class", "file", "boxes", "picture and hole"
PAINT = "paint"  # strokes of BRUSHES, each for a phrase
BRUSHES = {"red": "#e6194b", "green": "#3cb44b", "blue": "#4363d8", "yellow": "#ffe119", "purple": "#911eb4"}
# Settings with inputs of their own, and keys that a page decides for all of its visitors.
SETTINGS = ("num_images", "seed", "num_steps", "sampler", "sigmas", "guidance.scale", "height", "width")
OF_PAGE = (
    "model", "ema", "residency", "compile", "precision", "device", "plugins", "prompts", "phrases", "given",
    "batch_size", "turns", "alignment", "distance", "keep_stages", "one_call",
)  # fmt: skip


class Input(NamedTuple):
    """An input of a page: the `key` of sample.py that it fills, its kind, the names to choose from, if any, and whether
    its file sets the size of the images.
    """

    key: str
    kind: str
    choices: Sequence[str] = ()
    sets_size: bool = False


def inputs_of(drawer: Any) -> list[Input]:
    """The inputs for the fields that a model reads, for phrases painted where it can do that, and for a picture to
    begin from if it has latents of pictures.
    """
    fields, keys = drawer.fields, {name: key for key, name in FILES.items()}
    names = class_names(drawer.data.training_set.train) if fields & {"label", "layout"} else []
    found = [Input(key, TEXT) for key in ("prompt", "negative_prompt") if "caption" in fields]
    found += [Input("label", CLASS, names)] if "label" in fields else []
    made = fields & set(drawer.data.keys.from_image) - {"mask"}
    beside = drawer.beside_latent | ({"image"} if drawer.beside_latent & made else set())
    found += [Input("image", PICTURE_AND_HOLE, sets_size="image" in beside)] if "mask" in fields else []
    others = sorted(fields - {"caption", "label", "mask", "number"} - ({"image"} if "mask" in fields else set()))
    if made and not fields & {"mask", "image"}:
        others.insert(0, "image")
    for name in others:
        kind, choices = (BOXES, names) if name == "layout" else (FILE, ())
        found.append(Input(keys.get(name, f"given.{name}"), kind, choices, name in beside))
    first_stage = drawer.first_stage
    if "caption" in fields and first_stage.spec.kind == "grid":
        paintable = drawer.paintable({"caption": [], FIELD: Paint({})}, drawer.sampling({}))
        found += [Input("paint", PAINT)] if paintable else []
    if first_stage.key == "image" and first_stage.spec.kind == "grid":
        found.append(Input("start", PICTURE_AND_HOLE))
    return found


def words_of(inputs: Sequence[Input], values: Mapping[str, Any], folder: Path, size: int) -> list[str]:
    """The words of sample.py for what was filled in; pictures, other files, and boxes become files in `folder`.

    `values` are those of `inputs` and of `SETTINGS` by key, `strength`, the phrases of `paint.COLOUR` and
    `painting.scale`, and `more`, further words. A picture to begin from is made as large as the images, unless another
    file sets that, and so is what is painted. Raises UserError for words that are not a visitor's to say.
    """
    words = list(more_words(values.get("more") or ""))
    said = {bare(word) for word in words}
    for key in SETTINGS:
        if values.get(key) not in (None, "") and key not in said:
            words.append(_checked(f"{key}={values[key]}"))
    high, wide = (int(text) if text.isdecimal() and int(text) else size
                  for text in (str(values.get(key)) for key in ("height", "width")))  # fmt: skip
    sized = any(each.sets_size and _filled(each, values.get(each.key)) for each in inputs)
    for each in inputs:
        value = values.get(each.key)
        if value in (None, "") and each.key != "prompt" and each.kind != PAINT:
            continue
        if each.kind == PICTURE_AND_HOLE:
            fit = (wide, high) if each.key == "start" and not sized else None
            words += _picture_and_hole(each.key, value, folder, fit)
        elif each.kind == PAINT:
            words += _paint(value or {}, values, folder, (wide, high))
        elif each.kind == BOXES:
            words += _boxes(each.key, value, folder)
        elif each.kind == FILE:
            words.append(f"{each.key}={shutil.copyfile(value, folder / f'{each.key}{Path(value).suffix}')}")
        else:
            words.append(f"{each.key}={'' if value is None else value}")
    if any(word.startswith("start=") for word in words) and values.get("strength"):
        words.append(_checked(f"strength={values['strength']}"))
    return words


def _paint(value: Mapping[str, Any], values: Mapping[str, Any], folder: Path, size: tuple[int, int]) -> list[str]:
    """Strokes as a sheet in the exact colours of the brushes, and the phrases of these; none if there are neither."""
    typed = {name: (values.get(f"paint.{name}") or "").strip() for name in BRUSHES}
    phrases = {text: BRUSHES[name] for name, text in typed.items() if text}
    if len(phrases) < sum(map(bool, typed.values())):
        raise UserError("paint: the same phrase is written for two colours")
    layers = [np.asarray(layer.convert("RGBA")) for layer in value.get("layers") or () if layer is not None]
    sheet = Image.new("RGB", size, "white")
    brushes = np.array([ImageColor.getrgb(colour) for colour in BRUSHES.values()])
    for layer in layers:  # a brush has soft edges
        nearest = np.abs(layer[..., None, :3].astype(int) - brushes).sum(-1).argmin(-1)
        strokes = Image.fromarray(brushes[nearest].astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
        sheet.paste(strokes, mask=Image.fromarray(255 * (layer[..., 3] >= 128).astype(np.uint8)).resize(size, 0))
    if not phrases and not any(layer[..., 3].any() for layer in layers):
        return []
    sheet.save(folder / "paint.png")
    scale = values.get("painting.scale")
    words = [f"paint={folder / 'paint.png'}", *([f"phrases={json.dumps(phrases)}"] if phrases else [])]
    return [*words, *([_checked(f"painting.scale={scale}")] if scale else [])]


def _filled(each: Input, value: Any) -> bool:
    if each.kind == PICTURE_AND_HOLE:
        return bool(value) and value.get("background") is not None
    return value not in (None, "")


def more_words(text: str) -> Iterator[str]:
    """The words of a line of further settings. Raises UserError for those that name files, code or another model."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"more settings: {error}") from error
    yield from map(_checked, words)


def _checked(word: str) -> str:
    key = bare(word)
    if "=" not in word or key.partition(".")[0] in OF_PAGE or is_path(key):
        raise UserError(f"{key}: is no setting that this page takes")
    if "${" in word or "_target_" in word:
        raise UserError(f"{key}: takes plain values here")
    return word


def _picture_and_hole(key: str, value: Mapping[str, Any], folder: Path, fit: tuple[int, int] | None) -> list[str]:
    """A picture and what was painted over it, as files; nothing where there is no picture."""
    picture = value.get("background")
    if picture is None:
        return []
    hole = Image.new("L", picture.size)
    for layer in value.get("layers") or ():
        if layer is not None:
            hole.paste(255, mask=layer.convert("RGBA").getchannel("A").point(lambda alpha: 255 * (alpha > 0)))
    painted = hole.getbbox() is not None
    if fit is not None:
        picture, hole = ImageOps.fit(rgb(picture), fit), ImageOps.fit(hole, fit, Image.Resampling.NEAREST)
    picture.save(folder / f"{key}.png")
    hole.save(folder / f"{key}-hole.png")
    named_hole = {"image": "mask", "start": "start_mask"}[key]
    needed = painted or key == "image"
    return [f"{key}={folder / key}.png", *([f"{named_hole}={folder / key}-hole.png"] if needed else [])]


def _boxes(key: str, value: str, folder: Path) -> list[str]:
    """Boxes as they are written, a list of objects, as the json that the run's field reads."""
    try:
        objects = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{key}: not a list of objects with their boxes ({error})") from error
    (folder / "boxes.json").write_text(json.dumps({"objects": objects}))
    return [f"{key}={folder / 'boxes.json'}"]


def tuned_words(tree: Mapping[str, Any]) -> list[str]:
    """The words of sample.py for how a page (conf/demo.yaml) lays its models out, as their pictures depend on it."""
    usual = {"compile": False, "precision": "fp32"}
    return [f"{key}={str(tree[key]).lower()}" for key, value in usual.items() if tree[key] != value]


def tree_of(
    model: str, ema: str, words: Sequence[str], batch_size: int, device: str, out: Path, tuned: Sequence[str] = ()
) -> dict[str, Any]:
    """The tree of conf/sample.yaml of these words for a model of the page, laid out as the words `tuned` say."""
    fixed = [f"model={model}", f"ema={ema}", f"batch_size={batch_size}", f"device={device}", f"out={out}", *tuned]
    return compose("sample", [*fixed, *_packages(), *words])


def command(model: str, ema: str, words: Sequence[str], batch_size: int, tuned: Sequence[str] = ()) -> str:
    """What draws the same in a shell, batch by batch and so to the last bit."""
    average = [] if ema == "ema" else [f"ema={ema}"]
    fixed = [f"model={model}", *average, *_packages(), f"batch_size={batch_size}", *tuned]
    return shlex.join(["python", "sample.py", *fixed, *words])


def _packages() -> list[str]:
    return [f"plugins=[{','.join(named())}]"] if named() else []
