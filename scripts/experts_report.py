"""Experts against training on, at equal samples: trees of several seeds grown, sampled, measured, and what came of it.

    OMP_NUM_THREADS=1 python scripts/experts_report.py schedules=[fig7_emoji] seeds=[0]
    OMP_NUM_THREADS=1 python scripts/experts_report.py shards=shards/fashion results=experts.csv
    python scripts/experts_report.py train=false schedules=[fig7_emoji] results=experts.csv

Figure 7 of eDiff-I with its control, each expert replaced by what it came from, branching against training from
nothing, Configs A, C and D side by side. What was expected is in the schedules (conf/tree); what came is said either
way. Each step is a process of its own, jobs= of them at once; stopped or killed and started again, it goes on where it
was. Judged trees are rows of results=, with which another checkout goes on too. Page and figures: runs/experts/.
"""

import sys
from pathlib import Path

if not __package__:  # a file of a checkout that may not be installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.config import compose, guarded, helped, shown, tree_of_step, words_of_step


def main(arguments: list[str]) -> int:
    """Grow and judge what is not done yet. Exit status 3 if a training run was stopped and saved."""
    if helped("experts_report", __doc__, arguments):
        return 0
    if any(word.startswith("stage=") for word in arguments):
        return _judge(words_of_step(arguments, "stage", "seed", "tree", "device"))
    tree = compose("experts_report", arguments)
    from ldm.trees.report import experts_report

    return shown(experts_report(tree))


def _judge(words: dict[str, str]) -> int:
    """A judgement, which the report starts itself: stage=fig7_emoji seed=0 tree=FOLDER/experts.json."""
    from ldm.device import choose, keep_memory
    from ldm.trees.report import run_judge

    if choose(words["device"]).type == "cpu":
        keep_memory()
    run_judge(tree_of_step("experts_report", words["tree"]), words["stage"], int(words["seed"]))
    return 0


if __name__ == "__main__":
    guarded(main)
