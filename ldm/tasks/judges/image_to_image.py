"""Pictures as a beginning: redrawn, filled, widened, restored and varied, by models trained for none of it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ldm.api import Pipeline
from ldm.diffusion.operators import blur, grey
from ldm.images import grid
from ldm.metrics.reconstruction import psnr
from ldm.tasks.bench import Bench, Judgement
from ldm.tasks.canvases import picture_files
from ldm.tasks.judges.inpainting import mean_filled, within

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
VARIED = 0.6  # strength of variations
FRAMES = 5  # from one seed to another
BLUR = 2.0  # px
RESTORED = {"grey": grey, "blurred": lambda images: blur(images, BLUR)}
ASKED: Mapping[str, Any] = {"grey": "grey", "blurred": {"blur": {"std": BLUR}}}
SMALL_STEPS: Mapping[str, Any] = {"sampler": "ddim", "num_steps": 40, "loss_guidance": {"image": {"scale": 10.0}}}
MOST, FEW = 40, 16  # samples; those of many steps
SHOWN = 8


def judge_image_to_image(bench: Bench) -> Judgement:
    """What each strength leaves of held-out pictures, and what else is made of them; `unconditional`, `text` draw."""
    model = bench.model("unconditional")
    batch = bench.held_out(model.drawer.data, bench.count(least=4, most=MOST))
    truth = batch["image"].add(1).mul(127.5).round().div(127.5).sub(1)  # what the files hold
    files = picture_files(truth, "start", bench.folder / "given")
    free = bench.sample(model, [{}] * len(files))
    rows = [truth, *_strengths(bench, model, truth, files, free)]
    rows += [_filled(bench, model, truth, files), _widened(bench, model, truth)]
    rows += _restored(bench, model, truth[:FEW], free[:FEW])
    rows.append(_between(bench, model))
    rows.append(_varied(bench, files, batch["caption"]))
    strengths = ", ".join(f"{strength:g}" for strength in STRENGTHS)
    caption = (
        f"Rows: held-out pictures; begun from them at strength {strengths}; a box in the middle filled; the right "
        "quarter drawn; coloured; sharpened; the way from one seed to the next; varied, with their captions."
    )
    return Judgement(bench.rows, grid(torch.cat([row[:SHOWN] for row in rows]), columns=SHOWN), caption)


def _strengths(bench: Bench, model: Pipeline, truth: Tensor, files: list[str], free: Tensor) -> list[Tensor]:
    given = [{"start": file} for file in files]
    drawn = [bench.sample(model, given, strength=strength) for strength in STRENGTHS]
    _add_largest(bench, "at strength 0 from the picture", drawn[0], truth)
    _add_largest(bench, "at strength 1 from a sample of its own", drawn[-1], free)
    apart = [bench.lpips_of(images, truth) for images in drawn]
    for strength, values in zip(STRENGTHS, apart, strict=True):
        bench.add_mean(f"LPIPS to the picture, strength {strength:g}", values)
    for place, strength in enumerate(STRENGTHS[1:]):
        said = f"LPIPS to the picture, strength {strength:g} less {STRENGTHS[place]:g}"
        bench.add_mean(said, apart[place + 1] - apart[place])
    return drawn


def _filled(bench: Bench, model: Pipeline, truth: Tensor, files: list[str]) -> Tensor:
    """A box in the middle drawn anew, of half the sides."""
    side = truth.shape[-1]
    hole = torch.zeros(1, 1, side, side)
    hole[..., side // 4 : side - side // 4, side // 4 : side - side // 4] = 1
    (mask,) = picture_files(hole * 2 - 1, "hole", bench.folder / "given")
    again = {"repaint": {"num_resamples": 5}}
    images = bench.sample(model, [{"start": file} for file in files], start_mask=mask, sampler=again)
    _add_held(bench, "hole", images, truth, hole)
    return images


def _widened(bench: Bench, model: Pipeline, truth: Tensor) -> Tensor:
    """The right quarter drawn around the rest, which is a file of its own."""
    side = truth.shape[-1]
    files = picture_files(truth[..., : side - side // 4], "left", bench.folder / "given")
    again = {"repaint": {"num_resamples": 5}}
    given = [{"start": file} for file in files]
    images = bench.sample(model, given, canvas=[0, side // 4, 0, 0], sampler=again)
    new = torch.zeros(1, 1, side, side)
    new[..., side - side // 4 :] = 1
    _add_held(bench, "border", images, truth, new)
    return images


def _add_held(bench: Bench, name: str, images: Tensor, truth: Tensor, hole: Tensor) -> None:
    """What is held outside a `hole`, and how near to the truth is what fills it, beside the mean colour."""
    hole = hole.expand(len(truth), -1, -1, -1)
    _add_largest(bench, f"outside the {name}", within(truth, images, hole), truth)
    mean = bench.lpips_of(mean_filled(truth, hole), truth)
    own = bench.lpips_of(within(images, truth, hole), truth)
    bench.add_mean(f"LPIPS in the {name}, samples", own)
    bench.add_mean(f"LPIPS in the {name}, mean colour", mean)
    bench.add_mean(f"LPIPS in the {name} of the mean colour less that of samples", mean - own)


def _restored(bench: Bench, model: Pipeline, truth: Tensor, free: Tensor) -> list[Tensor]:
    """Colours for grey pictures, sharpness for blurred ones, by guidance towards them."""
    found = []
    for name, operator in RESTORED.items():
        files = picture_files(operator(truth), name, bench.folder / "given")
        given = [{"target": file} for file in files]
        images = bench.sample(model, given, operator=ASKED[name], **SMALL_STEPS)
        target = operator(truth)
        own, without = (psnr(operator(drawn), target) for drawn in (images, free))
        bench.add_mean(f"PSNR to the {name} picture, guided by it", own)
        bench.add_mean(f"obeyed: PSNR to the {name} picture with less without guidance", own - without)
        bench.add_mean(f"PSNR to the picture itself, guided by the {name} one", psnr(images, truth))
        found.append(images)
    return found


def _between(bench: Bench, model: Pipeline) -> Tensor:
    """Frames from one seed to the next, of several pairs; the first pair's are shown."""
    ways = []
    for seed in range(max(2, bench.count(least=4, most=MOST) // FRAMES)):
        ways.append(model.sample(seed=seed, to_seed=seed + 1, num_images=FRAMES, batch_size=1).tensor)
    ends = [bench.sample(model, [{}] * len(ways), seed=seed) for seed in (0, 1)]
    _add_largest(bench, "of the first frame from its seed's sample", torch.stack(ways)[:, 0], ends[0])
    _add_largest(bench, "of the last frame from its seed's sample", torch.stack(ways)[:, -1], ends[1])
    apart = bench.lpips_of(torch.stack(ways)[:, 0], torch.stack(ways)[:, -1])
    steps = torch.stack([bench.lpips_of(way[1:], way[:-1]).mean() for way in ways])
    bench.add_mean("LPIPS from seed to seed less that from frame to frame", apart - steps)
    return torch.cat(ways)


def _varied(bench: Bench, files: list[str], captions: list[str]) -> Tensor:
    """Two answers to each picture with its caption, by the model of texts."""
    model = bench.model("text")
    given = [{"start": file, "prompt": caption} for file, caption in zip(files, captions, strict=True)]
    two = [bench.sample(model, given, strength=VARIED, seed=seed) for seed in (0, 10_000)]
    alone = [{"prompt": caption} for caption in captions]
    free = [bench.sample(model, alone, seed=seed) for seed in (0, 10_000)]
    apart, without = bench.lpips_of(*two), bench.lpips_of(*free)
    bench.add_mean("LPIPS between two variations", apart)
    bench.add_mean("LPIPS between two samples of a caption less that between two variations", without - apart)
    return two[0]


def _add_largest(bench: Bench, what: str, images: Tensor, truth: Tensor) -> None:
    """The largest difference of a pixel, of 255."""
    far = (images - truth).abs().flatten(1).amax(1) * 127.5
    bench.add_statistic(f"largest difference, of 255, {what}", far, torch.max)
