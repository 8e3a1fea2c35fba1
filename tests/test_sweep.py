"""``-m`` runs one process per job, each in a folder whose name says what is different about it."""

import subprocess
import sys

import pytest
from toys import ROOT, curve, tiny

from ldm.checkpoint import weights


@pytest.mark.slow
def test_two_values_give_two_folders(tmp_path):
    """Each of them on two devices, whose further process a fresh one starts itself."""
    devices = ("trainer.accelerator=cpu", "trainer.devices=2")
    arguments = [w for w in tiny("quickstart/autoencoder", tmp_path, *devices) if not w.startswith("regularizer=")]
    result = subprocess.run(
        [sys.executable, "train.py", "-m", *arguments, "regularizer=kl,vq", "regularizer.channels=3"],
        cwd=ROOT, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert "[1/2] quickstart-autoencoder-kl" in result.stdout and "[2/2] quickstart-autoencoder-vq" in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "quickstart-autoencoder-kl",
        "quickstart-autoencoder-vq",
    ]
    keys = {run.name: set(weights.load(run).state) for run in tmp_path.iterdir()}
    assert all(sorted(curve(tmp_path / run)) == [1, 2] for run in keys)
    only_vq = keys["quickstart-autoencoder-vq"] - keys["quickstart-autoencoder-kl"]
    assert only_vq == {"regularizer.embedding.weight"}


@pytest.mark.slow
def test_a_failed_job_is_named_and_does_not_stop_the_others(tmp_path):
    arguments = [word for word in tiny("quickstart/autoencoder", tmp_path) if not word.startswith("image_size=")]
    result = subprocess.run(
        [sys.executable, "train.py", "-m", *arguments, "image_size=30,32"],
        cwd=ROOT, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert result.returncode == 1
    assert "1 of 2 jobs did not finish: quickstart-autoencoder-image_size_30" in result.stderr
    assert sorted(curve(tmp_path / "quickstart-autoencoder-image_size_32")) == [1, 2]
