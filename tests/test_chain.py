"""The quickstart's chain: its pieces, and, slow, the whole of it at toy length with its report."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ldm.evaluation.chain import Chain
from ldm.evaluation.evaluate import curve_keys
from ldm.evaluation.reference import Reference
from ldm.evaluation.table import write_csv

ROOT = Path(__file__).resolve().parent.parent
TOY = (
    "max_steps=4 lr.warmup_steps=1 data.max_samples=100 data.validation_samples=16 data.batch_size=8 "
    "callback.checkpoint.every_steps=2 callback.metrics.every_steps=1"
)


def test_conditions_repeat_those_of_the_images_in_order():
    against = Reference(torch.zeros(3, 2), ["a", "b", "c"])
    assert against.conditions(0, 2) == {"caption": ["a", "b"]}
    assert against.conditions(2, 7) == {"caption": ["c", "a", "b", "c", "a"]}
    labelled = Reference(torch.zeros(3, 2), ["a", "b", "c"], torch.tensor([5, 6, 7]))
    assert labelled.conditions(2, 5)["label"].tolist() == [7, 5, 6]


def test_curve_is_kid_against_alignment_whatever_the_backbones():
    point = {"fid/x": 1.0, "kid/x": 2.0, "kid_std/x": 0.1, "clip_score/ViT": 0.3}
    assert curve_keys(point) == ("kid/x", "clip_score/ViT")


def test_csv_has_one_row_per_point(tmp_path):
    path = write_csv(tmp_path / "deep" / "curve.csv", [{"scale": 1.0, "kid/x": 2.0}, {"scale": 2.0, "kid/x": 3.0}])
    assert path.read_text().splitlines() == ["scale,kid/x", "1.0,2.0", "2.0,3.0"]


def chain_tree(folder: Path, precision: str | None = None) -> dict:
    own = {"runs_dir": str(folder), "family": "quickstart", "seed": 0, "overrides": "", "precision": precision}
    return {**own, "logger": {"mode": "disabled"}}


@pytest.mark.parametrize(
    ("able", "given", "expected"),
    [(True, None, "bf16-mixed"), (False, None, "32-true"), (True, "32-true", "32-true"), (False, "64-true", "64-true")],
)
def test_runs_are_in_bf16_where_the_processor_computes_in_it(tmp_path, monkeypatch, able, given, expected):
    monkeypatch.setattr("ldm.device.computes_bf16", lambda: able)
    assert f"trainer.precision={expected}" in Chain(chain_tree(tmp_path, given)).shared


def test_times_of_a_stage_add_up_over_restarts(tmp_path):
    for _ in range(2):
        chain = Chain(chain_tree(tmp_path))
        with chain._timed("stage"):
            pass
    kept = json.loads((tmp_path / "quickstart" / "times.json").read_text())
    assert list(kept) == ["stage"]
    assert kept["stage"] > 0


@pytest.mark.slow
def test_whole_chain_at_toy_length_then_again_from_its_folders(tmp_path):
    command = [
        sys.executable, "scripts/quickstart.py", f"runs_dir={tmp_path}", "num_samples=12", "scales=[1,3]",
        "num_seeds=2", "num_steps=2", f"overrides={TOY}",
    ]  # fmt: skip
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert first.returncode == 0, first.stdout + first.stderr
    index = tmp_path / "quickstart" / "report" / "index.html"
    page = index.read_text()
    assert str(index) in first.stdout
    for image in re.findall(r'src(?:set)?="([^" ]+\.png)', page):
        assert (index.parent / image).exists() or "../" in image
    for word in ("red heart", "soccer ball", "LPIPS", "KID", "Experts", "Bad samples skipped: none"):
        assert word in page
    lineage = json.loads((tmp_path / "quickstart-expert-1-1" / "lineage.json").read_text())
    assert lineage["parent"]["run"] == "quickstart-diffusion"
    assert lineage["samples_seen_total"] == 2 * 4 * 8
    assert list((tmp_path / "quickstart-diffusion" / "wandb").glob("offline-run-*"))

    weights = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/weights/*.safetensors")}
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert second.returncode == 0, second.stdout + second.stderr
    assert weights == {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/weights/*.safetensors")}
