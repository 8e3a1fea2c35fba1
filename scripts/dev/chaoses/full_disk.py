"""The disk is full, broken or read-only while a run saves: it ends with a word on the way out, and nothing is lost.

What was saved before stays whole, nothing partial is visible, and the same command on a disk with room ends bit-equal
to a run that never met the fault. Full and read-only disks are real ones; EIO is injected where a file is synced.
"""

import errno
import os
import random
import shutil
from contextlib import nullcontext
from pathlib import Path

from toys import differences

from chaoses.disk import CannotMount, remount, small_disk
from chaoses.jobs import Job, last_step, leftovers, nothing, whole_step, write_down_keys
from chaoses.outcome import Outcome
from chaoses.toy_runs import MAX_STEPS, ToyRuns
from ldm import files

GOAL = "a full, broken or read-only disk: an error that says what to do, nothing lost"
RUNS = 30
FAULTS = ("full", "read-only", "broken")
WORDS = {"full": "no space left on device", "read-only": "read-only file system", "broken": "input/output error"}


def run(runs: int, rng: random.Random, folder: Path) -> Outcome:
    """Faults in turn, at random moments; without root only the injected one."""
    outcome, toys, met = Outcome(), ToyRuns(folder), 0
    whole, _ = toys.whole("autoencoder")
    room_kib = sum(path.stat().st_size for path in whole.rglob("*")) // 1024
    for number in range(runs):
        fault = FAULTS[number % len(FAULTS)]
        try:
            problems, was_met = _trial(toys, fault, whole, room_kib, rng)
            met += was_met
            outcome.note(f"{number}: {fault}", problems)
        except CannotMount:
            outcome.skip(f"{fault}: no file system can be mounted here (root can)")
    outcome.facts.append(f"{met} runs met the fault before they were done")
    return outcome


def _trial(toys: ToyRuns, fault: str, whole: Path, room_kib: int, rng: random.Random) -> tuple[list[str], bool]:
    """(what is wrong, whether the fault occurred)."""
    size = f"{rng.randrange(room_kib // 8, room_kib)}k" if fault == "full" else f"{16 * room_kib}k"
    folder = toys.folder / "disk"
    shutil.rmtree(folder, ignore_errors=True)
    with nullcontext(folder) if fault == "broken" else small_disk(folder, size) as disk:
        noted = toys.folder / "disk-keys"
        shutil.rmtree(noted, ignore_errors=True)
        arguments = toys.arguments("autoencoder", "run", f"runs_dir={disk}")
        broken_sync = rng.randrange(3, 60)

        def prepare() -> None:
            write_down_keys(noted)
            if fault == "broken":
                _break_sync(broken_sync)

        job = Job(arguments, toys.folder / "disk.txt", prepare=prepare)
        if fault == "read-only":
            aim = rng.randrange(MAX_STEPS - 1)
            job.wait_until(lambda: last_step(noted) >= aim)
            remount_when_possible(job, disk)
        (status,) = job.wait()
        met = status != 0
        problems = _problems(job, status, fault, disk / "run") if met else []
        if fault == "full":
            remount(disk, f"size={16 * room_kib}k")
        if fault == "read-only":
            remount(disk, "rw")
        job = Job(arguments, toys.folder / "disk-again.txt", prepare=nothing)
        (status,) = job.wait()
        if status:
            return [*problems, f"with room again it ended with {status}: {job.said[-300:]}"], met
        return problems + differences(whole, disk / "run", MAX_STEPS) + leftovers(disk / "run"), met


def remount_when_possible(job: Job, disk: Path) -> None:
    """Read-only at the first moment at which no file is open for writing."""

    def done() -> bool:
        try:
            remount(disk, "ro")
        except CannotMount:
            return False
        return True

    job.wait_until(done)


def _break_sync(after: int) -> None:
    """In a job: let the disk refuse the `after`-th sync and all later ones."""
    original, calls = files.sync, []

    def sync(path: Path) -> None:
        calls.append(path)
        if len(calls) >= after:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        original(path)

    files.sync = sync


def _problems(job: Job, status: int, fault: str, run: Path) -> list[str]:
    problems = [] if status == 2 else [f"exit status {status}"]
    if "Traceback" in job.said:
        problems.append(f"a traceback: {job.said[-400:]}")
    for expected in (WORDS[fault], str(run.parent), "same command"):
        if expected not in job.said:
            problems.append(f"does not say {expected!r}: {job.said[-300:]}")
    if run.exists() and fault != "read-only":
        problems += [f"{left} is left" for left in leftovers(run)]
    if (run / "checkpoints").exists():
        whole_step(run)  # raises if there are checkpoints and none is whole
    return problems
