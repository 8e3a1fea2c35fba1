"""The conditions given as text: prompts and classes, one or several."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.data.errors import BadSample
from ldm.data.members import read_text
from ldm.errors import UserError

MAX_PROMPT_BYTES = 1 << 24  # of a file of prompts


def read_conditions(tree: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What to draw, one dict per row of the grid: each class, or each prompt with each class.

    Raises ValueError if nothing is asked for, or two things at once.
    """
    prompt, prompts, label = (tree[key] for key in ("prompt", "prompts", "label"))
    labels = label if isinstance(label, list) else [] if label is None else [label]
    if prompt is not None and prompts is not None:
        raise UserError("prompt and prompts exclude each other")
    if tree["num_images"] < 1 or tree["batch_size"] < 1:
        raise UserError("num_images and batch_size must be at least 1")
    if prompts is not None:
        found = [{"caption": text} for text in (read_prompts(prompts) if isinstance(prompts, str) else prompts)]
        if not found:
            raise UserError("prompts: no prompt in it")
    elif prompt is not None or not labels:
        found = [{"caption": prompt or ""}]
    else:
        found = [{}]
    if label == []:
        raise UserError("label=[]: no class in it")
    return [{**row, "label": one} for row in found for one in labels] if labels else found


def read_prompts(path: str) -> list[str]:
    """The lines of a file that are not blank. Raises ValueError naming it if it is no text, endless or without any."""
    place = Path(os.path.expanduser(path))  # which leaves the home of nobody as it is written
    if not place.exists():
        raise FileNotFoundError(
            f"prompts={path}: no such file; it has a prompt on each line, prompt=TEXT is one prompt"
        )
    if not place.is_file():
        raise UserError(f"prompts={path}: not a file")
    with place.open("rb") as file:
        content = file.read(MAX_PROMPT_BYTES + 1)
    if len(content) > MAX_PROMPT_BYTES:
        raise UserError(f"prompts={path}: larger than {MAX_PROMPT_BYTES >> 20} MiB; sample it in parts")
    try:
        lines = [line.strip() for line in read_text(content).splitlines()]
    except BadSample as error:
        raise UserError(f"prompts={path}: {error.kind} ({error})") from error
    found = [line for line in lines if line]
    if not found:
        raise UserError(f"prompts={path}: no prompt in it")
    return found
