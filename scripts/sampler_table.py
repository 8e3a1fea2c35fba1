"""Samplers times steps on one model: KID and alignment of each, from the same noise and captions.

    python scripts/sampler_table.py model=runs/quickstart-diffusion num_samples=200
    python scripts/sampler_table.py model=runs/ensemble.yaml samplers=[heun,dpmpp_2m,kutta3] steps=[5,10,25]
    python scripts/sampler_table.py model=runs/quickstart-diffusion models=runs/distill-quickstart \
        samplers=[heun,dpmpp_2m] steps=[1,2,4,10,20] scale=1

The sigma schedule is the run's own, in the number of steps asked for. Runs of models= stand beside it, each drawn by
its own sampler: a distilled one beside its parent. Points that are measured are kept: stopped and started again, it
goes on where it was. CSV and a plot of quality over evaluations of the network lie beside them.
"""

from ldm.asked import check_there
from ldm.config import compose, guarded, helped


def main(arguments: list[str]) -> int:
    """Measure what is not measured yet and print the table."""
    if helped("sampler_table", __doc__, arguments):
        return 0
    tree = compose("sampler_table", arguments)
    check_there(tree)
    from ldm.evaluation.sampler_table import sampler_table
    from ldm.evaluation.table import show

    rows, folder = sampler_table(tree)
    show(rows)
    print(f"also in {folder}/")
    return 0


if __name__ == "__main__":
    guarded(main)
