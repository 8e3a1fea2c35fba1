"""Show what models came from as a tree, each run once, with the steps and samples of it that went into them.

    python scripts/lineage.py models=runs/fig7/four.yaml
    python scripts/lineage.py models=[runs/fig7/four.yaml,runs/fig7-control]

So equal budgets are computed: 500 steps, two branches of 50 from these and four of 50 from those are 800.
"""

import sys
from pathlib import Path

if not __package__:  # a file of a checkout that may not be installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.asked import check_there
from ldm.config import compose, guarded, helped
from ldm.errors import UserError


def main(arguments: list[str]) -> int:
    """Print the tree and the totals."""
    if helped("lineage", __doc__, arguments):
        return 0
    tree = compose("lineage", arguments)
    check_there(tree)
    from ldm.lineage_tree import lineage_of, lines

    models = tree["models"]
    if not models:
        raise UserError("models=[]: names no model")
    print("\n".join(lines(lineage_of(models if isinstance(models, list) else [models]))))
    return 0


if __name__ == "__main__":
    guarded(main)
