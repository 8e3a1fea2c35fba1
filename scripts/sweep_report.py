"""Compare the first stages of a sweep: table 8's columns, rate and distortion, JPEG, WebP and bicubic beside them.

    python scripts/sweep_report.py
    python scripts/sweep_report.py runs=[runs/kl_f4,runs/vq_f4] out=runs/comparison

Writes index.html, table.csv and PNG plots.
"""

from ldm.asked import check_there
from ldm.config import compose, guarded, helped


def main(arguments: list[str]) -> int:
    """Measure every run on its validation images, then write the report."""
    if helped("sweep_report", __doc__, arguments):
        return 0
    tree = compose("sweep_report", arguments)
    check_there(tree)
    from ldm.sweep.sweep_report import sweep_report

    print(f"look at {sweep_report(tree)}")
    return 0


if __name__ == "__main__":
    guarded(main)
