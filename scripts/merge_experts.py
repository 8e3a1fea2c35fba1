"""Average an ensemble's experts into one model again, a run that samples, evaluates and branches as any other.

    python scripts/merge_experts.py model=runs/ensemble.yaml out=runs/merged
    python scripts/merge_experts.py model=runs/ensemble.yaml out=runs/even weights=[1,1]

Weights are averaged by the share of the training noise that each expert serves, or by weights=. It is a baseline that
costs the memory of one expert; experts of other networks are refused.
"""

from pathlib import Path

from ldm.asked import check_there
from ldm.config import compose, guarded, helped


def main(arguments: list[str]) -> int:
    """Write the run and print each member's share."""
    if helped("merge_experts", __doc__, arguments):
        return 0
    tree = compose("merge_experts", arguments)
    check_there(tree)
    from ldm.merging import merge

    run, shares = merge(Path(tree["model"]), Path(tree["out"]), tree["weights"])
    for name, share in shares.items():
        print(f"{name:<32} {share:.6f}")
    print(f"merged into {run.folder}")
    return 0


if __name__ == "__main__":
    guarded(main)
