"""Likelihoods of Gaussians, of which the closed form is known, and the job that measures a run's held-out samples."""

import csv
from pathlib import Path

import pytest
import torch
from torch import Tensor
from toys import QUICKSTART
from untrained import untrained_run

from ldm.config import compose, overriding
from ldm.diffusion import likelihood, schedule
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.precond import EDM, Eps, Flow, Precond, V
from ldm.ensemble import write_manifest
from ldm.errors import UserError
from ldm.evaluation.likelihood import measure_likelihood
from ldm.evaluation.nats import Meter
from ldm.run import Run

# A Gaussian in a latent of [2, 4, 4]: 32 numbers of different sizes that depend on each other.
MEAN = torch.linspace(-0.5, 0.5, 32, dtype=torch.float64)
AXES = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
VARIANCES = torch.linspace(0.3, 1.7, 32, dtype=torch.float64)
COVARIANCE = AXES @ VARIANCES.diag() @ AXES.T
NORMAL = torch.distributions.MultivariateNormal(MEAN, COVARIANCE)


def drawn(num_samples: int) -> tuple[Tensor, Tensor]:
    """Samples [N, 2, 4, 4] of it, and their -log p [N]."""
    torch.manual_seed(1)
    x0 = NORMAL.sample((num_samples,))
    return x0.reshape(-1, 2, 4, 4).float(), -NORMAL.log_prob(x0)


def optimal(x: Tensor, sigma: Tensor) -> Tensor:
    """E[x0 | x], of which the likelihood is the Gaussian's own."""
    share = VARIANCES / (VARIANCES + sigma.double()[:, None] ** 2)
    centred = (x.double().flatten(1) - MEAN) @ AXES
    return (MEAN + (share * centred) @ AXES.T).reshape(x.shape).to(x.dtype)


class Oracle:
    """The network under a parametrisation that makes the denoiser `optimal`; it knows sigma by what it is told."""

    def __init__(self, precond: Precond, sigmas: Tensor):
        self.precond = precond
        self.sigmas = sigmas
        self.told = precond(sigmas)[3]

    def __call__(self, x: Tensor, c_noise: Tensor) -> Tensor:
        sigma = self.sigmas[(self.told - c_noise[:, None]).abs().argmin(1)].float()
        c_skip, c_out, c_in, _ = (value.reshape(-1, 1, 1, 1) for value in self.precond(sigma))
        x = x / c_in
        return (optimal(x, sigma) - c_skip * x) / c_out


EDM_SCHEDULE = schedule.VE(c_noise_scale=250.0)
KINDS = {
    "edm": (EDM_SCHEDULE, EDM(EDM_SCHEDULE, 1.0)),
    "eps": (schedule.linear(), Eps(schedule.linear())),
    "v": (schedule.cosine(), V(schedule.cosine())),
    "flow": (schedule.Flow(), Flow(schedule.Flow())),
}


@pytest.mark.parametrize(
    ("kind", "num_levels", "num_samples"), [*((kind, 60, 512) for kind in KINDS), ("eps", None, 96)]
)
def test_the_bound_of_a_gaussian_is_its_own_likelihood(kind, num_levels, num_samples):
    own, precond = KINDS[kind]
    chain = likelihood.chain_of(own, 1000)
    denoiser = Denoiser(Oracle(precond, chain), precond)
    x0, exact = drawn(num_samples)
    bound = likelihood.variational_bound(
        lambda x, sigma: denoiser(x, sigma, {}), x0, chain, own.init_scale(chain[-1].item()),
        lambda estimate, sigma: likelihood.gaussian(x0, estimate, sigma), 0, torch.arange(num_samples), num_levels,
    )  # fmt: skip
    found = bound.nats(bound.best_spread())
    assert found.mean().item() == pytest.approx(exact.mean().item(), rel=0.01)
    assert bound.nats().mean() > found.mean()


@pytest.mark.parametrize("kind", KINDS)
def test_the_density_of_a_gaussian_by_the_ode_is_its_own(kind):
    own, _ = KINDS[kind]
    x0, exact = drawn(16)
    probes = torch.stack([likelihood.rademacher(0, torch.arange(16), (2, 4, 4), stream) for stream in range(8)])
    levels = likelihood.chain_of(own, 1000)
    lo, hi = levels[0].item(), levels[-1].item()
    found = likelihood.density(optimal, x0, lo, hi, own.init_scale(hi), probes, tolerance=0.01)
    assert found.nats.mean().item() == pytest.approx(exact.mean().item(), rel=0.01)


def test_the_bins_of_a_pixel_hold_all_of_a_gaussian_between_them():
    pixels = (torch.arange(256) / 127.5 - 1)[:, None]
    for mean, sigma in ((0.1, 0.01), (-1.0, 0.3), (3.0, 0.001)):
        nats = likelihood.discretised_gaussian(pixels, torch.full_like(pixels, mean), sigma)
        assert nats.isfinite().all()
        assert (-nats).exp().sum().item() == pytest.approx(1.0, abs=1e-9)


# A run's held-out samples

NINE = "conditioner.label.num_classes=9"
SMALL = ["num_samples=5", "num_timesteps=20", "num_levels=8", "tolerance=1e3", "batch_size=4", "device=cpu"]


def tree(model: Path, *words: str) -> dict:
    return compose("likelihood", overriding([f"model={model}", *SMALL, *words]))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_pixels_are_measured_once_whatever_the_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = untrained_run(tmp_path / "run", "precond.sigma_data=0.5", NINE)
    rows, folder = measure_likelihood(tree(run, f"out={tmp_path}/a"))
    found = {row["metric"].removeprefix("bits_per_dim/"): row["value"] for row in rows}
    parts = found["elbo.prior"] + found["elbo.steps"] + found["elbo.reconstruction"]
    assert found["elbo"] == pytest.approx(parts) and found["elbo"] < found["elbo.ddpm_variance"]
    samples = rows_of(folder / "samples.csv")
    assert sum(float(row["ode"]) for row in samples) / 5 == pytest.approx(found["ode"])
    curve = rows_of(folder / "rate_distortion.csv")
    rates = [float(row["bits_per_dim"]) for row in curve]
    assert rates == sorted(rates) and float(curve[0]["sigma"]) > float(curve[-1]["sigma"]) and len(curve) == 8
    assert (folder / "rate_distortion.png").exists()

    others, _ = measure_likelihood(tree(run, f"out={tmp_path}/b", "batch_size=3", "ode=false"))
    for row, other in zip(rows[:-1], others, strict=True):
        assert row["metric"] == other["metric"] and row["value"] == pytest.approx(other["value"], rel=1e-4)
    monkeypatch.setattr(Meter, "__call__", None)  # nothing is measured again
    assert measure_likelihood(tree(run, f"out={tmp_path}/a"))[0] == rows


def test_latents_are_measured_as_such_and_on_other_shards_too(diffusion: Run, tmp_path: Path):
    rows, folder = measure_likelihood(tree(diffusion.folder, f"out={tmp_path}", "ode=false", "decode=true"))
    assert {row["metric"].partition("/")[0] for row in rows} == {"bits_per_latent_dim"}
    assert all("rmse_grey_levels" in row for row in rows_of(folder / "rate_distortion.csv"))
    more = [f"data={QUICKSTART}/validation-00000.tar", "use_conditions=[]", "num_levels=null", "ode=false"]
    others, _ = measure_likelihood(tree(diffusion.folder, f"out={tmp_path}", *more))
    assert others[0]["value"] != rows[0]["value"] and others[0]["samples"] == 5


@pytest.mark.parametrize(
    ("run", "words", "problem"),
    [
        ([], ["num_levels=20"], "num_levels=20: must be at least 1, and less than num_timesteps=20"),
        ([], ["num_samples=1"], "num_samples=1: must be at least 2"),
        ([], ["tolerance=0"], r"tolerance=0(\.0)?: must be above 0"),
        ([], ["use_conditions=[text]"], "use_conditions: no condition text"),
        (["data.validation=null"], [], "0 held-out samples are there to measure; name more with data="),
        (["data.fields=null"], [], r"conditioner\.label reads 'label', .*data\.fields"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is(tmp_path: Path, run, words, problem):
    model = untrained_run(tmp_path / "run", *run)
    with pytest.raises(UserError, match=problem):
        measure_likelihood(tree(model, f"out={tmp_path}/out", *words))
    assert not (tmp_path / "out").exists()


def test_a_likelihood_that_is_not_finite_is_named_with_the_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = untrained_run(tmp_path / "run", NINE)
    monkeypatch.setattr("ldm.evaluation.nats.discretised_gaussian", lambda pixels, *_: pixels.flatten(1)[:, 0] / 0)
    with pytest.raises(UserError, match=r"model=run: the likelihood of .* is not finite; look at its weights"):
        measure_likelihood(tree(run, f"out={tmp_path}/out", "ode=false"))


def test_an_ensemble_is_measured_as_one_model(tmp_path: Path):
    members = [untrained_run(tmp_path / f"{n}", f"expert.node=[1,{n}]", NINE, seed=n) for n in range(2)]
    write_manifest(tmp_path / "e.yaml", members)
    rows, folder = measure_likelihood(tree(tmp_path / "e.yaml", "ode=false", f"out={tmp_path}/out"))
    assert rows[0]["metric"] == "bits_per_dim/elbo" and (folder / "likelihood.json").exists()
