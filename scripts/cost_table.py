"""What models cost: days of training, images a second, parameters (arXiv 2112.10752, table 18), the paper's rows below.

    python scripts/cost_table.py models=[runs/ldm-celebahq,runs/ldm-ffhq] v100s=2.2
    python scripts/cost_table.py models=[runs/quickstart-diffusion] batch_size=8 published=false

Days are those of all devices together, of the run and of those that it was branched from; the first stage's stand
beside them. Images are drawn as the run says, and decoded.
"""

from ldm.asked import check_there
from ldm.config import compose, guarded, helped


def main(arguments: list[str]) -> int:
    """Print the table and write it as CSV."""
    if helped("cost_table", __doc__, arguments):
        return 0
    tree = compose("cost_table", arguments)
    check_there(tree)
    from ldm.evaluation.costs import costs
    from ldm.evaluation.table import show

    rows, path = costs(tree)
    show(rows)
    print(f"also in {path}")
    return 0


if __name__ == "__main__":
    guarded(main)
