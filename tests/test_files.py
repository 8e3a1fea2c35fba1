"""Durable files: the old content or the new, never a part; a full disk is one clear message."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from ldm import files
from ldm.checkpoint import resume
from ldm.files import discard, replace, sha256, sweep, write_bytes, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def folder_with(text: str):
    def write(path: Path) -> None:
        path.mkdir()
        (path / "inner").write_text(text)

    return write


def test_writing_makes_folders_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a" / "b.txt"
    assert write_text(path, "käse") == path
    assert path.read_bytes() == "käse".encode()
    write_json(path, {"a": [1, 2]})
    assert json.loads(path.read_text()) == {"a": [1, 2]}
    assert names(path.parent) == ["b.txt"]


def test_sha256_is_of_the_bytes(tmp_path):
    assert sha256(write_bytes(tmp_path / "a", b"abc")).startswith("ba7816bf8f01cfea")


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), OSError(errno.EPERM, "no")])
def test_a_writer_that_fails_leaves_the_old_file(tmp_path, error):
    def write(path: Path) -> None:
        path.write_text("half of the n")
        raise error

    path = write_text(tmp_path / "file", "old")
    with pytest.raises(type(error)):
        replace(path, write)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_rename_that_fails_leaves_the_old_folder(tmp_path, monkeypatch):
    target = tmp_path / "folder"
    replace(target, folder_with("old"))
    rename = Path.replace

    def fail(self, other):
        if "-old-" not in self.name and other == target:
            raise OSError(errno.EPERM, "no")
        return rename(self, other)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no"):
        replace(target, folder_with("new"))
    assert (target / "inner").read_text() == "old"
    assert names(tmp_path) == ["folder"]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    replace(tmp_path / "x", folder_with("old"))
    (tmp_path / "x" / "more").write_text("of the old")
    replace(tmp_path / "x", folder_with("new"))
    assert names(tmp_path) == ["x"]
    assert names(tmp_path / "x") == ["inner"]
    assert (tmp_path / "x" / "inner").read_text() == "new"


def test_everything_is_synced_before_it_gets_its_name(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(files, "sync", lambda path: seen.append((path.name, (tmp_path / "x").exists())))
    replace(tmp_path / "x", folder_with("new"))
    (inner, at_1), (temporary, at_2), (parent, at_3) = seen
    assert (inner, parent) == ("inner", tmp_path.name) and temporary.startswith(files.TEMPORARY)
    assert (at_1, at_2, at_3) == (False, False, True)


def full(number: int = errno.ENOSPC) -> OSError:
    return OSError(number, os.strerror(number))


def wrapped() -> RuntimeError:
    """As torch.save reports a full disk."""
    error = RuntimeError("unexpected pos 576 vs 534")
    error.__context__ = full()
    return error


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (full(), errno.ENOSPC),
        (full(errno.EDQUOT), errno.EDQUOT),
        (full(errno.EROFS), errno.EROFS),
        (full(errno.EIO), errno.EIO),
        (wrapped(), errno.ENOSPC),
        (SafetensorError("I/O error: No space left on device (os error 28)"), errno.ENOSPC),
    ],
    ids=["full", "quota", "read-only", "broken", "torch", "safetensors"],
)
def test_what_a_disk_refuses_names_the_file_and_the_way_out(tmp_path, error, number):
    def write(path: Path) -> None:
        path.write_text("some")
        raise error

    path = write_text(tmp_path / "file", "old")
    with pytest.raises(OSError, match=f"cannot write {path}") as caught:
        replace(path, write)
    assert caught.value.errno == number
    for expected in (str(path), "MiB free", "intact", "runs_dir", "same command"):
        assert expected in str(caught.value)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


FILL = """
import sys
from pathlib import Path
import torch
from ldm.checkpoint import resume, weights
from ldm.files import write_bytes
folder = Path(sys.argv[1])
big = {"a": torch.zeros(1_000_000)}
resume.save(folder, 1, {"a": torch.zeros(10)}, {"step": 1})
for write in (
    lambda: resume.save(folder, 2, big, {"step": 2}),
    lambda: weights.save(folder, 2, {"raw": big}, {}),
    lambda: write_bytes(folder / "file", bytes(4_000_000)),
):
    try:
        write()
    except OSError as error:
        assert "no space left on device: cannot write" in str(error), error
        print("refused")
    assert resume.newest(folder).name == "step_00000001.ckpt"
assert not [path for path in folder.iterdir() if path.name.startswith(".writing")]
"""


def can_mount() -> bool:
    """Whether a small file system may be mounted here, in a name space of its own."""
    if not shutil.which("unshare"):
        return False
    probe = ["unshare", "-rm", "mount", "-t", "tmpfs", "-o", "size=1m", "x", "/mnt"]
    return subprocess.run(probe, capture_output=True).returncode == 0


@pytest.mark.slow
def test_a_disk_that_is_really_full(tmp_path):
    if not can_mount():
        pytest.skip("no tmpfs can be mounted here")
    command = f'mount -t tmpfs -o size=1m x "{tmp_path}" && exec "{sys.executable}" -c "$0" "{tmp_path}"'
    root = Path(resume.__file__).parents[2]
    done = subprocess.run(["unshare", "-rm", "sh", "-c", command, FILL], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["refused"] * 3


def test_sweep_removes_what_an_interrupted_write_left_and_nothing_else(tmp_path):
    (tmp_path / ".writing-123-a").write_text("half")
    (tmp_path / ".writing-123-b").mkdir()
    (tmp_path / ".writing-123-b" / "c").write_text("half")
    (tmp_path / "a").write_text("whole")
    sweep(tmp_path)
    assert names(tmp_path) == ["a"]


def test_what_is_discarded_is_gone_at_once_and_as_a_whole(tmp_path, monkeypatch):
    replace(tmp_path / "x", folder_with("old"))
    monkeypatch.setattr(shutil, "rmtree", lambda path, **_: None)  # as if killed before it
    discard(tmp_path / "x")
    (leftover,) = names(tmp_path)
    assert leftover.startswith(files.TEMPORARY)


def test_torch_reads_back_what_was_saved_through_replace(tmp_path):
    replace(tmp_path / "x.pt", lambda path: torch.save({"a": torch.arange(3)}, path))
    assert torch.load(tmp_path / "x.pt", weights_only=True)["a"].tolist() == [0, 1, 2]


def test_a_file_never_takes_the_place_of_a_folder(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("x")
    with pytest.raises(OSError, match="a folder is there already"):
        write_text(tmp_path / "run", "y")
    assert names(tmp_path) == ["run"] and names(tmp_path / "run") == ["config.yaml"]
