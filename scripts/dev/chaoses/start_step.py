"""Discriminator start x checkpoint interval x accumulation: exactly the expected checkpoints, and the start is met."""

import random
from pathlib import Path

from toys import curve, train

from chaoses.outcome import Outcome
from ldm.checkpoint import resume, weights

GOAL = "whenever the discriminator starts, exactly the expected checkpoints are written"
RUNS = 20


def run(runs: int, rng: random.Random, folder: Path) -> Outcome:
    """In this process: short runs that keep all of their checkpoints."""
    outcome = Outcome()
    for number in range(runs):
        start, every, steps, accumulation = rng.randrange(7), rng.randint(1, 4), rng.randint(1, 6), rng.choice((1, 2))
        name = f"discriminator from step {start}, checkpoint every {every} of {steps}, accumulation={accumulation}"
        run = train(
            "quickstart/autoencoder", folder, f"reconstruction.start_step={start}", f"max_steps={steps}",
            f"callback.checkpoint.every_steps={every}", "callback.checkpoint.keep=100",
            "callback.checkpoint.keep_weights=100", f"accumulation={accumulation}", run=f"run{number}",
        ).folder  # fmt: skip
        outcome.note(name, _problems(run, start, every, steps))
    return outcome


def _problems(run: Path, start: int, every: int, steps: int) -> list[str]:
    expected = sorted({*range(every, steps + 1, every), steps})
    written = sorted(int(resume.PATTERN.fullmatch(path.name)[1]) for path in (run / "checkpoints").glob("step_*"))
    described = sorted(int(weights.PATTERN.fullmatch(path.name)[1]) for path in (run / "weights").glob("step_*.json"))
    trained = sorted(curve(run, "train/discriminator"))
    problems = []
    if written != expected or described != expected:
        problems.append(f"checkpoints {written} and weights {described} instead of {expected}")
    if trained != list(range(start + 1, steps + 1)):
        problems.append(f"the discriminator was trained in steps {trained}")
    return problems
