"""Checks of a run before anything of it is written: sizes, fields, classes, guidance, callbacks.

All of its parts are built by then, and the shards' headers are read.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ldm.build import Parts, kind_of
from ldm.checkpoint import weights
from ldm.conditioners.base import Conditioners
from ldm.config import groups
from ldm.data.classes import class_names
from ldm.data.module import ShardData
from ldm.errors import UserError
from ldm.generate import check_size
from ldm.networks.lora import with_adapters
from ldm.training.task import Task

PEEKED = 64  # training samples whose labels are looked at


def check_parts(parts: Parts) -> None:
    """Raises ValueError, naming the key, if a run of these `parts` could not train."""
    data, kind = parts["data"], kind_of(parts.tree)
    _check_modelled("image" if kind == "first_stage" else parts["first_stage"].key, data)
    if kind in CHECKS:
        CHECKS[kind](parts, data, parts["window_size"])
    _check_best(parts.tree, data)
    getattr(parts["optimizer"], "check", lambda ema: None)(parts["task"].ema)
    for callback in parts.callbacks:
        getattr(callback, "check", lambda task: None)(parts["task"])


def _size_key(parts: Parts) -> str:
    """The key that says how large the training images are."""
    return "image_size" if parts["window_size"] == parts["image_size"] else "crop_size"


def _check_modelled(key: str, data: ShardData) -> None:
    """Check that a batch, or the cache in its place, will hold what is modelled."""
    if data.cache is None and key not in data.batch_spec:
        raise UserError(
            f"data.with_images={str(data.with_images).lower()}: what is modelled is {key!r}, and a batch has "
            f"{', '.join(data.batch_spec)}; give data.fields one of that name, or images"
        )


def _check_first_stage(parts: Parts, data: ShardData, side: int) -> None:
    check_size(side, side, parts["autoencoder"].f, key=_size_key(parts))
    _check_losses(parts["reconstruction"], side)


def _check_classifier(parts: Parts, data: ShardData, side: int) -> None:
    _check_classes(parts.tree, data, "network", parts.tree["network"]["num_classes"])


def _check_diffusion(parts: Parts, data: ShardData, side: int) -> None:
    f, conditioner = parts["first_stage"].spec.f, parts["conditioner"]
    check_size(side, side, f, parts["denoiser"].factor, key=_size_key(parts))
    for name, part in conditioner.parts.items():
        if part.reduces not in (None, f):
            raise UserError(
                f"conditioner.{name}.factor={part.reduces}: stands beside latents that are {f} times smaller than the "
                f"image; set it to {f}"
            )
        made = data.keys.derived[part.key].reduces if part.key in data.keys.derived else None
        if made not in (None, part.reads_reduced):
            raise UserError(
                f"derived.{part.key}: makes pictures {made} times smaller than the image, and conditioner.{name} takes "
                f"them {part.reads_reduced} times smaller; set derived.{part.key}.factor={part.reads_reduced}"
            )
    if data.cache is None:
        check_fields(conditioner, data)
    label = (parts.tree["conditioner"] or {}).get("label")
    if label:
        _check_classes(parts.tree, data, "conditioner.label", label["num_classes"])


# Task.kind -> the further checks of such a run.
CHECKS = {"first_stage": _check_first_stage, "classifier": _check_classifier, "diffusion": _check_diffusion}


def check_fields(conditioner: Conditioners, data: ShardData) -> None:
    """Raises ValueError unless a batch of `data` has all that a conditioner reads, numbers meant as it means them."""
    for name, part in conditioner.parts.items():
        for field in sorted(part.fields):
            if field not in data.batch_spec:
                raise UserError(
                    f"conditioner.{name} reads {field!r}, which data.fields does not give ({', '.join(data.fields)}); "
                    f"choose the data= that has it, what makes it of images with derived=[...] "
                    f"({', '.join(groups()['derived'])}), or another conditioner="
                )
        reader = data.fields.get(part.key or "")
        if reader is not None and reader.numbers is not None:
            _check_numbers(name, part, *reader.numbers)


def _check_numbers(name: str, part: Any, count: int, vocabulary: int) -> None:
    """Check that a conditioner means by its field's numbers what the data means: others would be taken in silence."""
    keys = part.unfit(count, vocabulary)
    if keys:
        words = " ".join(f"conditioner.{name}.{key}={value}" for key, value in keys.items())
        raise UserError(
            f"conditioner.{name} takes other numbers than data.fields.{part.key} makes, which are {count} of a sample "
            f"in 0..{vocabulary - 1}; set {words}"
        )


def _check_classes(tree: dict[str, Any], data: ShardData, where: str, num_classes: int) -> None:
    """Check that class numbers are below `num_classes`, as far as a manifest and some samples tell."""
    key = f"{where}.num_classes={num_classes}"
    if "label" not in data.fields:
        return
    names = class_names(tree["data"]["train"])
    if num_classes < len(names) and not data.chooses:
        raise UserError(f"{key}: the data has {len(names)} classes ({', '.join(names[:5])}, ...); set it to that")
    for place, label in data.peek("label", PEEKED):
        if label >= num_classes:
            raise UserError(f"{place}: label {label}: {key} asks for 0..{num_classes - 1}")


def _check_losses(reconstruction: Any, side: int) -> None:
    """Check that images are large enough for the discriminator and LPIPS."""
    discriminator = copy.deepcopy(reconstruction.discriminator).to("meta")
    try:
        discriminator(torch.empty(2, 3, side, side, device="meta"))
    except RuntimeError as error:
        raise UserError(
            f"image_size={side}: too small for the discriminator; lower discriminator.num_layers"
        ) from error
    smallest = reconstruction.min_size
    if side < smallest:
        raise UserError(f"image_size={side}: too small for LPIPS, which needs {smallest} px")


def _check_best(tree: dict[str, Any], data: ShardData) -> None:
    checkpoint = (tree["callback"] or {}).get("checkpoint") or {}
    best = checkpoint.get("best") or ""
    if best and not best.startswith("quality/") and not (data.num_validation and "validation" in tree["callback"]):
        raise UserError(
            f"callback.checkpoint.best={best}: there is no held-out value to go by; give data.validation "
            "and callback.validation, or leave it out"
        )
    if best and not best.startswith("quality/"):
        every, saved = tree["callback"]["validation"]["every_steps"], checkpoint["every_steps"]
        if every % saved and saved % every:
            raise UserError(
                f"callback.validation.every_steps={every}: for callback.checkpoint.best={best} it must divide "
                f"callback.checkpoint.every_steps={saved}, or be a multiple of it: few saved weights have a value else"
            )


def check_parent(checkpoint: Path, task: Task) -> None:
    """Raises ValueError if a branch cannot begin from `checkpoint`, as far as the weights written with it tell."""
    found = weights.described(checkpoint)
    if found is not None:
        metadata, shapes = found
        task.accept(metadata)
        own = task.model.state_dict()
        weights.check_fit(own, with_adapters(shapes, own), str(checkpoint))


def doubts(parts: Parts) -> Iterator[str]:
    """Warnings, one line each, about what is allowed but may not be intended."""
    data = parts["data"]
    if data.batch_size > data.num_train:
        yield (
            f"data.batch_size={data.batch_size}: there are {data.num_train} training samples, so that every step sees "
            "some of them several times"
        )
    nodes, network = parts.tree.get("conditioner") or {}, parts.tree.get("network") or {}
    for name, part in parts["conditioner"].parts.items():
        key, width = f"conditioner.{name}", nodes[name].get("width")
        if part.drop_prob == 1:
            yield f"{key}.drop_prob=1: every sample loses it, so that nothing is learnt of it"
        if width and "slots" in nodes[name] and "tokens" not in part.widths:
            yield (
                f"{key}.width={width}: is that of its tokens, and {key}.slots names none; its vector is "
                f"{part.widths['vector']} wide"
            )
    depth = network.get("transformer_depth", 1)
    if depth != 1 and not parts["tokens_width"]:
        yield f"network.transformer_depth={depth}: no condition gives tokens, without which there are no transformers"
