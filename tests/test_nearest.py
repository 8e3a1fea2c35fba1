"""Nearest training images and the measures of copying: against brute force, and on a model that does copy."""

import csv
from pathlib import Path

import pytest
import scipy.stats
import torch
from PIL import Image
from toys import QUICKSTART
from untrained import untrained_run

from ldm.config import compose, overriding
from ldm.errors import UserError
from ldm.evaluation.nearest import nearest_images
from ldm.evaluation.reference_file import Reference
from ldm.metrics.frechet import moments
from ldm.metrics.nearest import authentic, data_copying, nearest
from ldm.model import Model


@pytest.mark.parametrize("chunk", [3, 7, 4096])
def test_blocks_find_what_all_at_once_finds(chunk):
    generator = torch.Generator().manual_seed(0)
    members, x = torch.randn(20, 5, generator=generator), torch.randn(8, 5, generator=generator)
    x[3] = members[11]
    distances, places = nearest(x, members, 4, chunk)
    expected, order = torch.cdist(x.double(), members.double()).sort(dim=1)
    torch.testing.assert_close(distances, expected[:, :4])
    assert torch.equal(places, order[:, :4])
    assert distances[3, 0] == 0 and places[3, 0] == 11
    with pytest.raises(UserError, match=r"k=21: .* no more than the 20 images"):
        nearest(x, members, 21)


def test_the_test_of_data_copying_is_that_of_mann_and_whitney():
    generator = torch.Generator().manual_seed(0)
    samples, held_out = torch.rand(40, generator=generator), torch.rand(30, generator=generator) + 0.1
    share, z = data_copying(samples, held_out)
    u = scipy.stats.mannwhitneyu(samples.numpy(), held_out.numpy()).statistic  # pairs whose sample is the larger
    assert share == pytest.approx(1 - u / (40 * 30)) and z < 0
    assert data_copying(samples, samples)[0] == pytest.approx(0.5)
    assert data_copying(samples - 2, held_out)[0] == 1 and data_copying(samples + 2, held_out)[0] == 0


def test_a_copy_is_nearer_to_a_training_image_than_any_other_training_image():
    members = torch.tensor([[0.0], [1.0], [3.0]])
    distances, places = nearest(torch.tensor([[0.1], [2.2], [-1.5]]), members, 1)
    assert authentic(distances[:, 0], places[:, 0], members).tolist() == [False, False, True]
    twice = members[[0, 0, 1, 2]]
    distances, places = nearest(torch.tensor([[0.0], [0.1]]), twice, 1)
    assert authentic(distances[:, 0], places[:, 0], twice).tolist() == [False, True], "an exact copy is one"


NINE = "conditioner.label.num_classes=9"
SMALL = ["num_samples=6", "batch_size=4", "device=cpu", "metric.size=32", "neighbours=3"]
HELD_OUT = f"held_out={QUICKSTART}/validation-00000.tar"


def asked(model: Path, *words: str) -> tuple[dict, list[str]]:
    given = overriding([f"model={model}", *SMALL, *words])
    return compose("nearest", given), given


def test_a_model_that_copies_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Model, "generate", lambda model, sampling, batch, *_: batch["image"])
    data = ["data.max_samples=40", "data.validation_samples=8"]
    run = untrained_run(tmp_path / "run", NINE, "image_size=32", *data)
    rows, folder = nearest_images(*asked(run, f"out={tmp_path}/out"))
    found = {row["metric"].partition("/")[0]: (row["samples"], row["held_out"]) for row in rows}
    assert found["nearer_than_held_out"] == (1, 0.5) and found["data_copying_z"][0] < -3
    assert found["authenticity"][0] == 0 < found["authenticity"][1]
    with (folder / "nearest.csv").open(newline="") as file:
        pairs = list(csv.DictReader(file))
    assert len(pairs) == 18
    assert all((pair["neighbour"] == "1") == (float(pair["rmse_grey_levels"]) == 0) for pair in pairs)
    assert {pair["key"] for pair in pairs} and all(float(pair["lpips_alex"]) >= 0 for pair in pairs)
    height, width = 4 * (6 * 34 + 2) + 24, 2 * (36 + 8 + 3 * 34 + 2)  # two sheets of six, each before its three
    assert Image.open(folder / "nearest.png").size == (width, height)


def test_a_model_that_does_not_is_measured_like_it_and_without_lpips_where_images_are_small(tmp_path: Path):
    run = untrained_run(tmp_path / "run", NINE, "data.max_samples=20")
    rows, folder = nearest_images(*asked(run, f"out={tmp_path}/out", HELD_OUT, "num_steps=2"))
    assert 0 < rows[0]["samples"] < 1 and "lpips_alex" in (folder / "nearest.csv").read_text().splitlines()[0]


def test_features_of_some_training_images_only_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    features = torch.zeros(17, 4)
    some = Reference(features, moments(features), {})
    monkeypatch.setattr("ldm.evaluation.nearest.reference", lambda *_: some)
    run = untrained_run(tmp_path / "run", NINE, "data.max_samples=20")
    with pytest.raises(UserError, match="3 of 20 training images cannot be read"):
        nearest_images(*asked(run, f"out={tmp_path}/out", HELD_OUT))


@pytest.mark.parametrize(
    ("run", "words", "problem"),
    [
        ([], ["neighbours=0"], "neighbours=0: must be at least 1"),
        (["data.max_samples=4"], ["neighbours=5"], "neighbours=5: there are 4 training images"),
        (["data.validation=null"], [], "it has no held-out images; name some with held_out="),
        (["conditioner=[]"], ["guidance.scale=2"], r"guidance\.scale=2: this model has no conditions"),
        ([], ["guidance.scale=abc"], r"guidance\.scale=.?abc"),
        ([], ["use_conditions=[text]"], "use_conditions: no condition text"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_it_is_sampled(tmp_path: Path, run, words, problem):
    model = untrained_run(tmp_path / "run", *run)
    with pytest.raises(UserError, match=problem):
        nearest_images(*asked(model, f"out={tmp_path}/out", *words))
    assert not (tmp_path / "out").exists()
