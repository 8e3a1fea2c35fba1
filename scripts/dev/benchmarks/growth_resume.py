"""What a resume costs at the end of an epoch and at its beginning: the data set opened, and the first batch from there.

Of 10^5 samples, and of a whole run: the same command from a checkpoint at step 1 and at 90 % of an epoch.
"""

import statistics
import tempfile
from pathlib import Path

from benchmarks.findings import Curve, Row, curves, judged
from benchmarks.many_shards import data_of, many_shards
from benchmarks.measure import cpu_seconds, spread
from benchmarks.one_run import resumed, stopped_at

GOAL = 1.1
NUM_SAMPLES = 100_000
SHARES = (0.0, 0.3, 0.6, 0.9)
RUN_STEPS = 300  # of an epoch of the run


def run(options: dict) -> None:
    """Print the suite's table."""
    with many_shards(NUM_SAMPLES) as shards:
        data_of(shards).setup()  # indices are made once

        def begin(share: float) -> None:
            data = data_of(shards)
            data.start(int(share * NUM_SAMPLES))
            next(iter(data.train_dataloader()))

        times = cpu_seconds({str(share): lambda share=share: begin(share) for share in SHARES}, options["repeats"])
    for share in SHARES:
        print(
            f"at {100 * share:2.0f} % of {NUM_SAMPLES:,} samples {1e3 * statistics.median(times[str(share)]):10.1f} ms"
        )
    ratios = [late / early for late, early in zip(times["0.9"], times["0.0"], strict=True)]
    print(
        judged(
            Row("first batch at 90 %, over that at 0 %", statistics.median(ratios), GOAL, True, spread=spread(ratios))
        )
    )
    line = ([100 * share for share in SHARES], [1e3 * statistics.median(times[str(share)]) for share in SHARES])
    curves.append(Curve("resuming: first batch", "% of an epoch", "ms", {f"{NUM_SAMPLES:,} samples": line}))
    with tempfile.TemporaryDirectory() as folder:
        early, late = (stopped_at(Path(folder), step) for step in (1, round(0.9 * RUN_STEPS)))
        contestants = {"0 %": lambda: resumed(early), "90 %": lambda: resumed(late)}
        times = _seconds(contestants, max(3, options["repeats"] // 2))
    ratios = [late / early for late, early in zip(times["90 %"], times["0 %"], strict=True)]
    for name, values in times.items():
        print(f"a run resumed at {name:<12} {statistics.median(values):10.2f} s to the first step")
    row = Row("a run at 90 %, over that at 0 %", statistics.median(ratios), GOAL, True, spread=spread(ratios))
    print(judged(row))


def _seconds(contestants: dict, repeats: int) -> dict[str, list[float]]:
    """CPU seconds that each of them says of itself, in turn, after one that does not count."""
    times: dict[str, list[float]] = {who: [] for who in contestants}
    for turn in range(repeats + 1):
        for who, run in contestants.items():
            seconds = run()
            if turn:
                times[who].append(seconds)
    return times
