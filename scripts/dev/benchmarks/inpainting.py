"""Table 6 of arXiv 2112.10752 at toy width: inpainting of pixels, of KL and of VQ latents of f = 4, and of these with a
first stage without attention. Training, sampling at two sizes, and the memory of decoding at 512 px.
"""

import statistics
from collections.abc import Callable

import torch

from benchmarks.measure import Case, cpu_seconds, peak_memory, report_memory
from ldm.build import Parts
from ldm.config import compose
from ldm.diffusion.loss import diffusion_loss
from ldm.first_stage.first_stage import FirstStage
from ldm.generate import generate

MODELS = {"pixels": "_pixel", "KL": "_kl", "VQ": "", "VQ, no attention": "_noattn"}
# Samples a second of the paper: trained at 256 px, sampled at 256, sampled at 512.
PUBLISHED = {"pixels": (0.11, 0.26, 0.07), "KL": (0.32, 0.97, 0.34), "VQ": (0.33, 0.97, 0.34),
             "VQ, no attention": (0.35, 0.99, 0.36)}  # fmt: skip
WIDTH, NUM_STEPS, DECODED_PX = 32, 4, 512


def run(options: dict) -> None:
    """Print the table, or in a process of its own the memory of one decoder."""
    if options["memory_of"]:
        report_memory(lambda: _decoding(options["memory_of"]), num_steps=1)
        return
    size, count = options["image_size"] or 64, options["batch_size"] or 2
    models = {name: _model(end) for name, end in MODELS.items()}
    tasks: dict[str, Callable[[Parts], Case]] = {
        f"training, {size} px": lambda parts: _training(parts, _batch(parts, count, size)),
        f"sampling, {size} px": lambda parts: _sampling(parts, _batch(parts, count, size), size),
        f"sampling, {2 * size} px": lambda parts: _sampling(parts, _batch(parts, count, 2 * size), 2 * size),
    }
    print(f"torch {torch.__version__}, one thread, batch {count}, {WIDTH} channels, {NUM_STEPS} steps")
    print(f"{'':<20} {'':<18} samples/s   to pixels   the paper's, at 256 (512) px")
    for place, (task, make) in enumerate(tasks.items()):
        times = cpu_seconds({name: make(parts) for name, parts in models.items()}, options["repeats"])
        rates = {name: count / statistics.median(values) for name, values in times.items()}
        for name, rate in rates.items():
            paper = PUBLISHED[name][place] / PUBLISHED["pixels"][place]
            print(f"{task:<20} {name:<18} {rate:9.2f}   {rate / rates['pixels']:8.2f}x   {paper:.2f}x", flush=True)
    print(f"decoding one image of {DECODED_PX} px")
    peak_memory(options, ["VQ, no attention", "VQ"], 1.0, "VQ decoding without attention")


def _model(end: str) -> Parts:
    """The parts of an experiment, of random weights, `WIDTH` channels wide."""
    words = [f"experiment=ldm/inpainting{end}", f"network.channels={WIDTH}", f"num_steps={NUM_STEPS}"]
    words += ["data.train=none.tar"] + ([f"autoencoder.channels={WIDTH}"] if end != "_pixel" else [])
    tree = compose("config", words)
    if not tree["autoencoder"]:
        return Parts(tree)
    bare = Parts(tree)
    channels = bare["regularizer"].latent_channels
    stage = FirstStage(bare["autoencoder"], bare["regularizer"], torch.zeros(channels), torch.ones(channels), "")
    return Parts({**tree, "first_stage": "random"}, first_stage=stage)


def _batch(parts: Parts, count: int, size: int) -> dict:
    numbers = torch.arange(count)
    image = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return {"image": image, "mask": parts["derived"]["mask"].make(image, numbers), "number": numbers}


def _training(parts: Parts, batch: dict) -> Case:
    denoiser, conditioner, stage = parts["denoiser"], parts["conditioner"], parts["first_stage"]
    optimizer = parts["optimizer"](torch.nn.ModuleDict({"network": denoiser.network, "conditioner": conditioner}))
    sigma = parts["noise"].icdf(torch.full((len(batch["number"]),), 0.5)).float()

    def step() -> None:
        x0 = stage.encode(batch["image"])
        cond = conditioner(batch, drop=conditioner.drop_none(len(x0)))
        loss = diffusion_loss(denoiser, x0, sigma, torch.randn_like(x0), cond, parts["weighting"], parts["loss"])
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()

    return step


def _sampling(parts: Parts, batch: dict, size: int) -> Case:
    made = (parts[name] for name in ("denoiser", "conditioner", "first_stage", "sampling"))
    arguments = (*made, batch, batch["number"], 0, size)
    return lambda: generate(*arguments)


def _decoding(name: str) -> Case:
    stage = _model(MODELS[name])["first_stage"]
    z = torch.randn(1, 3, DECODED_PX // 4, DECODED_PX // 4)
    return lambda: stage.decode(z)
