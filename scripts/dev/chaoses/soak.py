"""One run through whatever comes: kills, signals, damaged files, full disks, changed ranks' workers, at random.

At the end nothing may be lost (bit-equal to the run that nothing happened to) and nothing silent: each damaged file was
named, each full disk complained about. A run takes about a minute; `runs` of them make the soak.
"""

import random
import signal
import time
from pathlib import Path

from toys import differences

from chaoses import damage
from chaoses.disk import CannotMount, remount, small_disk
from chaoses.jobs import Job, keys, last_step, leftovers, whole_step, write_down_keys
from chaoses.outcome import Outcome
from chaoses.toy_runs import KINDS, ToyRuns
from ldm.checkpoint import resume

GOAL = "a soak of random kills, signals, damaged files and full disks: nothing lost, nothing silent"
RUNS = 30
MAX_STEPS = 60
FAULTS = ("kill", "kill a rank", "signal", "damage", "full disk")
ROOM_KIB = 64 * 1024


def run(runs: int, rng: random.Random, folder: Path) -> Outcome:
    """Each trial is one run with faults until it is done."""
    outcome, toys, met = Outcome(), ToyRuns(folder), dict.fromkeys(FAULTS, 0)
    for number in range(runs):
        kind, ranks = KINDS[number % len(KINDS)], rng.choice((1, 2))
        try:
            with small_disk(folder / "disk", f"{ROOM_KIB}k") as disk:
                problems = _trial(toys, disk, folder / f"keys{number}", kind, ranks, rng, met)
        except CannotMount:
            problems = _trial(toys, folder / f"disk{number}", folder / f"keys{number}", kind, ranks, rng, met)
        outcome.note(f"{number}: {kind} with {ranks} ranks", problems)
    outcome.facts.append(", ".join(f"{count} x {fault}" for fault, count in met.items()))
    return outcome


def _trial(
    toys: ToyRuns, disk: Path, noted: Path, kind: str, ranks: int, rng: random.Random, met: dict[str, int]
) -> list[str]:
    more = (f"max_steps={MAX_STEPS}", "callback.checkpoint.keep=4")
    whole, whole_keys = toys.whole(kind, ranks, *more)
    problems: list[str] = []
    while not problems:
        workers = f"data.num_workers={rng.choice((0, 2))}"
        arguments = toys.arguments(kind, "run", *more, workers, f"runs_dir={disk}")
        job = Job(arguments, toys.folder / "soak.txt", ranks, prepare=lambda: write_down_keys(noted))
        began = last_step(noted)
        aim = max(began, 0) + rng.randint(1, 20)
        job.wait_until(lambda aim=aim, began=began: last_step(noted) >= aim and last_step(noted) != began)
        if not job.running:
            statuses = job.wait()
            if set(statuses) == {0}:
                break
            return [f"ended with {statuses} by itself: {job.said[-400:]}"]
        fault = rng.choice(FAULTS)
        met[fault] += 1
        problems = _hurt(fault, job, disk, rng)
    run = disk / "run"
    problems += differences(whole, run, MAX_STEPS) if not problems else []
    if keys(noted) != whole_keys:
        problems.append("the samples of its steps differ")
    return problems + leftovers(run)


def _hurt(fault: str, job: Job, disk: Path, rng: random.Random) -> list[str]:
    """Inject a fault, let the job end, and return what was not reported."""
    time.sleep(rng.uniform(0, 0.2))
    if fault == "full disk" and disk.is_mount():
        remount(disk, f"size={_used_kib(disk) + rng.randrange(4, 40)}k")
        statuses = job.wait()
        remount(disk, f"size={ROOM_KIB}k")
        silent = any(statuses) and "no space left on device" not in job.said
        return [f"the disk was full and it said {job.said[-300:]!r}"] if silent else []
    if fault == "signal":
        job.signal(rng.choice((signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)), rng.choice((None, 0)))
        statuses = job.wait()
        return [] if set(statuses) <= {0, 3} else [f"a signal ended it with {statuses}: {job.said[-300:]}"]
    job.signal(signal.SIGKILL, 0 if fault == "kill a rank" else None)
    job.wait(60)
    return _damage(disk / "run", rng) if fault == "damage" else []


def _damage(run: Path, rng: random.Random) -> list[str]:
    """Corrupt the newest checkpoint if there is one before it; the next start must name it."""
    found = sorted((run / "checkpoints").glob("step_*.ckpt"))
    if len(found) < 2 or whole_step(run) != int(found[-1].name[5:13]):
        return []
    rng.choice(damage.WAYS)(found[-1], rng)
    with damage.heard() as messages:
        resume.newest(run / "checkpoints")
    return [] if any(found[-1].name in text for text in messages) else [f"{found[-1].name} is damaged, not named"]


def _used_kib(disk: Path) -> int:
    return sum(path.stat().st_blocks for path in disk.rglob("*")) // 2
