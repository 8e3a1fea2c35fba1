"""Does a model copy? Its samples beside the training images nearest to them, and how often they are too near.

    python scripts/nearest.py model=runs/quickstart-diffusion num_samples=200
    python scripts/nearest.py model=runs/quickstart-diffusion held_out=data/quickstart/validation-00000.tar neighbours=8
    torchrun --nproc_per_node=8 scripts/nearest.py model=runs/quickstart-diffusion num_samples=5000

Nearest by the features of a backbone. Held-out images say how near a picture is that was not copied.
"""

from ldm.asked import check_there
from ldm.config import compose, guarded, helped


def main(arguments: list[str]) -> int:
    """Sample, compare, print a table, and write the neighbours as a picture and as CSV."""
    if helped("nearest", __doc__, arguments):
        return 0
    tree = compose("nearest", arguments)
    check_there(tree)
    from ldm.evaluation.nearest import nearest_images
    from ldm.evaluation.table import show

    rows, folder = nearest_images(tree, arguments)
    if not rows:
        return 0  # another process writes
    show(rows)
    print(f"also in {folder}/")
    return 0


if __name__ == "__main__":
    guarded(main)
