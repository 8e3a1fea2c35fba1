"""Converts Python options to the tree that the same keys give on sample.py's command line."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from ldm.config import compose, groups, is_literal, meant, use_plugins
from ldm.config.keys import root_type
from ldm.config.registry import root
from ldm.config.validation import check_root_key, nearest
from ldm.data.colours import rgb
from ldm.errors import UserError

# Keys of sample.py that ldm.load takes.
OF_LOAD = ("model", "ema", "first_stage", "device", "compile", "precision", "plugins", "residency")
OF_FILES = ("out", "enlarge", "again", "keep_stages")  # and those that say how it writes its files
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16")  # of PIL images that PNG keeps


def tree_of(options: Mapping[str, Any], asked: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], list[str]]:
    """`options` as the tree of sample.py, with the keys `asked` of ldm.load, and the words that choose its parts.

    A None is an option that is left out. PIL images become files in `folder`. Raises ValueError for an option that
    there is not, with the nearest one, or whose value is not of its kind.
    """
    use_plugins(asked["plugins"])
    keys, choices = root("sample")
    own = {key: _plain(value, folder / key) for key, value in options.items() if value is not None}
    known = [key for key in [*keys, *choices] if key not in (*OF_LOAD, *OF_FILES)]
    for key in own:
        if key in OF_LOAD:
            raise UserError(f"{key}: is said to ldm.load(path, {key}=...), once for all")
        if key in OF_FILES:
            raise UserError(f"{key}: is for the files of sample.py; here are PIL images, which have save and resize")
        if key not in known:
            raise UserError(f"{key}: no such option{nearest(key, known)}")
    words = [word for key, value in own.items() if key in choices for word in _words(key, value)]
    plain = {key: value for key, value in own.items() if key not in choices}
    plain |= {key: meant(key, value) for key, value in plain.items() if isinstance(value, str) and is_literal(key)}
    for key, value in plain.items():
        check_root_key(key, root_type("sample", key, keys[key]), value)
    tree = deepcopy(_composed(str(asked["model"]), tuple(asked["plugins"]), tuple(words)))
    return {**tree, **asked, **plain}, words


@lru_cache(maxsize=64)
def _composed(model: str, plugins: tuple[str, ...], words: tuple[str, ...]) -> dict[str, Any]:
    """The tree of these words, which Hydra takes longer to compose than a small model takes to draw an image."""
    named = [f"plugins=[{','.join(plugins)}]"] if plugins else []
    return compose("sample", [f"model={model}", *named, *words])


def _plain(value: Any, file: Path) -> Any:
    """An option as a tree has it: pictures are files, in a folder that is there for as long as they are read."""
    if isinstance(value, Image.Image):
        file = file.with_suffix(".png")
        (value if value.mode in MODES else rgb(value)).save(file)
        return str(file)
    if isinstance(value, Mapping):
        return {key: _plain(item, file.with_name(f"{file.name}-{key}")) for key, item in value.items()}
    if isinstance(value, Path):
        return str(value.expanduser())
    return list(value) if isinstance(value, tuple) else value


def _words(group: str, value: Any) -> Iterator[str]:
    """Words of a command line that choose of a group what an option says."""
    if not isinstance(value, Mapping):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        yield f"{group}.scale={value}" if number else f"{group}={_text(value, bare=True)}"
        return
    named = [name for name, keys in value.items() if name in groups()[group] and isinstance(keys, Mapping)]
    several = isinstance(root("sample")[1][group], list)
    if named:
        yield f"{group}=[{','.join(named)}]" if several else f"{group}={named[0]}"
    for name, keys in value.items():
        if name not in named:
            yield f"{group}.{name}={_text(keys, is_literal(f'{group}.{name}'))}"
        for key, item in keys.items() if name in named else ():
            where = f"{group}.{name}.{key}" if several else f"{group}.{key}"
            yield f"{where}={_text(item, is_literal(where))}"


def _text(value: Any, bare: bool = False) -> str:
    """A value as Hydra reads it; a `bare` text is not in quotes."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(_text(item, bare) for item in value) + "]"
    if isinstance(value, str):
        return value if bare else "'" + value.replace("'", "\\'") + "'"
    return "null" if value is None else str(value)
