"""Write the manifest that makes several runs one model.

    python scripts/ensemble.py out=runs/ensemble.yaml members=[runs/quickstart-expert-1-0,runs/quickstart-expert-1-1]
    python scripts/ensemble.py out=runs/ensemble.yaml members=[runs/base,runs/high] residency=one
    python scripts/ensemble.py out=runs/newest.yaml members=[runs/low,runs/high] follow=newest

Members tile the noise; one that was trained on all of it serves what the others leave. A gap or an overlap is refused.
"""

from pathlib import Path

from ldm.asked import check_there
from ldm.config import compose, guarded, helped


def main(arguments: list[str]) -> int:
    """Write the manifest and print it as a table."""
    if helped("ensemble", __doc__, arguments):
        return 0
    tree = compose("ensemble", arguments)
    check_there(tree)
    from ldm.ensemble import write_manifest

    manifest = write_manifest(
        Path(tree["out"]), [Path(member) for member in tree["members"]], tree["residency"], tree["follow"]
    )
    for member in manifest["members"]:
        levels = ", ".join(f"[{lo:.6g}, {hi:.6g})" for lo, hi in member["intervals"])
        print(f"{Path(member['run']).name:<32} sigma {levels}  step {member['step']}  {member['sha256'][:12]}")
    print(f"written to {tree['out']}")
    return 0


if __name__ == "__main__":
    guarded(main)
