"""How a training step grows with its batch: a bare loop over a task, in CPU time."""

import statistics

import torch

from benchmarks.findings import Curve, Row, curves, judged
from benchmarks.measure import cpu_seconds, spread
from benchmarks.overhead import COMMON, bare_steps
from ldm.config import compose, overriding

GOAL = 1.1
SIZES = (2, 4, 8, 16, 32)
NETWORK = ["network.width=96", "network.depth=3", "network.num_heads=3"]


def run(options: dict) -> None:
    """Print the suite's table."""
    torch.set_num_threads(1)
    steps = {}
    for size in SIZES:
        tree = compose("config", overriding([*COMMON, *NETWORK, f"data.batch_size={size}"]))
        steps[size] = bare_steps(tree)
    times = cpu_seconds({str(size): lambda own=own: next(own) for size, own in steps.items()}, options["repeats"])
    medians = {size: statistics.median(times[str(size)]) for size in SIZES}
    print(f"torch {torch.__version__}, one thread, CPU time of a step")
    for size, seconds in medians.items():
        each = 1e3 * seconds / size
        print(f"batch {size:<16} {1e3 * seconds:9.1f} ms   {each:7.2f} ms a sample", flush=True)
    low, high = SIZES[len(SIZES) // 2], SIZES[-1]
    turns = [(more / high) / (few / low) for more, few in zip(times[str(high)], times[str(low)], strict=True)]
    row = Row(
        f"time a sample at batch {high}, over that at {low}", statistics.median(turns), GOAL, True, spread=spread(turns)
    )
    print(judged(row))
    line = ([*medians], [1e3 * seconds / size for size, seconds in medians.items()])
    curves.append(Curve("a training step", "batch", "ms a sample", {"forward to average": line}))
