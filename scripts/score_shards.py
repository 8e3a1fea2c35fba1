"""Write CLIP scores and aesthetic scores into the json of shards' samples, for data.filters to choose by.

    python scripts/score_shards.py shards=/path/to/shards/*.tar out=/path/to/scored alignment=open_clip
    python scripts/score_shards.py shards=/path/*.tar out=scored aesthetic=laion aesthetic.path=linear.pth
    torchrun --nproc_per_node=8 scripts/score_shards.py shards=/path/to/shards/*.tar out=scored alignment=open_clip

The shards in out= have all that was in the others. A sample that cannot be scored (a broken picture, no caption) has no
score, and no range of data.filters.ranges takes it. Train on what is left:
data.train=/path/to/scored/*.tar data.filters.ranges={clip_score:[0.28,null],aesthetic_score:[5,null]}
"""

from ldm.asked import check_scores
from ldm.config import compose, guarded, helped


def main(arguments: list[str]) -> int:
    """Score what is not scored yet."""
    if helped("score_shards", __doc__, arguments):
        return 0
    tree = compose("score_shards", arguments)
    check_scores(tree)
    from ldm.evaluation.score_shards import score_shards

    out, manifest = score_shards(tree)
    if manifest:
        scores = ", ".join(f"{name} by {network}" for name, network in manifest["made_with"]["scores"].items())
        print(f"{out}: {manifest['samples']} samples of {len(manifest['splits']['all']['shards'])} shards; {scores}")
    return 0


if __name__ == "__main__":
    guarded(main)
