"""The whole chain on the built-in images: first stage, diffusion, experts and their control, samples, curves, report.

    python scripts/quickstart.py
    python scripts/quickstart.py logger.mode=online
    python scripts/quickstart.py family=quickstart_experts nodes=[[2,0],[2,1]]

It begins by saying how long it will take. Stopped (Ctrl-C saves) or killed and started again, it goes on where it was.
"""

import time
from pathlib import Path

from ldm.config import compose, guarded, helped


def main(arguments: list[str]) -> int:
    """Run what is not done yet, then write the report. Exit status 3 if a training run was stopped and saved."""
    if helped("quickstart", __doc__, arguments):
        return 0
    tree = compose("quickstart", arguments)
    from ldm.quickstart.chain import Chain
    from ldm.quickstart.estimate import announce
    from ldm.quickstart.report import write_chain_report

    began = time.monotonic()
    chain = Chain(tree)
    stages = list(chain.stages())
    announce(stages, chain.family, chain.precision)
    for stage in stages:
        if not stage.do():
            return 3
    index = write_chain_report(chain)
    print(f"\ndone in {(time.monotonic() - began) / 60:.1f} minutes; look at {Path(index)}")
    return 0


if __name__ == "__main__":
    guarded(main)
