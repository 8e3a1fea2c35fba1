"""The tasks of latent diffusion as tiny experiments: each trained, sampled from files, judged on held-out data, shown.

    OMP_NUM_THREADS=1 python scripts/tasks_report.py
    OMP_NUM_THREADS=1 python scripts/tasks_report.py tasks=[layout,inpainting] seeds=[0,1,2] results=tasks.csv
    OMP_NUM_THREADS=1 python scripts/tasks_report.py tasks=[class_fashion] fashion=shards/fashion
    python scripts/tasks_report.py train=false results=tasks.csv

Every experiment is composed before anything trains. Each step is a process of its own, jobs= of them at once; stopped
or killed and started again, it goes on where it was. A judged task is rows of results=, with which another checkout
goes on too, and a contact sheet beside them. Table and sheets: runs/tasks/index.html.
"""

import sys
from pathlib import Path

if not __package__:  # a file of a checkout that may not be installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.config import compose, guarded, helped, shown, tree_of_step, words_of_step


def main(arguments: list[str]) -> int:
    """Train and judge what is not done yet. Exit status 3 if a training run was stopped and saved."""
    if helped("tasks_report", __doc__, arguments):
        return 0
    if any(word.startswith("stage=") for word in arguments):
        return _judge(words_of_step(arguments, "stage", "task", "seed", "tree", "device"))
    tree = compose("tasks_report", arguments)
    from ldm.tasks.report import tasks_report

    return shown(tasks_report(tree))


def _judge(words: dict[str, str]) -> int:
    """A judgement, which the report starts itself: stage=judge task=text seed=0 tree=FOLDER/tasks.json."""
    from ldm.device import choose, keep_memory
    from ldm.tasks.judging import run_judge

    if choose(words["device"]).type == "cpu":
        keep_memory()
    run_judge(words["stage"], words["task"], int(words["seed"]), tree_of_step("tasks_report", words["tree"]))
    return 0


if __name__ == "__main__":
    guarded(main)
