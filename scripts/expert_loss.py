"""Experts against their parents inside their own intervals: held-out losses over ln(sigma), a warning where one loses.

    python scripts/expert_loss.py models=[runs/quickstart-expert-1-0,runs/quickstart-expert-1-1]
    python scripts/expert_loss.py models=[runs/quickstart-control] parent=runs/quickstart-diffusion bins=8

Both see the same pictures under the same noise, so that their difference is told with a 95 % interval over captions.
losses.csv has a row for each model, loss_over_sigma.csv one for each bin of its noise, and each model a plot.
"""

from ldm.asked import check_there
from ldm.config import compose, guarded, helped


def main(arguments: list[str]) -> int:
    """Measure, print a table and a warning for each bin that is lost, and write the files."""
    if helped("expert_loss", __doc__, arguments):
        return 0
    tree = compose("expert_loss", arguments)
    check_there(tree)
    from ldm.evaluation.table import show
    from ldm.trees.expert_loss import expert_loss

    rows, folder = expert_loss(tree)
    show(rows)
    print(f"also in {folder}/")
    return 0


if __name__ == "__main__":
    guarded(main)
