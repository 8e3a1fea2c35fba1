"""Faults on purpose: real processes, real files, and a figure for each goal that the project promises.

    python scripts/dev/chaos.py case=bit_flips,kills runs=10 seed=3
    python scripts/dev/chaos.py case=all

case=   # one or several of those below, or all
runs=0  # trials of each case; 0 is its own number
seed=0  # repeats one draw of faults

Exit status 1 if a trial fails.
"""

import ast
import importlib
import logging
import os
import random
import shutil
import sys
import tempfile
import textwrap
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))  # the toys that the tests train

from chaoses.outcome import Outcome
from options import parse

from ldm.config import guarded
from ldm.errors import UserError

CASES = (
    "bad_inputs",
    "bit_flips",
    "damage",
    "files",
    "full_disk",
    "hangs",
    "kills",
    "kills_while_saving",
    "malformed",
    "not_finite",
    "plan",
    "ranks",
    "restarts",
    "signals",
    "start_step",
    "soak",
)
SECONDS_BETWEEN_LINES = 15.0
KEYS = {"case": "", "runs": 0, "seed": 0}


def main(arguments: list[str]) -> int:
    """Run the cases asked for and print a line for each; 1 if any trial failed."""
    if not arguments or "--help" in arguments or "-h" in arguments:
        print(__doc__.strip() + "\n\ncases:")
        for name in CASES:
            print(textwrap.fill(_does(name), 118, initial_indent=f"  {name:<20}", subsequent_indent=" " * 22))
        return 0
    options = _read(arguments)
    logging.getLogger("ldm").setLevel(logging.ERROR)  # the faults' own warnings; the cases read what they need
    names = CASES if options["case"] == "all" else options["case"].split(",")
    return max([_run(name, options["runs"], options["seed"]) for name in names])


def _read(arguments: list[str]) -> dict:
    options = parse(arguments, KEYS)
    if options["runs"] < 0:
        raise UserError(f"runs={options['runs']}: must be at least 1, or 0 for each case's own number")
    for name in options["case"].split(","):
        if name not in (*CASES, "all"):
            raise UserError(f"case={name}: there are {', '.join(CASES)}, all")
    return options


def _does(name: str) -> str:
    """A case's summary, read from its source: importing all of them takes many seconds."""
    source = Path(__file__).parent / "chaoses" / f"{name}.py"
    return ast.get_docstring(ast.parse(source.read_text())).partition("\n\n")[0]


def _module(name: str):
    return importlib.import_module(f"chaoses.{name}")


def _run(name: str, runs: int, seed: int) -> int:
    """Run one case in a folder of its own, which stays only if a trial failed."""
    module = _module(name)
    folder = Path(tempfile.mkdtemp(prefix=f"chaos-{name}-"))
    began = time.monotonic()
    runs = runs or module.RUNS
    Outcome.watch = _progress(name, runs)
    outcome = module.run(runs, random.Random(f"{seed}/{name}"), folder)
    seconds = time.monotonic() - began
    left_out = f", {outcome.skipped} skipped" if outcome.skipped else ""
    print(f"{name:<20} {outcome.held} of {outcome.tried}{left_out}  {seconds:6.0f} s  {module.GOAL}", flush=True)
    for line in outcome.facts:
        print(f"{'':<20} {line}", flush=True)
    for line in outcome.failures[:20]:
        print(f"{'':<20} FAILED {line}", flush=True)
    if outcome.failures:
        print(f"{'':<20} left for you to look at: {folder}", flush=True)
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    return 0


def _progress(name: str, runs: int):
    """A line now and then: a live bar's thread would not survive the forks."""
    began = last = time.monotonic()

    def show(outcome: Outcome) -> None:
        nonlocal last
        now, done = time.monotonic(), outcome.tried + outcome.skipped
        if now - last > SECONDS_BETWEEN_LINES and done < runs:
            last = now
            left = (now - began) / done * (runs - done)
            said = f"{name}  {done}/{runs}  {outcome.held} held  {done / (now - began):.2g}/s  {left / 60:.1f} min left"
            print(said, file=sys.stderr, flush=True)

    return show


if __name__ == "__main__":
    guarded(main)
