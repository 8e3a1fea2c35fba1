"""Every kind of model gives a row, under the papers' protocols too; several models, intervals, lost samples."""

import csv
import io
import json
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console
from toys import annotated_shard, train
from untrained import untrained_run

from ldm.build import Parts, load_first_stage
from ldm.config import compose, groups, instantiate, overriding
from ldm.evaluation import intervals
from ldm.evaluation.evaluate import evaluate
from ldm.evaluation.grid import cells
from ldm.evaluation.intervals import mean_interval, set_intervals
from ldm.evaluation.paired import Paired
from ldm.evaluation.table import ends, show
from ldm.evaluation.yardsticks import Yardsticks
from ldm.first_stage.first_stage import Identity
from ldm.generate import NotFinite
from ldm.metrics.features import Features
from ldm.metrics.frechet import Moments, frechet_distance, moments
from ldm.metrics.quality import sample_quality
from ldm.metrics.reconstruction import psnr
from ldm.model import Model
from ldm.run import Run, load

OPTIONS = ["metric.size=32", "num_samples=5", "batch_size=4", "device=cpu", "num_steps=2", "resamples=20"]
NAME = "efficientnet_lite0@32"
# Kind: an experiment of it, and the protocol for it.
KINDS = {
    "unconditional": ("ldm/celebahq", "unconditional50k"),
    "class": ("ldm/cin256_v2", "imagenet50k"),
    "text": ("ldm/text2img_cc", "coco30k"),
    "layout": ("ldm/layout_openimages", "layout2048"),
    "semantic_map": ("ldm/semantic_landscapes", None),
    "super_resolution": ("ldm/superres", "superres"),
    "inpainting": ("ldm/inpainting", "lama"),
    "retrieval": ("ldm/rdm_768", None),
}
PAIRED = {"superres": ["psnr", "ssim", "lpips_alex"], "lama": ["lpips_vgg", "lpips_vgg_hole_40_50"]}
pytestmark = pytest.mark.filterwarnings("ignore:Frechet distance from")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_gives_a_row_on_held_out_shards(
    kind: str, first_stage: Run, tmp_path: Path, yardsticks: Yardsticks
):
    experiment, protocol = KINDS[kind]
    run = train(experiment, tmp_path, f"first_stage={first_stage.folder}", "callback=[checkpoint]")
    held_out = annotated_shard(16)
    words = [*OPTIONS, f"model={run.folder}", f"data=[{held_out}]", f"out={tmp_path}/out"]
    words += [f"protocol={protocol}"] if protocol else [f"reference={held_out}"]
    words += ["guidance.scale=[1]"] if kind == "retrieval" else []  # the others: the protocol's one, or no guidance
    [row], folder = evaluate(compose("evaluate", words), yardsticks)
    alignments = [name for name in row if name.startswith("alignment_score/")]
    assert len(alignments) == ("caption" in load(run.folder).data.fields) == (folder / "curve.png").exists()
    for key in (f"kid/{NAME}", f"fd/{NAME}", *alignments):
        low, high = (row[end] for end in ends(key))
        assert low <= row[key] <= high or key.startswith("kid"), key
    assert row["nan_images"] == 0 and (folder / "curve.csv").exists()
    if protocol:
        assert row["comparable"].startswith(f"no: measured by {NAME}") and "5 samples, not" in row["comparable"]
        assert row["protocol"] == protocol and "paper fid" in row and "table" in row["paper"]
        assert row["reference_images"] == 16
        assert ("mask drawn by derived=, not read" in row["comparable"]) == (protocol == "lama")
        assert set(PAIRED.get(protocol, [])) <= row.keys()
        if protocol == "superres":
            assert row["psnr_first_stage_low"] <= row["psnr_first_stage"] <= row["psnr_first_stage_high"]
            assert "lpips_alex_first_stage" in row
    if kind == "super_resolution":  # held to its own input, which is a field of the data
        words += ["loss_guidance=[image]", "loss_guidance.image.target=low_resolution", "operator=bicubic"]
        [held], _ = evaluate(compose("evaluate", [*words, "loss_guidance.image.scale=3"]), yardsticks)
        assert held["psnr"] > row["psnr"]
    if protocol == "lama":
        words = overriding([*words, "derived=[masks]", f"out={tmp_path}/masks"])
        [own], folder = evaluate(compose("evaluate", words), yardsticks)
        assert "drawn by derived=" not in own["comparable"] and own["lpips_vgg"] != row["lpips_vgg"]
        with (folder / "subsets.csv").open() as file:
            shares = {line["subset"]: line for line in csv.DictReader(file)}
        assert list(shares) == [f"hole_{low}_{low // 10 * 10 + 10}" for low in (1, 10, 20, 30, 40)]
        assert (
            sum(int(line["samples"]) for line in shares.values()) >= 4 and shares["hole_40_50"]["paper fid"] == "9.39"
        )
        assert {"lpips_vgg", "lpips_vgg_low", f"fd/{NAME}"} <= shares["hole_10_20"].keys()


def test_what_the_first_stage_makes_of_the_truth_stands_beside_samples(first_stage: Run):
    stage = load_first_stage(first_stage.folder)
    truth = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    paired = Paired(["psnr"], {}, torch.device("cpu"))
    columns = paired(0.5 * truth, {"image": truth}, Eight(), stage)
    with torch.no_grad():
        ceiling = psnr(stage.decode(stage.encode(truth)).clamp(-1, 1), truth)
    assert torch.equal(columns["psnr_first_stage"][:, 0], ceiling)
    assert paired.table(columns, truth, Eight(), 0, 0)["psnr_first_stage"] == pytest.approx(ceiling.mean().item())
    assert paired(truth, {"image": truth}, Eight(), Identity()).keys() == {"psnr"}, "pixels have no ceiling"


def protocols() -> dict[str, dict]:
    return {name: compose("evaluate", ["model=x", f"protocol={name}"]) for name in groups()["protocol"]}


def test_every_protocol_holds_numbers_of_its_tables_and_says_what_it_asks_for():
    assert set(protocols()) == {"coco30k", "imagenet50k", "lama", "layout2048", "superres", "unconditional50k"}
    for name, tree in protocols().items():
        protocol = instantiate(tree["protocol"], Parts(tree), "protocol")
        asked = protocol.asked({**tree, "data": "held.tar"})
        assert protocol.name == name and asked["num_samples"] == protocol.num_samples >= 2048
        assert asked["guidance"]["scale"] == protocol.scale and asked["num_steps"] == protocol.num_steps
        assert asked["reference"] == ("held.tar" if protocol.reference == "data" else None)
        assert protocol.asked({**tree, "num_samples": 7, "num_steps": 3})["num_samples"] == 7
        for entry in protocol.published.values():
            assert "table" in entry["source"] and 0 < entry["fid"] < 50


def test_the_papers_numbers_stand_beside_those_of_the_same_scale(tmp_path: Path, yardsticks: Yardsticks):
    model = untrained_run(tmp_path / "run", "conditioner.label.num_classes=9", "data.max_samples=6")
    words = [*OPTIONS, f"model={model}", f"out={tmp_path}/out", "protocol=imagenet50k"]
    rows, folder = evaluate(compose("evaluate", [*words, "guidance.scale=[1.25,1.5,7]"]), yardsticks)
    assert [row["paper fid"] for row in rows] == [3.95, 3.6, ""]
    assert "nothing is published at scale 7" in rows[2]["comparable"] and "not 1281167" in rows[0]["comparable"]
    with (folder / "curve.csv").open() as file:
        assert [row["paper is"] for row in csv.DictReader(file)] == ["178.22", "247.67", ""]
    [row], _ = evaluate(compose("evaluate", [*words, "guidance.scale=[7]", "protocol.beside=ldm_8_g"]), yardsticks)
    assert row["paper fid"] == 7.76 and "classifier" in row["paper"]
    shards = annotated_shard(16)
    [row], _ = evaluate(compose("evaluate", [*words, f"data={shards}", f"reference={shards}"]), yardsticks)
    assert "samples of data=, not for training samples" in row["comparable"]
    assert "reference= names, not with the training images" in row["comparable"]


# Intervals


class Eight(Features):
    """Eight numbers an image, and as many classes."""

    name, dim, frechet = "eight", 8, "fd"

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        return features


def test_intervals_are_as_wide_as_the_spread_of_samples_drawn_again():
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(400, 8, generator=generator)
    tables, spreads = [], []
    for seed in range(30):
        fake = 0.5 + 1.2 * torch.randn(300, 8, generator=generator)
        tables.append(sample_quality(real, fake, Eight(), torch.Generator().manual_seed(0)))
        spreads.append(set_intervals(tables[-1], real, fake, Eight(), 100, seed))
    for metric in ("fd", "kid", "precision"):
        low, high = ends(f"{metric}/eight")
        told = torch.tensor([spread[high] - spread[low] for spread in spreads]).mean() / 2 / 1.96
        seen = torch.tensor([table[f"{metric}/eight"] for table in tables]).std()
        assert told.item() == pytest.approx(seen.item(), rel=0.45), metric
        middle = torch.tensor([table[f"{metric}/eight"] for table in tables]).mean()
        inside = [spread[low] <= middle <= spread[high] for spread in spreads]
        assert sum(inside) >= 22, metric
    values = torch.randn(200, generator=generator)
    interval = mean_interval("psnr", values, 400, 0)
    assert interval["psnr_high"] - interval["psnr_low"] == pytest.approx(
        2 * 1.96 * values.std().item() / 200**0.5, rel=0.2
    )


def test_the_table_on_the_screen_has_intervals_in_brackets():
    console = Console(file=io.StringIO(), width=200)
    show([{"scale": 1.0, "kid/x": 0.5, "kid_low/x": 0.25, "kid_high/x": 0.75, "is/x": 2.0}], console)
    said = console.file.getvalue()
    assert "0.5 [0.25, 0.75]" in said and "kid_low" not in said and "is/x" in said


@pytest.mark.parametrize("count", [8, 30])
def test_the_influence_of_a_sample_is_the_difference_that_its_weight_makes(count: int):
    generator = torch.Generator().manual_seed(0)
    real = moments(torch.randn(60, 12, generator=generator).double())
    fake = 1.5 * torch.randn(count, 12, generator=generator).double()

    def distance(weights: torch.Tensor) -> float:
        weights = weights / weights.sum()
        mean = weights @ fake
        centred = fake - mean
        covariance = (weights[:, None] * centred).T @ centred * len(fake) / (len(fake) - 1)
        return frechet_distance(real, Moments(mean, covariance, 1000))

    found, step = [], 1e-3
    for place in range(len(fake)):
        more, less = (torch.ones(len(fake)).double() for _ in range(2))
        more[place] += step
        less[place] -= step
        found.append((distance(more) - distance(less)) / (2 * step) * len(fake))
    values = torch.tensor(found, dtype=torch.float64)
    told = intervals._frechet_influence(real, fake)
    assert torch.allclose(told, values - values.mean(), rtol=1e-3, atol=1e-4 * told.abs().max().item())


# Grids


def columns(*words: str) -> list[dict]:
    return [cell.columns for cell in cells(compose("evaluate", overriding(["model=x", *words])))]


def test_any_key_of_guidance_sampler_and_sigmas_may_have_several_values():
    found = columns("guidance.limits.sigma_lo=[0,0.5]", "sampler=ddim", "sampler.eta=[0.0,1.0]", "num_steps=[5,10]")
    assert len(found) == 8
    assert found[-1] == {"num_steps": 10, "guidance.limits.sigma_lo": 0.5, "sampler.eta": 1.0}
    [cell] = cells(compose("evaluate", ["model=x", "guidance.limits.channels=[0,1]", "guidance.scale=[1,2]"]))
    assert cell.columns == {} and cell.tree["guidance"]["limits"]["channels"] == [0, 1], "one value, and the curve"
    assert columns("guidance=classifier_free", "guidance.limits.sigma_hi=[3,9]")[1] == {"guidance.limits.sigma_hi": 9}
    asked = [cell.tree for cell in cells(compose("evaluate", ["model=x", "sigmas=karras", "num_steps=[5,10]"]))]
    assert [(tree["num_steps"], tree["sigmas"]["num_steps"]) for tree in asked] == [(5, 5), (10, 10)]
    assert columns("model=[runs/a,runs/b.yaml,c/a]") == [{"model": name} for name in ("runs-a", "b", "c-a")]
    for words, problem in {
        ("guidance.limits.sigma_lo=[1,1]",): "the same twice",
        ("sampler=ddim", "sampler.eta=[a]"): r"sampler\.eta=\['a'\]: expected float",
        ("sigmas=karras", "sigmas.rho=[]"): "at least one",
    }.items():
        with pytest.raises(ValueError, match=problem):
            columns(*words)


def test_several_models_are_one_table_and_one_plot(tmp_path: Path, yardsticks: Yardsticks):
    small = ["data.max_samples=6", "conditioner.label.num_classes=9"]
    runs = [untrained_run(tmp_path / name, *small, seed=seed) for seed, name in enumerate("ab")]
    words = [*OPTIONS, "guidance.scale=[1,2]", "guidance.limits.sigma_lo=[0,1]"]
    together = [*words, f"model=[{runs[0]},{runs[1]}]"]
    with pytest.raises(ValueError, match=r"out: say where"):
        evaluate(compose("evaluate", together), yardsticks)
    rows, folder = evaluate(compose("evaluate", [*together, f"out={tmp_path}/out"]), yardsticks)
    assert [(row["model"], row["guidance.limits.sigma_lo"]) for row in rows[::2]] == [
        (name, low) for name in "ab" for low in (0, 1)
    ]
    assert (folder / "grid.png").exists() and (folder / "model_b-guidance.limits.sigma_lo_1" / "points.json").exists()
    alone, _ = evaluate(compose("evaluate", [*words, f"model={runs[1]}", f"out={tmp_path}/alone"]), yardsticks)
    assert [{"model": "b", **row} for row in alone] == rows[4:]


def test_points_of_before_are_told_of_and_never_mixed_nor_lost(tmp_path: Path, yardsticks: Yardsticks, caplog):
    model = untrained_run(tmp_path / "run", "data.max_samples=6", "conditioner.label.num_classes=9")
    words = [*OPTIONS, f"model={model}", f"out={tmp_path}/out", "guidance.scale=[1]"]

    def rows(*more: str) -> list[dict]:
        caplog.clear()
        return evaluate(compose("evaluate", overriding([*words, *more])), yardsticks)[0]

    [bare] = rows("resamples=0")
    kept = json.loads((tmp_path / "out" / "points.json").read_text())
    del kept["points"]["1"]["nan_images"]  # as older code wrote it
    (tmp_path / "out" / "points.json").write_text(json.dumps(kept))
    assert rows("resamples=0") == [bare] and not caplog.records
    [whole] = rows()
    assert "have no intervals (resamples=0 takes them as they are)" in caplog.text
    assert {key: whole[key] for key in bare} == bare and len(whole) > len(bare)
    rows("seed=1")
    assert "other weights or settings" in caplog.text
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ldm.evaluation.evaluate._measure", None)  # nothing is measured again
        assert rows() == [whole] and rows("resamples=0") == [bare]


# What is lost


def test_samples_that_are_not_finite_are_counted_and_the_others_measured(
    tmp_path: Path, yardsticks: Yardsticks, monkeypatch: pytest.MonkeyPatch, caplog
):
    model = untrained_run(tmp_path / "run", "data.max_samples=6", "conditioner.label.num_classes=9")
    draw, lost = Model.generate, [1, 4]

    def some(self, sampling, batch, numbers, *asked):
        images = draw(self, sampling, batch, numbers, *asked)
        finite = torch.tensor([number not in lost for number in numbers.tolist()])
        if finite.all():
            return images
        raise NotFinite("not finite: image number 1", images.where(finite[:, None, None, None], torch.nan), finite)

    monkeypatch.setattr(Model, "generate", some)
    words = [*OPTIONS, f"model={model}", "guidance.scale=[1]", "num_samples=7", "paired=[psnr]"]
    [row], _ = evaluate(compose("evaluate", overriding([*words, f"out={tmp_path}/some"])), yardsticks)
    assert row["nan_images"] == 2 and "2 of 7 samples are not in the metrics; not finite: image number 1" in caplog.text
    assert all(value == value for value in row.values()), "all of them numbers"
    lost[:] = range(4)
    with pytest.raises(ValueError, match="not finite: image number 1"):
        evaluate(compose("evaluate", overriding([*words, f"out={tmp_path}/most"])), yardsticks)
    assert not list((tmp_path / "most").rglob("points.json"))


def test_a_run_without_an_average_is_measured_raw_and_says_so(tmp_path: Path, yardsticks: Yardsticks, caplog):
    model = untrained_run(tmp_path / "run", "data.max_samples=6", "conditioner.label.num_classes=9", "ema=null")
    words = [*OPTIONS, f"model={model}", "guidance.scale=[1]"]
    [row], _ = evaluate(compose("evaluate", [*words, f"out={tmp_path}/ema"]), yardsticks)
    assert "keeps no average of its weights: ema=ema measures the raw ones" in caplog.text
    caplog.clear()
    [raw], _ = evaluate(compose("evaluate", [*words, f"out={tmp_path}/raw", "ema=raw"]), yardsticks)
    assert row == raw and not caplog.records


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["protocol=coco30k"], r"protocol=coco30k: .*conditioned on caption; \S+ is conditioned on label"),
        (["protocol=lama"], r"protocol=lama: .*conditioned on image and mask; \S+ is conditioned on label"),
        (["protocol=imagenet50k", "use_conditions=[]"], r"protocol=imagenet50k: .*; \S+ is unconditional"),
        (["protocol=imagenet50k", "protocol.beside=ldm_16"], r"protocol\.beside=ldm_16: .* there are ldm_4, "),
        (["paired=[pnsr]"], "paired: no measure pnsr; there are psnr"),
        (["paired=[lpips_alex]"], r"paired: lpips_alex compares images of 31 px or more a side, these have 8"),
        (["metric=inception", "metric.path=nowhere.pth"], r"no Inception weights at nowhere\.pth"),
        (["alignment=open_clip", "alignment.weights=nowhere.pt"], "weights='nowhere.pt'"),
        (["num_samples=3"], "num_samples=3: at least 4"),
        (["seed=99999999999999999999"], "seed=99999999999999999999: must be at most"),
        (["seed=-1"], "seed=-1: must be at least 0"),
        (["resamples=-1"], "resamples=-1: must be at least 0"),
        (["reference=FEW"], r"reference: at least 4 images .* it has 3"),
        (["model=[AGAIN,AGAIN]"], "model=.*: the same twice"),
    ],
)
def test_what_cannot_be_measured_is_one_line_and_nothing_is_sampled(tmp_path: Path, monkeypatch, words, problem):
    def never(*_: object, **__: object) -> None:
        raise AssertionError("sampled")

    monkeypatch.setattr(Model, "generate", never)
    monkeypatch.setattr("ldm.evaluation.yardsticks.reference", never)
    model = untrained_run(tmp_path / "run")
    few = annotated_shard(503)
    words = [word.replace("FEW", str(few)).replace("AGAIN", str(model)) for word in words]
    with pytest.raises(ValueError, match=problem) as caught:
        evaluate(compose("evaluate", overriding([f"model={model}", f"out={tmp_path}/out", "device=cpu", *words])))
    assert not re.search("\n", str(caught.value))
