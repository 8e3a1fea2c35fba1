"""When the prompt decides: samples that change their prompt on the way (eDiff-I, arXiv 2211.01324, figure 4), as a job.

Down to the switching sigma a sample is denoised with prompt A, below it with prompt B, from the same noise.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.build import Parts
from ldm.config import instantiate
from ldm.device import choose
from ldm.diagnostics.pictures import folder_of, members_of, on, opened
from ldm.diagnostics.prompt_pairs import Pairs, pairs_of
from ldm.diffusion.denoiser import Denoise
from ldm.diffusion.experts import route
from ldm.drawer import Drawer
from ldm.errors import UserError
from ldm.evaluation.intervals import mean_interval
from ldm.evaluation.logged import log
from ldm.evaluation.paired import METRICS, SMALLEST, Measure
from ldm.evaluation.stand_ins import said_of, with_stand_ins
from ldm.evaluation.table import ends, write_csv
from ldm.generate import drawn, latent_shape
from ldm.holding import held
from ldm.report.lines import lines
from ldm.report.sheet import labelled_sheet
from ldm.sampling import Sampling

Row = dict[str, Any]
LPIPS, RMS = "lpips_alex", "rms"  # the second in grey levels of 255
SHOWN = 8  # pairs on the sheet
NOTHING = 0.05  # of the distance between A and B: what counts as no change


class Texts:
    """All captions of the pairs, each encoded once by the `alignment`."""

    def __init__(self, captions: Sequence[str], alignment: nn.Module):
        self.places = {text: place for place, text in enumerate(dict.fromkeys(captions))}
        self.alignment = alignment
        self.embeddings = alignment.embed_captions(list(self.places))

    def column(self, name: str) -> str:
        """Of the alignment with the prompts `name`."""
        return f"{self.alignment.metric}_{name}/{self.alignment.name}"

    def alignments(self, images: Tensor) -> Tensor:
        """Of images [B, 3, H, W] in [-1, 1] with each caption, [B, captions]."""
        return self.alignment.embed_images(images) @ self.embeddings.T

    def ranks(self, alignments: Tensor, own: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The place [B] of each image's `own` caption among all, 1 being the best, and its alignment [B]."""
        places = torch.tensor([self.places[text] for text in own], device=alignments.device)
        value = alignments.gather(1, places[:, None])
        return 1 + (alignments > value).sum(1), value[:, 0]


@torch.no_grad()
def prompt_switch(tree: dict[str, Any], words: Sequence[str] = ()) -> tuple[list[Row], Path]:
    """Draw with the model of `tree` (conf/prompt_switch.yaml, which `words` made); the rows of switch.csv, the lowest
    switch first, and the folder with all files.

    Of a row: `sigma`, at and above which A is given, and `steps`, the per cent of steps that begin there; the means
    over pairs, with 95 % intervals, of the distance to the sample of A alone and of B alone (LPIPS where images are
    large enough for it, and the root mean square in grey levels), of the ranks of both prompts among all, and of the
    alignment with each.
    """
    device = choose(tree["device"])
    _check(tree)
    model, sampling = opened(tree, words, device)
    if not any("caption" in fields for fields in model.conditions(sampling).values()):
        raise UserError(f"model={tree['model']}: reads no prompt that could be switched")
    members_of(model, tree)
    pairs = pairs_of(model, sampling, tree)
    alignment = instantiate(tree["alignment"], Parts(tree), "alignment").to(device)
    measure = METRICS[LPIPS](device) if model.image_size >= SMALLEST[LPIPS] else None
    texts = Texts([text for part in pairs for text in (*part.batch["caption"], *part.others)], alignment)
    folder = folder_of(tree, model, "switch")
    with held(folder, "evaluating into"):
        switches = _switches(model, sampling, pairs[0], tree, device)
        columns: dict[float, list[dict[str, Tensor]]] = {sigma: [] for sigma in switches}
        sheet: list[Tensor] = []
        for place, part in enumerate(pairs):
            part = Pairs(on(device, part.batch), part.others, part.numbers.to(device))
            first, second = bound(model, sampling, part)
            make = _maker(model, sampling, part, tree["seed"])
            alone = make(first), make(second)
            for sigma in switches:
                images = make(switched(first, second, sigma))
                columns[sigma].append(_measured(images, alone, part, texts, measure))
                if place == 0:
                    sheet.append(images[:SHOWN].cpu())
        rows = [_row(sigma, columns[sigma], sampling, tree) for sigma in switches]
        _write(folder, rows, torch.stack(sheet, dim=1), pairs[0], tree, model)
    return rows, folder


def switched(first: Denoise, second: Denoise, sigma: float) -> Denoise:
    """`first` at noise levels of `sigma` and above, `second` below."""
    return route([second, first], [[(0.0, sigma)], [(sigma, math.inf)]])


def bound(model: Drawer, sampling: Sampling, part: Pairs) -> tuple[Denoise, Denoise]:
    """The guided denoisers of the prompts A and of the prompts B; all else that is given is the same."""
    batch = {**part.batch, "number": part.numbers}
    each = (batch, {**batch, "caption": part.others})
    first, second = (model.guided(sampling, given, len(part.numbers)) for given in each)
    return first, second


def _maker(model: Drawer, sampling: Sampling, part: Pairs, seed: int) -> Callable[[Denoise], Tensor]:
    """Images [B, 3, H, W] in [-1, 1] of a denoiser, from the noise of a part."""
    shape = latent_shape(model.first_stage, model.image_size)
    return lambda denoise: drawn(denoise, model.first_stage, sampling, shape, part.batch, part.numbers, seed)


def _check(tree: Mapping[str, Any]) -> None:
    if tree["switch"] is not None:
        if not tree["switch"] or not all(sigma > 0 and math.isfinite(sigma) for sigma in tree["switch"]):
            raise UserError(f"switch={tree['switch']}: noise levels are finite and above 0, and at least one")
    elif tree["num_switches"] < 2:
        raise UserError(f"num_switches={tree['num_switches']}: must be at least 2; switch=[SIGMA] is a single one")


def _switches(
    model: Drawer, sampling: Sampling, part: Pairs, tree: Mapping[str, Any], device: torch.device
) -> list[float]:
    """Noise levels to switch at, the lowest first: those asked for, or `num_switches` evenly over the steps.

    These lie between the levels of two steps; the first is below all that the sampler asks for, and the last above.
    """
    if tree["switch"] is not None:
        return sorted(set(tree["switch"]))
    levels: list[float] = []
    one = Pairs({name: value[:1] for name, value in on(device, part.batch).items()}, part.others[:1],
                part.numbers[:1].to(device))  # fmt: skip
    denoise = bound(model, sampling, one)[0]

    def watched(x: Tensor, sigma: Tensor) -> Tensor:
        levels.extend(sigma.tolist())
        return denoise(x, sigma)

    _maker(model, sampling, one, tree["seed"])(watched)
    starts = sorted(sampling.sigmas[:-1].tolist())
    between = [math.sqrt(low * high) for low, high in pairwise(starts)]
    places = [min(level for level in levels if level > 0) / 1.5, *between, max(levels) * 1.5]
    count = min(tree["num_switches"], len(places))
    return [places[round(number * (len(places) - 1) / (count - 1))] for number in range(count)]


def _measured(
    images: Tensor, alone: tuple[Tensor, Tensor], part: Pairs, texts: Texts, measure: Measure | None
) -> dict[str, Tensor]:
    """Columns [B] of the samples of a switch."""
    found: dict[str, Tensor] = {}
    looked = texts.alignments(images)
    for name, other, own in zip("ab", alone, (part.batch["caption"], part.others), strict=True):
        if measure is not None:
            found[f"{LPIPS}_to_{name}"] = measure(images, other)
        found[f"{RMS}_to_{name}"] = (images - other).square().flatten(1).mean(1).sqrt() * 127.5
        found[f"rank_{name}"], found[texts.column(name)] = texts.ranks(looked, own)
    return {name: values.cpu().double() for name, values in found.items()}


def _row(sigma: float, parts: Sequence[Mapping[str, Tensor]], sampling: Sampling, tree: Mapping[str, Any]) -> Row:
    starts = sampling.sigmas[:-1]
    row: Row = {"sigma": sigma, "steps": 100 * (starts >= torch.tensor(sigma)).double().mean().item()}
    for name in parts[0]:
        values = torch.cat([part[name] for part in parts])
        row[name] = values.mean().item()
        if tree["resamples"] and len(values) > 1:
            row |= mean_interval(name, values, tree["resamples"], tree["seed"])
    return row


def decided(rows: Sequence[Row]) -> Row:
    """From where on a switch is without effect: below `unchanged_sigma`, in the last `unchanged_steps` per cent of the
    steps, the sample is A's; at `changed_sigma`, with the first `changed_steps` per cent under A, it still is B's.

    Up to NOTHING of the distance between the two. None where no switch is so. `rows` have the lowest switch first.
    """
    key = LPIPS if f"{LPIPS}_to_a" in rows[0] else RMS
    limit = NOTHING * max(row[f"{key}_to_a"] for row in rows)
    found: Row = {"by": key}
    low = _while(rows, lambda row: row[f"{key}_to_a"] <= limit)
    high = _while(rows[::-1], lambda row: row[f"{key}_to_b"] <= limit)
    found |= {"unchanged_sigma": low and low["sigma"], "unchanged_steps": low and 100 - low["steps"]}
    return {**found, "changed_sigma": high and high["sigma"], "changed_steps": high and high["steps"]}


def _while(rows: Sequence[Row], holds: Callable[[Row], bool]) -> Row | None:
    """The last of the first rows for which it holds."""
    last = None
    for row in rows:
        if not holds(row):
            break
        last = row
    return last


def _write(
    folder: Path, rows: Sequence[Row], images: Tensor, part: Pairs, tree: Mapping[str, Any], model: Drawer
) -> None:
    """switch.csv, decided.csv, switch.png, ranks.png and sheet.png; the same in W&B."""
    write_csv(folder / "switch.csv", rows)
    write_csv(folder / "decided.csv", [decided(rows)])
    texts = [f"{a} -> {b}" for a, b in zip(part.batch["caption"], part.others, strict=True)][: len(images)]
    names = [f"{row['sigma']:.3g} ({row['steps']:.0f} %)" for row in rows]
    labelled_sheet(folder / "sheet.png", images, names, texts, said_of(model))
    key = LPIPS if f"{LPIPS}_to_a" in rows[0] else RMS
    pictures = {name: folder / f"{name}.png" for name in ("switch", "ranks", "sheet")}
    said = {
        pictures["switch"]: (f"{key}_to_a", f"{key}_to_b", key),
        pictures["ranks"]: ("rank_a", "rank_b", "mean rank of the prompt (1 is best)"),
    }
    across = with_stand_ins("switching sigma: A at and above it, B below", model)
    for path, (first, second, label) in said.items():
        if first in rows[0]:
            curves = {f"prompt {name[-1].upper()}": [_point(row, name) for row in rows] for name in (first, second)}
            lines(path, curves, x_label=across, y_label=label, log_x=True)
    log(tree, folder, {"switch": rows}, pictures)


def _point(row: Row, name: str) -> tuple[float, float, float, float]:
    low, high = (row.get(end, row[name]) for end in ends(name))
    return row["sigma"], row[name], low, high
