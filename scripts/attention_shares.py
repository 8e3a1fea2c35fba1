"""What attention looks at over the noise level: each text, the image token, the null token, or the picture itself.

    python scripts/attention_shares.py model=runs/quickstart-diffusion num_samples=32
    python scripts/attention_shares.py model=runs/ensemble.yaml at=[0.05,0.3,1,3,10] guidance.scale=3 out=attention

eDiff-I's figure 3: held-out pictures under noise, and what a sampler passes through for the same conditions. The
probabilities of all cross-attentions are averaged over layers, heads, positions and samples, by the condition that a
token is of, and sum to 1; beside them, in blocks that have both, how much of what attention adds is self-attention's.
attention.csv has the numbers with 95 % intervals, attention.png and self_and_cross.png show them.
"""

from ldm.asked import check_there
from ldm.config import compose, guarded, helped


def main(arguments: list[str]) -> int:
    """Look, print a table, and write the plots."""
    if helped("attention_shares", __doc__, arguments):
        return 0
    tree = compose("attention_shares", arguments)
    check_there(tree)
    from ldm.diagnostics.attention_shares import attention_shares
    from ldm.evaluation.table import show

    rows, folder = attention_shares(tree, arguments)
    show(rows)
    print(f"also in {folder}/, with attention.png")
    return 0


if __name__ == "__main__":
    guarded(main)
