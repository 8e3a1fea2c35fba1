"""Small pictures enlarged four times: beside bicubic, the first stage's ceiling, a regression and a pixel model."""

import torch
import torch.nn.functional as F

from ldm.evaluation.paired import Measure
from ldm.images import grid
from ldm.metrics.reconstruction import psnr, ssim
from ldm.tasks.bench import FILES, Bench, Judgement, in_batches
from ldm.tasks.canvases import held_out_canvases, picture_files, pixels

MODELS = {"superres_x4": "samples", "superres_x4_regression": "regression", "superres_x4_pixel": "pixel model"}
SHOWN = 8


def judge_superres(bench: Bench) -> Judgement:
    """PSNR, SSIM, LPIPS and KID of all that makes a large picture of the same held-out small ones (tables 5 and 11)."""
    model = bench.model("superres_x4")
    truth = pixels(held_out_canvases(model.drawer.data, bench.count(most=FILES)))
    made = model.drawer.data.keys.derived["low_resolution"].make(truth, torch.arange(len(truth)))
    files = picture_files(made, "low", bench.folder / "given")
    small = (made.clamp(-1, 1).add(1).mul(127.5).round() / 127.5) - 1  # what the files hold
    found = {
        "bicubic": F.interpolate(small, truth.shape[2:], mode="bicubic").clamp(-1, 1),
        "first stage's ceiling": bench.reconstructed(model, truth),
    }
    for training, name in MODELS.items():
        found[name] = bench.sample(bench.model(training), [{"low": file} for file in files])
    others = bench.sample(model, [{"low": file} for file in files[1:] + files[:1]])
    measures: dict[str, Measure] = {"PSNR": psnr, "SSIM": ssim, "LPIPS": bench.lpips}
    table = {name: {key: in_batches(measure, images, bench, truth) for key, measure in measures.items()}
             for name, images in {**found, "low shuffled": others}.items()}  # fmt: skip
    real = bench.features(truth)
    for key in measures:
        for name, values in table.items():
            bench.add_mean(f"{key}, {name}", values[key].clamp(max=99))
    bench.add_mean("obeyed: PSNR less with low shuffled", table["samples"]["PSNR"] - table["low shuffled"]["PSNR"])
    bench.add_mean("LPIPS of bicubic less that of samples", table["bicubic"]["LPIPS"] - table["samples"]["LPIPS"])
    for name, images in found.items():
        bench.add_set(name, real, images)
    shown = torch.cat([images[:SHOWN] for images in (*found.values(), truth)])
    caption = f"Rows: {', '.join(found)}, truth."
    return Judgement(bench.rows, grid(shown, columns=SHOWN), caption)
