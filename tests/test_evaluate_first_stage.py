"""The evaluation of a first stage: table 8's columns, their protocol, the same over any number of processes."""

import csv
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from toys import QUICKSTART, Process, train

from ldm.config import compose
from ldm.errors import UserError
from ldm.evaluation.evaluate import evaluate
from ldm.run import Run

NAMES = ["psnr", "ssim", "l1", "lpips_alex", "psim"]
SETS = ["rfd/efficientnet_lite0@32", "rkid/efficientnet_lite0@32", "is/efficientnet_lite0@32"]
OPTIONS = ("metric.size=32", "batch_size=2", "device=cpu")


@pytest.fixture(scope="module")
def measured(first_stage: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    rows, found = evaluate(compose("evaluate", [f"model={first_stage.folder}", f"out={folder}", *OPTIONS]))
    assert found == folder and [row["metric"] for row in rows] == NAMES + SETS
    return folder


@pytest.mark.filterwarnings("ignore:Frechet distance from")
def test_images_are_seen_at_the_size_that_is_asked_for(first_stage: Run, tmp_path: Path):
    words = [f"model={first_stage.folder}", *OPTIONS, f"out={tmp_path}"]
    evaluate(compose("evaluate", [*words, "image_size=64"]))
    protocol = json.loads((tmp_path / "first_stage.json").read_text())["protocol"]
    assert protocol["image_size"] == 64 and "short side to 64 px" in protocol["resize"]
    with pytest.raises(ValueError, match="image_size=63: must be a multiple of the first stage's f"):
        evaluate(compose("evaluate", [*words, "image_size=63"]))


@pytest.mark.parametrize(
    "word",
    ["num_steps=4", "sampler=heun", "guidance.scale=2", "use_conditions=[label]", "residency=one", "paired=[psnr]",
     "reference=a.npz", "data=a.tar", "resamples=7", "alignment=open_clip", "compile=true"],
)  # fmt: skip
def test_keys_of_models_that_draw_are_refused_and_not_left_unread(first_stage: Run, tmp_path: Path, word: str):
    key = word.partition("=")[0].partition(".")[0]
    with pytest.raises(UserError, match=rf"^{key}: is of diffusion models, and .* is a first stage; leave it out$"):
        evaluate(compose("evaluate", [f"model={first_stage.folder}", f"out={tmp_path / 'out'}", *OPTIONS, word]))
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:Frechet distance from")
def test_the_table_and_its_protocol(measured: Path):
    content = json.loads((measured / "first_stage.json").read_text())
    assert content["protocol"]["images"] == 4 and content["protocol"]["backbone"] == "efficientnet_lite0@32"
    assert content["protocol"]["image_size"] == 32 and "crop" in content["protocol"]["resize"]
    with (measured / "first_stage.csv").open() as file:
        rows = {row["metric"]: float(row["value"]) for row in csv.DictReader(file)}
    assert rows == {row["metric"]: row["value"] for row in content["metrics"]}
    assert 5 < rows["psnr"] < 40 and 0 < rows["psim"] < 2 and rows[SETS[0]] > 0


def test_the_picture_has_worst_and_median_images_with_their_reconstructions(measured: Path):
    assert Image.open(measured / "reconstructions.png").size[1] > 4 * 32


@pytest.mark.slow
def test_two_processes_measure_the_same(first_stage: Run, measured: Path, tmp_path: Path):
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "scripts/evaluate.py"]
    process = Process([*command, f"model={first_stage.folder}", f"out={tmp_path}", *OPTIONS], tmp_path / "said.txt")
    assert process.wait() == 0, process.said
    both = [json.loads((folder / "first_stage.json").read_text())["metrics"] for folder in (tmp_path, measured)]
    for one, other in zip(*both, strict=True):
        assert one["value"] == pytest.approx(other["value"], rel=1e-5, abs=1e-6), one["metric"]
    assert process.said.count("psnr") == 1


def test_a_run_without_validation_images_says_so(tmp_path: Path):
    run = train("quickstart/autoencoder", tmp_path, "data.validation=null")
    with pytest.raises(ValueError, match=r"validation="):
        evaluate(compose("evaluate", [f"model={run.folder}", *OPTIONS]))
    [weights] = run.folder.glob("weights/*.ema.safetensors")
    shards = f"validation={QUICKSTART}/validation-00000.tar"
    rows, _ = evaluate(compose("evaluate", [f"model={weights}", f"out={tmp_path}", "num_samples=3", shards, *OPTIONS]))
    assert rows[0]["metric"] == "psnr"


def test_a_reconstruction_that_is_not_finite_is_named(first_stage: Run, tmp_path: Path, monkeypatch):
    def broken(autoencoder: object, regularizer: object, image: torch.Tensor) -> torch.Tensor:
        return torch.full_like(image, torch.nan)

    monkeypatch.setattr("ldm.evaluation.first_stage.reconstruct", broken)
    with pytest.raises(ValueError, match=r"its reconstruction of \S+ is not finite"):
        evaluate(compose("evaluate", [f"model={first_stage.folder}", f"out={tmp_path}", *OPTIONS]))
