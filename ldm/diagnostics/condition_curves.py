"""Encoders alone and together (eDiff-I, arXiv 2211.01324, figures 8 and 18): quality against alignment over guidance.

For each set of conditions that a sample may use, over all captions and over short and long ones, as a job that goes on
where it was stopped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

from ldm.data.module import ShardData
from ldm.device import choose
from ldm.diagnostics.caption_lengths import LengthParts, num_words
from ldm.diagnostics.pictures import folder_of, held_out, on, opened
from ldm.drawer import Drawer, begun_of, check_conditions, turns_of
from ldm.errors import UserError
from ldm.evaluation.curves import curve_keys
from ldm.evaluation.intervals import mean_interval, set_intervals
from ldm.evaluation.logged import log
from ldm.evaluation.points import keep, points_of
from ldm.evaluation.stand_ins import said_of, with_stand_ins
from ldm.evaluation.table import ends, write_csv
from ldm.evaluation.yardsticks import Yardsticks, yardsticks_of
from ldm.generate import Ask
from ldm.holding import held
from ldm.measuring import FEWEST, Made, Ranks, alignment_key, conditions, make, row_of
from ldm.report.plots import trade_off
from ldm.report.sheet import labelled_sheet
from ldm.request import asked_guidance
from ldm.sampling import Sampling
from ldm.study.drawing import digest

Row = dict[str, Any]
FACTS = (
    "num_samples", "num_steps", "seed", "sampler", "sigmas", "guidance", "metric", "alignment", "data", "words",
    "resamples",
)  # fmt: skip
WORDS = "words"  # the column of how many a caption has
SHOWN = 8  # captions on the sheet


@dataclass(frozen=True)
class Truth:
    """Features [N, D] and numbers of words [N] of the pictures whose captions are drawn for, and the captions."""

    features: Tensor
    lengths: Tensor
    captions: list[str]


def condition_curves(
    tree: dict[str, Any], words: Sequence[str] = (), yardsticks: Yardsticks | None = None
) -> tuple[list[Row], Path]:
    """Draw and measure as `tree` (conf/condition_curves.yaml, which `words` made) says; the rows of conditions.csv and
    the folder with all files.

    A row for each set of conditions, part of the captions and scale of guidance: `conditions`, `captions`, `scale`,
    `samples`, and the metrics of scripts/evaluate.py with their intervals, against the true pictures of the same
    captions. Everything is checked before anything is drawn.
    """
    device = choose(tree["device"])
    model, sampling = opened({**tree, "use_conditions": None}, words, device)
    sets = {"+".join(use): own for use, own in _sets(model, sampling, tree, words).items()}
    if not tree["scales"]:
        raise UserError("scales=[]: at least one scale of guidance")
    data = held_out(model, {**tree, "num_samples": FEWEST})
    for own in sets.values():
        check_conditions(model, data.batch_spec, own)
        for scale in (*tree["scales"], _shown_at(tree)):
            model.left_out(own.with_scale(scale))
    if not {"caption", "image"} <= data.batch_spec.keys():
        raise UserError("data: without captions and images there is nothing to measure by")
    by = yardsticks or yardsticks_of(tree, device)
    truth = _truth(data, tree, by)
    parts = LengthParts(truth.lengths.tolist(), tree["words"])
    _check_parts(parts, truth)
    folder = folder_of(tree, model, "conditions")
    with held(folder, "evaluating into"):
        found: dict[tuple[str, str], list[Row]] = {}
        for name, own in sets.items():
            for scale, points in _measured(model, name, own, data, tree, by, (truth, parts), folder).items():
                for part, point in points.items():
                    row = {"conditions": name, "captions": part, "scale": scale, **point}
                    found.setdefault((part, name), []).append(row)
        rows = [row for part in parts.names for name in sets for row in found[part, name]]
        _write(folder, rows, tree, model)
        _sheet(folder / "sheet.png", model, sets, data, truth, tree, device)
        pictures = {path.stem: path for path in sorted(folder.glob("*.png")) if path.stem.count(".") == 0}
        log(tree, folder, {f"{part}/{name}": own for (part, name), own in found.items()}, pictures)
    return rows, folder


def _sets(
    model: Drawer, sampling: Sampling, tree: Mapping[str, Any], words: Sequence[str]
) -> dict[tuple[str, ...], Sampling]:
    """How to sample with each set of conditions: those asked for, or each that reads captions alone, and all."""
    asked = tree["use_conditions"]
    if asked is None:
        every = model.conditions(sampling)
        texts = [name for name, fields in every.items() if "caption" in fields]
        if len(texts) < 2:
            raise UserError(
                f"model={tree['model']}: {', '.join(texts) or 'none'} of its conditions reads captions, so none can be "
                "alone and together; use_conditions=[[a],[a,b]] names sets of others"
            )
        asked = [*([name] for name in texts), texts]
    if not asked or len({tuple(use) for use in asked}) < len(asked):
        raise UserError(f"use_conditions={asked}: one set at least, and none twice, such as [[t5],[clip_text]]")
    guidance = asked_guidance(words, tree["guidance"])
    return {tuple(use): model.sampling({**tree, "guidance": guidance, "use_conditions": use}) for use in asked}


@torch.no_grad()
def _truth(data: ShardData, tree: Mapping[str, Any], by: Yardsticks) -> Truth:
    features, captions = [], []
    count = min(tree["num_samples"], data.num_train)
    for batch, _ in conditions(data, count, tree["batch_size"]):
        features.append(by.backbone(batch["image"].to(by.device)).float().cpu())
        captions += batch["caption"]
    return Truth(torch.cat(features), torch.tensor([num_words(text) for text in captions]), captions)


def _check_parts(parts: LengthParts, truth: Truth) -> None:
    for name, chosen in parts.of(truth.lengths).items():
        if (count := int(chosen.sum())) < FEWEST:
            raise UserError(f"words: only {count} of the captions are of {name}; at least {FEWEST} are needed")


def _measured(
    model: Drawer, name: str, sampling: Sampling, data: ShardData, tree: Mapping[str, Any], by: Yardsticks,
    against: tuple[Truth, LengthParts], folder: Path,
) -> dict[float, dict[str, Row]]:  # fmt: skip
    """{scale: {part of the captions: its metrics}}, each scale kept once it is measured."""
    own, key = folder / name, alignment_key(by.alignment)
    settings: list[Any] = [model.settings] if model.settings else []
    settings += [data.fingerprint] if tree["data"] else []
    identity = digest([[w.digest for w in model.weights], name, *(tree[fact] for fact in FACTS), *settings])
    points = points_of(own, identity)
    names = against[1].names
    missing = [scale for scale in tree["scales"] if f"{scale:g} {names[-1]}" not in points]
    for scale in track(missing, f"sampling with {name}", disable=not missing):
        made = _made(model, sampling.with_scale(scale), data, tree, by)
        points |= {f"{scale:g} {part}": row for part, row in _table(made, against, tree, by).items()}
        keep(own, identity, key, points)
    return {scale: {part: points[f"{scale:g} {part}"] for part in names} for scale in tree["scales"]}


def _made(model: Drawer, sampling: Sampling, data: ShardData, tree: Mapping[str, Any], by: Yardsticks) -> Made:
    """Samples as evaluate.py makes them, and how many words the caption of each has."""

    def beside(images: Tensor, batch: Mapping[str, Any], backbone: Any) -> dict[str, Tensor]:
        return {WORDS: torch.tensor([num_words(text) for text in batch["caption"]])}

    return make(
        None, data, tree["num_samples"], tree["batch_size"], by.backbone, by.alignment, Ranks(by.device), beside=beside,
        begun=begun_of(model, sampling, tree["seed"], []), turns=turns_of(model),
    )  # fmt: skip


def _table(
    made: Made, against: tuple[Truth, LengthParts], tree: Mapping[str, Any], by: Yardsticks
) -> dict[str, dict[str, float]]:
    """The metrics of each part of the captions. Raises UserError where too few samples are finite."""
    (truth, parts), found = against, {}
    chosen, real = parts.of(made.beside[WORDS]), parts.of(truth.lengths)
    assert made.alignments is not None
    for part, places in chosen.items():
        if int(places.sum()) < FEWEST:
            raise UserError(f"{len(made.broken)} of {tree['num_samples']} samples are not finite; lower scales=")
        own = replace(made, features=made.features[places], alignments=made.alignments[places])
        features = truth.features[real[part]]
        row: dict[str, float] = {"samples": int(places.sum())}
        row |= row_of(own, features, by.backbone, by.alignment, tree["seed"])
        if tree["resamples"]:
            row |= set_intervals(row, features, own.features, by.backbone, tree["resamples"], tree["seed"])
            key = alignment_key(by.alignment)
            row |= mean_interval(key, own.alignments, tree["resamples"], tree["seed"])
        found[part] = {**row, "nan_images": len(made.broken)}
    return found


def _write(folder: Path, rows: Sequence[Row], tree: Mapping[str, Any], model: Drawer) -> None:
    """conditions.csv, and a plot for each part of the captions: all.png, up_to_8_words.png and so on."""
    write_csv(folder / "conditions.csv", rows)
    quality, alignment = curve_keys(rows[0])
    assert alignment is not None
    for part in dict.fromkeys(row["captions"] for row in rows):
        own: dict[str, list[Row]] = {}
        for row in rows:
            if row["captions"] == part:
                own.setdefault(row["conditions"], []).append(row)
        curves = {name: [(row["scale"], row[quality], row[alignment]) for row in some] for name, some in own.items()}
        columns = (*ends(quality), *ends(alignment))
        bars = {name: [tuple(row[key] for key in columns) for row in some] for name, some in own.items()} \
            if tree["resamples"] else None  # fmt: skip
        path = folder / f"{part.replace(' ', '_')}.png"
        across = with_stand_ins(quality, model)
        trade_off(path, curves, quality_label=across, alignment_label=f"{alignment}, {part}", bars=bars)


def _shown_at(tree: Mapping[str, Any]) -> float:
    """The scale of the sheet."""
    scales: list[float] = sorted(tree["scales"])
    return scales[len(scales) // 2] if tree["sheet_scale"] is None else tree["sheet_scale"]


@torch.no_grad()
def _sheet(
    path: Path, model: Drawer, sets: Mapping[str, Sampling], data: ShardData, truth: Truth, tree: Mapping[str, Any],
    device: torch.device,
) -> None:  # fmt: skip
    """The first captions from the shortest on: the true picture, and that of each set from the same noise."""
    scale = _shown_at(tree)
    batch, numbers = next(iter(conditions(data, min(SHOWN, len(truth.captions)), SHOWN)))
    batch = on(device, batch)
    images = [batch["image"].float().cpu()]
    asks = [Ask(own.with_scale(scale), dict(batch), numbers.to(device), tree["seed"]) for own in sets.values()]
    images += [draw().cpu() for draw in model.begun(asks)]
    order = sorted(range(len(numbers)), key=lambda place: num_words(batch["caption"][place]))
    shown = torch.stack(images, dim=1)[order]
    names = ["data", *(f"{name}, {scale:g}" for name in sets)]
    labelled_sheet(path, shown, names, [batch["caption"][place] for place in order], said_of(model))
