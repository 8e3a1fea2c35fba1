"""The quality of a run while it trains: stable rows, and a training that is as if nothing had been measured."""

import logging
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from test_loggers import history, wandb_records
from toys import Process, assert_equal_runs, curve, losses, same, state, tiny, train

from ldm.checkpoint import weights
from ldm.config import compose
from ldm.errors import UserError
from ldm.evaluation.evaluate import evaluate
from ldm.files import read_json
from ldm.fit import fit
from ldm.metrics import networks
from ldm.metrics.directions import larger_is_better
from ldm.run import Run
from ldm.training.callbacks.quality import Quality
from ldm.training.callbacks.watchdog import Watchdog
from ldm.training.diffusion import DiffusionTask
from ldm.training.loggers import curves

BACKBONE = "efficientnet_lite0@128"
KID = f"quality/kid/{BACKBONE}"
ALIGNMENT = "quality/alignment_score/efficientnet_lite0@128+minilm"
METRICS = [*(f"quality/{name}/{BACKBONE}" for name in ("kid", "fd", "precision", "recall", "is")), ALIGNMENT]
OPTIONS = (
    "callback.quality.every_steps=2",
    "callback.quality.num_samples=6",
    "callback.quality.num_reference=null",
    "callback.quality.batch_size=4",
    "callback.quality.max_share=1",
    "callback.checkpoint.every_steps=1",
    "callback.validation.every_steps=2",
    "callback.checkpoint.keep_weights=4",
    "max_steps=4",
    "optimizer.eps=0.1",  # so that two ranks train as one
)
pytestmark = pytest.mark.filterwarnings("ignore:Frechet distance from")
Start = Callable[..., Run]


@pytest.fixture(scope="module", autouse=True)
def loaded_once() -> Iterator[None]:
    """All runs of this file are judged by the same networks."""
    with (
        patch.object(networks, "efficientnet_features", cache(networks.efficientnet_features)),
        patch.object(networks, "alignment_score", cache(networks.alignment_score)),
    ):
        yield


@pytest.fixture(scope="module")
def measured(first_stage: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of four steps, measured at the second and fourth. Not to be changed."""
    folder = tmp_path_factory.mktemp("measured")
    return train("quickstart/diffusion", folder, f"first_stage={first_stage.folder}", *OPTIONS, run="measured")


def rows(run: Run) -> list[tuple[str, ...]]:
    """What a run logged of its quality, but for times."""
    return [row for row in losses(run.folder) if row[1].startswith("quality/")]


def test_a_measured_training_is_the_same_training_with_curves_more(measured: Run, train_diffusion: Start):
    plain = train_diffusion(*OPTIONS, "callback.quality.every_steps=null", run="plain")
    one, other = (state(run.folder, 4) for run in (plain, measured))
    callbacks = [own.pop("callbacks") for own in (one, other)]
    assert same(one, other) and callbacks[1].keys() - callbacks[0].keys() == {"Quality"}
    assert not rows(plain)
    assert losses(plain.folder) == [row for row in losses(measured.folder) if row not in rows(measured)]
    for name in METRICS:
        assert curve(measured.folder, name).keys() == {2, 4}, name
    assert curve(measured.folder, "quality/nan_images") == {2: 0, 4: 0}
    assert curve(measured.folder, "quality/samples_seen") == {2: 8, 4: 16}


def test_a_row_is_what_evaluate_says_of_the_same_weights(measured: Run, tmp_path: Path):
    words = (f"model={measured.folder}", "num_samples=6", "batch_size=4", "guidance.scale=[3]", f"out={tmp_path}")
    [row], _ = evaluate(compose("evaluate", list(words)))
    for name in METRICS:
        assert row[name.removeprefix("quality/")] == pytest.approx(
            curve(measured.folder, name)[4], rel=1e-5, abs=1e-6
        ), name


def interrupted(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None], at: int = 4) -> None:
    """Let `act` happen while the quality of step `at` is measured."""
    draw = DiffusionTask.draw

    def drawn(task: DiffusionTask, *given: object) -> torch.Tensor:
        if task.step == at:
            act()
        return draw(task, *given)

    monkeypatch.setattr(DiffusionTask, "draw", drawn)


def die() -> None:
    raise RuntimeError("killed")


def test_killed_within_a_measurement_a_run_has_the_same_rows(measured: Run, train_diffusion: Start, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="killed"):
        interrupted(patched, die)
        train_diffusion(*OPTIONS, run="measured")
    run = train_diffusion(*OPTIONS, run="measured")
    assert_equal_runs(run.folder, measured.folder, 4)


def test_what_a_signal_stops_is_measured_when_the_run_goes_on(measured: Run, train_diffusion, monkeypatch, capsys):
    words = (*OPTIONS, f"callback.checkpoint.best={KID}", "callback.checkpoint.keep_weights=1")
    with monkeypatch.context() as patched:
        interrupted(patched, lambda: os.kill(os.getpid(), signal.SIGTERM), at=2)
        stopped = train_diffusion(*words, run="measured")
    assert "step 2: its quality is measured when the run goes on" in capsys.readouterr().out
    assert not stopped.finished and not rows(stopped)
    run = train_diffusion(*words, run="measured")
    assert_equal_runs(run.folder, measured.folder, 4)
    values = curve(run.folder, KID)
    assert values[2] < values[4] and list(weights.steps(run.folder)) == [2, 4], "the best and the last"
    held_out = read_json(weights.steps(run.folder)[2])["validation"]
    assert held_out[KID] == values[2] and held_out["loss"] == curve(run.folder, "validation/loss")[2]


def test_points_that_take_too_long_are_skipped_and_stay_so(train_diffusion: Start, capsys):
    words = (*OPTIONS, "callback.quality.every_steps=1", "callback.quality.max_share=1e-6")
    train_diffusion(*words, "max_steps=2")
    run = train_diffusion(*words)
    assert list(curve(run.folder, KID)) == [1]
    said = capsys.readouterr().out
    assert all(f"step {step}: quality is not measured" in said for step in (2, 3, 4))
    [share] = curves(run.folder / "metrics.csv")["quality/share"][1]
    assert 0 < share < 1


def test_several_scales_are_several_curves_and_the_watchdog_hears_of_every_batch(train_diffusion, monkeypatch):
    heard: list[int] = []
    monkeypatch.setattr(Watchdog, "alive", lambda dog: heard.append(dog._step))
    run = train_diffusion(*OPTIONS, "callback.quality.scales=[1,3]")
    one, three = (curve(run.folder, f"{KID}@scale_{scale}") for scale in (1, 3))
    assert one.keys() == three.keys() == {2, 4} and one != three
    assert heard == [2] * (4 + 2 * 2) + [4] * (2 * 2), "16 images to compare with, then twice 6 samples, by fours"


def test_images_that_are_not_finite_are_counted_and_named(train_diffusion: Start, monkeypatch, caplog):
    draw = DiffusionTask.draw

    def broken(task: DiffusionTask, sampling: object, batch: object, numbers: torch.Tensor, seed: int) -> torch.Tensor:
        images = draw(task, sampling, batch, numbers, seed)
        images[numbers == 5] = torch.nan
        return images

    monkeypatch.setattr(DiffusionTask, "draw", broken)
    run = train_diffusion(*OPTIONS, "max_steps=2")
    assert curve(run.folder, "quality/nan_images") == {2: 1}
    assert not curve(run.folder, KID)
    assert "images 5 are not finite" in caplog.text


@pytest.mark.parametrize("keep", [True, False])
def test_networks_wait_on_the_cpu_or_are_loaded_anew(keep: bool):
    made = []

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    both = networks.MetricNetworks(Network, Network)
    for _ in range(2):
        with both.on(torch.device("cpu"), captioned=True, keep=keep) as (backbone, alignment):
            assert backbone is made[-2] and alignment is made[-1]
    assert len(made) == (2 if keep else 4)


def unloadable() -> None:
    raise AssertionError("loaded though nothing is measured")


def test_a_short_run_loads_no_network(train_diffusion: Start, monkeypatch):
    monkeypatch.setattr(networks, "efficientnet_features", unloadable)
    monkeypatch.setattr(networks, "alignment_score", unloadable)
    assert not rows(train_diffusion())


def test_without_the_packaged_weights_nothing_is_measured_and_that_is_said(train_diffusion, monkeypatch, caplog):
    def lacks(part: str) -> None:
        raise UserError(f"no weights for {part!r}")

    monkeypatch.setattr(networks, "locate", lacks)
    with caplog.at_level(logging.WARNING):
        run = train_diffusion(*OPTIONS, "max_steps=2")
    assert run.finished and not rows(run)
    assert [r.message for r in caplog.records].count(
        "callback.quality measures nothing: no weights for 'efficientnet_lite0'"
    ) == 1


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["callback.quality.num_samples=3"], r"callback\.quality\.num_samples=3: must be at least 4"),
        (["callback.quality.max_share=0"], r"callback\.quality\.max_share=0"),
        (["callback.quality.scales=[]"], r"callback\.quality\.scales"),
        (["metric=inception", "metric.path=no/such.pth"], r"no Inception weights at no/such\.pth"),
        (["callback.checkpoint.best=quality/kid"], rf"best=quality/kid: choose one of loss, .*{KID}"),
        (
            [f"callback.checkpoint.best={KID}", "callback.quality.every_steps=null"],
            r"choose one of loss \(callback\.quality measures nothing\)",
        ),
        (
            [f"callback.checkpoint.best={KID}", "callback.checkpoint.every_steps=4"],
            r"callback\.quality\.every_steps=2: .*multiple of callback\.checkpoint\.every_steps=4",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_before_the_training(words, problem, train_diffusion: Start, tmp_path: Path):
    with pytest.raises(ValueError, match=problem):
        train_diffusion(*OPTIONS, *words)
    assert not list(tmp_path.iterdir()), "refused before anything is written"


def test_wandb_has_every_curve_once_and_the_best(first_stage: Run, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    words = [*tiny("quickstart/diffusion", tmp_path, f"first_stage={first_stage.folder}", *OPTIONS)]
    words = [word for word in words if word != "~logger"]

    with monkeypatch.context() as patched:
        interrupted(patched, lambda: os.kill(os.getpid(), signal.SIGTERM), at=2)
        fit(compose("config", words), "measured")
    run = fit(compose("config", words), "measured")
    files = sorted(run.folder.glob(f"wandb/offline-run-*-{run.lineage['wandb_id']}*/*.wandb"))
    assert len(files) == 2
    deadline = time.monotonic() + 20  # the client's process writes on its own
    while not any(row["trainer/global_step"] == 4 for row in history(files[1])) and time.monotonic() < deadline:
        time.sleep(0.1)
    told, logged = [row for file in files for row in history(file)], curves(run.folder / "metrics.csv")
    steps = [row["trainer/global_step"] for row in told]
    assert steps == sorted(steps)
    for name in (*METRICS, "quality/nan_images", "quality/share", "quality/samples_seen", "quality/device_hours"):
        found = {row["trainer/global_step"]: row[name] for row in told if name in row}
        assert found == dict(zip(*logged[name], strict=True)), name
    summaries = [r.summary for r in wandb_records(files[1]) if r.WhichOneof("record_type") == "summary"]
    kept = {update.key: update.value_json for summary in summaries for update in summary.update}
    assert float(kept[f"best/{KID}"]) == min(curve(run.folder, KID).values())


RANK = """
import os, sys
from ldm.training.diffusion import DiffusionTask
from ldm.training.loggers import curves
draw = DiffusionTask.draw
def drawn(task, sampling, batch, numbers, seed):
    if {dies} and os.environ.get("LOCAL_RANK") == "1" and task.step == 4:
        os._exit(9)
    return draw(task, sampling, batch, numbers, seed)
DiffusionTask.draw = drawn
from ldm import train
from ldm.config import guarded
from ldm.training.distributed import leave
if __name__ == "__main__":
    guarded(train.main, leave)
"""


@pytest.mark.slow
@pytest.mark.parametrize("dies", [False, True])
def test_two_ranks_have_the_row_of_one_and_end_together(dies: bool, measured: Run, first_stage: Run, tmp_path: Path):
    script = tmp_path / "rank.py"
    script.write_text(RANK.format(dies=dies))
    words = tiny("quickstart/diffusion", tmp_path, f"first_stage={first_stage.folder}", *OPTIONS, "run=two")
    words += ["trainer.devices=2", "trainer.strategy=ddp"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script), *words]
    process = Process(launch, tmp_path / "said")
    status = process.wait()
    if dies:
        assert status != 0 and "another rank ended while this one waited for it" in process.said
        return
    assert status == 0, process.said
    for name in METRICS:
        assert curve(tmp_path / "two", name) == pytest.approx(curve(measured.folder, name), rel=1e-4), name


def test_the_callback_of_a_run_that_draws_nothing_is_silent(classifier: Run):
    assert classifier.finished and not rows(classifier)


def alike(monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...] | None = None) -> Quality:
    """A callback of six samples, of which there are two, on one of three ranks; on the third there are `names`."""
    quality = Quality.__new__(Quality)
    quality.every_steps, quality.asked = 2, SimpleNamespace(num_samples=6)
    quality._judged = SimpleNamespace(names=("kid/a", "lpips_alex"), num_images=2)
    gathered = "ldm.training.callbacks.quality.gather_objects"
    monkeypatch.setattr(gathered, lambda own: [own, own, own if names is None else names])
    return quality


def test_ranks_that_would_not_measure_the_same_all_end_before_the_training(monkeypatch: pytest.MonkeyPatch):
    ranks, task = SimpleNamespace(world_size=3), SimpleNamespace(step=0)
    for judged in ("there", "not there"):
        quality = alike(monkeypatch, ("quality/kid/a",) if judged == "there" else ("quality/kid/b",))
        quality._judged = quality._judged if judged == "there" else None
        with pytest.raises(
            UserError, match=r"rank 2 would not measure what rank 0 does \(quality/(lpips_alex|kid/b)\)"
        ):
            quality.on_train_start(ranks, task)
    with pytest.raises(UserError, match="num_samples=6, of which there are 2: at least one for each of the 3 ranks"):
        alike(monkeypatch).on_train_start(ranks, task)


def test_a_value_that_is_no_number_is_never_the_best():
    quality = Quality.__new__(Quality)
    quality.best = {}
    trainer = SimpleNamespace(loggers=[], datamodule=SimpleNamespace(batch_size=4))
    task = SimpleNamespace(clock=lambda: {"seconds": 1.0, "device_hours": 0.0}, step=1, measuring_seconds=0.5)
    quality.samples_before = 0
    for value in (math.nan, 2.0, math.nan, 1.0, 3.0):
        quality._log(trainer, task, {"kid/a": value}, 0.1)
    assert quality.best == {"quality/kid/a": 1.0}


def test_the_next_point_is_as_far_as_the_share_asks_for(first_stage: Run):
    quality = Quality.__new__(Quality)
    quality.every_steps, quality.max_share = 10, 0.1

    class Timed:
        step, measuring_seconds = 100, 6.0

        def clock(self) -> dict[str, float]:
            return {"seconds": 106.0}

    # of 1 s a step: 6 + 3 seconds are a tenth of 90, which training alone reaches at once
    assert quality._next(Timed(), 3.0) == 0
    # 6 + 9 of 150 s: 15 / 0.1 - 9 - 106 = 35 s on, four points
    assert quality._next(Timed(), 9.0) == 140


@pytest.mark.parametrize(("name", "larger"), [(KID, False), (ALIGNMENT, True), ("quality/recall/x@scale_3", True)])
def test_names_say_which_values_are_better(name: str, larger: bool):
    assert larger_is_better(name) == larger
