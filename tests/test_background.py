"""Writing beside the training: what is written is what was, and no error is lost."""

import threading
from pathlib import Path

import pytest
import torch
from toys import assert_equal_runs, train

from ldm.checkpoint import resume
from ldm.run import Run
from ldm.training.background import Writer, copied
from ldm.training.task import Task


def test_a_copy_is_of_the_moment_and_made_once():
    weight = torch.ones(3)
    state = {"a": weight, "b": [weight, weight[:2]], "step": 2, "none": None}
    copy = copied(state)
    weight.zero_()
    assert copy["a"].tolist() == [1, 1, 1] and copy["b"][0] is copy["a"] and copy["b"][1].tolist() == [1, 1]
    assert copy["step"] == 2 and copy["none"] is None


def test_an_error_is_raised_by_the_next_call():
    def fail() -> None:
        raise OSError("disk full")

    writer = Writer()
    writer.start(fail)
    with pytest.raises(OSError, match="disk full"):
        writer.start(fail)
    writer.start(fail)
    with pytest.raises(OSError, match="disk full"):
        writer.finish()
    writer.finish()


def test_the_run_is_the_same_and_goes_on_while_it_writes(
    first_stage: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    own = (f"first_stage={first_stage.folder}", "callback.checkpoint.every_steps=1", "max_steps=4")
    at_once = train("quickstart/diffusion", tmp_path, *own, run="at-once")
    save, began, trained_meanwhile = resume.save, [threading.Event() for _ in range(5)], []

    def slow_save(folder: Path, step: int, *more: object) -> Path:
        trained_meanwhile.append(began[step].wait(10.0 if step < 4 else 0.0))  # the step after the one it writes
        return save(folder, step, *more)

    monkeypatch.setattr(resume, "save", slow_save)
    original = Task.on_train_batch_start

    def begin(task: Task, *more: object) -> None:
        began[task.step].set()
        original(task, *more)

    monkeypatch.setattr(Task, "on_train_batch_start", begin)
    beside = train("quickstart/diffusion", tmp_path, *own, "callback.checkpoint.background=true", run="beside")
    assert trained_meanwhile == [True, True, True, False]
    assert_equal_runs(beside.folder, at_once.folder, 4)


def test_a_disk_that_fills_up_meanwhile_ends_the_run(first_stage: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save = resume.save

    def full(folder: Path, step: int, *more: object) -> Path:
        if step == 2:
            raise OSError(28, "no space left on device")
        return save(folder, step, *more)

    monkeypatch.setattr(resume, "save", full)
    own = (f"first_stage={first_stage.folder}", "callback.checkpoint.every_steps=1", "max_steps=6")
    with pytest.raises(OSError, match="no space left on device"):
        train("quickstart/diffusion", tmp_path, *own, "callback.checkpoint.background=true", run="full")
    assert resume.newest(tmp_path / "full" / "checkpoints").name == "step_00000001.ckpt"
