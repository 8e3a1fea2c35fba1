"""What a judge decides by beside the keys of its command line: the constants of its code, and of what it is made of."""

import ast
import hashlib
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# Modules whose constants decide a judgement; those of ldm.tasks.trainings are in the settings already, as steps.
MADE_OF = ("ldm.tasks.", "ldm.evaluation.yardsticks", "ldm.metrics.alignment_score")
BESIDE = ("ldm.tasks.trainings",)
# What `digest_of` was of each module of judges when settings did not say it: of these nothing is said.
FIRST = {
    "classes": "848f6cc4", "image_to_image": "9e8eb0fd", "inpainting": "b9b5174e", "layout": "e0058e9b",
    "painting": "b662452c", "semantic_map": "33a7882b", "superres": "4639be5a", "text": "9227042c",
    "unconditional": "33b0e504",
}  # fmt: skip


def judged_by(judge: Callable[..., Any]) -> dict[str, str]:
    """{"judge": digest of what it decides by}; {} for one that is as it was when rows did not say it, so that those
    are valid still.

    It is the constants of its module and of those of MADE_OF that this imports, defaults of arguments, and numbers
    with a point: comments, names and the order of code are none of it. What else changes a judgement is told by a
    constant VERSION, which counts as one.
    """
    found = digest_of(judge.__module__)
    return {} if FIRST.get(judge.__module__.rpartition(".")[2]) == found else {"judge": found}


@cache
def digest_of(module: str) -> str:
    """Of the constants of a module and of those that it is made of, in eight hex digits."""
    told = "\n".join(f"{name}: {line}" for name in sorted(_modules(module)) for line in constants(_source(name)))
    return hashlib.sha256(told.encode()).hexdigest()[:8]


def constants(source: str) -> list[str]:
    """Constants of a module's `source`, its arguments' defaults, and its numbers with a point, as texts."""
    tree = ast.parse(source)
    found = [ast.unparse(node) for node in tree.body if any(name.isupper() for name in _assigned(node))]
    for node in ast.walk(tree):
        if isinstance(node, ast.arguments):
            found += [ast.unparse(value) for value in (*node.defaults, *node.kw_defaults) if value is not None]
    numbers = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and type(node.value) is float]
    return [*found, *map(repr, sorted(numbers))]


def _assigned(node: ast.stmt) -> list[str]:
    """The names that a statement sets."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    each = [part for target in targets for part in (target.elts if isinstance(target, ast.Tuple) else [target])]
    return [part.id for part in each if isinstance(part, ast.Name)]


def _modules(module: str, seen: frozenset[str] = frozenset()) -> frozenset[str]:
    """The module and all that it is made of."""
    seen |= {module}
    for name in _imported(_source(module)):
        if name.startswith(MADE_OF) and name not in BESIDE and name not in seen:
            seen = _modules(name, seen)
    return seen


def _imported(source: str) -> Iterator[str]:
    yield from (node.module for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom) and node.module)


def _source(module: str) -> str:
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).read_text(encoding="utf-8")
