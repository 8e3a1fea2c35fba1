"""What training on many GPUs would take, by formula: bytes between ranks, memory, efficiency, storage, days, price.

    python scripts/cluster_plan.py
    python scripts/cluster_plan.py gpus=[8,64,256] per_gpu=32 network_gb_s=200 mfu=0.35
    python scripts/cluster_plan.py per_gpu=null batch_size=2048 strategies=[fsdp] price=1.5

Parameters, FLOP and activations are counted on the real networks without memory or arithmetic (fake tensors);
all else is arithmetic on the keys, whose defaults are an A100's. Nothing is measured. CSV and a plot lie beside it.
"""

from ldm.asked import check_plan
from ldm.config import compose, guarded, helped


def main(arguments: list[str]) -> int:
    """Print the tables and write them as CSV, with the curves as PNG."""
    if helped("cluster_plan", __doc__, arguments):
        return 0
    tree = compose("cluster_plan", arguments)
    check_plan(tree)
    from ldm.evaluation.cluster_plan import cluster_plan
    from ldm.evaluation.table import show

    models, rows, folder = cluster_plan(tree)
    show(models)
    show(rows)
    print(f"also in {folder}/")
    return 0


if __name__ == "__main__":
    guarded(main)
