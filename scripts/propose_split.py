"""Where to cut a model's noise for experts: shares of training and sampling, gains of a short training, a schedule.

    python scripts/propose_split.py model=runs/quickstart-diffusion
    python scripts/propose_split.py model=runs/base num_steps=25 sigmas=karras sigmas.rho=6
    python scripts/propose_split.py model=runs/quickstart-diffusion steps=200 experiment=quickstart/control

A node that has little of the training noise and many of the sampling's steps pays for an expert; so does one where more
training still helps held-out images. Tables and figures, and a schedule that scripts/grow_tree.py takes: split/ in the
model's folder.
"""

import sys
from pathlib import Path

if not __package__:  # a file of a checkout that may not be installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.asked import check_there
from ldm.config import compose, guarded, helped, shown


def main(arguments: list[str]) -> int:
    """Measure and propose. Exit status 3 if the short training was stopped and saved."""
    if helped("propose_split", __doc__, arguments):
        return 0
    tree = compose("propose_split", arguments)
    check_there(tree)
    from ldm.trees.split import propose_split

    return shown(propose_split(tree))


if __name__ == "__main__":
    guarded(main)
