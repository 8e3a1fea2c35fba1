"""A recipe out of a picture's file, as data of anyone, to what sample.py can be asked for.

It chooses among what conf/ has, by plain values, and names files and runs by their hashes; packages, and files beside
those, are only ever those of the command line.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm.config.keys import is_path
from ldm.config.plain import check_plain, check_sample_tree, part_from
from ldm.config.plugins import named
from ldm.config.registry import root
from ldm.data.decoding import named_failure, open_image
from ldm.data.errors import BadSample
from ldm.data.seals import check_seal
from ldm.errors import UserError
from ldm.files import MAX_JSON_BYTES, read_json, sha256
from ldm.places import digests, is_there, stored
from ldm.provenance.recipe import BESIDE, FORMAT, KEY, OF_LOSS_GUIDANCE, RUNS, files_in

MAX_PICTURE_BYTES = 1 << 28
MAX_IMAGES = 1 << 16  # of one recipe
MAX_NUMBER = 1 << 62
MEASURED_BY = ("weak_model", "classifier")  # runs that a picture was made with or not; a first stage may have moved


def read_bytes(picture: Path) -> bytes:
    if not picture.is_file():
        raise UserError(f"again={picture}: no such picture")
    if picture.stat().st_size > MAX_PICTURE_BYTES:
        raise UserError(f"again={picture}: too large for a picture of sample.py")
    return picture.read_bytes()


def read_recipe(picture: Path, content: bytes) -> dict[str, Any]:
    """The recipe in a picture's text, else in the JSON beside it; it is sealed and has the entries of one."""
    try:
        image = open_image(content)
        if image.format != "PNG":
            raise UserError(f"again={picture}: has no recipe: a {image.format}, and sample.py writes PNG files")
        with named_failure():
            text = getattr(image, "text", {}).get(KEY)
    except BadSample as error:
        raise UserError(f"again={picture}: not a picture that can be read: {error.kind} ({error})") from error
    beside = picture.with_suffix(".json")
    if text is not None and len(text) <= MAX_JSON_BYTES:
        try:
            recipe = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"again={picture}: its recipe cannot be read") from error
    elif text is None and beside.is_file():
        recipe = read_json(beside)
    else:
        raise UserError(
            f"again={picture}: has no recipe: sample.py did not make it, or what saved it since left it out"
        )
    kinds = {"model": dict, "runs": dict, "files": dict, "levels": list, "options": dict, "drawn": dict,
             "made_with": dict, "pixels": str, "seal": str}  # fmt: skip
    if not isinstance(recipe, dict) or not all(type(recipe.get(key)) is kind for key, kind in kinds.items()):
        raise UserError(f"again={picture}: its recipe is not one of sample.py")
    if recipe.get("format") != FORMAT:
        raise UserError(f"again={picture}: its recipe is of the form {str(recipe.get('format'))[:20]}, not {FORMAT}")
    check_seal(recipe, picture)
    return recipe


def tree_from(recipe: Mapping[str, Any], command: Mapping[str, Any], picture: Path) -> tuple[dict[str, Any], Path]:
    """The tree of conf/sample.yaml that a recipe says, checked; and where the model's weights are to be read."""
    where = f"again={picture}: its recipe"
    keys, choices = root("sample")
    options = recipe["options"]
    check_plain(options, where)
    for key in options:
        if key not in keys or key in BESIDE or is_path(key):
            raise UserError(f"{where}: {key[:80]}: no such key")
    texts = options.get("prompts")
    if texts is not None and not (isinstance(texts, list) and all(isinstance(text, str) for text in texts)):
        raise UserError(f"{where}: prompts: a file, which no recipe names; it has the texts themselves")
    if not isinstance(options.get("phrases"), dict | None):
        raise UserError(f"{where}: phrases: a file, which no recipe names; it has the phrases themselves")
    said = {**dict.fromkeys(files_in(command), "files"), **{key: "runs" for key in MEASURED_BY if command[key]}}
    for key, kind in said.items():
        if key not in recipe[kind]:
            raise UserError(f"{key}: {picture} was made without it; leave it out")
    tree = {**{key: command[key] for key in keys}, "given": {}, **{key: keys[key] for key in keys if is_path(key)}}
    tree |= {**options, "out": command["out"], "batch_size": 1}
    for group, default in choices.items():
        plain, own = recipe.get(group), command[group]
        if group in OF_LOSS_GUIDANCE and plain is None:
            tree[group] = own
        elif isinstance(default, list) and isinstance(plain, dict):
            parts = plain.items()
            tree[group] = {name: part_from(group, part, None, f"{where}: {group}.{name[:80]}") for name, part in parts}
        else:
            tree[group] = None if plain is None else part_from(group, plain, own, f"{where}: {group}")
    for key, path in _files(recipe, command, picture):
        if key.startswith("given."):
            tree["given"][key.removeprefix("given.")] = str(path)
        else:
            tree[key] = str(path)
    for key in RUNS:
        tree[key] = _run(key, recipe["runs"].get(key), command[key], picture)
    place = _place(
        "model", recipe["model"].get("path"), None if command["model"] == "???" else command["model"], picture
    )
    tree["model"] = str(place)
    check_sample_tree(tree, where)
    packages = recipe["made_with"].get("plugins") or {}
    for name in packages if isinstance(packages, dict) else ():
        if name not in named():
            raise UserError(
                f"{where}: made with the package {str(name)[:80]}; if you know it, say plugins=[{str(name)[:80]}]"
            )
    file = _weights_file(place, recipe["model"]) if tree["ema"] in ("ema", "raw") else None
    if file is not None:
        tree["ema"] = "ema"
    return tree, file or place


def _place(key: str, path: Any, asked: str | None, picture: Path) -> Path:
    """Where a run or a file lies: as the command line says, else as stored, seen from the picture's folder."""
    place = Path(asked).expanduser() if asked else stored(str(path), picture.parent)
    if not is_there(place):
        text = str(place) if str(place).isprintable() else ascii(str(place))
        raise UserError(f"again={picture}: was made with {key}={text}, which is not there; {key}= says where it is now")
    return place


def _files(recipe: Mapping[str, Any], command: Mapping[str, Any], picture: Path) -> Iterator[tuple[str, Path]]:
    """The files of conditions, each with the content that it had."""
    keys = root("sample")[0]
    for key, facts in recipe["files"].items():
        known = key in keys and is_path(key) and key not in BESIDE
        if not isinstance(facts, dict) or not (known or key.startswith("given.")):
            raise UserError(f"again={picture}: its recipe: {key[:80]}: no such file of a condition")
        asked = command["given"].get(key.removeprefix("given.")) if key.startswith("given.") else command[key]
        path = _place(key, facts.get("path"), asked, picture)
        if not path.is_file() or path.stat().st_size != facts.get("bytes") or sha256(path) != facts.get("sha256"):
            raise UserError(f"again={picture}: {key}={path} has changed since; {key}= says where it is as it was")
        yield key, path


def _run(key: str, facts: Any, asked: str | None, picture: Path) -> str | None:
    """Where another run is that the picture was made with; a first stage that moved is left to its model to find."""
    if not isinstance(facts, dict) or (key == "first_stage" and asked):
        return asked
    if key == "first_stage" and not is_there(stored(str(facts.get("path")), picture.parent)):
        return None
    place = _place(key, facts.get("path"), asked, picture)
    if sorted(digests(place)) != facts.get("sha256"):
        raise UserError(f"again={picture}: {key}={place} has other weights than those it was made with")
    return str(place)


def _weights_file(place: Path, facts: Mapping[str, Any]) -> Path | None:
    """The file of a run's weights that was used, if it is there still: the run may have newer ones."""
    used = facts.get("weights")
    if not isinstance(used, list) or len(used) != 1 or not isinstance(used[0], dict) or place.is_file():
        return None
    run = place.parent.parent if place.suffix == ".ckpt" else place
    file = run / "weights" / Path(str(used[0].get("file"))).name
    return file if file.suffix == ".safetensors" and file.is_file() else None


def rows_from(recipe: Mapping[str, Any], like: Sequence[Mapping[str, Any]], picture: Path) -> list[dict[str, Any]]:
    """What was drawn, row by row; of the same kinds as those that the tree gives."""
    rows, kinds = recipe["drawn"].get("rows"), {key: type(value) for key, value in like[0].items()}
    fits = isinstance(rows, list) and 0 < len(rows) <= MAX_IMAGES and all(isinstance(row, dict) for row in rows)
    if not fits or any({key: type(value) for key, value in row.items()} != kinds for row in rows):
        raise UserError(f"again={picture}: its recipe: drawn.rows are not those of its options")
    return rows


def images_from(recipe: Mapping[str, Any], num_rows: int, picture: Path) -> list[tuple[int, int]]:
    """(row, number) of the images that were made together."""
    places = recipe["drawn"].get("places")
    runs = (
        [run for run in places if isinstance(run, list) and [type(n) for n in run] == [int] * 3]
        if isinstance(places, list)
        else []
    )
    fits = runs and len(runs) == len(places) and all(
        0 <= place < num_rows and 0 <= first < MAX_NUMBER and 0 < count <= MAX_IMAGES for place, first, count in runs
    )  # fmt: skip
    if not fits or sum(count for *_, count in runs) > MAX_IMAGES:
        raise UserError(f"again={picture}: its recipe: drawn.places are no images of it")
    return [(place, first + n) for place, first, count in runs for n in range(count)]
