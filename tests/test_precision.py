"""Low precision is inside networks only: noise arithmetic is fp32 under autocast, and bf16 training follows fp32."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from toys import curve
from untrained import randomise

from ldm.device import mixed_precision
from ldm.diffusion import samplers, weighting
from ldm.diffusion.counter_random import normal, uniform
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.guidance import ClassifierFree
from ldm.diffusion.loss import diffusion_loss
from ldm.diffusion.noise import LogNormal, stratify
from ldm.diffusion.precond import EDM, Eps, Flow, V
from ldm.diffusion.schedule import VE, scaled_linear
from ldm.diffusion.schedule import Flow as FlowSchedule
from ldm.diffusion.sigmas import karras
from ldm.model import lower_denoiser
from ldm.networks.adm_unet import ADMUNet
from ldm.networks.dit import DiT
from ldm.networks.efficient_unet import EfficientUNet
from ldm.networks.unet import UNet
from ldm.run import Run

Train = Callable[..., Run]
# Mean relative distance of the losses of 60 steps of the toy on the built-in images.
TRACKS_WITHIN = 0.003  # 0.0003 was measured, 0.026 with noise in bf16
PRECONDS = [Eps(scaled_linear(0.00085, 0.012)), V(VE()), Flow(FlowSchedule()), EDM(VE(), sigma_data=1.0)]


def half(x: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
    """A network that autocast leaves alone: what changes under it is the arithmetic around the network."""
    return 0.5 * x


@pytest.mark.parametrize("precond", PRECONDS, ids=lambda precond: type(precond).__name__)
@pytest.mark.parametrize("weight", [weighting.Native, weighting.ELBO, weighting.MinSNR], ids=lambda w: w.__name__)
def test_draws_levels_and_losses_are_the_same_bits_under_autocast(precond, weight):
    noise, numbers = LogNormal(-0.5, 1.2), torch.arange(16)
    own = {weighting.Native: precond, weighting.ELBO: noise, weighting.MinSNR: 5.0}[weight]

    def losses() -> torch.Tensor:
        x0 = normal(0, "latents", numbers, (4, 8, 8))
        sigma = noise.icdf(stratify(uniform(0, "sigma", numbers)[:, 0], numbers, 16))
        n = normal(0, "noise", numbers, (4, 8, 8))
        return diffusion_loss(Denoiser(half, precond), x0, sigma, n, {}, weight(own))

    exact = losses()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = losses()
    assert mixed.dtype == torch.float32 and torch.equal(mixed, exact)


@pytest.mark.parametrize("sampler", [samplers.euler, samplers.heun, samplers.dpmpp_2m], ids=lambda s: s.__name__)
def test_guided_sampling_is_the_same_bits_under_autocast(sampler):
    denoiser, guidance = Denoiser(half, EDM(VE(), sigma_data=1.0)), ClassifierFree(3.0)
    x, sigmas = 80 * normal(0, "first noise", torch.arange(2), (4, 8, 8)), karras(5, 0.01, 80.0)

    def sample() -> torch.Tensor:
        denoise = guidance(lambda x, sigma: denoiser(x, sigma, {}), lambda x, sigma: 0.9 * denoiser(x, sigma, {}))
        return sampler(denoise, x, sigmas)

    exact = sample()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sample(), exact)


OWN = {"tokens_width": 8, "vector_width": 8, "norm_groups": 4}
NETWORKS = {
    "unet": partial(UNet, 4, 4, 16, (1, 2), 1, (1, 2), head_channels=8, **OWN),
    "scale-shift": partial(
        UNet, 4, 4, 16, (1, 2), 1, (2,), num_heads=2, scale_shift_norm=True, resblock_updown=True, **OWN
    ),
    "adm": partial(ADMUNet, 4, 4, 16, (1, 2), 1, (2,), head_channels=8, **OWN),
    "efficient": partial(EfficientUNet, 4, 4, 16, (1, 2), (1, 1), 1, (2,), (2,), head_channels=8, **OWN),
    "dit": partial(DiT, 4, 4, 1, 16, 2, 2, tokens_width=8, vector_width=8),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_lowered_to_bf16_gives_what_autocast_gives_bit_for_bit(name: str):
    torch.manual_seed(0)
    network = NETWORKS[name]().requires_grad_(False)
    randomise(network, 0.1, 0)
    denoiser = Denoiser(network, EDM(VE(), sigma_data=1.0))
    x, sigma = torch.randn(2, 4, 8, 8), torch.tensor([0.5, 5.0])
    cond = {"tokens": torch.randn(2, 3, 8), "vector": torch.randn(2, 8)}
    exact, size = denoiser(x, sigma, cond), sum(p.nbytes for p in network.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        expected = denoiser(x, sigma, cond)
    lower_denoiser(denoiser, "bf16", torch.device("cpu"))
    made = denoiser(x, sigma, cond)
    assert made.dtype == torch.float32 and made.equal(expected)
    assert 0 < (made - exact).abs().mean() < 0.02 * exact.abs().mean()
    assert sum(p.nbytes for p in network.parameters()) < 0.6 * size


@pytest.mark.parametrize("able", [True, False])
def test_emulated_bf16_is_told_of(train_diffusion: Train, monkeypatch: pytest.MonkeyPatch, capsys, able: bool):
    monkeypatch.setattr("ldm.fit.computes_bf16", lambda *_: able)
    train_diffusion("trainer.precision=bf16-mixed", "max_steps=1")
    assert ("32-true is many times faster" in capsys.readouterr().out) is not able


def test_bf16_training_follows_fp32_and_would_not_with_noise_in_bf16(
    train_diffusion: Train, monkeypatch: pytest.MonkeyPatch
):
    # At low noise too, where x0 and its estimate differ least.
    own = ("noise=log_uniform", "~noise.mean", "max_steps=60", "callback.metrics.every_steps=1", "network.width=16")

    def losses(precision: str, run: str) -> torch.Tensor:
        found = curve(train_diffusion(*own, f"trainer.precision={precision}", run=run).folder)
        return torch.tensor([found[step] for step in range(1, 61)], dtype=torch.float64)

    exact = losses("32-true", "fp32")
    deviation = (losses("bf16-mixed", "mixed") / exact - 1).abs()
    assert 0 < deviation.mean() < TRACKS_WITHIN

    def careless(denoiser: Denoiser, x: torch.Tensor, sigma: torch.Tensor, cond: dict) -> torch.Tensor:
        return original(denoiser, x.bfloat16(), sigma.bfloat16(), cond)

    original = Denoiser.forward
    monkeypatch.setattr(Denoiser, "forward", careless)
    careless_deviation = (losses("bf16-mixed", "careless") / exact - 1).abs()
    assert careless_deviation.mean() > 3 * TRACKS_WITHIN


def test_auto_is_told_written_down_and_kept(train_diffusion: Train, monkeypatch: pytest.MonkeyPatch, capsys):
    for steps, able in ((1, False), (2, True)):  # begun where fp32 is faster, resumed where bf16 is
        monkeypatch.setattr("ldm.device.computes_bf16", lambda *_, able=able: able)
        run = train_diffusion("trainer.precision=auto", f"max_steps={steps}")
        assert "diffusion: trainer.precision=auto is 32-true" in capsys.readouterr().out
        assert "precision: 32-true" in (run.folder / "config.yaml").read_text()


def test_auto_asks_of_the_processor_that_is_trained_on(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert mixed_precision() == mixed_precision("gpu") == "32-true"
    assert mixed_precision("cpu") == "bf16-mixed"
