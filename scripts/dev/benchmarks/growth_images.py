"""What sample.py has in memory, and takes, as the images of one command become more: recipes, files, one grid.

Until the grid is full its images are kept; what is judged is what an image costs after that.
"""

import contextlib
import io
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.findings import Curve, Row, curves, judged
from benchmarks.measure import resident
from benchmarks.one_run import stopped_at

GOAL, TIME_GOAL = 1000.0, 1.1  # bytes an image: 50 MB of 50,000; its time, late over early
MARKS = (300, 1000, 1500, 2000, 2500, 3000)
WORDS = ["device=cpu", "num_steps=4", "sampler=euler", "batch_size=50", f"num_images={MARKS[-1]}"]


def run(options: dict) -> None:
    """Print the suite's table."""
    import sample
    from ldm.provenance.recipe import Recipes

    found: dict[int, tuple[float, float]] = {}  # number of images: MiB, CPU seconds
    save, count = Recipes.save, 0

    def saved(self: Recipes, *arguments: Any) -> Path:
        nonlocal count
        path = save(self, *arguments)
        count += 1
        if count in MARKS:
            found[count] = resident("VmRSS"), time.process_time()
        return path

    with tempfile.TemporaryDirectory() as folder:
        stopped_at(Path(folder), 1, "ema=default")
        words = [*WORDS, f"model={folder}/at-1", f"out={folder}/images"]
        with patch.object(Recipes, "save", saved), contextlib.redirect_stdout(io.StringIO()):
            assert sample.main(words) == 0
        size = sum(file.stat().st_size for file in Path(folder, "images").iterdir()) / MARKS[-1]
    print(f"{size / 1e3:.1f} kB of files an image")
    for number, (mib, seconds) in found.items():
        print(f"{number:>5} images {mib:10.1f} MiB {seconds:10.1f} s of CPU time", flush=True)
    first, half, last = MARKS[0], MARKS[2], MARKS[-1]
    growth = 2**20 * (found[last][0] - found[half][0]) / (last - half)
    print(judged(Row(f"memory an image, {half:,} to {last:,}", growth, GOAL, at_most=True, unit="bytes")))
    early, late = ((found[b][1] - found[a][1]) / (b - a) for a, b in ((first, half), (half, last)))
    print(judged(Row(f"time an image after {half:,}, over that before", late / early, TIME_GOAL, at_most=True)))
    line = (list(found), [mib for mib, _ in found.values()])
    curves.append(Curve("memory of sample.py", "images", "MiB", {"resident": line}))
