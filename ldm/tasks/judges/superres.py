"""Small pictures enlarged: beside bicubic, the first stage's ceiling, and other models of the same size."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.evaluation.paired import Measure
from ldm.images import grid
from ldm.metrics.reconstruction import psnr, ssim
from ldm.tasks.bench import FILES, Bench, Judgement, in_batches
from ldm.tasks.canvases import held_out_canvases, picture_files, pixels
from ldm.tasks.trainings import TASKS

SHOWN = 8
HELD = {"scale": 3.0, "target": "low_resolution"}  # guidance towards the file itself, by the 20 steps of a sample
Images = dict[str, Tensor]


def judge_superres(bench: Bench) -> Judgement:
    """PSNR, SSIM, LPIPS and KID of all that enlarges the same held-out pictures (arXiv 2112.10752, tables 5 and 11)."""
    found, truth = _enlarged(bench, guided=True)
    table = _measured(bench, found, truth)
    bench.add_mean("obeyed: PSNR less with low shuffled", table["samples"]["PSNR"] - table["low shuffled"]["PSNR"])
    bench.add_mean("PSNR of guided less that of samples", table["guided"]["PSNR"] - table["samples"]["PSNR"])
    bench.add_mean("LPIPS of bicubic less that of samples", table["bicubic"]["LPIPS"] - table["samples"]["LPIPS"])
    return _shown(bench, found, truth)


def judge_degraded(bench: Bench) -> Judgement:
    """The same of pictures that are not as clean as those of a resize, where a model of clean ones is beside."""
    found, truth = _enlarged(bench)
    table = _measured(bench, found, truth)
    clean = table[_called(TASKS[bench.part.task][1])]
    bench.add_mean("obeyed: PSNR less with low shuffled", table["samples"]["PSNR"] - table["low shuffled"]["PSNR"])
    bench.add_mean("LPIPS of bicubic less that of samples", table["bicubic"]["LPIPS"] - table["samples"]["LPIPS"])
    less = clean["LPIPS"] - table["samples"]["LPIPS"]
    bench.add_mean("LPIPS of the model of clean pictures less that of samples", less)
    return _shown(bench, found, truth)


def _enlarged(bench: Bench, guided: bool = False) -> tuple[Images, Tensor]:
    """What each of the task's models and of the baselines makes of the files, by its name; and the true pictures.

    What is `guided` is held to the file by the gradient of its bicubic reduction (table 11's guided row).
    """
    first, *others = TASKS[bench.part.task]
    model = bench.model(first)
    truth = pixels(held_out_canvases(model.drawer.data, bench.count(most=FILES)))
    made = model.drawer.data.keys.derived["low_resolution"].make(truth, torch.arange(len(truth)))
    files = picture_files(made, "low", bench.folder / "given")
    given = [{"low": file} for file in files]
    small = made.clamp(-1, 1).add(1).mul(127.5).round() / 127.5 - 1  # what the files hold
    found = {
        "bicubic": F.interpolate(small, truth.shape[2:], mode="bicubic").clamp(-1, 1),
        "first stage's ceiling": bench.reconstructed(model, truth),
        "samples": bench.sample(model, given),
        "low shuffled": bench.sample(model, given[1:] + given[:1]),
    }
    if guided:
        factor = truth.shape[3] // made.shape[3]
        to_file: dict[str, Any] = {"loss_guidance": {"image": HELD}, "operator": {"bicubic": {"factor": factor}}}
        found["guided"] = bench.sample(model, given, **to_file)
    return {**found, **{_called(name): bench.sample(bench.model(name), given) for name in others}}, truth


def _called(training: str) -> str:
    return training.removeprefix("superres_").replace("_", " ")


def _measured(bench: Bench, found: Images, truth: Tensor) -> dict[str, Images]:
    """The measures [N] of each against the truth, by their names; their means become rows."""
    measures: dict[str, Measure] = {"PSNR": psnr, "SSIM": ssim, "LPIPS": bench.lpips}
    table = {name: {key: in_batches(measure, images, bench, truth).clamp(max=99) for key, measure in measures.items()}
             for name, images in found.items()}  # fmt: skip
    for key in measures:
        for name, values in table.items():
            bench.add_mean(f"{key}, {name}", values[key])
    real = bench.features(truth)
    for name, images in found.items():
        bench.add_set(name, real, images)
    return table


def _shown(bench: Bench, found: Images, truth: Tensor) -> Judgement:
    sheet = grid(torch.cat([images[:SHOWN] for images in (*found.values(), truth)]), columns=SHOWN)
    return Judgement(bench.rows, sheet, f"Rows: {', '.join(found)}, truth.")
