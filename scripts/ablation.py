"""An ablation: rows of choices, each trained for the same time on the same latents, judged by KID, beside diffusers.

    OMP_NUM_THREADS=1 python scripts/ablation.py plan=emoji results=ablation.csv
    python scripts/ablation.py rows=[quickstart,diffusers] seeds=[0,1,2] results=ablation.csv
    python scripts/ablation.py train=false results=ablation.csv

Every row is checked before anything trains. Each step is a process of its own, jobs= of them at once; stopped or killed
and started again, it goes on where it was. Finished cells are rows of results=, with which another checkout goes on
too. Peers are trained by the text-to-image loop of diffusers, with its defaults. Table, figures and page:
runs/ablation-NAME/index.html.
"""

import sys
from pathlib import Path

if not __package__:  # a file of a checkout that may not be installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.config import compose, guarded, helped, shown, tree_of_step, words_of_step


def main(arguments: list[str]) -> int:
    """Train and measure what is not done yet. Exit status 3 if a training run was stopped and saved."""
    if helped("ablation", __doc__, arguments):
        return 0
    if any(word.startswith("stage=") for word in arguments):
        return _stage(words_of_step(arguments, "stage", "cell", "tree", "device"))
    tree = compose("ablation", arguments)
    from ldm.ablation.ablation import ablation

    return shown(ablation(tree))


def _stage(words: dict[str, str]) -> int:
    """A step of a cell, which the ablation starts itself: stage=measure cell=muon-seed0 tree=FOLDER/ablation.json."""
    from ldm.ablation.stage import run_stage

    run_stage(words["stage"], words["cell"], tree_of_step("ablation", words["tree"]))
    return 0


if __name__ == "__main__":
    guarded(main)
