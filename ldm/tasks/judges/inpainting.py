"""Holes filled: the rest as it was, what is in the hole nearer to the truth than a mean colour, answers that differ."""

import torch
from torch import Tensor

from ldm.images import grid
from ldm.tasks.bench import FILES, Bench, Judgement
from ldm.tasks.canvases import held_out_canvases, picture_files, pixels

SHARES = ((0.01, 0.1), (0.1, 0.2), (0.2, 0.3), (0.3, 0.4), (0.4, 0.5))  # of the picture, as in table 7
SHOWN = 8


def judge_inpainting(bench: Bench) -> Judgement:
    """LPIPS by the hole's share of the picture beside the mean-colour fill, what is kept, and how answers differ."""
    model = bench.model("inpainting")
    data = model.drawer.data
    truth = pixels(held_out_canvases(data, bench.count(most=FILES)))
    mask = data.keys.derived["mask"].make(truth, torch.arange(len(truth)))
    folder = bench.folder / "given"
    images, holes = picture_files(truth, "image", folder), picture_files(mask * 2 - 1, "mask", folder)
    given = [{"image": image, "mask": hole} for image, hole in zip(images, holes, strict=True)]
    answers = [bench.sample(model, given, seed=seed) for seed in (0, 10_000)]
    elsewhere = [{"image": image, "mask": hole} for image, hole in zip(images[1:] + images[:1], holes, strict=True)]
    other = bench.sample(model, elsewhere)
    outside = ((answers[0] - truth).abs() * (1 - mask)).flatten(1).amax(1) * 127.5
    bench.add_statistic("largest difference outside the hole, of 255", outside, torch.max)
    found = {"samples": answers[0], "mean colour": mean_filled(truth, mask), "image shuffled": other}
    found["first stage's ceiling"] = bench.reconstructed(model, truth)
    lpips = {name: bench.lpips_of(within(own, truth, mask), truth) for name, own in found.items()}
    for name, values in lpips.items():
        bench.add_mean(f"LPIPS in the hole, {name}", values)
    bench.add_mean("LPIPS of the mean colour less that of samples", lpips["mean colour"] - lpips["samples"])
    bench.add_mean("obeyed: LPIPS with the image shuffled less with it", lpips["image shuffled"] - lpips["samples"])
    two = [within(answer, truth, mask) for answer in answers]
    bench.add_mean("LPIPS between two answers", bench.lpips_of(*two))
    share = mask.flatten(1).mean(1)
    for low, high in SHARES:
        inside = (share >= low) & (share < high)
        for name in ("samples", "mean colour"):
            if inside.sum() > 1:
                where = f"hole of {100 * low:g} to {100 * high:g} %"
                bench.add_mean(f"LPIPS in the hole, {name}, {where}", lpips[name][inside])
    bench.add_set("samples", bench.features(truth), two[0])
    holed = truth.where(mask < 0.5, -1.0)
    shown = torch.cat([rows[:SHOWN] for rows in (holed, *answers, found["mean colour"], truth)])
    caption = "Rows: the picture with its hole, two answers, the mean colour of what is known, the truth."
    return Judgement(bench.rows, grid(shown, columns=SHOWN), caption)


def mean_filled(images: Tensor, mask: Tensor) -> Tensor:
    """Images [N, 3, H, W] with the mean colour of what mask [N, 1, H, W] leaves in its hole."""
    known = 1 - mask
    mean = (images * known).sum((2, 3), keepdim=True) / known.sum((2, 3), keepdim=True).clamp_min(1)
    return within(mean.expand_as(images), images, mask)


def within(images: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """What `images` have in the hole, and the truth outside: they differ from it in nothing else."""
    return images.where(mask >= 0.5, truth)
