"""Speed and memory against peers, in the same process and run, as ratios of CPU time.

    python scripts/benchmark.py suite=autoencoder
    python scripts/benchmark.py suite=autoencoder repeats=9 batch_size=4 image_size=64

One thread; the contestants take turns, and the median of their times counts. The peers need the test extra (diffusers).
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.config import guarded

KEYS = {"suite": "", "repeats": 7, "batch_size": 2, "image_size": 64, "memory_of": ""}
Case = Callable[[], object]


def main(arguments: list[str]) -> int:
    """Run one suite and print its table."""
    if not arguments or "--help" in arguments or "-h" in arguments:
        print(__doc__.strip() + "\n\nsuites: " + ", ".join(SUITES))
        return 0
    options = dict(KEYS)
    for word in arguments:
        key, _, text = word.partition("=")
        if key not in KEYS:
            raise ValueError(f"{key}: no such key; there are {', '.join(KEYS)}")
        options[key] = type(KEYS[key])(text)
    if options["suite"] not in SUITES:
        raise ValueError(f"suite={options['suite']}: there are {', '.join(SUITES)}")
    import torch

    torch.set_num_threads(1)
    SUITES[options["suite"]](options)
    return 0


def ratios(cases: dict[str, dict[str, Case]], repeats: int) -> None:
    """Print, for each case, the median CPU seconds of each contestant and how many times as fast the first is."""
    for name, contestants in cases.items():
        times: dict[str, list[float]] = {who: [] for who in contestants}
        for run in contestants.values():
            run()  # warm
        for _ in range(repeats):
            for who, run in contestants.items():
                began = time.process_time()
                run()
                times[who].append(time.process_time() - began)
        medians = {who: statistics.median(values) for who, values in times.items()}
        (ours, own), *peers = medians.items()
        spread = max((max(values) - min(values)) / statistics.median(values) for values in times.values())
        for peer, value in peers:
            print(
                f"{name:<28} {ours} {1e3 * own:8.1f} ms   {peer} {1e3 * value:8.1f} ms   "
                f"{value / own:5.2f}x   spread {100 * spread:.0f} %",
                flush=True,
            )


# ---------------------------------------------------------------------------------------------------------------
# First stages: KL, f = 8, half the published width, LPIPS-VGG and PatchGAN


def autoencoder(options: dict) -> None:
    """Training with the full loss in bf16 and fp32, encoding, decoding; then the peak memory of training in bf16."""
    import torch

    if options["memory_of"]:
        step = _autoencoder_cases(options)["training bf16"][options["memory_of"]]
        for _ in range(2):
            step()
        print(json.dumps({"peak_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))
        return
    print(f"torch {torch.__version__}, one thread, batch {options['batch_size']} of {options['image_size']} px")
    ratios(_autoencoder_cases(options), options["repeats"])
    peaks = {who: _peak(options, who) for who in ("ours", "diffusers")}
    ratio = peaks["ours"] / peaks["diffusers"]
    print(f"{'peak memory, training bf16':<28} ours {peaks['ours']:8.0f} MiB  diffusers {peaks['diffusers']:8.0f} MiB  "
          f"{ratio:5.2f}x")  # fmt: skip


def _peak(options: dict, who: str) -> float:
    """Peak resident MiB of a process that trains two steps."""
    words = [f"{key}={options[key]}" for key in ("suite", "batch_size", "image_size")]
    command = [sys.executable, __file__, *words, f"memory_of={who}"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(said.strip().splitlines()[-1])["peak_kib"] / 1024


def _autoencoder_cases(options: dict) -> dict[str, dict[str, Case]]:
    import torch
    from diffusers import AutoencoderKL

    from ldm.checkpoint.export import diffusers_names
    from ldm.first_stage.reconstruction import ReconstructionLoss
    from ldm.first_stage.regularizers import KL
    from ldm.networks.autoencoder import Autoencoder
    from ldm.networks.discriminator import PatchDiscriminator
    from ldm.networks.lpips import LPIPS
    from ldm.training.optim import adam

    torch.manual_seed(0)
    multipliers, width = (1, 2, 4, 4), 64
    ours, regularizer = Autoencoder(8, 4, width, multipliers), KL(4)
    peer = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[width * m for m in multipliers], layers_per_block=2, latent_channels=4,
    )  # fmt: skip
    peer.load_state_dict(diffusers_names(ours.state_dict(), 4))
    lpips = LPIPS("vgg")
    size = options["image_size"]
    image = torch.rand(options["batch_size"], 3, size, size) * 2 - 1
    noise = torch.randn(len(image), 4, size // 8, size // 8)

    loss = ReconstructionLoss(lpips, PatchDiscriminator(), start_step=0)
    trained = torch.nn.ModuleDict({"autoencoder": ours, "reconstruction": loss})
    optimizer = adam(lr=1e-5)(trained)

    def our_step(dtype: torch.dtype) -> None:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            z, terms = regularizer(ours.encode(image), noise)
            total, _ = loss(image, ours.decode(z), terms, ours.last_layer, 1)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()

    discriminator = PatchDiscriminator()
    optimizers = [torch.optim.Adam(m.parameters(), 1e-5, (0.5, 0.9), fused=True) for m in (peer, discriminator)]
    last = peer.decoder.conv_out.weight

    def peer_step(dtype: torch.dtype) -> None:
        # The published losses with one forward of the autoencoder, two optimizers, two passes over the fakes.
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            posterior = peer.encode(image).latent_dist
            output = peer.decode(posterior.mean + posterior.std * noise).sample
            nll = (image - output).abs().mean() + lpips(image, output).mean()
            kl = posterior.kl().mean()
            discriminator.requires_grad_(False)
            generator = -discriminator(output).mean()
            norms = [torch.autograd.grad(term, last, retain_graph=True)[0].norm() for term in (nll, generator)]
            weight = (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4).detach()
            total = nll + 1e-6 * kl / image[0].numel() + 0.5 * weight * generator
        optimizers[0].zero_grad()
        total.backward()
        optimizers[0].step()
        discriminator.requires_grad_(True)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            real, fake = discriminator(image), discriminator(output.detach())
            hinge = 0.5 * (torch.relu(1 - real).mean() + torch.relu(1 + fake).mean())
        optimizers[1].zero_grad()
        hinge.backward()
        optimizers[1].step()

    def inference(function: Callable, x: torch.Tensor) -> Case:
        def run() -> None:
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                function(x)

        return run

    return {
        "training bf16": {"ours": lambda: our_step(torch.bfloat16), "diffusers": lambda: peer_step(torch.bfloat16)},
        "training fp32": {"ours": lambda: our_step(torch.float32), "diffusers": lambda: peer_step(torch.float32)},
        "encode bf16": {"ours": inference(ours.encode, image), "diffusers": inference(peer.encode, image)},
        "decode bf16": {"ours": inference(ours.decode, noise), "diffusers": inference(peer.decode, noise)},
    }


SUITES = {"autoencoder": autoencoder}

if __name__ == "__main__":
    guarded(main)
