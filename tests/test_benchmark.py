"""The benchmark's suites run, small, and print their ratios; peers are the same function with the same weights."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def benchmark(*words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "scripts/dev/benchmark.py", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


SUITES = [
    "unet_train", "unet_sample", "guidance", "kernels", "ema", "optimizer", "autoencoder", "overhead", "cache",
    "loader", "inpainting",
]  # fmt: skip
GROWTH = ["growth_batch", "growth_resume", "growth_evaluation", "growth_images", "first_step", "ranks", "plan"]


@pytest.mark.slow
@pytest.mark.parametrize("suite", SUITES)
def test_a_suite_prints_ratios_against_its_peers(suite):
    found = benchmark(f"suite={suite}", "repeats=1", "batch_size=1", "image_size=32", "precision=fp32")
    assert found.returncode == 0, found.stderr
    ratios = [line for line in found.stdout.splitlines() if "ratio" in line]
    assert ratios and all(line.endswith((": met", ": missed")) for line in ratios)
    assert ("peak memory" in found.stdout) == (suite in ("unet_train", "autoencoder", "inpainting"))


@pytest.mark.slow
@pytest.mark.parametrize("suite", GROWTH)
def test_a_suite_of_growth_holds_figures_to_goals(suite):
    found = benchmark(f"suite={suite}", "repeats=1")
    assert found.returncode == 0, found.stderr
    assert any(line.endswith((": met", ": missed")) for line in found.stdout.splitlines())


@pytest.mark.slow
def test_memory_of_a_data_set_is_at_most_64_bytes_a_sample(tmp_path):
    found = benchmark("suite=growth_samples", f"out={tmp_path}")
    assert found.returncode == 0, found.stderr
    [row] = json.loads((tmp_path / "benchmarks.json").read_text())["suites"]["growth_samples"]["rows"]
    assert row["figure"] <= row["goal"] == 64
    assert (tmp_path / "growth.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["suite=nothing"], "suite=nothing"),
        (["suite=ema", "repeat=1"], "repeat"),
        (["suite=ema", "repeats=0"], "repeats=0"),
    ],
)
def test_a_wrong_key_is_named(words, named):
    found = benchmark(*words)
    assert found.returncode == 2 and named in found.stderr and "Traceback" not in found.stderr
