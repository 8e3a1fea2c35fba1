"""Which conditions attention looks at over the noise level (eDiff-I, arXiv 2211.01324, figure 3), as a job."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.device import choose
from ldm.diagnostics.attention_record import AttentionRecord, Looked, recorded
from ldm.diagnostics.pictures import folder_of, held_out, members_of, on, opened
from ldm.diffusion.counter_random import normal
from ldm.diffusion.denoiser import Denoise
from ldm.drawer import Drawer, check_conditions
from ldm.errors import UserError
from ldm.evaluation.intervals import mean_interval
from ldm.evaluation.logged import log
from ldm.evaluation.stand_ins import with_stand_ins
from ldm.evaluation.table import ends, write_csv
from ldm.generate import addressed
from ldm.holding import held
from ldm.measuring import conditions
from ldm.model import Model
from ldm.report.lines import Point, lines
from ldm.sampling import Sampling, draw

Row = dict[str, Any]
SHARE = "share/"  # columns of the cross-attentions' probability, one a condition
SELF, CROSS = "block/self", "block/cross"
ON = ("noisy", "sampling")  # noisy pictures, and what a sampler meets on its way
Seen = dict[tuple[str, float], list[Looked]]


@torch.no_grad()
def attention_shares(tree: dict[str, Any], words: Sequence[str] = ()) -> tuple[list[Row], Path]:
    """Look into the networks of the model of `tree` (conf/attention_shares.yaml, which `words` made); the rows of
    attention.csv, by noise level from the highest, and the folder with all files.

    Held-out pictures under noise of `num_levels` levels or of those `at`, and what the sampler passes through for the
    same conditions, guided as asked; what is looked at is the branch that has the conditions. Columns are means over
    samples with 95 % intervals: SHARE + condition, which sum to 1, and SELF and CROSS, which do too.
    """
    device = choose(tree["device"])
    _check(tree)
    model, sampling = opened(tree, words, device)
    members = members_of(model, tree)
    if not any("tokens" in part.widths for member in members for part in _conditioners(member)):
        raise UserError(f"model={tree['model']}: has no condition that gives tokens, so there is no attention to them")
    levels = _levels(tree, sampling)
    data = held_out(model, tree)
    if "image" not in data.batch_spec:
        raise UserError(f"model={tree['model']}: its data have no images to put noise on")
    check_conditions(model, data.batch_spec, sampling)
    folder = folder_of(tree, model, "attention")
    seen: Seen = {}
    with held(folder, "evaluating into"):
        for batch, numbers in conditions(data, tree["num_samples"], tree["batch_size"]):
            _look(model, members, sampling, on(device, batch), numbers.to(device), levels, tree["seed"], seen)
        rows = [_row(key, looked, tree) for key, looked in seen.items()]
        rows.sort(key=lambda row: (ON.index(row["on"]), -row["sigma"]))
        _write(folder, rows, tree, with_stand_ins("sigma", model))
    return rows, folder


def _conditioners(member: Model) -> list[Any]:
    return list(member.conditioner.parts.values())


def _check(tree: Mapping[str, Any]) -> None:
    if tree["at"] is not None:
        if not tree["at"] or not all(sigma > 0 and math.isfinite(sigma) for sigma in tree["at"]):
            raise UserError(f"at={tree['at']}: noise levels are finite and above 0, and at least one")
    elif tree["num_levels"] < 2:
        raise UserError(f"num_levels={tree['num_levels']}: must be at least 2; at=[SIGMA] is a single one")


def _levels(tree: Mapping[str, Any], sampling: Sampling) -> list[float]:
    """Noise levels, the highest first: those asked for, or evenly in ln sigma over what the sampler goes through."""
    if tree["at"] is not None:
        return sorted(set(tree["at"]), reverse=True)
    positive = sampling.sigmas[sampling.sigmas > 0]
    highest, lowest = math.log(positive.max().item()), math.log(positive.min().item())
    return torch.linspace(highest, lowest, tree["num_levels"], dtype=torch.float64).exp().tolist()


def _look(
    model: Drawer, members: Sequence[Model], sampling: Sampling, batch: dict[str, Any], numbers: Tensor,
    levels: Sequence[float], seed: int, seen: Seen,
) -> None:  # fmt: skip
    """Add to `seen` what networks look at for one batch."""
    latent = model.first_stage.encode(batch["image"])
    shape = tuple(latent.shape[1:])
    batch = addressed(batch, shape, sampling, numbers, seed)
    given = model.guided(sampling.with_scale(1.0), batch, len(numbers))
    with recorded(members) as record:
        for place, sigma in enumerate(levels):
            x = latent + sigma * normal(seed, "noise of attention shares", numbers, shape, stream=place)
            _add(seen, ("noisy", sigma), record.look(given, x, torch.full((len(x),), sigma, device=x.device)))
        draw(_watched(model.guided(sampling, batch, len(numbers)), given, record, seen), sampling, shape, numbers, seed)


def _watched(guided: Denoise, given: Denoise, record: AttentionRecord, seen: Seen) -> Denoise:
    """`guided`, and at each x that it is asked for a look at what `given` sees there."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        if bool((sigma > 0).all()):
            _add(seen, ("sampling", sigma[0].item()), record.look(given, x, sigma))
        return guided(x, sigma)

    return denoise


def _add(seen: Seen, key: tuple[str, float], looked: Looked | None) -> None:
    if looked is not None:
        seen.setdefault(key, []).append(looked)


def _row(key: tuple[str, float], looked: Sequence[Looked], tree: Mapping[str, Any]) -> Row:
    """Means over samples; a solver that is at a level twice has each of them counted twice."""
    row: Row = dict(zip(("on", "sigma"), key, strict=True))
    columns = {f"{SHARE}{name}": torch.cat([one.shares[name] for one in looked]) for name in looked[0].shares}
    own = [one.own for one in looked if one.own is not None]
    if own:
        columns |= {SELF: torch.cat(own), CROSS: 1 - torch.cat(own)}
    for name, values in columns.items():
        values = values.cpu().double()
        row[name] = values.mean().item()
        if tree["resamples"] and len(values) > 1:
            row |= mean_interval(name, values, tree["resamples"], tree["seed"])
    return row


def _write(folder: Path, rows: Sequence[Row], tree: Mapping[str, Any], across: str) -> None:
    """attention.csv; attention.png and self_and_cross.png over sigma, labelled `across`; the same in W&B."""
    write_csv(folder / "attention.csv", rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    shares = [name for name in names if name.startswith(SHARE)]
    pictures = {"attention": folder / "attention.png", "self_and_cross": folder / "self_and_cross.png"}
    lines(
        pictures["attention"], _curves(rows, shares),
        x_label=across, y_label="share of the attention to tokens", log_x=True,
    )  # fmt: skip
    if any(SELF in row for row in rows):
        lines(
            pictures["self_and_cross"], _curves(rows, [SELF, CROSS]),
            x_label=across, y_label="share of what the attentions of a block add", log_x=True,
        )  # fmt: skip
    log(tree, folder, {on_: [row for row in rows if row["on"] == on_] for on_ in ON}, pictures)


def _curves(rows: Sequence[Row], names: Sequence[str]) -> dict[str, list[Point]]:
    """One for each name and each of ON."""
    return {
        f"{name.partition('/')[2]}, {place}": [
            (row["sigma"], row[name], *(row.get(end, row[name]) for end in ends(name)))
            for row in rows
            if row["on"] == place and name in row
        ]
        for place in ON
        for name in names
    }
