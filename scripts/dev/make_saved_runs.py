"""Train the small runs of tests/saved/runs anew: what the code of a day wrote, for all later code to read.

python scripts/dev/make_saved_runs.py [OUT]    (default: tests/saved/runs; a folder that is there is refused)

A later format is a further folder beside these, not these anew: they are kept to show that old runs still load.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import ldm  # noqa: E402
from ldm.config import compose  # noqa: E402
from ldm.fit import fit  # noqa: E402
from ldm.training.loggers import curves  # noqa: E402

SAVED = ROOT / "tests" / "saved" / "runs"
COMMON = [
    "image_size=32", "crop_size=null", "seed=0", "accumulation=1", "data=quickstart", "data.batch_size=4",
    "data.train=data/quickstart/train-00000.tar", "data.validation=data/quickstart/validation-00000.tar",
    "data.max_samples=8", "data.validation_samples=4", "data.num_workers=0", "lr=constant", "ema=default",
    "trainer.accelerator=cpu", "trainer.precision=32-true", "callback=[metrics,checkpoint]",
    "callback.metrics.every_steps=1", "~logger",
]  # fmt: skip
DIFFUSION = [
    "task=diffusion", "network=unet", "network.channels=4", "network.multipliers=[1]", "network.num_blocks=1",
    "network.attention_factors=[]", "network.head_channels=4", "network.norm_groups=2", "conditioner=[label]",
    "conditioner.label.num_classes=20", "conditioner.label.width=4", "schedule=edm", "precond=edm", "noise=log_normal",
    "weighting=native", "expert=default", "sigmas=karras", "sampler=dpmpp_2m", "guidance=classifier_free",
    "num_steps=3", "task.keep_latents=false", "optimizer=adamw", "optimizer.lr=0.01", *COMMON,
]  # fmt: skip
# The commands of the runs, by name; a later one begins from, or with, those before it.
RUNS = {
    "first_stage": [
        "task=autoencoder", "autoencoder=f4", "autoencoder.channels=4", "autoencoder.multipliers=[1,1,1]",
        "autoencoder.num_blocks=1", "autoencoder.norm_groups=2", "autoencoder.mid_attention=false", "regularizer=kl",
        "regularizer.channels=2", "reconstruction=lpips_gan", "reconstruction.lpips.net=alex",
        "reconstruction.start_step=1", "discriminator=patch", "discriminator.channels=4", "discriminator.num_layers=1",
        "optimizer=adam", "optimizer.lr=0.001", *COMMON,
    ],
    "diffusion": ["first_stage=runs/first_stage", *DIFFUSION],
    "expert": ["branch=runs/diffusion", "expert.node=[1,1]", *DIFFUSION],
}  # fmt: skip


def answers(run: Path) -> dict[str, Tensor]:
    """What a run in a folder says to fixed questions, float32: of two samples every fourth pixel, [2, 3, 8, 8]."""
    model = ldm.load(run, device="cpu")
    line = torch.linspace(-1, 1, 32)
    if run.name == "first_stage":
        picture = torch.stack([line.expand(32, 32), line[:, None].expand(32, 32), torch.zeros(32, 32)])
        z = model.encode(picture)
        return {"z": z.contiguous(), "image": model.decode(z[None]).tensor[..., ::4, ::4].contiguous()}
    images = model.sample(label=3, num_images=2, guidance=2.0, seed=0).tensor
    x = line[:8].expand(2, 8, 8).contiguous()
    return {"images": images[..., ::4, ::4].contiguous(), "x0": model.denoise(x, 2.0, label=3).contiguous()}


def main(arguments: list[str]) -> None:
    """Train them in a folder of their own, put them, with their answers, where they are kept, and note the losses of
    two further steps.
    """
    out = Path(arguments[0] if arguments else SAVED).resolve()
    if out.exists():
        raise SystemExit(f"{out} is there already; name another folder")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)  # so that no path in them is this machine's
        for run, words in RUNS.items():
            folder = fit(compose("config", [*words, "runs_dir=runs", "max_steps=2"]), run).folder
            save_file(answers(folder), folder / "answers.safetensors")
        shutil.copytree("runs", out)
        longer = {  # the last first: each needs those before it as they are
            run: fit(compose("config", [*words, "runs_dir=runs", "max_steps=4"]), run)
            for run, words in reversed(RUNS.items())
        }
        losses = {name: curves(run.folder / "metrics.csv")["train/loss"][1][2:] for name, run in longer.items()}
        (out / "later.json").write_text(json.dumps(losses, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
