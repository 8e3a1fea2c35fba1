"""The cells of an ablation, a row or peer with one seed each, and the words that train them on the same latents."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ldm.ablation.plan import Plan
from ldm.asked import check_training
from ldm.build import Parts, is_first_stage, kind_of, load_first_stage
from ldm.config import compose, named_in_step, overriding
from ldm.config.numbers import check_seeds
from ldm.errors import UserError
from ldm.model import recipe
from ldm.results.measured_under import reference_of

Tree = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One training of an ablation."""

    row: str
    seed: int

    @property
    def name(self) -> str:
        """Such as muon-seed0."""
        return f"{self.row}-seed{self.seed}"


def cells(tree: Tree, plan: Plan) -> list[Cell]:
    """The cells of `tree` (conf/ablation.yaml), all rows of the first seed first. UserError for no or wrong ones."""
    rows = plan.names if tree["rows"] is None else tree["rows"]
    if not rows or any(row not in plan.names for row in rows) or len(set(rows)) < len(rows):
        raise UserError(f"rows={rows}: a list of different ones of {', '.join(plan.names)}")
    check_seeds(tree)
    return [Cell(row, seed) for seed in tree["seeds"] for row in rows]


def cell_named(tree: Tree, plan: Plan, name: str) -> Cell:
    """The cell of that name. Raises UserError, for a step of the ablation, where there is none."""
    return named_in_step("cell", name, {cell.name: cell for cell in cells(tree, plan)})


class Places:
    """Where the runs, the cache and the measurements of an ablation lie."""

    def __init__(self, tree: Tree, plan: Plan):
        self.runs = Path(tree["runs_dir"])
        self.name = f"ablation-{plan.name}"
        self.folder = self.runs / self.name
        self.cache = self.folder / "cache"
        own = self.runs / f"{self.name}-autoencoder"
        self.first_stage = Path(tree["first_stage"]) if tree["first_stage"] else own

    def run(self, cell: Cell) -> Path:
        return self.runs / f"{self.name}-{cell.name}"

    def measured(self, cell: Cell) -> Path:
        return self.folder / "cells" / cell.name


def first_stage_words(tree: Tree, plan: Plan) -> list[str]:
    """Of train.py, for the first stage that all rows share; its seed is 0."""
    run = Places(tree, plan).first_stage
    own = [f"experiment={plan.autoencoder}", f"run={run.name}", f"runs_dir={run.parent}", "seed=0"]
    return overriding([*own, *_logged(tree, plan), *tree["autoencoder_overrides"].split()])


def row_words(tree: Tree, plan: Plan, name: str) -> list[str]:
    """Of train.py, what of a row's words does not depend on where it is trained."""
    return overriding(["trainer.precision=auto", *plan.words_of(name), *tree["overrides"].split()])


def cell_words(tree: Tree, plan: Plan, cell: Cell, more: Sequence[str] = ()) -> list[str]:
    """Of train.py, for a cell that is a row, on the first stage and the cache that all share."""
    places = Places(tree, plan)
    run = places.run(cell)
    own = [f"run={run.name}", f"runs_dir={run.parent}", f"seed={cell.seed}", *_logged(tree, plan)]
    own += [f"first_stage={places.first_stage}", f"data.cache={places.cache}"]
    own += ["callback_add=[device_seconds]", "callback.quality.every_steps=null", "task.keep_latents=false"]
    return overriding([*row_words(tree, plan, cell.row), *own, *more])


def _logged(tree: Tree, plan: Plan) -> list[str]:
    mode, project = tree["logger"]["mode"], tree["logger"]["project"]
    return [f"logger.mode={mode}", f"logger.project={project}", f"logger.group=ablation-{plan.name}"]


def data_words(tree: Tree, plan: Plan) -> list[str]:
    """Of train.py, for what the cache is made with: the first row's data and text encoder, and the first
    representation= that any row has.
    """
    aligned = [word for row in plan.rows for word in plan.words_of(row.name) if word.startswith("representation")]
    chosen = next((word for word in aligned if word.startswith("representation=")), None)
    below = {word.partition("=")[0]: word for word in aligned if word != chosen}
    return overriding([*row_words(tree, plan, plan.rows[0].name), *([chosen, *below.values()] if chosen else [])])


def check(tree: Tree, plan: Plan, asked: Sequence[Cell]) -> None:
    """Raises UserError, naming the row, for a cell that could not train, be sampled from, or read the same cache."""
    channels = channels_of(tree, plan)
    with _naming(plan.rows[0].name):
        data = compose("config", data_words(tree, plan))
    for cell in {cell.row: cell for cell in asked if cell.row not in {peer.name for peer in plan.peers}}.values():
        with _naming(cell.row):
            own = _composed(tree, plan, cell)
            check_training(own)
            alone = {**own, "first_stage": None}  # which may have to be trained first
            parts = Parts({**alone, **recipe({"num_steps": tree["num_steps"]}, own, True)}, **channels)
            for part in ("noise", "weighting", "sampling", "optimizer", "lr", "ema", "representation"):
                _ = parts[part]
            with torch.device("meta"):
                _ = parts["denoiser"]
        for key in ("image_size", "crop_size"):
            if own[key] != data[key]:
                raise UserError(f"row {cell.row!r}: {key}={own[key]}, and the latents of all are of {key}={data[key]}")


def _composed(tree: Tree, plan: Plan, cell: Cell) -> Tree:
    """What a row trains. Raises UserError for a mistake in the row, or one that trains no diffusion model."""
    try:
        own = compose("config", cell_words(tree, plan, cell))
    except UserError:
        _check_kind(compose("config", row_words(tree, plan, cell.row)))  # whose mistake would have another name
        raise
    _check_kind(own)
    return own


def _check_kind(own: Tree) -> None:
    if kind_of(own) != "diffusion":
        raise UserError(f"experiment: trains no diffusion model (it is of a {kind_of(own)}); choose another")


@contextmanager
def _naming(row: str) -> Iterator[None]:
    """Errors name the row that they are of."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"row {row!r}: {error}") from error


def channels_of(tree: Tree, plan: Plan) -> dict[str, int]:
    """Channels of the latents, as the parts of a network ask for them. Raises UserError for no first stage."""
    if tree["first_stage"]:
        count = load_first_stage(Path(tree["first_stage"])).spec.channels
    else:
        try:
            own = compose("config", first_stage_words(tree, plan))
        except ValueError as error:
            raise UserError(f"autoencoder of plan={plan.name}: {error}") from error
        if not is_first_stage(own):
            raise UserError(f"autoencoder of plan={plan.name}: experiment={plan.autoencoder} trains no first stage")
        count = Parts(own)["regularizer"].latent_channels
    return {"in_channels": count, "out_channels": count}


def settings_of(tree: Tree, plan: Plan, cell: Cell) -> str:
    """What a cell's numbers depend on, as text: rows of other settings are not this ablation's."""
    keys = ("trial_steps", "moments", "num_samples", "num_steps", "metric", "overrides", "autoencoder_overrides")
    facts: Tree = {key: tree[key] for key in keys} | {"autoencoder": plan.autoencoder}
    facts |= {"device_seconds": float(tree["device_seconds"]), "scale": float(tree["scale"])}
    facts |= {"held_out": tree["reference"] is not None, "own_first_stage": tree["first_stage"] is None}
    peer = next((peer for peer in plan.peers if peer.name == cell.row), None)
    of = cell.row if peer is None else peer.data_of
    own = {key: value for key, value in asdict(peer).items() if key != "says"} if peer else None
    facts |= reference_of(tree["reference"])
    return json.dumps({**facts, "words": plan.words_of(of), "peer": own}, sort_keys=True)
