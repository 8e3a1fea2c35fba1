"""Speed and memory against peers, in the same process and run, as ratios of CPU time.

    python scripts/dev/benchmark.py suite=unet_train
    python scripts/dev/benchmark.py suite=autoencoder repeats=9 batch_size=2 image_size=64
    python scripts/dev/benchmark.py suite=unet_sample precision=fp32 compile=true
    python scripts/dev/benchmark.py suite=growth_batch,growth_samples out=benchmarks
    python scripts/dev/benchmark.py suite=all

suite=          # one of those below, several as a,b, or all of them
repeats=7       # how often each contestant's turn comes
batch_size=0    # 0 is the suite's own
image_size=0    # px; 0 is the suite's own
precision=both  # both, fp32 or bf16
compile=false   # true: torch.compile too, minutes the first time
out=            # of several suites: the folder of benchmarks.json, benchmarks.png and growth.png; benchmarks by itself

Several suites run one after the other, each in a process of its own, and end in one table; what benchmarks.json has
already is not measured again. One thread; the contestants take turns, and the median of their times counts. The fastest
setting of a peer is the one that ours is held against. The peers need the test extra (diffusers).
"""

import importlib
import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from options import parse

from ldm.config import guarded
from ldm.errors import UserError

SUITES = ("autoencoder", "unet_train", "unet_sample", "guidance", "kernels", "ema", "optimizer", "overhead", "cache",
          "loader", "inpainting", "growth_batch", "growth_samples", "growth_resume", "growth_evaluation",
          "growth_images", "first_step", "ranks", "plan")  # fmt: skip
# memory_of is for processes that measure one contestant alone, findings the file of what a suite of several found.
KEYS = {
    "suite": "", "repeats": 7, "batch_size": 0, "image_size": 0, "precision": "both", "compile": False, "out": "",
    "memory_of": "", "findings": "",
}  # fmt: skip


def main(arguments: list[str]) -> int:
    """Run one suite, or several, and print the table."""
    if not arguments or "--help" in arguments or "-h" in arguments:
        print(__doc__.strip() + "\n\nsuites: " + ", ".join(SUITES))
        return 0
    options = parse(arguments, KEYS)
    suites = list(SUITES) if options["suite"] == "all" else options["suite"].split(",")
    if not set(suites) <= set(SUITES):
        raise UserError(f"suite={options['suite']}: there are all, {', '.join(SUITES)}")
    if options["precision"] not in ("both", "fp32", "bf16"):
        raise UserError(f"precision={options['precision']}: there are both, fp32, bf16")
    if options["repeats"] < 1:
        raise UserError(f"repeats={options['repeats']}: must be at least 1")
    if options["out"] or len(suites) > 1:
        from benchmarks import together

        return together.run(suites, options)
    importlib.import_module(f"benchmarks.{suites[0]}").run(options)
    if options["findings"]:
        from benchmarks import findings

        findings.write(Path(options["findings"]))
    return 0


if __name__ == "__main__":
    guarded(main)
