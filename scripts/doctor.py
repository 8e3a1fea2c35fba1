"""Looks a run over before GPU-hours are spent on it; takes what train.py takes and writes nothing.

    python scripts/doctor.py experiment=quickstart/autoencoder
    python scripts/doctor.py experiment=ldm/cin256_v2 first_stage=runs/vq_f4 data.train=DIR/t-*.tar trainer.devices=8

Exit status 0 if nothing failed, 1 if something did.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.config import compose, guarded, help_text, run_name


def main(arguments: list[str]) -> int:
    """Print the findings as one table."""
    if not arguments or "--help" in arguments or "-h" in arguments:
        usage, examples, note = __doc__.strip().split("\n\n")
        print(help_text("config", f"python scripts/doctor.py experiment=...\n\n{usage}\n{note}", examples))
        return 0
    tree = compose("config", arguments)
    from ldm.doctor import examine
    from ldm.doctor.finding import FAIL, show

    findings = examine(tree, tree["run"] or run_name(arguments))
    show(findings)
    return int(any(finding.status == FAIL for finding in findings))


if __name__ == "__main__":
    guarded(main)
