"""Averages of any length after the training: the published profiles, near the tracked ones, chosen at sampling."""

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from toys import assert_equal_runs, same, state

from ldm.checkpoint import posthoc_ema, weights
from ldm.checkpoint.posthoc_ema import coefficients, exponent
from ldm.errors import UserError
from ldm.run import Run, load
from ldm.training.ema import PowerEMA

Train = Callable[..., Run]
POWER = ("ema=power", "~ema.decay", "ema.snapshot_every_steps=1")


def test_exponents_are_the_published_ones():
    assert exponent(0.05) == pytest.approx(16.97, abs=0.005) and exponent(0.10) == pytest.approx(6.94, abs=0.005)
    assert exponent(12**-0.5) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.1, 0.2])
def test_a_relative_length_is_the_width_of_the_profile(sigma_rel: float):
    s = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    density = s ** exponent(sigma_rel)
    mean = (density * s).sum() / density.sum()
    width = ((density * (s - mean) ** 2).sum() / density.sum()).sqrt()
    assert width.item() == pytest.approx(sigma_rel, rel=1e-3)


def test_the_coefficients_of_a_stored_average_are_one_and_zeros():
    stored = [(sigma_rel, t) for t in (200, 400, 600, 800) for sigma_rel in (0.05, 0.1)]
    for place, profile in enumerate(stored):
        expected = torch.eye(len(stored), dtype=torch.float64)[place]
        torch.testing.assert_close(coefficients(stored, profile), expected, rtol=0, atol=1e-8)


def test_parameters_that_never_change_come_out_as_they_are():
    stored = [(sigma_rel, t) for t in (1, 2, 3, 700) for sigma_rel in (0.05, 0.1)]
    for sigma_rel in (0.02, 0.07, 0.2):
        assert coefficients(stored, (sigma_rel, 700)).sum().item() == pytest.approx(1, abs=1e-9)


def trajectory(ema: Callable[[nn.Module], list[PowerEMA]], num_steps: int) -> list[tuple[int, list[Tensor]]]:
    """The averages after every 100 steps of Adam on noisy regression, and last the weights themselves."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1))
    averages = ema(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    kept = []
    for step in range(1, num_steps + 1):
        x = torch.randn(16, 4)
        loss = (network(x) - x.prod(1, keepdim=True) - torch.randn(16, 1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for own in averages:
            own.update()
        if step % 100 == 0:
            flat = [
                torch.cat([v.flatten() for v in kind.values()]) for own in averages for kind in own.averages().values()
            ]
            kept.append(
                (step, [f.double() for f in flat] + [nn.utils.parameters_to_vector(network.parameters()).double()])
            )
    return kept


def test_a_length_made_from_snapshots_is_near_the_one_that_was_tracked():
    tracked, wanted = [0.05, 0.1], [0.06, 0.075, 0.12, 0.15]
    kept = trajectory(lambda m: [PowerEMA(m, tracked), PowerEMA(m, wanted)], 2000)
    stored = [(length, step) for step, _ in kept for length in tracked]
    columns = torch.stack([value for _, values in kept for value in values[:2]])
    step, (*_, weights_now) = kept[-1]
    for length, direct in zip(wanted, kept[-1][1][2:-1], strict=True):
        made = coefficients(stored, (length, step)) @ columns
        error = (made - direct).norm() / (direct - weights_now).norm()
        assert error < 2e-3  # at most 2.5e-4 was measured
        nearest = columns[-2 + int(length > 0.075)]  # what there would be without: the tracked length next to it
        assert error < 0.1 * (nearest - direct).norm() / (direct - weights_now).norm()
    for place, length in enumerate(tracked):
        made = coefficients(stored, (length, step)) @ columns
        torch.testing.assert_close(made, columns[place - 2], rtol=0, atol=1e-7)


# Runs


@pytest.fixture
def power(train_diffusion: Train) -> Run:
    return train_diffusion(*POWER, "max_steps=6", "callback.checkpoint.every_steps=4", run="power")


def test_a_tracked_length_is_read_and_another_is_made(power: Run, train_diffusion: Train):
    files = sorted(path.name for path in (power.folder / "weights").glob("step_00000006.*"))
    assert files == [
        f"step_00000006.{kind}" for kind in ("ema.safetensors", "ema_0.1.safetensors", "json", "raw.safetensors")
    ]
    assert len(list((power.folder / "snapshots").glob("*.json"))) == 6
    read = {ema: posthoc_ema.load(power.folder, ema) for ema in ("ema", "0.05", "0.10", "raw", "0.07")}
    assert same(read["0.05"].state, read["ema"].state) and read["0.10"].path.name == "step_00000006.ema_0.1.safetensors"
    assert same(read["raw"].state, state(power.folder, 6)["trained"])
    assert len({own.digest for own in read.values()}) == 4

    direct = train_diffusion(*POWER, "ema.sigma_rels=[0.07]", "max_steps=6", run="direct")
    expected = weights.load(direct.folder).state
    scale = max((expected[name] - read["raw"].state[name]).abs().max() for name in expected)
    for name, tensor in expected.items():
        assert (read["0.07"].state[name] - tensor).abs().max() < 0.1 * scale, name
    at_4 = posthoc_ema.load(power.folder / "checkpoints" / "step_00000004.ckpt", "0.07")
    assert at_4.metadata["step"] == 4 and not same(at_4.state, read["0.07"].state)


def test_a_model_is_sampled_with_the_average_asked_for(power: Run):
    numbers, images = torch.tensor([0, 1]), {}
    for ema in ("ema", "0.05", "raw", "0.07"):
        model = load(power.folder, ema=ema)
        images[ema] = model.generate(model.parts["sampling"], {"caption": ["red heart", "key"]}, numbers, 0)
    assert torch.equal(images["ema"], images["0.05"])
    assert not torch.equal(images["ema"], images["raw"]) and not torch.equal(images["ema"], images["0.07"])


def test_profiles_resume_bit_for_bit(power: Run, train_diffusion: Train):
    for steps in (3, 6):
        own = (
            *POWER,
            f"max_steps={steps}",
            "callback.checkpoint.every_steps=4",
            "callback.validation.every_steps=1000",
        )
        parts = train_diffusion(*own, run="parts")
    kept = [
        row for row in (parts.folder / "metrics.csv").read_text().splitlines() if not row.startswith("3,validation")
    ]
    (parts.folder / "metrics.csv").write_text("\n".join(kept) + "\n")
    assert_equal_runs(power.folder, parts.folder, step=6)
    for file in (power.folder / "snapshots").iterdir():
        other = parts.folder / "snapshots" / file.name
        if file.suffix == ".json":  # they name their runs
            one, two = ({**json.loads(path.read_text()), "run": 0, "config": 0, "seal": 0} for path in (file, other))
            assert one == two
        else:
            assert file.read_bytes() == other.read_bytes()


def test_a_branch_keeps_what_its_parent_adds(diffusion: Run, train_diffusion: Train):
    own = (*POWER, f"branch={diffusion.folder}", "optimizer.lr=0.0", "max_steps=2")
    run = train_diffusion(*own, run="branch")
    parent = weights.load(diffusion.folder).state
    first = weights.read(run.folder / "snapshots" / "step_00000000.ema.safetensors")
    assert same(first.state, {name: parent[name] for name in first.state})
    assert first.metadata["ema_profiles"]["num_updates"] == 2
    assert weights.load(run.folder).metadata["ema_profiles"]["num_updates"] == 4
    assert posthoc_ema.load(run.folder, "0.2").state.keys() == parent.keys()


def test_a_branch_may_begin_from_its_parents_average(diffusion: Run, train_diffusion: Train):
    [checkpoint] = (diffusion.folder / "checkpoints").glob("step_00000002.ckpt")
    still = (f"branch={checkpoint}", "optimizer.lr=0.0", "max_steps=1")
    average, last = (posthoc_ema.load(diffusion.folder, kind).state for kind in ("ema", "raw"))
    assert not same(average, last)
    averaged = train_diffusion(*still, "branch_weights=ema", run="averaged")
    plain = train_diffusion(*still, "ema=null", run="plain")
    for kind in ("ema", "raw"):
        assert same(posthoc_ema.load(averaged.folder, kind).state, average)
    assert same(posthoc_ema.load(plain.folder, "raw").state, last)
    with pytest.raises(UserError, match=r"branch_weights=ema: .*plain.* has no average"):
        train_diffusion(f"branch={plain.folder}", "branch_weights=ema", run="refused")


def test_what_cannot_be_had_is_refused(diffusion: Run, power: Run, train_diffusion: Train):
    for ema in ("0.5", "0", "-1", "nan"):
        with pytest.raises(ValueError, match="a relative length lies above 0"):
            posthoc_ema.load(power.folder, ema)
    with pytest.raises(ValueError, match=r"ema=mean: choose ema, raw, or a relative length"):
        load(power.folder, ema="mean")
    with pytest.raises(ValueError, match=r"ema=0\.05: .* train with ema=power"):
        load(diffusion.folder, ema="0.05")
    with pytest.raises(ValueError, match="one file of weights"):
        load(power.folder / "weights" / "step_00000006.ema.safetensors", ema="0.07")
    bare = train_diffusion("ema=power", "~ema.decay", "ema.snapshot_every_steps=null", run="bare")
    with pytest.raises(ValueError, match=r"no snapshots yet .* it tracks 0\.05, 0\.1"):
        load(bare.folder, ema="0.07")
    assert posthoc_ema.load(bare.folder, "0.1").metadata["step"] == 2
    damaged = power.folder / "snapshots" / "step_00000003.ema_0.1.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-4] + b"abcd")
    with pytest.raises(ValueError, match=r"step_00000003\.ema_0\.1\.safetensors: damaged"):
        load(power.folder, ema="0.07")
