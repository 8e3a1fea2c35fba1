"""Grow a tree of expert denoisers by a schedule, and write the manifests of the ensembles that it names.

    python scripts/grow_tree.py schedule=fig7_small base=runs/quickstart-diffusion branch_experiment=quickstart/expert
    python scripts/grow_tree.py schedule=stand_in experiment=recipes/own256_1gpu first_stage=runs/f8 root_steps=100000
    python scripts/grow_tree.py schedule=mine.yaml base=runs/base launcher=submitit launcher.wait=true jobs=8

Rows say what is trained from what, for which part of the noise and how long (conf/tree). All are checked before one
trains. Each is a process of its own, jobs= of them at once; stopped or killed and started again, the tree goes on where
it was. Manifests, the runs as a tree with what each cost, and a table: runs/NAME/.
"""

import sys
from pathlib import Path

if not __package__:  # a file of a checkout that may not be installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.asked import check_there
from ldm.config import compose, guarded, helped, shown


def main(arguments: list[str]) -> int:
    """Train the rows that are not done yet. Exit status 3 if a training was stopped and saved."""
    if helped("grow_tree", __doc__, arguments):
        return 0
    tree = compose("grow_tree", arguments)
    check_there({"first_stage": tree["first_stage"]})
    from ldm.trees.growing import grow

    return shown(grow(tree))


if __name__ == "__main__":
    guarded(main)
