"""The sweep over f: whole at toy length, and nothing done twice."""

import csv
from pathlib import Path

import pytest
from toys import TINY_RUN

from ldm.config import compose, overriding
from ldm.sweep.sweep_f import sweep_f

DATA = " ".join(word for word in TINY_RUN if word.startswith("data."))
SMALL = f"{DATA} image_size=32 max_steps=2 lr.warmup_steps=0 callback.checkpoint.every_steps=1"
AUTOENCODER = (
    f"{SMALL} autoencoder.channels=8 autoencoder.norm_groups=4 discriminator.channels=4 reconstruction.start_step=1"
)
NETWORK = "network.channels=8 network.norm_groups=4 network.head_channels=8 network.multipliers=[1,2]"
DIFFUSION = f"{SMALL} {NETWORK} num_steps=2"


def tree(folder: Path, *more: str) -> dict:
    words = (
        "f=[1,4]", f"runs_dir={folder}", "num_samples=4", "num_steps=2", "sampling_steps=[1,2]", "batch_size=4",
        "metric.size=32", "device=cpu", *more,
    )  # fmt: skip
    composed = compose("sweep_f", overriding(words))
    return {**composed, "autoencoder_overrides": AUTOENCODER, "diffusion_overrides": DIFFUSION}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Frechet distance from")
def test_the_sweep_is_whole_and_restartable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = sweep_f(tree(tmp_path))
    files = {path.name: path.read_bytes() for path in folder.glob("*.csv")}
    with (folder / "quality_over_steps.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["f"], row["step"]) for row in rows] == [("1", "1"), ("1", "2"), ("4", "1"), ("4", "2")]
    assert all(float(row["kid/efficientnet_lite0@32"]) for row in rows)
    with (folder / "quality_over_speed.csv").open() as file:
        assert [float(row["samples_per_second"]) > 0 for row in csv.DictReader(file)] == [True] * 4
    assert {path.name for path in folder.glob("quality*.png")} >= {"quality_over_steps.png", "quality_over_speed.png"}
    monkeypatch.setattr("ldm.evaluation.evaluate._measure", None)  # nothing is measured again
    assert sweep_f(tree(tmp_path)) == folder
    assert {path.name: path.read_bytes() for path in folder.glob("*.csv")} == files


def test_factors_that_do_not_exist_are_refused(tmp_path: Path):
    for f in ("[3]", "[]", "[4,4]"):
        with pytest.raises(ValueError, match="powers of two"):
            sweep_f(tree(tmp_path, f"f={f}"))
