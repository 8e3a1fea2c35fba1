"""One bit of a checkpoint is flipped, anywhere in any of its files: it must be named as damaged, and the one before
it used."""

import random
from pathlib import Path

import torch

from chaoses.outcome import Outcome
from ldm.checkpoint import resume

GOAL = "every flipped bit in a checkpoint is detected"
RUNS = 300
NUM_VALUES = 20_000


def run(runs: int, rng: random.Random, folder: Path) -> Outcome:
    """Flip bits of a real checkpoint one at a time, putting each back."""
    outcome = Outcome()
    for step in (1, 2):
        state = {"trained": {"w": torch.randn(NUM_VALUES)}, "step": step}
        resume.save(folder, step, state, {"step": step})
    before, newest = (folder / resume.NAME.format(step) for step in (1, 2))
    files = sorted(path for path in newest.iterdir() if path.is_file())
    for number in range(runs):
        file = files[number % len(files)]
        whole = file.read_bytes()
        bit = rng.randrange(8 * len(whole))
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        found = resume.newest(folder)
        file.write_bytes(whole)
        outcome.note(f"{file.name} bit {bit}", [] if found == before else [f"{found} was taken"])
    return outcome
