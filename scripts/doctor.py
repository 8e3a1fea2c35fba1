"""Looks a run over before GPU-hours are spent on it; takes what train.py takes and writes nothing.
With verify= it reads all of a run, a cache, an ensemble or shards again and says what is not as it was written.

    python scripts/doctor.py experiment=quickstart/autoencoder
    python scripts/doctor.py experiment=ldm/cin256_v2 first_stage=runs/vq_f4 data.train=DIR/t-*.tar trainer.devices=8
    python scripts/doctor.py verify=runs/x

Exit status 0 if nothing failed, 1 if something did.
"""

import sys
from pathlib import Path

if not __package__:  # a file of a checkout that may not be installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.config import compose, guarded, helped, run_name, take_plugins
from ldm.errors import UserError


def main(arguments: list[str]) -> int:
    """Print the findings as one table."""
    places = [word.partition("=")[2] for word in arguments if word.startswith("verify=")]
    words = [word for word in arguments if not word.startswith("verify=")]
    if helped("config", __doc__, words if arguments else ["--help"]):
        return 0
    if places:
        if len(take_plugins(arguments)) > 1 or not places[0]:
            raise UserError("verify=: takes one folder, .yaml or set of shards and no other key but plugins=")
        from ldm.doctor.verify import report

        return report(places[0])
    tree = compose("config", arguments)
    from ldm.doctor import examine
    from ldm.doctor.finding import FAIL, show

    findings = examine(tree, tree["run"] or run_name(arguments))
    show(findings)
    return int(any(finding.status == FAIL for finding in findings))


if __name__ == "__main__":
    guarded(main)
