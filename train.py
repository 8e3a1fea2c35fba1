"""Train one run, or with -m one fresh process per job of a sweep.

    python train.py experiment=quickstart/autoencoder
    python train.py experiment=quickstart/diffusion first_stage=runs/quickstart-autoencoder
    python train.py -m experiment=sweep/autoencoder autoencoder=f2,f4,f8 regularizer=kl,vq
    python train.py -m launcher=submitit launcher.partition=gpu experiment=sweep/autoencoder autoencoder=f4,f8

The same command again resumes.
"""

import os
import sys
from typing import NoReturn

from ldm.asked import check_first_stage, check_training
from ldm.config import compose, expand_sweep, guarded, helped, run_name
from ldm.errors import UserError
from ldm.launching import FINISHED, SUBMITTED, Job
from ldm.launching.choice import is_of_launcher, take_launcher
from ldm.sweep_agents import agents_id


def main(arguments: list[str]) -> int:
    """Exit status of one run (0 finished, 3 stopped early and saved) or of a sweep (0 if all jobs finished)."""
    words = [word for word in arguments if word not in ("-m", "--multirun")]
    of_launcher = len(words) < len(arguments) and all(word.startswith(("-h", "--help")) for word in words)
    if helped("launch" if of_launcher else "config", __doc__, arguments):
        return 0
    if len(words) < len(arguments):
        return sweep(words)
    for word in filter(is_of_launcher, arguments):
        raise UserError(f"{word}: goes with -m, which also starts a single job: python train.py -m {word} ...")
    tree = compose("config", arguments)
    own = [run_name(arguments), agents_id()]  # each run of an agent's sweep has a folder of its own
    name = tree["run"] or "-".join(filter(None, own))
    check_training(tree)
    check_first_stage(tree, name)
    from ldm.fit import fit  # torch and Lightning are only needed once the tree is known to be good

    run = fit(tree, name)
    return 0 if run.finished else 3


def leave(status: int) -> NoReturn:
    """End the process; after a run as its ranks have to (ldm.training.distributed)."""
    distributed = sys.modules.get("ldm.training.distributed")  # which imports torch
    (distributed.leave if distributed else sys.exit)(status)


def sweep(arguments: list[str]) -> int:
    """Run every job of the product in its own process; a failed job does not stop the others.

    ``run=NAME`` begins the names of all, ``launcher=`` says where they run.
    """
    launch, arguments = take_launcher(arguments)
    jobs = []
    for words, swept in expand_sweep(arguments):
        name = run_name(words, swept)
        jobs.append(Job(name, (*(word for word in words if not word.startswith("run=")), f"run={name}")))
    names = [job.name for job in jobs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"two jobs of this sweep would share the folder {twice}; sweep other values")
    os.environ.setdefault("WANDB_RUN_GROUP", run_name(arguments))
    failed = [name for name, status in zip(names, launch(jobs), strict=True) if status not in (FINISHED, SUBMITTED)]
    if failed:
        print(f"{len(failed)} of {len(jobs)} jobs did not finish: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    guarded(main, leave)
