"""eDiff-I's figures on the built-in data, from nothing to one page: experts, conditions, styles, painted phrases.

    OMP_NUM_THREADS=1 python scripts/ediffi_report.py
    OMP_NUM_THREADS=1 python scripts/ediffi_report.py parts=[attention,switch] words.model="max_steps=500"

A model of eDiff-I's conditions with stand-ins for their encoders is trained and looked at (figures 3, 4, 8, 16 and 18),
one of captions of canvases is painted with (figure 17), a tree of experts is grown beside its control (figure 7), and
what experts cost is measured (figure 13). Each step is a process of its own; stopped or killed and started again, the
command goes on where it was. The page: runs/ediffi/index.html.
"""

import sys
from pathlib import Path

if not __package__:  # a file of a checkout that may not be installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.config import compose, guarded, helped, shown


def main(arguments: list[str]) -> int:
    """Do what is not done yet. Exit status 3 if a training run was stopped and saved."""
    if helped("ediffi_report", __doc__, arguments):
        return 0
    tree = compose("ediffi_report", arguments)
    from ldm.diagnostics.report import ediffi_report

    return shown(ediffi_report(tree))


if __name__ == "__main__":
    guarded(main)
