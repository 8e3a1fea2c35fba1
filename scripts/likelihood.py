"""How likely held-out samples are under a diffusion model: bits per dimension, and its curve of rate and distortion.

    python scripts/likelihood.py model=runs/quickstart-diffusion num_samples=500
    python scripts/likelihood.py model=runs/quickstart-diffusion data=data/quickstart/train-00000.tar ode=false
    torchrun --nproc_per_node=8 scripts/likelihood.py model=runs/quickstart-diffusion num_levels=null

By the variational bound of a chain of steps, and by the probability-flow ODE. A model of latents is measured per
dimension of its latents, a model of pixels per colour value. What is measured is kept: stopped, it goes on.
"""

from ldm.asked import check_there
from ldm.config import compose, guarded, helped


def main(arguments: list[str]) -> int:
    """Measure and print a table; each batch is kept once it is done."""
    if helped("likelihood", __doc__, arguments):
        return 0
    tree = compose("likelihood", arguments)
    check_there(tree)
    from ldm.evaluation.likelihood import measure_likelihood
    from ldm.evaluation.table import show

    rows, folder = measure_likelihood(tree)
    if not rows:
        return 0  # another process writes
    show([row for row in rows if "." not in row["metric"]])  # the parts of a bound are in the files
    print(f"also in {folder}/")
    return 0


if __name__ == "__main__":
    guarded(main)
