"""A process that does nothing but save is killed at a random moment: what it had committed is found whole.

Its temporary folder is on another file system, across which nothing can be renamed; a second process goes on in the
same folder and sweeps what the first one left.
"""

import itertools
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from chaoses.jobs import FORK, leftovers, whole_step
from chaoses.outcome import Outcome
from ldm.checkpoint import resume, weights

GOAL = "killed while saving, the newest committed checkpoint loads and leftovers are swept"
RUNS = 200
NUM_VALUES = 200_000
SHARED_MEMORY = Path("/dev/shm")
LONGEST_SECONDS = 0.25


def run(runs: int, rng: random.Random, folder: Path) -> Outcome:
    """Each trial kills one writer and lets the next one resume from what it saved."""
    outcome = Outcome()
    with tempfile.TemporaryDirectory(dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None) as elsewhere:
        other = os.stat(elsewhere).st_dev != folder.stat().st_dev
        outcome.facts.append(f"TMPDIR {'on another' if other else 'on the same'} file system")
        num_leftovers = 0
        for number in range(runs):
            committed = _kill_a_writer(folder, Path(elsewhere), rng)
            found = leftovers(folder)
            num_leftovers += bool(found)
            outcome.note(f"kill {number}", _problems(folder, committed))
            _save(folder, whole_step(folder) + 1)
            if leftovers(folder):
                outcome.failures.append(f"kill {number}: not swept: {leftovers(folder)}")
        outcome.facts.append(f"{num_leftovers} kills left an unfinished file or folder")
    return outcome


def _save(folder: Path, step: int) -> None:
    """As callback.checkpoint does, with contents that tell the step."""
    tensors = {"w": torch.full((NUM_VALUES,), float(step))}
    resume.save(folder / "checkpoints", step, {"trained": tensors, "step": step}, {"step": step})
    weights.save(folder / "weights", step, {"raw": tensors, "ema": tensors}, {"seconds": 0.0})
    resume.retain(folder / "checkpoints", 2)
    weights.retain(folder / "weights", 2)


def _write(folder: Path, elsewhere: Path, committed: Callable[[int], None]) -> None:
    os.environ["TMPDIR"] = str(elsewhere)
    tempfile.tempdir = None
    for step in itertools.count(whole_step(folder) + 1):
        _save(folder, step)
        committed(step)


def _kill_a_writer(folder: Path, elsewhere: Path, rng: random.Random) -> int:
    """The last step that a writer said it had saved before it was killed."""
    received, sent = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_write, args=(folder, elsewhere, sent.send))
    began = whole_step(folder)
    process.start()
    sent.close()
    time.sleep(rng.uniform(0, LONGEST_SECONDS))
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    said = [began]
    try:
        while True:
            said.append(received.recv())
    except (EOFError, OSError):
        return said[-1]


def _problems(folder: Path, committed: int) -> list[str]:
    problems = []
    newest = resume.newest(folder / "checkpoints") if (folder / "checkpoints").exists() else None
    if newest is None:
        return [f"step {committed} was saved, and no checkpoint is found"] if committed else []
    step = whole_step(folder)
    if step not in (committed, committed + 1):
        problems.append(f"step {committed} was saved, step {step} is found")
    if not resume.load(newest)["trained"]["w"].eq(step).all():
        problems.append(f"{newest.name} holds another step's numbers")
    if committed:
        found = weights.load(folder)
        said = found.metadata["step"]
        if said not in (committed, committed + 1) or not found.state["w"].eq(said).all():
            problems.append(f"weights of step {said} are found, or hold another step's numbers")
    return problems
