"""The cells of a sweep over f: one first stage, cache and diffusion model each, and the words that train them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ldm.build import Parts
from ldm.config import compose, overriding
from ldm.config.numbers import check_seeds
from ldm.errors import UserError
from ldm.generate import check_size
from ldm.model import recipe
from ldm.results.measured_under import reference_of, shards_of

FACTORS = (1, 2, 4, 8, 16, 32)
Tree = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One point of a sweep. f = 1 has no first stage, and so no `regularizer`: ''."""

    f: int
    regularizer: str
    seed: int

    @property
    def model(self) -> str:
        """What its seeds have in common, such as kl-f4."""
        return f"{self.regularizer}-f{self.f}" if self.regularizer else f"f{self.f}"

    @property
    def name(self) -> str:
        """Such as kl-f4-seed0."""
        return f"{self.model}-seed{self.seed}"


def cells(tree: Tree) -> list[Cell]:
    """The cells of `tree` (conf/sweep_f.yaml), all f of the first seed first. Raises UserError for no or wrong ones."""
    factors, regularizers = tree["f"], _regularizers(tree["regularizer"])
    if not factors or any(f not in FACTORS for f in factors) or len(set(factors)) < len(factors):
        raise UserError(f"f={factors}: a list of different powers of two from 1 to 32")
    check_seeds(tree)
    every = [Cell(f, name if f > 1 else "", seed) for seed in tree["seeds"] for name in regularizers for f in factors]
    return list(dict.fromkeys(every))  # f = 1 once, whatever the regularizers


def _regularizers(text: str) -> list[str]:
    """The names in ``kl`` or ``[kl,vq]``: to Hydra it is text, as regularizer is also the name of a config group."""
    names = [name.strip() for name in text.strip("[]").split(",") if name.strip()]
    if not names or any(name not in ("kl", "vq") for name in names):
        raise UserError(f"regularizer={text}: kl, vq or [kl,vq]")
    return names


class Places:
    """Where the runs, the cache and the measurements of a sweep's cells lie."""

    def __init__(self, tree: Tree):
        self.runs = Path(tree["runs_dir"])
        self.family = tree["family"]
        plain = tree["diffusion"] == "diffusion"
        self.folder = self.runs / (self.family if plain else f"{self.family}-{tree['diffusion']}")

    def first_stage(self, cell: Cell) -> Path:
        return self.runs / f"{self.family}-autoencoder-{cell.name}"

    def diffusion(self, cell: Cell) -> Path:
        return self.runs / f"{self.folder.name}-diffusion-{cell.name}"

    def cache(self, cell: Cell) -> Path:
        return self.folder / "caches" / cell.name

    def measured(self, cell: Cell) -> Path:
        return self.folder / "cells" / cell.name


def first_stage_words(tree: Tree, cell: Cell) -> list[str]:
    """Of train.py, for the first stage of a cell with f > 1."""
    run = Places(tree).first_stage(cell)
    own = [*_latent(tree, cell), *tree["autoencoder_overrides"].split()]
    return _words(tree, cell, f"{tree['family']}/autoencoder", run, own)


def diffusion_words(tree: Tree, cell: Cell, more: list[str], described: bool = False) -> list[str]:
    """Of train.py, for the diffusion model of a cell; `described`: on a first stage that is not trained yet."""
    places = Places(tree)
    own = [*tree["diffusion_overrides"].split(), *_of_f(tree, cell.f)]
    if cell.f > 1 and described:
        own = [*_latent(tree, cell), *own]
    elif cell.f > 1:
        own = [f"first_stage={places.first_stage(cell)}", *own]
        own += [f"data.cache={places.cache(cell)}"] if tree["cache"] else []
    return _words(tree, cell, f"{tree['family']}/{tree['diffusion']}", places.diffusion(cell), [*own, *more])


def _latent(tree: Tree, cell: Cell) -> list[str]:
    channels = tree["channels"][cell.regularizer].get(f"f{cell.f}")
    if channels is None:
        raise UserError(f"channels.{cell.regularizer}.f{cell.f}: says no number of channels")
    return [f"autoencoder=f{cell.f}", f"regularizer={cell.regularizer}", f"regularizer.channels={channels}"]


def _of_f(tree: Tree, f: int) -> list[str]:
    return (tree["diffusion_by_f"][f"f{f}"] or "").split()


def _words(tree: Tree, cell: Cell, experiment: str, run: Path, own: list[str]) -> list[str]:
    shared = [f"runs_dir={run.parent}", f"seed={cell.seed}", f"logger.mode={tree['logger']['mode']}"]
    shared += [f"data.{part}={Path(tree['shards']) / part}-*.tar" for part in ("train", "validation") if tree["shards"]]
    shared += [f"logger.project={tree['logger']['project']}", f"logger.group={tree['family']}"]
    first = [f"experiment={experiment}", f"run={run.name}", "trainer.precision=auto", "callback_add=[device_seconds]"]
    return overriding([*first, *shared, *own])


def diffusion_tree(tree: Tree, cell: Cell) -> Tree:
    """What stage two of a cell trains, its first stage described."""
    return compose("config", diffusion_words(tree, cell, [], described=True))


def check(tree: Tree, asked: list[Cell]) -> dict[str, int]:
    """Raises UserError, naming the f, for a cell that could not train or be sampled from, before any does.

    Returns the diffusion models' parameters, by `Cell.model`.
    """
    parameters = {}
    for cell in {cell.model: cell for cell in asked}.values():
        try:
            diffusion = diffusion_tree(tree, cell)
            parts = Parts(diffusion)
            for count in (tree["num_steps"], *tree["sampling_steps"]):
                _ = Parts({**diffusion, **recipe({"num_steps": count}, diffusion, True)})["sigmas"]
            with torch.device("meta"):
                if cell.f > 1:
                    first = Parts(compose("config", first_stage_words(tree, cell)))
                    side = first["window_size"]
                    check_size(side, side, first["autoencoder"].f)
                network = parts["network"]
                side = parts["window_size"]
                check_size(side, side, cell.f, network.factor)
        except ValueError as error:
            way = f'; diffusion_by_f.f{cell.f}="network.multipliers=[1,2]" gives that f a network of its own'
            raise UserError(f"f={cell.f}: {error}{way if 'multiple of' in str(error) else ''}") from error
        parameters[cell.model] = sum(parameter.numel() for parameter in network.parameters())
    return parameters


def settings_of(tree: Tree, cell: Cell) -> str:
    """The keys that a cell's numbers depend on, as text: rows of other ones are not this sweep's."""
    keys = ("family", "diffusion", "budget", "moments", "num_samples", "num_steps", "sampling_steps", "cache",
            "autoencoder_overrides", "diffusion_overrides")  # fmt: skip
    facts: Mapping[str, Any] = {key: tree[key] for key in keys} | {
        "metric": tree["metric"],
        "held_out": tree["reference"] is not None,
        "scale": float(tree["scale"]),
    }
    facts = {**facts, "of_f": _of_f(tree, cell.f), "latent": _latent(tree, cell) if cell.f > 1 else []}
    facts = {**facts, "device_seconds": float(tree["device_seconds"]) if tree["budget"] == "device_seconds" else None}
    facts = {**facts, **shards_of(tree["shards"]), **reference_of(tree["reference"])}
    return json.dumps(facts, sort_keys=True)
