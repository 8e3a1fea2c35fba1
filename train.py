"""Train one run, or with -m one fresh process per job of a sweep.

    python train.py experiment=quickstart/autoencoder
    python train.py experiment=quickstart/diffusion first_stage=runs/quickstart-autoencoder
    python train.py -m experiment=sweep/autoencoder autoencoder=f2,f4,f8 regularizer=kl,vq

The same command again resumes.
"""

import subprocess
import sys
from typing import NoReturn

from ldm.config import compose, expand_sweep, guarded, help_text, run_name
from ldm.errors import UserError
from ldm.installed import train_command

EXAMPLES = __doc__.split("\n\n")[1]


def main(arguments: list[str]) -> int:
    """Exit status of one run (0 finished, 3 stopped early and saved) or of a sweep (0 if all jobs finished)."""
    if "--help" in arguments or "-h" in arguments:
        print(help_text("config", "python train.py [-m] [group=option ...] [key=value ...]", EXAMPLES))
        return 0
    if "-m" in arguments or "--multirun" in arguments:
        return sweep([a for a in arguments if a not in ("-m", "--multirun")])
    tree = compose("config", arguments)
    from ldm.fit import fit  # torch and Lightning are only needed once the tree is known to be good

    run = fit(tree, tree["run"] or run_name(arguments))
    return 0 if run.finished else 3


def leave(status: int) -> NoReturn:
    """End the process; after a run as its ranks have to (ldm.training.distributed)."""
    distributed = sys.modules.get("ldm.training.distributed")  # which imports torch
    (distributed.leave if distributed else sys.exit)(status)


def sweep(arguments: list[str]) -> int:
    """Run every job of the product in its own process, one after the other; a failed job does not stop the others.

    ``run=NAME`` begins the names of all.
    """
    failed = []
    jobs = [(job, run_name(job, swept)) for job, swept in expand_sweep(arguments)]
    names = [name for _, name in jobs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"two jobs of this sweep would share the folder {twice}; sweep other values")
    command, environment = train_command()
    for number, (job, name) in enumerate(jobs, start=1):
        print(f"[{number}/{len(jobs)}] {name}", flush=True)
        words = [word for word in job if not word.startswith("run=")]
        if subprocess.run([*command, *words, f"run={name}"], env=environment).returncode:
            failed.append(name)
    if failed:
        print(f"{len(failed)} of {len(jobs)} jobs did not finish: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    guarded(main, leave)
