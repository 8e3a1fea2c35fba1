"""How an evaluation grows with its number of samples: scripts/evaluate.py on a toy, from the model to the table.

What does not depend on the number (loading, the reference) is left out: what is held against each other is what one
more sample costs, among few and among many.
"""

import contextlib
import io
import statistics
import tempfile
from pathlib import Path

from benchmarks.findings import Curve, Row, curves, judged
from benchmarks.measure import cpu_seconds, spread
from benchmarks.one_run import stopped_at

GOAL = 1.1
SIZES = (48, 144, 336)
WORDS = ["device=cpu", "num_steps=4", "sampler=euler", "batch_size=48", "metric.size=64", "resamples=0"]


def run(options: dict) -> None:
    """Print the suite's table."""
    from ldm.config import compose
    from ldm.evaluation.evaluate import evaluate

    with tempfile.TemporaryDirectory() as folder:
        stopped_at(Path(folder), 1, "ema=default")
        turns = iter(range(1_000_000))  # a folder for each: what is measured is kept

        def measure(size: int) -> None:
            words = [*WORDS, f"model={folder}/at-1", f"num_samples={size}", f"out={folder}/{next(turns)}"]
            with contextlib.redirect_stdout(io.StringIO()):
                evaluate(compose("evaluate", words))

        cases = {str(size): lambda size=size: measure(size) for size in SIZES}
        times = cpu_seconds(cases, min(5, options["repeats"]))
    medians = [statistics.median(times[str(size)]) for size in SIZES]
    for size, seconds in zip(SIZES, medians, strict=True):
        print(f"{size:>5} samples {seconds:10.2f} s", flush=True)
    few, some, many = (times[str(size)] for size in SIZES)
    early = [(b - a) / (SIZES[1] - SIZES[0]) for a, b in zip(few, some, strict=True)]
    late = [(b - a) / (SIZES[2] - SIZES[1]) for a, b in zip(some, many, strict=True)]
    ratios = [b / a for a, b in zip(early, late, strict=True)]
    row = Row(
        f"one more sample among {SIZES[2]}, over that among {SIZES[1]}",
        statistics.median(late) / statistics.median(early), GOAL, True, spread=spread(ratios),
    )  # fmt: skip
    print(judged(row))
    curves.append(Curve("an evaluation", "samples", "s", {"from the model to the table": (list(SIZES), medians)}))
