"""The sweep over f: first stage, cache of latents, diffusion and its quality, for each downsampling factor and seed.

    python scripts/sweep_f.py f=[1,2,4,8,16,32] regularizer=[kl,vq] seeds=[0,1,2]
    python scripts/sweep_f.py f=[4,8] autoencoder_overrides="max_steps=5000" diffusion_overrides="max_steps=5000"
    OMP_NUM_THREADS=1 python scripts/sweep_f.py sweep=fashion shards=shards/fashion results=sweep_f_fashion.csv

Every f is checked before anything trains. Each step is a process of its own; stopped or killed and started again, the
sweep goes on where it was. Finished cells are rows of results=, with which another checkout goes on too. With
budget=device_seconds all train for the same time of a CPU core or GPU. Figures, table and page: runs/sweep_f/.
"""

import sys
from pathlib import Path

if not __package__:  # a file of a checkout that may not be installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.config import compose, guarded, helped, shown, tree_of_step, words_of_step


def main(arguments: list[str]) -> int:
    """Train and measure what is not done yet. Exit status 3 if a training run was stopped and saved."""
    if helped("sweep_f", __doc__, arguments):
        return 0
    if any(word.startswith("stage=") for word in arguments):
        return _stage(words_of_step(arguments, "stage", "cell", "tree", "device"))
    tree = compose("sweep_f", arguments)
    from ldm.sweep.sweep_f import sweep_f

    return shown(sweep_f(tree))


def _stage(words: dict[str, str]) -> int:
    """A step of one cell, which the sweep starts itself: stage=measure cell=kl-f4-seed0 tree=FOLDER/sweep.json."""
    from ldm.sweep.stage import run_stage

    run_stage(words["stage"], words["cell"], tree_of_step("sweep_f", words["tree"]))
    return 0


if __name__ == "__main__":
    guarded(main)
