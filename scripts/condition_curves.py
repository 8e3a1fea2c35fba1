"""Text encoders alone and together: quality against alignment over guidance, for short and for long captions.

    python scripts/condition_curves.py model=runs/NAME use_conditions=[[t5],[clip_text],[t5,clip_text]]
    python scripts/condition_curves.py model=runs/ensemble.yaml data='/path/vg-*.tar' words=[20] scales=[1,3] out=vg

eDiff-I's figures 8 and 18: one model, of whose encoders some are left out in sampling. conditions.csv has a row for
each set of conditions, part of the captions and scale, with the columns of scripts/evaluate.py and their 95 %
intervals, against the true pictures of the same captions; all.png and one more for each part draw the curves, and
sheet.png shows what each set makes of the same captions and noise. data= names another data set, with out= of its own.
Each point is kept once it is measured: the same command goes on after a kill.
"""

from ldm.asked import check_there
from ldm.config import compose, guarded, helped


def main(arguments: list[str]) -> int:
    """Draw, measure, print a table, and write the plots."""
    if helped("condition_curves", __doc__, arguments):
        return 0
    tree = compose("condition_curves", arguments)
    check_there(tree)
    from ldm.diagnostics.condition_curves import condition_curves
    from ldm.evaluation.table import show

    rows, folder = condition_curves(tree, arguments)
    show(rows)
    print(f"also in {folder}/, with all.png and sheet.png")
    return 0


if __name__ == "__main__":
    guarded(main)
