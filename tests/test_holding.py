"""A folder has one writer: who holds it is named, who is gone is succeeded, by one process only."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from ldm import holding
from ldm.holder import Holder
from ldm.holding import NAME, FolderHeld, FolderLost, check_launch, held


def forked(body: Callable[[], None]) -> int:
    """The number of a child that does `body`; its exit status is 0 if that returns, 7 if it raises FolderHeld."""
    pid = os.fork()
    if pid:
        return pid
    try:
        body()
        os._exit(0)
    except FolderHeld:
        os._exit(7)
    finally:
        os._exit(1)


def status(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed(folder: Path) -> None:
    """Let a process that holds `folder` be killed."""

    def hold() -> None:
        with held(folder, "training"):
            os.kill(os.getpid(), signal.SIGKILL)

    assert status(forked(hold)) == -signal.SIGKILL


def written(folder: Path, **changes) -> Holder:
    """The file of a holder that is this process but for some `changes`."""
    folder.mkdir(exist_ok=True)
    holder = replace(Holder.me("0" * 16, folder, "training"), **changes)
    (folder / NAME).write_text(json.dumps(asdict(holder)))
    return holder


def test_a_second_process_is_refused_by_name_and_may_come_afterwards(tmp_path: Path):
    folder = tmp_path / "runs" / "x"

    def second() -> None:
        with held(folder, "training"):
            pass

    with held(folder, "training"):
        assert status(forked(second)) == 7
        with pytest.raises(FolderHeld) as caught, held(folder, "training"):
            pass
        host = json.loads((folder / NAME).read_text())["host"]
        assert str(caught.value) == f"another process (pid {os.getpid()} on {host}) is training {folder}"
        (folder / "kept").touch()
    assert [path.name for path in folder.iterdir()] == ["kept"]
    assert status(forked(second)) == 0


def test_a_folder_made_for_nothing_goes_again_and_one_that_was_there_stays(tmp_path: Path):
    with pytest.raises(ValueError, match="mistake"), held(tmp_path / "new", "training"):
        raise ValueError("mistake")
    assert not (tmp_path / "new").exists()
    with held(tmp_path, "training"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path):
    (tmp_path / "x").symlink_to(tmp_path / "gone")
    (tmp_path / "mine").write_text("a file")
    with pytest.raises(ValueError, match=r"mine: is a file, where a folder"), held(tmp_path / "mine", "training"):
        pass
    assert (tmp_path / "mine").read_text() == "a file"
    with pytest.raises(ValueError, match=r"x: a link that leads nowhere, to .*gone"), held(tmp_path / "x", "training"):
        pass


def test_a_holders_file_that_is_a_link_to_nothing_is_named_and_not_waited_for(tmp_path: Path):
    (tmp_path / NAME).symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match=rf"{NAME}: a link that leads nowhere"), held(tmp_path, "training"):
        pass


def test_a_killed_process_is_succeeded_at_once_and_it_is_said(tmp_path: Path, capsys: pytest.CaptureFixture):
    killed(tmp_path)
    pid = json.loads((tmp_path / NAME).read_text())["pid"]
    began = time.monotonic()
    with held(tmp_path, "training"):
        assert time.monotonic() - began < 1
    assert f"{tmp_path}: taken over from pid {pid} on" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_that_nobody_asked_for_yet_is_gone(tmp_path: Path):
    pid = forked(lambda: written(tmp_path))
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # a zombie
    holder = Holder.read(tmp_path / NAME)
    assert holder.pid == pid and holder.gone(tmp_path, 0)
    status(pid)


def test_a_suspended_process_holds_its_folder(tmp_path: Path):
    def hold() -> None:
        with held(tmp_path, "training"):
            os.kill(os.getpid(), signal.SIGSTOP)

    pid = forked(hold)
    os.waitid(os.P_PID, pid, os.WSTOPPED)
    os.utime(tmp_path / NAME, (0, 0))
    with pytest.raises(FolderHeld, match=f"pid {pid} on"), held(tmp_path, "training"):
        pass
    os.kill(pid, signal.SIGCONT)
    assert status(pid) == 0


def test_a_process_of_the_same_number_is_not_taken_for_the_holder(tmp_path: Path):
    written(tmp_path, start=1)
    with held(tmp_path, "training"):
        pass


@pytest.mark.parametrize("change", [{"host": "other"}, {"boot": "before"}, {"namespace": 1}], ids=str)
def test_one_that_cannot_be_seen_is_gone_after_a_minute_without_a_beat(change: dict, tmp_path: Path):
    written(tmp_path, **change, pid=2**22 + 1)
    with pytest.raises(FolderHeld, match=r"last sign of life is 0 s old, and it counts as gone at 60"):
        holding.Hold(tmp_path, "training").take()
    os.utime(tmp_path / NAME, (time.time() - 50,) * 2)
    with pytest.raises(FolderHeld, match="is 50 s old"):
        holding.Hold(tmp_path, "training").take()
    os.utime(tmp_path / NAME, (time.time() - 61,) * 2)
    with held(tmp_path, "training"):
        pass


def test_a_copied_folder_is_nobodys(tmp_path: Path):
    folder = tmp_path / "a"
    with held(folder, "training"):
        shutil.copytree(folder, tmp_path / "b")
        with held(tmp_path / "b", "training"):
            pass


def test_two_names_of_a_folder_are_one(tmp_path: Path):
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with held(tmp_path / "a", "training"), pytest.raises(FolderHeld), held(tmp_path / "link", "training"):
        pass


def test_a_forked_child_releases_nothing(tmp_path: Path):
    with held(tmp_path, "training") as hold:
        assert status(forked(hold.release)) == 0
        assert (tmp_path / NAME).exists()
        hold.check()


def test_who_lost_the_folder_writes_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(holding, "BEAT_SECONDS", 0.02)
    with held(tmp_path / "deleted", "training") as hold:
        hold.check()
        (tmp_path / "deleted" / NAME).unlink()
        time.sleep(0.2)
        with pytest.raises(FolderLost, match=r"held\.json is gone from it.*writes nothing more"):
            hold.check()
    with held(tmp_path / "taken", "training") as hold:
        written(tmp_path / "taken", host="other")
        time.sleep(0.2)
        with pytest.raises(FolderLost, match=rf"another process \(pid {os.getpid()} on other\) holds it by now"):
            hold.check()
    assert (tmp_path / "taken" / NAME).exists()


def test_one_that_was_suspended_looks_before_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with held(tmp_path, "training") as hold:
        written(tmp_path, host="other")
        hold.check()  # it beat just now
        later = holding._now() + 61
        monkeypatch.setattr(holding, "_now", lambda: later)
        with pytest.raises(FolderLost):
            hold.check()


def test_beats_touch_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(holding, "BEAT_SECONDS", 0.02)
    with held(tmp_path, "training") as hold:
        os.utime(tmp_path / NAME, (0, 0))
        time.sleep(0.2)
        assert time.time() - (tmp_path / NAME).stat().st_mtime < 5
        hold.check()


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_of_many_who_find_a_stale_file_one_at_a_time_is_inside(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def no_links(*_) -> None:
        raise PermissionError(1, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    for trial in range(20):
        folder = tmp_path / str(trial)
        written(folder, start=1)

        def hold(folder: Path = folder) -> None:
            os.close(1)
            with held(folder, "training"):
                (folder / "inside").mkdir()  # fails where another is inside
                time.sleep(0.05)
                (folder / "inside").rmdir()

        statuses = [status(child) for child in [forked(hold) for _ in range(5)]]
        assert 0 in statuses and set(statuses) <= {0, 7}
        assert list(folder.iterdir()) == []


def test_a_successor_that_was_killed_is_succeeded(tmp_path: Path):
    stale = written(tmp_path, start=1)
    (tmp_path / NAME).replace(tmp_path / f".holding-0-after-{stale.token}")
    written(tmp_path, start=1)
    assert Holder.read(tmp_path / NAME).token == stale.token
    with held(tmp_path, "training"):
        pass


def test_what_killed_processes_left_is_swept_up(tmp_path: Path):
    (tmp_path / ".holding-1-0000").touch()
    os.utime(tmp_path / ".holding-1-0000", (0, 0))
    with held(tmp_path, "training"):
        assert [path.name for path in tmp_path.iterdir()] == [NAME]


@pytest.mark.parametrize("text", ["", "[]", "{}", "[" * 60000, '{"pid": 1}', "\x1b[2J"])
def test_a_file_that_names_no_process_is_respected_for_a_minute(text: str, tmp_path: Path):
    (tmp_path / NAME).write_text(text)
    with pytest.raises(FolderHeld, match="names no process; delete it"):
        holding.Hold(tmp_path, "training").take()
    os.utime(tmp_path / NAME, (0, 0))
    with held(tmp_path, "training"):
        pass


@pytest.mark.parametrize("change", [{"pid": "1"}, {"pid": -1}, {"host": "a\x1b[2J"}, {"token": "../x"}], ids=str)
def test_what_a_file_says_is_held_to_what_it_may_say(change: dict, tmp_path: Path):
    written(tmp_path, **change)
    with pytest.raises(ValueError, match="names no process"):
        Holder.read(tmp_path / NAME)


def test_the_other_ranks_are_refused_where_their_rank_zero_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    check_launch(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    with held(tmp_path, "training"):
        check_launch(tmp_path)
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "two")
        with pytest.raises(FolderHeld, match=rf"pid {os.getpid()} on .* is training"):
            check_launch(tmp_path)
        assert status(forked(lambda: check_launch(tmp_path))) == 0  # a child of rank zero
