"""From the command to the end of the first step, each in a process of its own: imports, parts, data, folder, step.

Warm: one run of each that does not count has read the files and indices, and compiled the modules of Python, which are
kept here even where the environment forbids it. What is judged is CPU time, one thread: on a machine that does nothing
else it is the wall's.
"""

import json
import os
import statistics
import tempfile
import time
from unittest.mock import patch

from benchmarks.findings import Row, judged
from benchmarks.measure import alone, spread
from benchmarks.one_run import first_step

GOAL = 10.0
COMMON = ["trainer.accelerator=cpu", "trainer.precision=32-true", "~logger"]
RUNS = {
    "autoencoder": ["experiment=quickstart/autoencoder"],
    "diffusion": ["experiment=quickstart/diffusion", "task.keep_latents=false"],  # of pixels
}


def run(options: dict) -> None:
    """Print the suite's table, or in a process of its own the seconds of one run."""
    if options["memory_of"]:
        with tempfile.TemporaryDirectory() as folder:
            started = time.process_time()  # what the process has done before: its own imports
            cpu, wall = first_step([*RUNS[options["memory_of"]], *COMMON, f"runs_dir={folder}", "run=first-step"])
            print(json.dumps({"cpu": started + cpu, "wall": wall}))
        return
    with tempfile.TemporaryDirectory() as compiled, patch.dict(os.environ, PYTHONPYCACHEPREFIX=compiled):
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        each = {name: [alone(options, name) for _ in range(1 + min(3, options["repeats"]))][1:] for name in RUNS}
    for name, found in each.items():
        seconds = [own["cpu"] for own in found]
        walls = ", ".join(f"{own['wall']:.1f}" for own in found)
        print(f"quickstart/{name:<20} {statistics.median(seconds):6.1f} s of CPU time   (wall: {walls} s)", flush=True)
        row = Row(
            f"first step, quickstart/{name}", statistics.median(seconds), GOAL, True, unit="s", spread=spread(seconds)
        )
        print(judged(row))
