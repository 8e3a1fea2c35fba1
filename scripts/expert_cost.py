"""Time per image and parameters as experts grow in number, against one network deepened to as many (eDiff-I, Fig. 13).

    python scripts/expert_cost.py model=runs/quickstart-diffusion
    python scripts/expert_cost.py model=runs/quickstart-diffusion experts=[1,2,4] passes=20 batch_size=4

Only one expert is evaluated at each level of noise, so their number costs memory and no time: the ratio stays at 1. All
weights are where they would be in use, and what is timed is the evaluations of the denoiser in one image's sampling.
"""

from ldm.asked import check_there
from ldm.config import compose, guarded, helped


def main(arguments: list[str]) -> int:
    """Print the table and write it as CSV, with the curves as PNG."""
    if helped("expert_cost", __doc__, arguments):
        return 0
    tree = compose("expert_cost", arguments)
    check_there(tree)
    from ldm.evaluation.expert_cost import expert_cost
    from ldm.evaluation.table import show

    rows, folder = expert_cost(tree)
    show(rows)
    print(f"also in {folder}/")
    return 0


if __name__ == "__main__":
    guarded(main)
