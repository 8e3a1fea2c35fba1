"""A VQ first stage beside those of diffusers' VQGAN example: equal CPU time, data, codes and weights, held-out images.

    OMP_NUM_THREADS=1 python scripts/dev/diffusers_vqgan.py results=docs/results/vqgan.csv
    OMP_NUM_THREADS=1 python scripts/dev/diffusers_vqgan.py rows=ours,group seeds=1,2 results=docs/results/vqgan.csv

rows=ours,spatial,group,fast
seeds=0
device_seconds=300   # of the training's steps of each: of a CPU's cores, or of the time on a GPU
num_samples=506      # held-out images
results=             # a CSV; what has a row there is not trained again
runs_dir=runs
device=cpu
overrides=           # for train.py

`ours` is experiment=quickstart/autoencoder with 1,024 codes. The others are trained as examples/vqgan of diffusers does
it, with its defaults: generator and discriminator take turns, squared error, features of a VGG, an adversarial loss
weighed by gradients, a hinge loss with a penalty on gradients, AdamW at a constant 1e-4, batches of 16, no average of
the weights; bf16 as ours. `spatial` has the example's norms, `group` group norms, and `fast` those and ten times the
rate: at 1e-4 so small a network has learnt next to nothing in five minutes. What of the example could not be
kept: features are those of VGG16's third stage, for VGG19's weights come with no package, of images at their own size,
for at 224 px a step takes seconds; the discriminator has four levels, for six leave nothing of 32 px.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from options import parse

from ldm.config import compose, guarded, overriding
from ldm.errors import UserError

Row = dict[str, Any]
KEYS = {"rows": "ours,spatial,group,fast", "seeds": "0", "device_seconds": 300, "num_samples": 506, "results": "",
        "runs_dir": "runs", "device": "cpu", "overrides": ""}  # fmt: skip
WORDS = ("experiment=quickstart/autoencoder", "regularizer=vq", "regularizer.channels=4", "regularizer.num_codes=1024",
         "logger.mode=disabled", "callback_add=[device_seconds]")  # fmt: skip
SPATIAL: Row = {"block_out_channels": [32, 32, 32], "layers_per_block": 2, "norm_num_groups": 4, "norm_type": "spatial"}
GROUP = {**SPATIAL, "block_out_channels": [12, 24, 40], "norm_type": "group"}
RATE, DECAY, MAX_GRADIENT_NORM, PENALTY, MOST = 1e-4, 1e-2, 1.0, 10.0, 1e4
PEERS: Mapping[str, tuple[Row, float]] = {
    "spatial": (SPATIAL, RATE),
    "group": (GROUP, RATE),
    "fast": (GROUP, 10 * RATE),
}
STAGE = 15  # the last layer of VGG16's third stage
SETTINGS = ("device_seconds", "num_samples", "overrides", "device")


@dataclass(frozen=True)
class Cell:
    """What has a row."""

    row: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.row}-{self.seed}"


def main(arguments: list[str]) -> int:
    """Train and measure what has no row yet, and print all rows."""
    if "--help" in arguments or "-h" in arguments:
        print(__doc__.strip())
        return 0
    options = parse(arguments, KEYS)
    names, seeds = options["rows"].split(","), options["seeds"].split(",")
    for name in names:
        if name not in ("ours", *PEERS):
            raise UserError(f"rows={options['rows']}: {name!r} is none of ours, {', '.join(PEERS)}")
    if not all(seed.isdecimal() for seed in seeds):
        raise UserError(f"seeds={options['seeds']}: whole numbers, such as 0,1,2")
    if options["device_seconds"] < 1 or options["num_samples"] < 2:
        raise UserError("device_seconds and num_samples: at least 1 second and 2 images")
    if set(names) & set(PEERS) and find_spec("diffusers") is None:
        raise UserError(f"rows={options['rows']}: needs diffusers: pip install diffusers, or rows=ours")
    path = Path(options["results"] or Path(options["runs_dir"]) / "vqgan" / "rows.csv")
    from ldm.results.results import Results

    results: Results[Cell] = Results(path, check_row, ("row", "settings"))
    settings = json.dumps({key: options[key] for key in SETTINGS}, sort_keys=True)
    asked = [Cell(name, seed) for seed in dict.fromkeys(map(int, seeds)) for name in dict.fromkeys(names)]
    for cell in results.left(asked, "rows", lambda cell: settings, train=True):
        found = ours(options, cell.seed) if cell.row == "ours" else Peer(cell.row, options, cell.seed).row()
        results.add(cell, [{"settings": settings, **found}])
    show([row for cell in asked for row in results.find(cell)], path)
    return 0


def check_row(row: Row, place: str) -> None:
    """Raises UserError for what is no row of this script."""
    if row.get("row") not in ("ours", *PEERS) or not isinstance(row.get("seed"), int):
        raise UserError(f"{place}: no row of scripts/dev/diffusers_vqgan.py")


def show(rows: list[Row], path: Path) -> None:
    """The rows as a table."""
    measured = [name for name in rows[0] if "/" in name or name in ("l1", "psnr", "ssim", "lpips_alex", "psim")]
    for name in ("", *measured):
        cells = [f"{row['row']}-{row['seed']}" if not name else f"{float(row[name]):.4g}" for row in rows]
        print(f"{name:32}" + "".join(f"{cell:>14}" for cell in cells))
    print(f"rows of {path}")


def words_of(options: Row, seed: int) -> list[str]:
    """Of train.py, for a run of ours; a peer has its data and its number of codes."""
    own = [*WORDS, f"runs_dir={options['runs_dir']}", f"seed={seed}", "trainer.precision=auto"]
    return overriding([*own, *options["overrides"].split()])


def ours(options: Row, seed: int) -> Row:
    """Trains a run of ours for the budget, a process of its own after a trial of forty steps, and measures it."""
    import torch

    from ldm.build import load_autoencoder
    from ldm.first_stage.first_stage import reconstruct
    from ldm.launching import FINISHED, Job
    from ldm.launching.local import launch
    from ldm.sweep.budget import logged, steps_within, trial_words
    from ldm.training.callbacks.device_seconds import NAME

    words, runs = words_of(options, seed), Path(options["runs_dir"])
    run, trial = runs / f"vqgan-ours-seed{seed}", runs / f"vqgan-ours-seed{seed}-trial"

    def train(job: Job) -> None:
        if launch([job]) != [FINISHED]:
            raise UserError(f"{job.name} did not finish")

    train(Job(trial.name, tuple(overriding([*words, *trial_words(trial.name, 40)]))))
    steps = steps_within(trial, options["device_seconds"])
    own = [f"run={run.name}", f"max_steps={steps}", f"callback.checkpoint.every_steps={steps}", "overwrite=true"]
    train(Job(run.name, tuple(overriding([*words, *own]))))
    parts, _ = load_autoencoder(run)
    autoencoder, regularizer = (parts[name].to(options["device"]).eval() for name in ("autoencoder", "regularizer"))
    count = sum(each.numel() for part in (autoencoder, regularizer) for each in part.parameters())
    seconds = dict(logged(run, NAME))
    row = {"parameters": count, "steps": steps, "device_seconds": seconds[max(seconds)]}
    with torch.no_grad():
        return {**row, **measured(lambda image: reconstruct(autoencoder, regularizer, image), parts["data"], options)}


def measured(reconstruct: Callable[[Any], Any], data: Any, options: Row) -> Row:
    """How near images [B, 3, H, W] in [-1, 1] of the held-out ones come back: means, and distances of the two sets."""
    import torch

    from ldm.metrics.features import efficientnet_features
    from ldm.metrics.reconstruction_quality import Reconstructions, reconstruction_quality
    from ldm.networks.lpips import pretrained_lpips

    device = torch.device(options["device"])
    backbone = efficientnet_features().to(device)
    alex, vgg = (pretrained_lpips(net).to(device) for net in ("alex", "vgg"))
    looking = Reconstructions(backbone, {alex.name: alex, "psim": vgg})
    data.setup()
    count = min(options["num_samples"], data.num_validation)
    rows = [looking.none()]
    with torch.no_grad():
        for batch in data.validation_loader(0, 1, 50, count):
            image = batch["image"].to(device)
            rows.append(looking.look_at(image, reconstruct(image)).cpu())
    found = looking.found(torch.cat(rows))
    return {name: one.value for name, one in reconstruction_quality(found, backbone.cpu(), 0).items()}


class Peer:
    """diffusers' VQModel, the example's discriminator and their optimizers, on the data of ours."""

    def __init__(self, name: str, options: Row, seed: int):
        import torch
        from diffusers import VQModel

        from ldm.build import Parts
        from ldm.device import choose, computes_bf16
        from ldm.metrics.features import IMAGENET_MEAN, IMAGENET_STD
        from ldm.networks.lpips import pretrained_lpips

        torch.manual_seed(seed)
        network, rate = PEERS[name]
        self.options, self.device = options, choose(options["device"])
        self.parts = Parts(compose("config", words_of(options, seed)))
        codes = self.parts["regularizer"].num_codes
        down, up = ["DownEncoderBlock2D"] * 3, ["UpDecoderBlock2D"] * 3
        shape: Row = {"down_block_types": down, "up_block_types": up, "latent_channels": 4, "vq_embed_dim": 4}
        self.network = VQModel(act_fn="silu", num_vq_embeddings=codes, **shape, **network).to(self.device)
        self.discriminator = discriminator().to(self.device)
        self.vgg = pretrained_lpips("vgg").features[: STAGE + 1].to(self.device)
        colours = (torch.tensor(each, device=self.device) for each in (IMAGENET_MEAN, IMAGENET_STD))
        self.mean, self.std = (each.view(1, 3, 1, 1) for each in colours)
        self.optimizers = [
            torch.optim.AdamW(part.parameters(), lr=rate, betas=(0.9, 0.999), weight_decay=DECAY, eps=1e-8)
            for part in (self.network, self.discriminator)
        ]
        self.mixed = computes_bf16(self.device.type)
        self.steps, self.seconds = 0, 0.0

    def row(self) -> Row:
        """Trains for the budget, and measures."""
        from ldm.device import device_clock

        self.parts["data"].setup()
        batches: Iterator[Row] = iter(self.parts["data"].train_loader())
        while self.seconds < self.options["device_seconds"]:
            image = (next(batches)["image"].to(self.device) + 1) / 2  # as the example's, in [0, 1]
            began = device_clock(self.device)
            self.step(image)
            self.seconds += device_clock(self.device) - began
            self.steps += 1
        self.network.eval()
        count = sum(each.numel() for each in self.network.parameters())
        row = {"parameters": count, "steps": self.steps, "device_seconds": self.seconds}
        return {**row, **measured(self.reconstruct, self.parts["data"], self.options)}

    def reconstruct(self, image: Any) -> Any:
        """An image in [-1, 1], as it comes back."""
        return self.network((image + 1) / 2).sample.float() * 2 - 1

    def step(self, image: Any) -> None:
        """The body of the example's loop: an even step is the generator's, an odd one the discriminator's."""
        import torch

        turn = self.steps % 2
        optimizer, own = self.optimizers[turn], (self.network, self.discriminator)[turn]
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
            output, commitment = self.network(image, return_dict=False)
            loss = self.discriminated(image, output.detach()) if turn else self.generated(image, output, commitment)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(own.parameters(), MAX_GRADIENT_NORM)
        optimizer.step()

    def generated(self, image: Any, output: Any, commitment: Any) -> Any:
        """Squared error, features and the adversarial loss, whose gradient is as long as that of the features."""
        import torch
        import torch.nn.functional as F

        seen = F.mse_loss(self.features(output).float(), self.features(image).float())
        adversarial = -self.discriminator(output).float().mean()
        last = self.network.decoder.conv_out.weight
        first, second = (torch.autograd.grad(each, last, retain_graph=True)[0].norm() for each in (seen, adversarial))
        weight = (first / second.clamp(min=1e-8)).clamp(max=MOST)
        return F.mse_loss(output.float(), image) + commitment.float() + seen + weight * adversarial

    def discriminated(self, image: Any, output: Any) -> Any:
        """Hinge, and a penalty on gradients at real images that are not as long as 1."""
        import torch

        image = image.requires_grad_()
        real, fake = self.discriminator(image).float(), self.discriminator(output).float()
        gradient = torch.autograd.grad(real, image, torch.ones_like(real), create_graph=True)[0]
        penalty = (gradient.flatten(1).norm(dim=1) - 1).square().mean()
        return (torch.relu(1 + fake) + torch.relu(1 - real)).mean() + PENALTY * penalty

    def features(self, image: Any) -> Any:
        """What the VGG sees of images in [0, 1]."""
        return self.vgg((image - self.mean) / self.std)


def discriminator(hidden: int = 512, depth: int = 4) -> Any:
    """The example's: spectrally normed convolutions of stride 2 with instance norms, then a logit through a sigmoid."""
    from torch import nn

    widths = [3, *(hidden // 2 ** max(3 - level, 0) for level in range(depth))]
    layers: list[nn.Module] = []
    for level in range(depth):
        conv = nn.Conv2d(widths[level], widths[level + 1], 3, stride=2, padding=1)
        layers += [nn.utils.spectral_norm(conv), *([nn.InstanceNorm2d(widths[level + 1])] if level else [])]
        layers.append(nn.LeakyReLU(0.2))
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 1), nn.Sigmoid())


if __name__ == "__main__":
    guarded(main)
