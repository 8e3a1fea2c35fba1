"""The newest 1 to 4 of 5 checkpoints are damaged in 8 ways: the newest good one is used and each bad one named."""

import logging
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from chaoses.outcome import Outcome
from ldm.checkpoint import resume
from ldm.errors import UserError

GOAL = "the newest good checkpoint is used, the bad ones named; never step 0 in silence"
RUNS = 100
NUM_VALUES = 10_000


def cut(checkpoint: Path, rng: random.Random) -> None:
    """state.pt ends early."""
    os.truncate(checkpoint / "state.pt", rng.randrange((checkpoint / "state.pt").stat().st_size))


def flip(checkpoint: Path, rng: random.Random) -> None:
    """One bit of any file differs."""
    file = rng.choice(sorted(checkpoint.iterdir()))
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def zero(checkpoint: Path, rng: random.Random) -> None:
    """A page of zeros where there were numbers, as after a crash of the machine."""
    content = bytearray((checkpoint / "state.pt").read_bytes())
    pages = [place for place in range(0, len(content), 4096) if any(content[place : place + 4096])]
    place = rng.choice(pages)
    content[place : place + 4096] = bytes(len(content[place : place + 4096]))
    (checkpoint / "state.pt").write_bytes(content)


def remove(checkpoint: Path, rng: random.Random) -> None:
    """A file is missing."""
    rng.choice(sorted(checkpoint.iterdir())).unlink()


def mix(checkpoint: Path, rng: random.Random) -> None:
    """A rank's file is from another checkpoint; with nothing sharded, the counters are."""
    rows = sorted(checkpoint.glob("rows_*.pt"))
    if rows:
        torch.save({"trained.rows": torch.zeros(2)}, rng.choice(rows))
    else:
        (checkpoint / "state.json").write_text('{"step": -1}\n')


def empty(checkpoint: Path, rng: random.Random) -> None:
    """The folder is empty."""
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


def swap(checkpoint: Path, rng: random.Random) -> None:
    """state.pt of another checkpoint."""
    torch.save({"trained": {"w": torch.zeros(NUM_VALUES)}, "step": -1}, checkpoint / "state.pt")


def garble(checkpoint: Path, rng: random.Random) -> None:
    """The manifest is random bytes."""
    (checkpoint / "manifest.json").write_bytes(rng.randbytes(300))


WAYS: tuple[Callable[[Path, random.Random], None], ...] = (cut, flip, zero, remove, mix, empty, swap, garble)


def run(runs: int, rng: random.Random, folder: Path) -> Outcome:
    """Ways in turn; in every tenth trial all five are damaged, which must be an error."""
    outcome = Outcome()
    whole = folder / "whole"
    for step in range(1, 6):
        state = {"trained": {"w": torch.full((NUM_VALUES,), float(step)), "rows": {"sharded": [4]}}, "step": step}
        digests = [resume.save_rows(whole, step, rank, 2, {"trained.rows": torch.ones(2)}) for rank in range(2)]
        resume.save(whole, step, state, {"step": step}, digests)
    for number in range(runs):
        trial = folder / "trial"
        shutil.copytree(whole, trial)
        num_bad = 5 if number % 10 == 9 else rng.randint(1, 4)
        names = [resume.NAME.format(step) for step in range(5, 5 - num_bad, -1)]
        ways = [WAYS[(number + place) % len(WAYS)] for place in range(num_bad)]
        for name, way in zip(names, ways, strict=True):
            way(trial / name, rng)
        problems = _problems(trial, 5 - num_bad, names)
        outcome.note(f"{num_bad} damaged by {', '.join(way.__name__ for way in ways)}", problems)
        shutil.rmtree(trial)
    return outcome


def _problems(trial: Path, good: int, bad: list[str]) -> list[str]:
    with heard() as messages:
        try:
            found = resume.newest(trial)
        except UserError as error:
            found = None
            messages.append(str(error))
    said = "\n".join(messages)
    problems = [f"{name} is not named" for name in bad if name not in said]
    if good and (found is None or found.name != resume.NAME.format(good)):
        problems.append(f"{found} was taken, not step {good}")
    if good and found and not resume.load(found)["trained"]["w"].eq(good).all():
        problems.append(f"{found} holds another step's numbers")
    if not good and (found is not None or "overwrite=true" not in said):
        problems.append(f"all are bad, and {found} was taken")
    return problems


class heard(logging.Handler):
    """Collects the warnings within the block, as a list of texts."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())

    def __enter__(self) -> list[str]:
        self._before = resume.log.level
        resume.log.setLevel(logging.WARNING)
        resume.log.addHandler(self)
        return self.texts

    def __exit__(self, *_: object) -> None:
        resume.log.removeHandler(self)
        resume.log.setLevel(self._before)
