"""The sweep over f: whole at toy length, nothing done twice, and nothing trained that could not."""

import csv
import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from toys import TINY_RUN, annotated_shard

from ldm.config import compose, overriding
from ldm.errors import UserError
from ldm.files import write_json
from ldm.launching import Job
from ldm.launching.sequences import Sequences
from ldm.launching.torchrun import Torchrun
from ldm.results.measured import read_measured
from ldm.results.measured_under import training_of
from ldm.results.results import CellResults
from ldm.sweep import stage
from ldm.sweep.budget import Budget, weights_at_moments
from ldm.sweep.cells import Cell, Places, cells, check, settings_of
from ldm.sweep.intervals import ends_are_worse, interval
from ldm.sweep.page import verdict
from ldm.sweep.results import results_at
from ldm.sweep.sweep_f import Sweep, sweep_f

DATA = " ".join(word for word in TINY_RUN if word.startswith("data."))
SMALL = f"{DATA} image_size=32 max_steps=2 lr.warmup_steps=0 callback.metrics.every_steps=1"
AUTOENCODER = (
    f"{SMALL} autoencoder.channels=8 autoencoder.norm_groups=4 discriminator.channels=4 reconstruction.start_step=1"
)
NETWORK = "network.channels=8 network.norm_groups=4 network.head_channels=8 network.multipliers=[1,2]"
DIFFUSION = f"{SMALL} {NETWORK} num_steps=2 callback.speed.every_steps=1"


def tree(folder: Path, *more: str) -> dict:
    words = (
        "f=[1,4]", f"runs_dir={folder}", "num_samples=4", "num_steps=2", "sampling_steps=[1,2]", "batch_size=4",
        "metric.size=32", "device=cpu", "moments=2", "logger.mode=disabled", *more,
    )  # fmt: skip
    composed = compose("sweep_f", overriding(words))
    return {**composed, "autoencoder_overrides": AUTOENCODER, "diffusion_overrides": DIFFUSION}


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.timeout(1800)  # ten processes, which each import torch
@pytest.mark.filterwarnings("ignore:Frechet distance from")
def test_the_sweep_is_whole_and_goes_on_from_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kept = tmp_path / "kept" / "rows.csv"
    budget = ("budget=device_seconds", "device_seconds=0.1", "trial_steps=20", "jobs=2", f"results={kept}")
    folder = sweep_f(tree(tmp_path / "runs", *budget)).parent
    rows = {int(row["f"]): row for row in read(kept)}
    assert set(rows) == {1, 4}
    assert all(float(row["kid/efficientnet_lite0@32"]) and float(row["device_seconds"]) > 0 for row in rows.values())
    assert rows[1]["psnr"] == "" and float(rows[4]["psnr"]) > 0 and rows[4]["channels"] == "3"
    points = read(kept.with_name("rows_points.csv"))
    assert all(float(p["samples_per_second"]) > 0 for p in points if p["curve"] == "speed")
    assert {(p["f"], p["num_steps"]) for p in points if p["curve"] == "speed"} == {(f, n) for f in "14" for n in "12"}
    names = ("index.html", "table.csv", "quality_over_steps.png", "quality_over_speed.png")
    assert all((folder / name).exists() for name in names)

    shutil.rmtree(tmp_path / "runs")  # a fresh machine, which has the rows alone
    monkeypatch.setattr(Sequences, "do", None)  # nothing is run
    assert sweep_f(tree(tmp_path / "runs", *budget)).name == "index.html"
    assert sweep_f(tree(tmp_path / "two", *budget, "f=[1,2]", "train=false")).with_name("table.csv").exists()
    with pytest.raises(ValueError, match=r"rows\.csv: its rows f1-seed0 were measured with"):
        sweep_f(tree(tmp_path / "runs", *budget, "num_samples=5"))


def test_what_could_not_train_is_refused_before_anything_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Sequences, "run", None)
    for words, said in {
        ("f=[3]",): "powers of two", ("f=[]",): "powers of two", ("f=[4,4]",): "powers of two",
        ("f=[1,32]",): "f=32: image_size=32: must be a multiple of 64.*diffusion_by_f.f32=",
        ("regularizer=[kl,gan]",): "kl, vq or", ("seeds=[]",): "different numbers", ("budget=hours",): "choose one of",
        ("channels.kl.f4=null",): "channels.kl.f4: says no", ("results=here",): "ends in .csv",
        ("sampling_steps=[ten]",): "sampling_steps=.*whole numbers", ("scale=strong",): "scale='strong'",
        ("scale=nan",): "scale=nan", ("budget=device_seconds", "device_seconds=inf"): "device_seconds=inf",
        ("sampling_steps=5",): "sampling_steps", ("device_seconds=many",): "device_seconds",
        ("sampling_steps=[5000]",): r"f=1: num_steps: must lie in \[1, 999\]", ("reference=typo/*.tar",): "reference",
        ("reference=typo.npz",): "typo.npz", ("metric.path=typo",): "metric.path=typo: no such file",
        ("launcher=submitit",): "launcher.wait", ("train=false",): "none of the 2 cells",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=said):
            sweep_f(tree(tmp_path, *words))
    assert not list(tmp_path.iterdir())


def test_cells_come_seed_by_seed_and_pixels_once():
    asked = cells({"f": [1, 4], "seeds": [0, 1], "regularizer": "[kl,vq]"})
    names = [cell.name for cell in asked]
    assert names == [f"{model}-seed{seed}" for seed in (0, 1) for model in ("f1", "kl-f4", "vq-f4")]


@pytest.mark.slow
def test_every_f_has_a_network_of_about_the_same_size():
    asked = compose("sweep_f", ["f=[1,2,4,8,16,32]", "regularizer=[kl,vq]"])
    counts = check(asked, cells(asked)).values()
    assert max(counts) < 1.5 * min(counts)
    for words, factor in ((["sweep=fashion", "shards=anywhere"], 1.02), (["sweep=emoji"], 1.5)):
        named = compose("sweep_f", words)
        counts = check(named, cells(named)).values()
        assert max(counts) < factor * min(counts)


def test_intervals_are_students():
    mean, half = interval([1.0, 2.0, 3.0])
    assert mean == 2.0 and half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert interval([5.0]) == (5.0, math.inf)


def test_the_verdict_wants_both_ends_worse_with_disjoint_intervals():
    between = {1: [9.0, 9.1, 9.2], 4: [1.0, 1.1, 1.2], 16: [5.0, 5.1, 5.2]}
    found = ends_are_worse(between)
    assert found.holds and found.best == 4
    assert not ends_are_worse({**between, 16: [0.5, 0.6, 0.7]}).holds  # an end is best
    assert ends_are_worse({**between, 16: [1.2, 1.4, 5.0]}).worse == {1: True, 16: False}  # the intervals meet
    assert not ends_are_worse({f: values[:1] for f, values in between.items()}).holds  # one seed has no interval
    with pytest.raises(ValueError, match="between the ends"):
        ends_are_worse({1: [1.0], 2: [2.0]})


def test_rows_are_kept_as_they_were(tmp_path: Path):
    results = results_at(tmp_path / "rows.csv")
    other = results_at(tmp_path / "rows.csv")  # of another process
    results.add(
        Cell(4, "kl", 0), {"settings": '{"f": 4}', "steps": 7, "kid/x": 0.1 + 0.2}, [{"curve": "steps", "step": 7}]
    )
    other.add(Cell(1, "", 0), {"settings": '{"f": 1, "scale": 2.0}', "steps": 3, "kid/x": 0.5, "psnr": None}, [])
    again = results_at(tmp_path / "rows.csv")
    (kl,), (pixels,) = again.cells.find(Cell(4, "kl", 0)), again.cells.find(Cell(1, "", 0))
    assert kl["kid/x"] == 0.1 + 0.2 and pixels["psnr"] is None and len(again.points.rows) == 1
    budget = Budget({"device_seconds": 1.0, "trial_steps": 20}, tmp_path, again)
    assert budget.known("kl-f4", '{"f": 4}') == 7 and budget.known("f1", '{"f": 1}') == 3
    assert budget.known("kl-f4", '{"device_seconds": 2.0}') is None and budget.known("kl-f4", None) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.csv", "rows_points.csv"]
    (tmp_path / "rows_points.csv").unlink()
    with pytest.raises(UserError, match=r"rows_points\.csv: is missing"):
        results_at(tmp_path / "rows.csv")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"kl,4,0,7,,1", "line 3: has more values"),
        (b"kl,4,0,7,\xff", "not to be read as CSV"),
        (b"kl,4,0,many,", "line 3: steps is 'many', and not a number"),
        (b"kl,4,0,0,1.5", "line 3: steps is 0"),
        (b"kl,four,0,7,", "line 3: not the row of a cell"),
    ],
)
def test_a_damaged_row_is_named(tmp_path: Path, line: bytes, said: str):
    (tmp_path / "rows.csv").write_bytes(b"regularizer,f,seed,steps,psnr\n,1,0,3,\n" + line + b"\n")
    (tmp_path / "rows_points.csv").write_text("regularizer,f,seed,curve,step\n")
    with pytest.raises(UserError, match=rf"rows\.csv.*{said}"):
        results_at(tmp_path / "rows.csv")


def test_a_measurement_counts_under_its_own_settings_alone(tmp_path: Path):
    asked = tree(tmp_path)
    cell, places = Cell(1, "", 0), Places(asked)
    found = {"row": {"steps": 2}, "points": []}
    for settings, jobs in (
        (settings_of(asked, cell), 0),
        (settings_of({**asked, "num_samples": 5}, cell), 2),
        (None, 2),
    ):
        write_json(places.measured(cell) / "measured.json", {"settings": settings, **found})
        assert len(list(Sweep(asked, results_at(tmp_path / "rows.csv")).jobs_of(cell))) == jobs


def check_rows(results: CellResults, cell: Cell, one: str, other: str, untold: str) -> None:
    """Under `one` rows of the same settings and of those that do not tell are taken, rows of `other` refused."""
    for told, fits in ((one, True), (other, False), (untold, True)):
        results.add(cell, {"settings": told, "steps": 2}, [])
        if fits:
            results.cells.check(cell, one)
        else:
            with pytest.raises(UserError, match=r"its rows \S+ were measured with"):
                results.cells.check(cell, one)


def test_a_row_of_other_shards_is_refused_and_one_of_before_they_were_told_is_not(tmp_path: Path):
    for name, skip in (("a", 0), ("b", 1)):
        (tmp_path / name).mkdir()
        for split in ("train", "validation"):
            shutil.copyfile(annotated_shard(skip), tmp_path / name / f"{split}-00000.tar")
    cell, results = Cell(1, "", 0), results_at(tmp_path / "rows.csv")
    one, other = (settings_of(tree(tmp_path, f"shards={tmp_path / name}"), cell) for name in "ab")
    assert training_of(one) == training_of(other) == training_of(settings_of(tree(tmp_path), cell)) is not None
    check_rows(results, cell, one, other, settings_of(tree(tmp_path), cell))


def test_a_row_that_was_compared_with_another_reference_is_refused(tmp_path: Path):
    shards, results, cell = tmp_path / "a.tar", results_at(tmp_path / "rows.csv"), Cell(1, "", 0)

    def settings(skip: int) -> str:
        shutil.copyfile(annotated_shard(skip), shards)
        return settings_of(tree(tmp_path, f"reference={shards}"), cell)

    one, other = settings(0), settings(1)
    assert training_of(one) == training_of(other)
    shards.unlink()
    not_there = settings_of(tree(tmp_path, f"reference={shards}"), cell)  # as rows of before it was told
    check_rows(results, cell, one, other, not_there)


def test_the_steps_of_a_budget_are_those_of_the_same_training(tmp_path: Path):
    asked = tree(tmp_path, "budget=device_seconds", "device_seconds=4")
    cell, places = Cell(1, "", 0), Places(asked)
    run = places.runs / f"{places.diffusion(cell).name}-trial"

    def jobs(tree: dict) -> Iterator[Job]:
        return Sweep(tree, results_at(tmp_path / "rows.csv")).jobs_of(cell)

    def training(job: Job) -> int:
        assert job.name == places.diffusion(cell).name
        return next(int(word.partition("=")[2]) for word in job.words if word.startswith("max_steps="))

    first = jobs(asked)
    assert next(first).name == run.name
    run.mkdir(parents=True)
    (run / "metrics.csv").write_text("".join(f"{step},speed/device_seconds,{step / 10}\n" for step in (5, 10, 15, 20)))
    assert training(next(first)) == 40 and not run.exists()
    for same in ({}, {"num_samples": 9}):
        assert training(next(jobs({**asked, **same}))) == 40
    assert next(jobs({**asked, "device_seconds": 8})).name == run.name
    write_json(places.folder / "steps.json", {"f1": 40})  # of before they said of what
    assert next(jobs(asked)).name == run.name


def test_where_a_training_was_stopped_is_no_moment_of_it(tmp_path: Path):
    for step in (3, 4, 7, 8, 10):
        (tmp_path / "weights").mkdir(exist_ok=True)
        (tmp_path / "weights" / f"step_{step:08d}.ema.safetensors").touch()
    assert [int(path.name[5:13]) for path in weights_at_moments(tmp_path, 3, 10)] == [4, 8, 10]


def test_a_model_without_an_average_is_measured_by_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = {**tree(tmp_path, "f=[1]", "sampling_steps=[2]"), "diffusion_overrides": f"{DIFFUSION} ema=null"}
    cell, places, measured = Cell(1, "", 0), Places(asked), []
    (places.diffusion(cell) / "weights").mkdir(parents=True)
    for step in (1, 2):
        (places.diffusion(cell) / "weights" / f"step_{step:08d}.raw.safetensors").touch()

    def quality(tree: dict, folder: Path, weights: Path, num_steps: int) -> dict:
        measured.append(weights.name)
        return {"kid/x": 1.0}

    monkeypatch.setattr(stage, "_training", lambda places, cell: {"steps": 2})
    monkeypatch.setattr(stage, "_parameters", lambda places, cell: {})
    monkeypatch.setattr(stage, "_samples_per_second", lambda *_: 1.0)
    monkeypatch.setattr(stage, "quality", quality)
    stage.run_stage("measure", cell.name, asked)
    assert measured == [f"step_{step:08d}.raw.safetensors" for step in (1, 2, 2)]
    assert read_measured(places.measured(cell))[0]["kid/x"] == 1.0


def test_the_verdict_waits_for_all_cells():
    rows = [{"regularizer": "kl" if f > 1 else "", "f": f, "seed": s, "k": f + s} for f in (1, 4, 16) for s in (0, 1)]
    asked = cells({"f": [1, 4, 16], "seeds": [0, 1], "regularizer": "kl"})
    assert "the best f is 1" in verdict(rows, "k", "kl", asked)
    assert "the hypothesis is not judged" in verdict([row for row in rows if not row["seed"]], "k", "kl")
    assert "these cells are missing: kl-f16-seed1" in verdict(rows[:-1], "k", "kl", asked)


def test_torchrun_starts_a_process_for_each_device():
    training = Torchrun(4).command(Job("x", ("experiment=a",)))
    assert "--nproc_per_node=4" in training and training[-2:] == ["experiment=a", "trainer.devices=4"]
    assert Torchrun(4).command(Job("x", ("stage=measure",), script="sweep_f"))[-1] == "stage=measure"
