"""The same command again goes on where the run stands, bit for bit, however it was stopped."""

import json
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import pytorch_lightning as pl
from toys import Process, assert_equal_runs, curve, losses, newest_step, state, tiny, train

from ldm.checkpoint import resume, weights
from ldm.config import compose
from ldm.data.seals import sealed
from ldm.files import read_json, read_text, sha256, write_json
from ldm.fit import fit
from ldm.holding import FolderHeld, FolderLost, held
from ldm.run import Run, open_run
from ldm.training.autoencoder import AutoencoderTask
from ldm.training.callbacks.checkpoint import Restore
from ldm.training.callbacks.group import members
from ldm.training.callbacks.held import WhileHeld
from ldm.training.callbacks.signals import MARKER, requeue_slurm_job
from ldm.training.loggers import CSVLog
from ldm.training.task import Task

Train = Callable[..., Run]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

# Everything random in it: augmentation, and dropout inside the layers; the discriminator comes in half-way.
AUTOENCODER = (
    "data.horizontal_flip_prob=0.5",
    "autoencoder.dropout=0.1",
    "reconstruction.start_step=2",
    "callback.validation.every_steps=2",
)
DIFFUSION = (
    "data.horizontal_flip_prob=0.5",
    "network.dropout=0.1",
    "accumulation=2",
    "task.keep_latents=false",
    "callback.validation.every_steps=2",
)
# With a mean over three steps, so that a stop in the middle of it would show.
SIGNALLED = (*AUTOENCODER, "accumulation=2", "max_steps=4", "callback.metrics.every_steps=3")


def stop_after(step: int, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the run get a signal while it does this step."""
    original, sent = Task.on_train_batch_start, []

    def send(task: Task, batch: dict, batch_index: int) -> None:
        original(task, batch, batch_index)
        if task.step == step - 1 and not sent:
            sent.append(number)
            signal.raise_signal(number)

    monkeypatch.setattr(Task, "on_train_batch_start", send)


def test_an_autoencoder_goes_on_bit_for_bit(train_autoencoder: Train):
    whole = train_autoencoder(*AUTOENCODER, "max_steps=4", run="whole")
    for max_steps in (1, 2, 4):
        parts = train_autoencoder(*AUTOENCODER, f"max_steps={max_steps}", run="parts")
        assert parts.lineage["finished_step"] == max_steps
    parts_losses = [row for row in losses(parts.folder) if row[0] != "1" or not row[1].startswith("validation")]
    assert parts_losses == losses(whole.folder)  # a run that ends is validated, so that step 1 of the parts was
    (parts.folder / "metrics.csv").write_bytes((whole.folder / "metrics.csv").read_bytes())
    assert_equal_runs(whole.folder, parts.folder, step=4)
    latent = [weights.load(run.folder).metadata["latent"] for run in (whole, parts)]
    assert latent[0] == latent[1]


def test_diffusion_goes_on_bit_for_bit(train_diffusion: Train):
    whole = train_diffusion(*DIFFUSION, "max_steps=4", run="whole")
    parts = train_diffusion(*DIFFUSION, "max_steps=2", run="parts")
    parts = train_diffusion(*DIFFUSION, "max_steps=4", run="parts")
    assert_equal_runs(whole.folder, parts.folder, step=4)
    assert parts.lineage["samples_seen"] == 16 and len(curve(parts.folder)) == 4


def test_device_hours_are_of_the_devices_that_there_were(train_diffusion: Train, monkeypatch: pytest.MonkeyPatch):
    def counters(run: Run, step: int) -> dict:
        return read_json(run.folder / "checkpoints" / f"step_{step:08d}.ckpt" / "state.json")

    with monkeypatch.context() as patch:
        patch.setattr(pl.Trainer, "world_size", 4)  # as the first of four
        four = counters(train_diffusion("max_steps=1"), 1)
    one = counters(train_diffusion("max_steps=2"), 2)
    assert four["device_hours"] == pytest.approx(4 * four["seconds"] / 3600)
    assert one["device_hours"] - four["device_hours"] == pytest.approx((one["seconds"] - four["seconds"]) / 3600)


def test_a_checkpoint_is_hashed_once_to_be_resumed(
    diffusion: Run, first_stage: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    copy = shutil.copytree(diffusion.folder, tmp_path / "copy")
    hashed, read = [], []
    monkeypatch.setattr(resume, "sha256", lambda path: hashed.append(path) or sha256(path))
    monkeypatch.setattr(resume, "read_text", lambda path, limit: read.append(path) or read_text(path, limit))
    given = f"first_stage={first_stage.folder}"
    train("quickstart/diffusion", tmp_path, given, "max_steps=3", run="copy")
    old = copy / "checkpoints" / "step_00000002.ckpt"
    assert hashed.count(old / "state.pt") == 1
    assert read.count(old / "manifest.json") == 4  # whose run, before and in its lock; whether it is whole; its files
    hashed.clear()
    train("quickstart/diffusion", tmp_path, given, f"branch={old}", run="branch")
    own = [path for path in hashed if path.name == "state.pt" and path.parent.name == old.name and path.exists()]
    assert len(own) == 3  # whether it is whole, before and in the lock of the new run; and when it is read


def test_a_classifier_goes_on_bit_for_bit(first_stage: Run, tmp_path: Path):
    own = (
        "data.horizontal_flip_prob=0.5",
        "network.dropout=0.1",
        "accumulation=2",
        "callback.validation.every_steps=2",
    )
    given = (f"first_stage={first_stage.folder}", *own)
    whole = train("quickstart/classifier", tmp_path, *given, "max_steps=4", run="whole")
    parts = train("quickstart/classifier", tmp_path, *given, "max_steps=2", run="parts")
    parts = train("quickstart/classifier", tmp_path, *given, "max_steps=4", run="parts")
    assert_equal_runs(whole.folder, parts.folder, step=4)
    assert parts.lineage["samples_seen"] == 16 and len(curve(parts.folder)) == 4


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train("quickstart/autoencoder", tmp_path_factory.mktemp("uninterrupted"), *SIGNALLED)


def test_a_run_that_fails_leaves_no_handler_of_signals_behind(
    train_autoencoder: Train, monkeypatch: pytest.MonkeyPatch
):
    def fail(task: AutoencoderTask, *_) -> None:
        during.extend(signal.getsignal(number) for number in SIGNALS)
        raise ValueError("broken")

    before, during = [signal.getsignal(number) for number in SIGNALS], []
    monkeypatch.setattr(AutoencoderTask, "training_step", fail)
    with pytest.raises(ValueError, match="broken"):
        train_autoencoder(*SIGNALLED)
    assert not set(during) & set(before)
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_saves_and_the_run_goes_on_bit_for_bit(
    number: int,
    uninterrupted: Run,
    train_autoencoder: Train,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
):
    before = [signal.getsignal(n) for n in SIGNALS]
    with monkeypatch.context() as patch:
        stop_after(2, number, patch)
        stopped = train_autoencoder(*SIGNALLED)
    assert not stopped.finished and state(stopped.folder, 2)["step"] == 2
    assert [signal.getsignal(n) for n in SIGNALS] == before
    printed = capfd.readouterr()
    assert "stopped and saved at step 2 of 4" in printed.out and "SIGTERM" not in printed.out + printed.err
    marker = stopped.folder / MARKER
    assert marker.exists() == (number != signal.SIGINT)
    if marker.exists():
        assert marker.read_text() == f"{signal.Signals(number).name} at step 2 of 4\n"

    parts = train_autoencoder(*SIGNALLED)
    assert not marker.exists()
    assert parts.finished and sorted(curve(parts.folder)) == [3, 4]
    assert_equal_runs(uninterrupted.folder, parts.folder, step=4)


@pytest.mark.parametrize(
    ("environment", "asked"),
    [
        ({"SLURM_JOB_ID": "7"}, "requeue 7"),
        ({"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "8", "SLURM_ARRAY_TASK_ID": "3"}, "requeue 8_3"),
    ],
)
def test_slurm_is_asked_to_requeue(
    environment: dict[str, str], asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, value in {**environment, "PATH": f"{tmp_path}:{os.environ['PATH']}"}.items():
        monkeypatch.setenv(name, value)
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    requeue_slurm_job()
    assert (tmp_path / "asked").read_text().strip() == asked


def test_a_slurm_that_refuses_is_only_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("PATH", str(tmp_path))  # no scontrol there
    requeue_slurm_job()
    assert "scontrol requeue 7" in caplog.text and "start the same command again yourself" in caplog.text


def test_a_run_killed_before_its_conclusion_is_only_concluded(train_autoencoder: Train):
    run = train_autoencoder("callback.checkpoint.every_steps=2", "callback.validation.every_steps=2")
    before = state(run.folder, 2), losses(run.folder), weights.load(run.folder)
    lineage, description = run.folder / "lineage.json", run.folder / "weights" / "step_00000002.json"
    told, facts = json.loads(lineage.read_text()), json.loads(description.read_text())
    write_json(lineage, sealed({key: value for key, value in told.items() if key != "finished_step"}))
    write_json(description, sealed({key: value for key, value in facts.items() if key != "latent"}))

    again = train_autoencoder("callback.checkpoint.every_steps=2", "callback.validation.every_steps=2")
    assert again.finished and state(run.folder, 2)["step"] == 2
    assert losses(run.folder) == before[1]
    assert weights.load(run.folder).digest == before[2].digest
    assert weights.load(run.folder).metadata["latent"] == before[2].metadata["latent"]


def test_a_run_cut_off_while_its_last_step_is_saved_still_gets_its_weights(
    train_autoencoder: Train, monkeypatch: pytest.MonkeyPatch
):
    def broken(path: Path, text: str) -> None:
        raise OSError(f"{path}: input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(resume, "write_text", broken)  # the checkpoint's folder is there by then
        with pytest.raises(OSError, match=r"last\.ckpt"):
            train_autoencoder()
    run = train_autoencoder()
    assert run.finished and weights.load(run.folder).path.name == "step_00000002.ema.safetensors"


def test_a_finished_run_is_left_alone(diffusion: Run, first_stage: Run, capsys: pytest.CaptureFixture):
    before = {path: path.stat().st_mtime_ns for path in diffusion.folder.rglob("*")}
    again = train("quickstart/diffusion", diffusion.folder.parent, f"first_stage={first_stage.folder}")
    assert again.finished and "finished at step 2" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in diffusion.folder.rglob("*")} == before


@pytest.mark.parametrize(
    "change", ["optimizer.lr=0.5", "seed=1", "data.batch_size=8", "ema.decay=0.5", "data.horizontal_flip_prob=0.5"]
)
def test_a_changed_key_is_refused_by_name(change: str, diffusion: Run, first_stage: Run):
    key = change.partition("=")[0]
    with pytest.raises(ValueError, match=rf"^{re.escape(key)} is .*run=NAME.*branch=.*overwrite=true"):
        train(
            "quickstart/diffusion", diffusion.folder.parent, f"first_stage={first_stage.folder}", "max_steps=4", change
        )


def test_overwrite_starts_anew_once_everything_else_is_known(train_autoencoder: Train):
    first = train_autoencoder("max_steps=1")
    before = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")}
    for mistake, said in (
        (["trainer.strategy=nonsense"], "nonsense"),
        (["trainer.accelerator=tpu"], "trainer: "),
        (["data.batch_size=5", "accumulation=2"], "data.batch_size=5 is not divisible"),
        (["optimizer.betas=[2,3]"], "beta"),
        ([f"branch={first.folder}"], "which overwrite=true would delete"),
    ):
        with pytest.raises(ValueError, match=said):
            train_autoencoder("max_steps=1", "overwrite=true", *mistake)
        assert {path: path.stat().st_mtime_ns for path in first.folder.rglob("*")} == before, mistake
    again = train_autoencoder("max_steps=1", "seed=1", "overwrite=true")
    assert again.lineage["wandb_id"] != first.lineage["wandb_id"]
    assert (again.folder / "config.yaml").read_text().count("overwrite: false") == 1
    assert sorted(curve(again.folder)) == [1]


# One writer


@pytest.mark.parametrize("more", [(), ("overwrite=true",)], ids=["resumed", "overwritten"])
def test_a_run_that_another_process_trains_is_refused_before_it_is_built(
    more: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ldm.fit.Parts", None)
    with held(tmp_path / "x", "training"):
        with pytest.raises(FolderHeld, match=rf"another process \(pid {os.getpid()} on .*\) is training {tmp_path}/x"):
            train("quickstart/autoencoder", tmp_path, *more, run="x")
        assert [path.name for path in (tmp_path / "x").iterdir()] == ["held.json"]


def test_a_slower_duplicate_of_a_finished_run_leaves_it(
    diffusion: Run, first_stage: Run, monkeypatch: pytest.MonkeyPatch
):
    def early(tree: dict, name: str) -> Run:
        """What it saw before the other one had finished, once."""
        monkeypatch.setattr("ldm.fit.open_run", open_run)
        return Run(tree_folder, tree)

    tree_folder = diffusion.folder
    before = {path: path.stat().st_mtime_ns for path in tree_folder.rglob("*")}
    monkeypatch.setattr("ldm.fit.open_run", early)
    monkeypatch.setattr("ldm.fit.Parts", None)
    assert train("quickstart/diffusion", tree_folder.parent, f"first_stage={first_stage.folder}").finished
    assert {path: path.stat().st_mtime_ns for path in tree_folder.rglob("*")} == before


def test_a_command_that_is_refused_leaves_no_folder(tmp_path: Path):
    tree = compose("config", tiny("quickstart/autoencoder", tmp_path))
    del tree["callback"]["checkpoint"]
    with pytest.raises(ValueError, match="without checkpoint nothing of the run would be saved"):
        fit(tree, "x")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_lost_its_folder_writes_nothing_more(train_autoencoder: Train, monkeypatch: pytest.MonkeyPatch):
    def taken(task: Task, batch: dict, batch_index: int) -> None:
        original(task, batch, batch_index)
        if task.step == 1:
            (folder,) = (callback.hold.folder for callback in members(task.trainer) if isinstance(callback, WhileHeld))
            said = json.loads((folder / "held.json").read_text())
            (folder / "held.json").write_text(json.dumps({**said, "token": "other", "host": "elsewhere"}))
            wrote.update({path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()})

    original, wrote = Task.on_train_batch_start, {}
    monkeypatch.setattr(Task, "on_train_batch_start", taken)
    monkeypatch.setattr("ldm.holding.BEAT_SECONDS", 0.001)
    with pytest.raises(
        FolderLost, match=r"another process \(pid \d+ on elsewhere\) holds it by now.*writes nothing more"
    ):
        train_autoencoder("callback.checkpoint.every_steps=1", "max_steps=3", run="x")
    assert {path: path.stat().st_mtime_ns for path in wrote} == wrote
    assert [path.name for path in wrote if path.name.endswith(".ckpt")] == ["last.ckpt"]


def test_ranks_that_read_other_first_stages_do_not_train(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("ldm.training.callbacks.checkpoint.gather_objects", lambda own: [own, "another"])
    restore = Restore(tmp_path, CSVLog(tmp_path / "metrics.csv"), None, keep_optimizer=False, read="one")
    with pytest.raises(ValueError, match="first_stage: its weights changed while the ranks started"):
        restore.on_fit_start(None, None)


def test_a_broken_checkpoint_is_passed_over(train_autoencoder: Train, caplog: pytest.LogCaptureFixture):
    every = "callback.checkpoint.every_steps=1"
    whole = train_autoencoder(every, "max_steps=3", run="whole")
    parts = train_autoencoder(every, run="parts")
    broken = parts.folder / "checkpoints" / "step_00000002.ckpt" / "state.pt"
    broken.write_bytes(broken.read_bytes()[:-1000])
    parts = train_autoencoder(every, "max_steps=3", run="parts")
    assert "step_00000002.ckpt: state.pt is damaged" in caplog.text
    assert curve(parts.folder) == curve(whole.folder)
    assert state(parts.folder, 3)["step"] == state(parts.folder, 2)["step"] + 1


# ---------------------------------------------------------------------------------------------------------------
# Whole processes


@pytest.mark.slow
def test_the_command_killed_twice_changes_nothing(first_stage: Run, tmp_path: Path):
    """Through train.py itself; scripts/dev/chaos.py kills every kind of run."""
    own = (*DIFFUSION, f"first_stage={first_stage.folder}")
    every = [f"callback.{name}.every_steps={n}" for name, n in (("checkpoint", 3), ("metrics", 5), ("validation", 20))]
    own = (*own, "max_steps=60", *every)
    arguments, parts = tiny("quickstart/diffusion", tmp_path, *own, "run=parts"), tmp_path / "parts"
    rng, step = random.Random(time.time_ns()), 0
    for attempt in range(2):
        process = Process(["train.py", *arguments], tmp_path / f"killed{attempt}.txt")
        process.wait_for_checkpoint(parts, after=step + rng.randrange(12))
        time.sleep(rng.uniform(0, 0.3))
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, process.said
        assert step < newest_step(parts) < 60
        step = newest_step(parts)
    process = Process(["train.py", *arguments], tmp_path / "finished.txt")
    assert process.wait() == 0, process.said
    whole = train("quickstart/diffusion", tmp_path, *own, run="whole")
    assert_equal_runs(whole.folder, parts, step=60)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "group", "num_workers"), [(signal.SIGTERM, False, 0), (signal.SIGINT, True, 1)])
def test_a_stopped_process_saves_says_so_and_goes_on(number: int, group: bool, num_workers: int, tmp_path: Path):
    arguments = tiny(
        "quickstart/autoencoder", tmp_path, "run=parts", "max_steps=40", "callback.checkpoint.every_steps=10",
        f"data.num_workers={num_workers}",
    )  # fmt: skip
    process = Process(["train.py", *arguments], tmp_path / "stopped.txt")
    process.wait_for_checkpoint(tmp_path / "parts")
    (os.killpg if group else os.kill)(process.pid, number)  # Ctrl-C reaches the whole group
    assert process.wait() == 3, process.said
    step = newest_step(tmp_path / "parts")
    assert f"parts: stopped and saved at step {step} of 40" in process.said
    assert "Traceback" not in process.said and "SIGTERM" not in process.said
    assert len(process.said.splitlines()) <= 2, process.said

    process = Process(["train.py", *arguments], tmp_path / "finished.txt")
    assert process.wait() == 0, process.said
    assert sorted(curve(tmp_path / "parts")) == list(range(1, 41))
