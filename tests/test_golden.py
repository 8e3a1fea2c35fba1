"""The loss curve of each kind of run stays what it was: a change of the numbers is seen, and made on purpose.

``python tests/test_golden.py`` writes tests/golden/*.csv anew (step, name, value as a hexadecimal float). Processors
round differently, so that only `CLOSE` is asked for here; on one machine the same seed gives the same bits.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from toys import ROOT, curve, losses, train

from ldm.run import Run

GOLDEN = ROOT / "tests" / "golden"
CLOSE = 1e-3
STEPS = "max_steps=4"
KINDS = {
    "autoencoder_kl": ("quickstart/autoencoder", (STEPS,)),
    "autoencoder_vq": ("quickstart/autoencoder", (STEPS, "regularizer=vq", "regularizer.num_codes=32")),
    "diffusion": ("quickstart/diffusion", (STEPS,)),
    "expert": ("quickstart/expert", (STEPS, "expert.node=[1,1]")),
    "classifier": ("quickstart/classifier", (STEPS,)),
}


def start(kind: str, folder: Path, parents: dict[str, Path], run: str = "run") -> Path:
    """Train a toy of this kind; returns its folder."""
    experiment, more = KINDS[kind]
    parent = {"quickstart/diffusion": "first_stage", "quickstart/classifier": "first_stage"}.get(experiment)
    given = [f"{parent}={parents['first_stage']}"] if parent else []
    given += [f"branch={parents['diffusion']}"] if kind == "expert" else []
    return train(experiment, folder, *more, *given, run=run).folder


def numbers(run: Path) -> list[tuple[str, str, float]]:
    """(step, name, value) of what was trained and held out."""
    rows = [row for row in losses(run)[1:] if row[1].startswith(("train/", "validation/"))]
    return [(step, name, float(value)) for step, name, value in rows]


@pytest.fixture
def parents(first_stage: Run, diffusion: Run) -> dict[str, Path]:
    return {"first_stage": first_stage.folder, "diffusion": diffusion.folder}


@pytest.mark.parametrize("kind", KINDS)
def test_the_losses_of_a_run_stay(kind: str, parents: dict[str, Path], tmp_path: Path):
    rows = [line.split(",") for line in (GOLDEN / f"{kind}.csv").read_text().splitlines()]
    found = numbers(start(kind, tmp_path, parents))
    assert [row[:2] for row in rows] == [[step, name] for step, name, _ in found]
    for (step, name, value), (_, _, expected) in zip(found, rows, strict=True):
        assert value == pytest.approx(float.fromhex(expected), rel=CLOSE, abs=1e-6), f"{name} of step {step}"


def test_the_same_seed_gives_the_same_bits(parents: dict[str, Path], tmp_path: Path):
    for kind in ("autoencoder_kl", "diffusion"):
        runs = [start(kind, tmp_path, parents, f"{kind}-{number}") for number in (1, 2)]
        assert losses(runs[0]) == losses(runs[1])


def test_two_epochs_are_not_the_same(train_diffusion: Callable[..., Run]):
    still = ("data.max_samples=4", "optimizer.lr=1e-30", "optimizer.weight_decay=0.0", "max_steps=2")
    first, second = curve(train_diffusion(*still).folder).values()
    assert first != second  # the same images and weights, with other noise


def write() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first_stage = train("quickstart/autoencoder", folder).folder
        diffusion = train("quickstart/diffusion", folder, f"first_stage={first_stage}").folder
        for kind in KINDS:
            rows = numbers(start(kind, folder, {"first_stage": first_stage, "diffusion": diffusion}, run=kind))
            text = "".join(f"{step},{name},{value.hex()}\n" for step, name, value in rows)
            (GOLDEN / f"{kind}.csv").write_text(text)


if __name__ == "__main__":
    sys.exit(write())
