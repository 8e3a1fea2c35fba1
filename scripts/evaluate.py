"""A diffusion model's quality and alignment over guidance scales, or how well a first stage reconstructs.

    python scripts/evaluate.py model=runs/quickstart-diffusion guidance.scale=[1,2,4] num_samples=500
    python scripts/evaluate.py model=runs/ensemble.yaml num_samples=5000 metric=inception metric.path=inception.pth
    python scripts/evaluate.py model=runs/quickstart-diffusion guidance.scale=[1,2,4] num_steps=[10,25,50] ema=[ema,raw]
    python scripts/evaluate.py model=[runs/a,runs/b] out=runs/both guidance.scale=[2] guidance.limits.sigma_lo=[0,0.3]
    python scripts/evaluate.py model=runs/cin256 protocol=imagenet50k metric=inception metric.path=inception.pth
    torchrun --nproc_per_node=8 scripts/evaluate.py model=runs/quickstart-diffusion num_samples=50000
    python scripts/evaluate.py model=runs/quickstart-autoencoder

Numbers carry the name of the backbone that made them, and 95 % intervals. Sample n has the same noise at every scale
and model. A first stage is measured on its validation images. Under torchrun all processes share
the work, and what comes out is the same.
"""

from ldm.asked import check_there
from ldm.config import compose, guarded, helped


def main(arguments: list[str]) -> int:
    """Measure and print a table; each point of the curves over guidance is kept once it is done."""
    if helped("evaluate", __doc__, arguments):
        return 0
    tree = compose("evaluate", arguments)
    check_there(tree)
    from ldm.device import choose, keep_memory
    from ldm.evaluation.evaluate import evaluate
    from ldm.evaluation.table import show

    if choose(tree["device"]).type == "cpu":
        keep_memory()
    rows, folder = evaluate(tree)
    if not rows:
        return 0  # another process writes
    show(rows)
    print(f"also in {folder}/")
    return 0


if __name__ == "__main__":
    guarded(main)
