"""Several answers to each hole, side by side, and how far they are apart: what inpainting and object removal look like.

    python scripts/holes_sheet.py model=runs/ldm-inpainting num_samples=8 num_answers=3
    python scripts/holes_sheet.py model=runs/ldm-inpainting derived=[lama_thick_256] data='/path/val-*.tar'
    python scripts/holes_sheet.py model=runs/ldm-inpainting derived=[objects] num_answers=1

Each row of sheet.png is a held-out picture, the same with its hole in grey, and the answers to that. derived=[objects]
removes objects that the shards' maps of classes show.
Of your own picture: python sample.py model=... image=FILE mask=FILE, white in the hole.
"""

from ldm.asked import check_there
from ldm.config import compose, guarded, helped


def main(arguments: list[str]) -> int:
    """Sample, measure, print a table, and write the sheet."""
    if helped("holes_sheet", __doc__, arguments):
        return 0
    tree = compose("holes_sheet", arguments)
    check_there(tree)
    from ldm.evaluation.holes_sheet import holes_sheet
    from ldm.evaluation.table import show

    row, folder = holes_sheet(tree, arguments)
    show([row])
    print(f"also in {folder}/, with sheet.png")
    return 0


if __name__ == "__main__":
    guarded(main)
