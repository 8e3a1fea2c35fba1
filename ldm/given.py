"""The conditions given for a sample, checked against those a model reads: none is ignored, none needed is missing.

Files are read in ldm/given_files.py; no kind of condition is known here.
"""

import logging
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch

from ldm.data.classes import class_names
from ldm.data.module import ShardData
from ldm.drawer import Drawer
from ldm.errors import UserError
from ldm.given_files import FILES, VALUES, files_of, made_of_image
from ldm.sampling import Sampling

log = logging.getLogger(__name__)

WAYS = {"caption": "prompt=TEXT", "label": "label=N", "mask": "mask=FILE, white in the hole",
        **{name: f"{key}=FILE" for key, name in FILES.items() if key != "mask"}}  # fmt: skip


def check_given(tree: Mapping[str, Any], model: Drawer, sampling: Sampling, captioned: bool) -> None:
    """Check the keys of `tree` against a model; `captioned`: whether there is a prompt, perhaps an empty one.

    Raises ValueError for a condition that would not be read, for one that is needed, or for guidance against a null
    that no training saw.
    """
    files = files_of(tree)
    use, used = sampling.use_conditions, model.conditions(sampling)
    fields = set().union(sampling.fields, *used.values())
    made = set(made_of_image(model, files)) if "image" in files else set()
    asked = {key: name for key, name in VALUES.items() if tree[key] not in (None, "")}
    for key, name in {**asked, **{key: name for name, (key, _) in files.items()}}.items():
        if name not in fields and not (name == "image" and made):
            given = f"it is conditioned on {', '.join(sorted(fields))}" if fields else "it has no conditions"
            without = f" with use_conditions=[{','.join(use)}]" if use and name in model.fields else ""
            raise UserError(f"{key}: this model{without} reads no {name}; {given}")
    present = {*asked.values(), *files, *made, *(["caption"] if captioned and "caption" not in files else [])}
    for name, needed in model.missing(dict.fromkeys(present), sampling).items():
        raise UserError(f"conditioner {name} needs {needed!r}: give {_way(needed)}")
    absent = model.absent(dict.fromkeys(present), sampling)
    if absent:
        conditions, ways = ", ".join(absent), ", ".join(dict.fromkeys(map(_way, absent.values())))
        log.warning("%s: sampled without %s, as if dropped in training; to give it: %s", model.name, conditions, ways)
    if captioned and tree["prompt"] is None and tree["prompts"] is None and "caption" not in files:
        _check_without_prompt(model, sampling)
    negative = negatives(tree)
    left = model.left_out(sampling, negative)
    if negative and not left & {name for name, own in used.items() if "caption" in own}:
        raise UserError(
            "negative_prompt: would not be read: it is for the text that guidance leaves out, and guidance.scale=1, "
            "autoguidance and scales without the text leave none out"
        )


def _way(field: str) -> str:
    """How the command line gives a field."""
    return WAYS.get(field, f"given.{field}=FILE")


def _check_without_prompt(model: Drawer, sampling: Sampling) -> None:
    """Say that a model which reads text is sampled without; UserError for one that was never trained so."""
    always = model.conditions(replace(sampling, use_conditions=()))
    if "caption" in set().union(*always.values()):
        raise UserError(
            "prompt: this model was never trained without text; give prompt=TEXT, or prompt= for an empty one"
        )
    if "caption" in set().union(*model.conditions(sampling).values()):
        log.warning("%s: sampled without a prompt, for the empty text; prompt=TEXT gives it one", model.name)


def negatives(tree: Mapping[str, Any]) -> dict[str, str]:
    """The fields of negative conditions, which guidance leads away from."""
    return {"caption": tree["negative_prompt"]} if tree["negative_prompt"] else {}


def class_number(label: int | str, data: ShardData) -> int:
    """The number of a class that is given by its number or by its name in the manifest of a run's `data`."""
    if isinstance(label, int):
        return label
    names = class_names(data.training_set.train)
    if label in names:
        return names.index(label)
    known = f"one of {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}" if names else (
        "of which there are none: no manifest.json beside the shards of the run tells them"
    )  # fmt: skip
    raise UserError(f"label={label!r}: expected int, or the name of a class, {known}")


def collate(conditions: Collection[Mapping[str, Any]], device: Any) -> dict[str, Any]:
    """A batch of conditions: captions stay a list, labels become a tensor."""
    batch: dict[str, Any] = {key: [condition[key] for condition in conditions] for key in next(iter(conditions))}
    if "label" in batch:
        batch["label"] = torch.tensor(batch["label"], device=device)
    return batch
