"""A rank that stands still is found, and says what each rank does."""

import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from ldm.training.callbacks import watchdog
from ldm.training.callbacks.watchdog import Watchdog


class Ended(BaseException):
    """In place of the process's end."""


def ended(status: int) -> None:
    raise Ended(status)


def start(folder: Path, timeout_seconds: float, rank: int = 0, world_size: int = 1) -> Watchdog:
    dog = Watchdog(folder, timeout_seconds)
    dog.on_train_start(SimpleNamespace(global_rank=rank, world_size=world_size), SimpleNamespace(step=3))
    return dog


@pytest.fixture
def statuses(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the process would have ended with."""
    found: list[int] = []
    monkeypatch.setattr(watchdog.os, "_exit", lambda status: (found.append(status), ended(status)))
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)
    return found


def test_a_run_that_moves_is_left_alone_and_its_files_go(tmp_path: Path, statuses: list[int]):
    dog = start(tmp_path, 0.4)
    for step in range(8):
        time.sleep(0.1)
        dog.on_train_batch_end(None, SimpleNamespace(step=step))
    assert (tmp_path / "ranks" / "0").exists()
    dog.on_train_end(None, None)
    assert statuses == [] and not (tmp_path / "ranks").exists()


def test_the_silent_rank_is_named(tmp_path: Path, statuses: list[int], capsys: pytest.CaptureFixture):
    (tmp_path / "ranks").mkdir()
    (tmp_path / "ranks" / "1").write_text("7 12 is in backward")
    dog = start(tmp_path, 0.5, rank=0, world_size=2)
    dog._thread.join(10)
    assert statuses == [watchdog.EXIT_STATUS]
    said = capsys.readouterr().err
    assert "rank 0: no step for 0.5 s (callback.watchdog.timeout_seconds)" in said
    assert "rank 0, step 3: works" in said
    assert "rank 1, step 12: has not been heard of for" in said and "before that it is in backward" in said


def test_a_disk_that_cannot_be_written_to_does_not_matter(tmp_path: Path, statuses: list[int]):
    (tmp_path / "ranks").write_text("in the way")
    dog = start(tmp_path, 5.0)
    time.sleep(0.7)
    assert dog._thread.is_alive()
    dog.on_train_end(None, None)


@pytest.mark.parametrize("timeout_seconds", [0, -1.0])
def test_no_timeout_is_refused(tmp_path: Path, timeout_seconds: float):
    with pytest.raises(ValueError, match=r"callback\.watchdog\.timeout_seconds"):
        Watchdog(tmp_path, timeout_seconds)
