"""Pairs of prompts: one that is asked for, or captions of held-out or other samples against each other."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ldm.diagnostics.pictures import held_out
from ldm.drawer import Drawer, check_conditions
from ldm.errors import UserError
from ldm.evaluation.samples_of import TRAINING
from ldm.measuring import conditions
from ldm.sampling import Sampling


@dataclass(frozen=True)
class Pairs:
    """A part of the pairs: their `batch` with the captions of A, the captions of B, the `numbers` of their noise."""

    batch: dict[str, Any]
    others: list[str]
    numbers: Tensor


def pairs_of(model: Drawer, sampling: Sampling, tree: Mapping[str, Any]) -> list[Pairs]:
    """The pairs that `tree` (conf/prompt_switch.yaml) asks for, by batches. Raises UserError for what makes none."""
    if (tree["prompt"] is None) != (tree["to_prompt"] is None):
        raise UserError("prompt and to_prompt: both are needed, or neither for pairs of captions of data=")
    if tree["prompt"] is None:
        return _of_samples(model, sampling, tree)
    if tree["prompt"] == tree["to_prompt"]:
        raise UserError(f"to_prompt={tree['to_prompt']}: the same as prompt, so there is nothing to switch to")
    return _given(model, sampling, tree)


def _given(model: Drawer, sampling: Sampling, tree: Mapping[str, Any]) -> list[Pairs]:
    """One pair of prompts over other and other noise."""
    for name, field in model.missing({"caption": [""]}, sampling).items():
        raise UserError(f"prompt: conditioner.{name} needs {field!r} beside it; leave prompt= out")
    return [
        Pairs({"caption": [tree["prompt"]] * len(part)}, [tree["to_prompt"]] * len(part), part)
        for part in torch.arange(tree["num_samples"]).split(tree["batch_size"])
    ]


def _of_samples(model: Drawer, sampling: Sampling, tree: Mapping[str, Any]) -> list[Pairs]:
    """Samples of ``data=``, each with the caption of the one half of them further on, or the next that differs."""
    data = held_out(model, tree)
    check_conditions(model, data.batch_spec, sampling)
    needed = {*model.fields, "caption"}
    found = [
        Pairs({name: value for name, value in batch.items() if name in needed}, [], numbers)
        for batch, numbers in conditions(data, tree["num_samples"], tree["batch_size"])
    ]
    captions = [text for part in found for text in part.batch["caption"]]
    if len(set(captions)) < 2:
        kind = {None: "held-out ", TRAINING: "training "}.get(tree["data"], "")
        raise UserError(f"num_samples={tree['num_samples']}: {kind}samples of two captions at least are needed")
    half = len(captions) // 2

    def other(place: int) -> str:
        later = (captions[(place + half + step) % len(captions)] for step in range(len(captions)))
        return next(text for text in later if text != captions[place])

    return [replace(part, others=[other(number) for number in part.numbers.tolist()]) for part in found]
