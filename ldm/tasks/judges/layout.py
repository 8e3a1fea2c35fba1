"""Images of objects in boxes: whether something of its size lies where each was asked for."""

import torch
from torch import Tensor

from ldm.images import grid
from ldm.tasks.bench import FILES, Bench, Judgement
from ldm.tasks.canvases import Box, boxes, boxes_files, held_out_canvases, pixels
from ldm.tasks.finding import best_overlaps

ENOUGH = 0.5  # of a box's area and that of what is found there, over both
SHOWN = 10


def judge_layout(bench: Bench) -> Judgement:
    """Shares of held-out boxes that are found again: of real canvases, of samples, of samples for others' boxes."""
    model = bench.model("layout")
    real = held_out_canvases(model.drawer.data, bench.count(most=FILES))
    asked = [boxes(one) for one in real]
    files = boxes_files(real, bench.folder / "given")
    images = bench.sample(model, [{"boxes": file} for file in files])
    others = bench.sample(model, [{"boxes": file} for file in files[1:] + files[:1]])
    truth = pixels(real)
    found = {"samples": images, "boxes shuffled": others, "real held-out": truth}
    found["first stage's held-out"] = bench.reconstructed(model, truth)
    overlaps = {name: best_overlaps(own, asked) for name, own in found.items()}
    for name, values in overlaps.items():
        bench.add_mean(f"boxes with IoU of {ENOUGH:g} or more, {name}", (values >= ENOUGH).double())
        bench.add_mean(f"IoU, {name}", values)
    bench.add_mean("obeyed: IoU less with boxes shuffled", overlaps["samples"] - overlaps["boxes shuffled"])
    bench.add_set("samples", bench.features(truth), images)
    shown = [with_boxes(own[:SHOWN], asked) for own in (truth, images, others)]
    caption = "Held-out boxes: the real canvas, a sample for them, and a sample that was given the next canvas's boxes."
    return Judgement(bench.rows, grid(torch.cat(shown), columns=SHOWN), caption)


def with_boxes(images: Tensor, asked: list[list[Box]]) -> Tensor:
    """Images [N, 3, H, W] with the edges of their boxes in red."""
    drawn = images.clone()
    height, width = images.shape[2:]
    red = torch.tensor([1.0, -1.0, -1.0])[:, None]
    for image, own in zip(drawn, asked, strict=False):
        for left, top, right, bottom in own:
            x0, x1 = round(left * width), min(round(right * width), width - 1)
            y0, y1 = round(top * height), min(round(bottom * height), height - 1)
            for row in (y0, y1):
                image[:, row, x0 : x1 + 1] = red
            for column in (x0, x1):
                image[:, y0 : y1 + 1, column] = red
    return drawn
