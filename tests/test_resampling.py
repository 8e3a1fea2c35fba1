"""Importance sampling by past losses: unbiased, the same whoever computes it, resumed exactly, and of use."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from toys import Process, assert_equal_runs, curve, state, tiny

from ldm.diffusion.noise import DiscreteNoise, LogNormal, Restricted, stratify
from ldm.diffusion.resampling import LossHistory
from ldm.diffusion.schedule import scaled_linear
from ldm.run import Run

Train = Callable[..., Run]
# Every bin is met in every step, so that the learned probabilities serve from step 3 on.
RESAMPLED = ("resampler=loss_history", "resampler.num_bins=2", "resampler.history=2", "resampler.uniform_prob=0.5")


def alone(value: torch.Tensor) -> torch.Tensor:
    return value


def learned(num_bins: int = 8, history: int = 3) -> LossHistory:
    """A history whose losses grow from bin to bin."""
    resampler = LossHistory(num_bins, history)
    middles = (torch.arange(num_bins, dtype=torch.float64) + 0.5) / num_bins
    for step in range(history):
        resampler.record(middles, 0.1 + (3 + step) * middles**2)
        resampler.update(alone)
    return resampler


def even(n: int) -> torch.Tensor:
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n


def test_draws_are_uniform_until_every_bin_has_its_history():
    resampler, u = LossHistory(num_bins=4, history=2), even(100)
    for quantiles in ([0.1, 0.3, 0.6, 0.9], [0.1, 0.3, 0.6], [0.1]):
        resampler.record(torch.tensor(quantiles, dtype=torch.float64), torch.tensor(quantiles))
        resampler.update(alone)
        quantile, weight = resampler(u)
        torch.testing.assert_close(quantile, u, rtol=0, atol=1e-15)
        assert (weight == 1).all()
    resampler.record(torch.tensor([0.9], dtype=torch.float64), torch.tensor([0.9]))
    resampler.update(alone)
    assert (resampler(u)[1] != 1).any()


def test_bins_are_drawn_by_the_root_of_their_mean_square():
    resampler = LossHistory(num_bins=2, history=2, uniform_prob=0.1)
    for losses in ([9.0, 9.0, 100.0], [1.0, 3.0, 4.0], [1.0, 3.0, 2.0]):  # the first is forgotten
        resampler.record(torch.tensor([0.1, 0.4, 0.7], dtype=torch.float64), torch.tensor(losses))
        resampler.update(alone)
    root = torch.tensor([5.0, 10.0], dtype=torch.float64).sqrt()
    torch.testing.assert_close(resampler.probabilities(), 0.9 * root / root.sum() + 0.05)


def test_the_map_of_quantiles_is_increasing_onto_and_the_inverse_of_its_cdf():
    resampler, u = learned(), even(20_001)
    quantile, weight = resampler(u)
    assert (quantile.diff() > 0).all() and quantile[0] < 1e-3 and quantile[-1] > 1 - 1e-3
    probabilities = resampler.probabilities()
    below = torch.cat([probabilities.new_zeros(1), probabilities.cumsum(0)])
    k = (quantile * 8).floor().long()
    torch.testing.assert_close(below[k] + (quantile * 8 - k) * probabilities[k], u, rtol=0, atol=1e-12)
    torch.testing.assert_close(weight * 8 * probabilities[k], torch.ones_like(u), rtol=0, atol=1e-12)
    ends = torch.tensor([0.0, 2.0**-53, 1 - 2.0**-53, 1.0], dtype=torch.float64)
    assert ((resampler(ends)[0] > 0) & (resampler(ends)[0] < 1)).all()


NOISE = LogNormal(-0.5, 1.2)
PART = Restricted(NOISE, [(0.1, 0.4), (1.0, 9.0)])
STEPS = DiscreteNoise(scaled_linear(0.00085, 0.012))


@pytest.mark.parametrize("noise", [NOISE, PART, STEPS], ids=["log-normal", "restricted", "discrete"])
def test_the_weighted_expectation_is_that_of_the_noise_itself(noise):
    # Even points in each bin of u are even points in each bin of quantiles: both sums are the same, to rounding.
    resampler = learned()
    probabilities = resampler.probabilities()
    u = ((probabilities.cumsum(0) - probabilities)[:, None] + even(500) * probabilities[:, None]).flatten()
    mass = (probabilities[:, None] / 500).expand(-1, 500).flatten()
    quantile, weight = resampler(u)

    def loss(quantile: torch.Tensor) -> torch.Tensor:
        return 1 - 1 / (1 + noise.icdf(quantile) ** 2)

    plain = loss(even(8 * 500)).mean().item()
    assert (mass * weight).sum().item() == pytest.approx(1, abs=1e-13)
    assert (mass * weight * loss(quantile)).sum().item() == pytest.approx(plain, rel=1e-12)
    assert (mass * loss(quantile)).sum().item() > 1.05 * plain  # without the weights it is another one


def test_strata_stay_strata():
    resampler, numbers = learned(), torch.arange(64)
    u = stratify(torch.rand(64, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), numbers, 64)
    quantile, _ = resampler(u)
    counts = (quantile * 8).floor().long().bincount(minlength=8)
    assert (counts - 64 * resampler.probabilities()).abs().max() < 2  # it begins and ends inside a stratum
    assert torch.equal(resampler(u[5:9])[0], quantile[5:9])


def test_the_variance_falls_where_losses_differ():
    resampler = LossHistory(num_bins=16, history=1)
    resampler.record(even(1600), even(1600) ** 4)
    resampler.update(alone)
    u = torch.rand(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    quantile, weight = resampler(u)
    assert (weight * quantile**4).var() < 0.1 * (u**4).var()
    assert (weight * quantile**4).mean().item() == pytest.approx(0.2, abs=0.005)


def test_a_loss_that_is_not_finite_does_not_count():
    resampler, bad = learned(), learned()
    bad.record(torch.tensor([0.1, 0.9]), torch.tensor([float("nan"), float("inf")]))
    bad.update(alone)
    assert torch.equal(resampler.probabilities(), bad.probabilities())


@pytest.mark.parametrize(
    ("key", "value"), [("num_bins", 0), ("history", 0), ("uniform_prob", 0.0), ("uniform_prob", 1.5)]
)
def test_impossible_settings_are_refused(key, value):
    with pytest.raises(ValueError, match=rf"resampler\.{key}"):
        LossHistory(**{key: value})


# Runs


def test_a_run_with_history_resumes_bit_for_bit_and_draws_by_it(train_diffusion: Train):
    every = "callback.validation.every_steps=3"
    whole = train_diffusion(*RESAMPLED, "max_steps=6", every, run="whole")
    for steps in (3, 6):
        parts = train_diffusion(*RESAMPLED, f"max_steps={steps}", every, run="parts")
    assert_equal_runs(whole.folder, parts.folder, step=6)
    history = state(whole.folder, 6)["trained"]
    assert (history["resampler.lengths"] == 2).all() and (history["resampler.squares"] > 0).all()
    plain = train_diffusion("max_steps=6", every, run="plain")
    own, others = curve(whole.folder), curve(plain.folder)
    assert [own[step] == others[step] for step in range(1, 7)] == [True, True, False, False, False, False]


def test_micro_batches_see_the_same_history(train_diffusion: Train):
    own = (*RESAMPLED, "max_steps=5", "optimizer.eps=0.1")
    whole = train_diffusion(*own, run="whole").folder
    parts = train_diffusion(*own, "accumulation=2", run="parts").folder
    assert curve(parts) == pytest.approx(curve(whole), abs=1e-5)
    torch.testing.assert_close(state(parts, 5)["trained"], state(whole, 5)["trained"], rtol=1e-4, atol=1e-5)


def test_an_expert_resamples_its_own_noise(train_diffusion: Train, diffusion: Run):
    run = train_diffusion(*RESAMPLED, "max_steps=4", f"branch={diffusion.folder}", "expert.node=[1,0]", run="expert")
    assert run.finished and sorted(curve(run.folder)) == [1, 2, 3, 4]
    assert (run.folder / "samples" / "step_00000004_resampling.csv").exists()


def test_noise_matched_to_the_ladder_is_another_training_when_the_ladder_changes(train_diffusion: Train):
    matched = ("noise=sampler_matched", "~noise.mean", "num_steps=4", "max_steps=1")
    train_diffusion(*matched)
    with pytest.raises(ValueError, match=r"noise\.sigmas\.num_steps is 5"):
        train_diffusion(*matched, "num_steps=5", "max_steps=2")


@pytest.mark.slow
def test_two_ranks_see_the_history_of_one_process(train_diffusion: Train, first_stage: Run, tmp_path: Path):
    own = (*RESAMPLED, "log_variance=fourier", "max_steps=5", "optimizer.eps=0.1", f"first_stage={first_stage.folder}")
    one = train_diffusion(*own, run="one").folder
    ranks = ("trainer.devices=2", "trainer.strategy=ddp", "run=two")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    arguments = tiny("quickstart/diffusion", tmp_path, *own, *ranks)
    process = Process([*torchrun, "train.py", *arguments], tmp_path / "said.txt")
    assert process.wait() == 0, process.said
    assert curve(tmp_path / "two") == pytest.approx(curve(one), abs=1e-5)
    torch.testing.assert_close(state(tmp_path / "two", 5)["trained"], state(one, 5)["trained"], rtol=1e-4, atol=1e-5)
