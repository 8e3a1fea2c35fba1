"""The quality of a run while it trains: stable rows, and a training that is as if nothing had been measured."""

import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_loggers import history, wandb_records
from toys import Process, assert_equal_runs, curve, losses, same, state, tiny, train

from ldm.checkpoint import weights
from ldm.config import compose
from ldm.evaluation.evaluate import evaluate
from ldm.files import read_json
from ldm.metrics import networks
from ldm.run import Run
from ldm.training.callbacks.quality import Quality
from ldm.training.callbacks.watchdog import Watchdog
from ldm.training.diffusion import DiffusionTask

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
    "callback.checkpoint.keep_weights=4",
    "max_steps=4",
    "optimizer.eps=0.1",  # so that two ranks train as one
)
pytestmark = pytest.mark.filterwarnings("ignore:Frechet distance from")
Start = Callable[..., Run]


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
    words = (f"model={measured.folder}", "num_samples=6", "batch_size=4", "guidance.scale=[1]", f"out={tmp_path}")
    [row], _ = evaluate(compose("evaluate", list(words)))
    for name in METRICS:
        assert row[name.removeprefix("quality/")] == pytest.approx(curve(measured.folder, name)[4], rel=1e-5), name


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
    words = (*OPTIONS, f"callback.checkpoint.best={KID}")
    with monkeypatch.context() as patched:
        interrupted(patched, lambda: os.kill(os.getpid(), signal.SIGTERM), at=2)
        stopped = train_diffusion(*words, run="measured")
    assert "step 2: its quality is measured when the run goes on" in capsys.readouterr().out
    assert not stopped.finished and not rows(stopped)
    run = train_diffusion(*words, run="measured")
    assert_equal_runs(run.folder, measured.folder, 4)
    assert read_json(weights.steps(run.folder)[2])["validation"][KID] == curve(run.folder, KID)[2]


def test_points_that_take_too_long_are_skipped_and_stay_so(train_diffusion: Start, capsys):
    words = (*OPTIONS, "callback.quality.every_steps=1", "callback.quality.max_share=1e-6")
    train_diffusion(*words, "max_steps=2")
    run = train_diffusion(*words)
    assert list(curve(run.folder, KID)) == [1]
    said = capsys.readouterr().out
    assert all(f"step {step}: quality is not measured" in said for step in (2, 3, 4))
    assert 0.1 < curve(run.folder, "quality/share")[1] < 1


@pytest.mark.parametrize(("name", "largest"), [(KID, False), (ALIGNMENT, True)])
def test_the_best_weights_by_a_metric_stay(name: str, largest: bool, train_diffusion: Start):
    words = ("callback.quality.every_steps=1", "callback.checkpoint.keep_weights=1", "optimizer.lr=0.1")
    run = train_diffusion(*OPTIONS, *words, f"callback.checkpoint.best={name}", "ema=null")
    values = curve(run.folder, name)
    best = (max if largest else min)(values, key=values.__getitem__)
    assert list(weights.steps(run.folder)) == sorted({best, 4})


def test_several_scales_are_several_curves(train_diffusion: Start):
    run = train_diffusion(*OPTIONS, "callback.quality.scales=[1,3]")
    one, three = (curve(run.folder, f"{KID}@scale_{scale}") for scale in (1, 3))
    assert one.keys() == three.keys() == {2, 4} and one != three


def test_images_that_are_not_finite_are_counted_and_named(train_diffusion: Start, monkeypatch, caplog):
    draw = DiffusionTask.draw

    def broken(task: DiffusionTask, sampling: object, batch: object, numbers: torch.Tensor, seed: int) -> torch.Tensor:
        images = draw(task, sampling, batch, numbers, seed)
        images[numbers == 5] = torch.nan
        return images

    monkeypatch.setattr(DiffusionTask, "draw", broken)
    run = train_diffusion(*OPTIONS)
    assert curve(run.folder, "quality/nan_images") == {2: 1, 4: 1}
    assert not curve(run.folder, KID)
    assert "images 5 are not finite" in caplog.text


def unloadable() -> None:
    raise AssertionError("loaded though nothing is measured")


def test_a_short_run_loads_no_network(train_diffusion: Start, monkeypatch):
    monkeypatch.setattr(networks, "efficientnet_features", unloadable)
    monkeypatch.setattr(networks, "alignment_score", unloadable)
    assert not rows(train_diffusion())


def test_without_the_packaged_weights_nothing_is_measured_and_that_is_said(train_diffusion, monkeypatch, caplog):
    def lacks(part: str) -> None:
        raise ValueError(f"no weights for {part!r}")

    monkeypatch.setattr(networks, "locate", lacks)
    with caplog.at_level(logging.WARNING):
        run = train_diffusion(*OPTIONS)
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


def test_the_watchdog_hears_of_every_batch(train_diffusion: Start, monkeypatch):
    heard: list[int] = []
    monkeypatch.setattr(Watchdog, "alive", lambda dog: heard.append(dog._step))
    train_diffusion(*OPTIONS)
    assert heard == [2] * (4 + 2) + [4] * 2, "16 images to compare with, then 6 samples, by fours"


def test_wandb_has_every_curve_once_and_the_best(first_stage: Run, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    words = [*tiny("quickstart/diffusion", tmp_path, f"first_stage={first_stage.folder}", *OPTIONS)]
    words = [word for word in words if word != "~logger"]

    def start() -> Run:
        from ldm.fit import fit

        return fit(compose("config", words), "measured")

    with monkeypatch.context() as patched:
        interrupted(patched, lambda: os.kill(os.getpid(), signal.SIGTERM), at=2)
        start()
    run = start()
    files = sorted(run.folder.glob(f"wandb/offline-run-*-{run.lineage['wandb_id']}/*.wandb"))
    assert len(files) == 2
    told = [row for file in files for row in history(file)]
    steps = [row["trainer/global_step"] for row in told]
    assert steps == sorted(steps)
    for name in (*METRICS, "quality/nan_images", "quality/share", "quality/samples_seen", "quality/device_hours"):
        found = {row["trainer/global_step"]: row[name] for row in told if name in row}
        assert found == curve(run.folder, name), name
    summaries = [r.summary for r in wandb_records(files[1]) if r.WhichOneof("record_type") == "summary"]
    kept = {update.key: update.value_json for summary in summaries for update in summary.update}
    assert float(kept[f"best/{KID}"]) == min(curve(run.folder, KID).values())


RANK = """
import os, sys
from ldm.training.diffusion import DiffusionTask
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
