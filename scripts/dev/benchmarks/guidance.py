"""A guided evaluation of the U-Net with what guidance compares in one batch, one_call=true, and one after the other."""

import torch

from benchmarks import unet
from benchmarks.measure import Case, compare
from ldm.diffusion.branches import Together, apart
from ldm.diffusion.denoiser import Denoise, Denoiser
from ldm.diffusion.guidance import ClassifierFree
from ldm.diffusion.precond import Eps
from ldm.diffusion.schedule import scaled_linear
from ldm.model import lower_denoiser
from ldm.networks.layers import tuned
from ldm.networks.precision import Precision

GOAL, SCALE = 1.0, 3.0  # at which it pays
BATCHES = (1, 4)
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")


def run(options: dict) -> None:
    """Print the suite's table."""
    print(f"torch {torch.__version__}, one thread, latents of {options['image_size'] or 32} px")
    for precision in PRECISIONS:
        if options["precision"] not in (precision, "both"):
            continue
        network = tuned(unet.ours().eval().requires_grad_(False), torch.device("cpu"))
        denoiser = Denoiser(network, Eps(scaled_linear(0.00085, 0.012)))
        lower_denoiser(denoiser, precision, torch.device("cpu"))
        for count in [options["batch_size"]] if options["batch_size"] else BATCHES:
            given = unet.inputs(count, options["image_size"] or 32)
            conditions = {frozenset(["text"]): {"tokens": given.tokens}, frozenset(): {"tokens": 0 * given.tokens}}
            ways: dict[str, Denoise] = {}
            for name, made in (("one call", Together), ("two calls", apart)):
                branch = made(denoiser, conditions.__getitem__)
                ways[name] = ClassifierFree(SCALE)(branch(["text"]), branch(()))
            cases = {name: _evaluation(denoise, given.x) for name, denoise in ways.items()}
            torch.testing.assert_close(cases["one call"](), cases["two calls"](), rtol=0.1, atol=0.1)
            compare(f"guided {precision}, {count}", cases, options["repeats"], GOAL)


def _evaluation(denoise: Denoise, x: torch.Tensor) -> Case:
    def step() -> torch.Tensor:
        with torch.no_grad():
            return denoise(x.clone(), torch.full((len(x),), 2.0))  # another x each time, as a sampler's

    return step
