"""Painted phrases (paint-with-words): what is drawn where they were painted, beside the same without painting."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from ldm.data.making.canvases import Canvas, describe
from ldm.data.transforms import to_tensor
from ldm.evaluation.yardsticks import shared_yardsticks
from ldm.images import enlarge, grid, to_uint8
from ldm.phrases import Stroke, outlined
from ldm.tasks.bench import Bench, Judgement
from ldm.tasks.canvases import boxes, canvases_of, pixels
from ldm.tasks.finding import things_iou

PAIRS = 20  # of phrases
DRAWS = 2  # of each pair, from different noise
SCALES = (0.0, 0.4, 1.0, 2.0, 4.0)  # w' of eDiff-I; 0 is the plain sample
VARIANTS = ("per_head", "std")  # conf/painting
GUIDANCE = 4.0  # of 2, 3, 4 and 6 the best IoU of phrases kept out elsewhere, on the pairs where w' is chosen, seed 0
KEPT_OUT = -1.0  # `outside` of phrases that are kept out of what is not painted in their colour
COLOURS = ("#ff0000", "#0000ff")
SHOWN, ENLARGED = 6, 3
CROPPED = 64  # px of a region, as it is looked at


class Pair(NamedTuple):
    """What is asked for: options of sample.py, and where the two phrases are painted, bool [2, H, W]."""

    given: dict[str, Any]
    regions: Tensor


def judge_painting(bench: Bench) -> Judgement:
    """IoU of what is painted and what is drawn, over pairs of phrases of canvases that are held out, and which of its
    two phrases a painted region shows; the same with phrases that are kept out of all else. The weight w' of either is
    chosen on as many other ones.
    """
    model, count = bench.model("canvas_text"), bench.count(most=PAIRS)
    alignment = shared_yardsticks(bench.device).alignment
    best: dict[str, float] = {}
    for first, which in ((4 * count, ", where w' is chosen"), (0, "")):
        real = chosen(canvases_of(model.drawer.data, first, 4 * count, objects=(2, 2)), count)
        pairs = [pair_of(one, bench.folder / "given", f"{first + place:04d}") for place, one in enumerate(real)]
        union = torch.stack([pair.regions.any(0) for pair in pairs])

        def drawn(scale: float, variant: str = "per_sample", pairs: Sequence[Pair] = pairs) -> list[Tensor]:
            return [_drawn(bench, model, pairs, scale, draw, variant) for draw in range(DRAWS)]

        plain = drawn(0.0)
        nowhere = _ious(plain, union)
        bench.add_mean(f"IoU, w' = 0{which}", nowhere)
        bench.add_mean(f"IoU of real canvases{which}", things_iou(pixels(real), union))
        said = {", w' = 0": plain[0], ", real": pixels(real)}
        images = {}
        for way, own in {"": pairs, ", kept out elsewhere": kept_out(pairs)}.items():
            images[way] = {scale: drawn(scale, pairs=own) for scale in SCALES[1:]}
            ious = {scale: _ious(found, union) for scale, found in images[way].items()}
            for scale, iou in ious.items():
                bench.add_mean(f"IoU, w' = {scale:g}{way}{which}", iou)
            best.setdefault(way, max(ious, key=lambda scale: ious[scale].mean().item()))
            said[way] = images[way][best[way]][0]
            if not which:
                _add_outcome(bench, way, best[way], ious[best[way]], nowhere)
        for what, shown in said.items():
            share = told_apart(alignment, shown, pairs, bench)
            bench.add_mean(f"regions that show their own phrase, not the other{what}{which}", share)
    for variant in VARIANTS:
        bench.add_mean(f"IoU, w' = {best['']:g}, {variant}", _ious(drawn(best[""], variant), union))
    caption = (
        f"Phrases and where they are painted; w' = {', '.join(f'{scale:g}' for scale in SCALES)}, then "
        f"{', '.join(f'{scale:g}' for scale in SCALES[1:])} with each phrase kept out of all else."
    )
    columns = [plain[0], *(own[0] for way in images.values() for own in way.values())]
    return Judgement(bench.rows, grid(torch.stack(_rows(pairs[:SHOWN], columns)), columns=len(columns)), caption, 1)


def _add_outcome(bench: Bench, way: str, scale: float, own: Tensor, nowhere: Tensor) -> None:
    """IoU [N] of a `way` to paint at the w' that was chosen for it, beside that of w' = 0."""
    both = torch.stack([own, nowhere], dim=1)
    bench.add_mean(f"IoU at the w' that is best of the others, {scale:g}{way}", own)
    bench.add_statistic(f"the same as a multiple of w' = 0{way}", both, lambda x: x[:, 0].mean() / x[:, 1].mean())
    bench.add_mean(f"obeyed: IoU less that of w' = 0{way}", own - nowhere)


def kept_out(pairs: Sequence[Pair]) -> list[Pair]:
    """The same pairs, each phrase kept out of what is not painted in its colour."""
    found = []
    for pair in pairs:
        colours = json.loads(pair.given["phrases"])
        strokes = {phrase: {"colour": colour, "outside": KEPT_OUT} for phrase, colour in colours.items()}
        found.append(Pair({**pair.given, "phrases": json.dumps(strokes)}, pair.regions))
    return found


def chosen(found: Sequence[Canvas], count: int) -> list[Canvas]:
    """The first `count` canvases of two phrases that are not within each other."""
    apart = [
        one for one in found if len({own["phrase"] for own in one.objects}) == 2
        and not any(a["phrase"] in b["phrase"] for a, b in (one.objects, one.objects[::-1]))
    ]  # fmt: skip
    return apart[:count]


def pair_of(one: Canvas, folder: Path, name: str) -> Pair:
    """The two objects of a canvas as ellipses in their boxes on a sheet, and a prompt that says nothing of places."""
    height, width = one.groups.shape
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    for box, colour in zip(boxes(one), COLOURS, strict=True):
        left, top, right, bottom = (share * side for share, side in zip(box, (width, height) * 2, strict=True))
        pen.ellipse((left, top, right - 1, bottom - 1), fill=colour)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.paint.png"
    sheet.save(path)
    phrases = [own["phrase"] for own in one.objects]
    regions = torch.stack([torch.from_numpy((np.asarray(sheet) == rgb).all(-1)) for rgb in ((255, 0, 0), (0, 0, 255))])
    colours = dict(zip(phrases, COLOURS, strict=True))
    return Pair({"prompt": listed(phrases), "paint": str(path), "phrases": json.dumps(colours)}, regions)


def listed(phrases: Sequence[str]) -> str:
    """Phrases as captions have them that say nothing of where they lie: "a red heart, a key"."""
    return ", ".join(describe([phrase], [(0.0, 0.0, 1.0, 1.0)])[0] for phrase in phrases)


def told_apart(alignment: Any, images: Tensor, pairs: Sequence[Pair], bench: Bench) -> Tensor:
    """The share [N] of the two regions of each pair whose picture is nearer to its own phrase than to the other."""
    crops, own, other = [], [], []
    for image, pair in zip(images, pairs, strict=True):
        phrases = list(json.loads(pair.given["phrases"]))
        for place, region in enumerate(pair.regions):
            rows, columns = (region.any(axis).nonzero() for axis in (1, 0))
            part = image[None, :, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            crops.append(F.interpolate(part, (CROPPED, CROPPED), mode="bilinear", antialias=True)[0])
            own.append(phrases[place])
            other.append(phrases[1 - place])
    stacked = torch.stack(crops).to(bench.device)
    with torch.no_grad():
        nearer = alignment(stacked, own) > alignment(stacked, other)
    return nearer.double().cpu().view(-1, 2).mean(1)


def _drawn(bench: Bench, model: Any, pairs: Sequence[Pair], scale: float, draw: int, variant: str) -> Tensor:
    options = {"painting": {variant: {"scale": scale}}, "guidance": {"scale": GUIDANCE}}
    return bench.sample(model, [pair.given for pair in pairs], seed=draw * len(pairs), **options)


def _ious(images: Sequence[Tensor], union: Tensor) -> Tensor:
    """Of each pair [N], the mean over its draws."""
    return torch.stack([things_iou(own, union) for own in images]).mean(0)


def _rows(pairs: Sequence[Pair], columns: Sequence[Tensor]) -> list[Tensor]:
    """For each pair its sample of each column, with the outlines of what is painted; [3, H, W] each."""
    shown = []
    for place, pair in enumerate(pairs):
        strokes = (Stroke((255, 0, 0)), Stroke((0, 0, 255)))
        phrases = json.loads(pair.given["phrases"])
        regions = {phrase: (pair.regions[k], strokes[k]) for k, phrase in enumerate(phrases)}
        for images in columns:
            pixel = enlarge(to_uint8(images[place : place + 1]), ENLARGED)[0].permute(1, 2, 0).contiguous().numpy()
            shown.append(to_tensor([np.asarray(outlined(Image.fromarray(pixel), regions, faded=False))])[0])
    return shown
