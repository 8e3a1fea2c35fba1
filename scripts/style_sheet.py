"""Samples of a text in the style of a picture, beside the same without it: as a sheet, and how near they come to it.

    python scripts/style_sheet.py model=runs/ediffi-conditions_tiny
    python scripts/style_sheet.py model=runs/base prompts=prompts.txt styles=[a.png,b.jpg] similarity=open_clip
    python scripts/style_sheet.py model=runs/base guidance=per_condition guidance.scales={text:4,clip_image:1.5}

sheet.png has a row for each prompt and a column for each style; style.csv says by how much the similarity to the
style's picture rises, and what the alignment with the text loses by it, with 95 % intervals over prompts; pairs.csv has
each pair. The similarity is best measured by another backbone than the one by which the model sees the picture.
"""

from ldm.asked import check_there
from ldm.config import compose, guarded, helped


def main(arguments: list[str]) -> int:
    """Sample, measure, print a table, and write the sheet."""
    if helped("style_sheet", __doc__, arguments):
        return 0
    tree = compose("style_sheet", arguments)
    check_there(tree)
    from ldm.evaluation.style_sheet import style_sheet
    from ldm.evaluation.table import show

    rows, folder = style_sheet(tree, arguments)
    show(rows)
    print(f"also in {folder}/, with sheet.png")
    return 0


if __name__ == "__main__":
    guarded(main)
