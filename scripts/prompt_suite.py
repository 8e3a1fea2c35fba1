"""Text-to-image models on a set of prompts in categories: alignment by category and group, and a page of pictures.

    python scripts/prompt_suite.py models=runs/quickstart-diffusion out=runs/prompts
    python scripts/prompt_suite.py models=[runs/base,runs/ensemble.yaml] prompts=tetim.csv alignment=open_clip
    torchrun --nproc_per_node=8 scripts/prompt_suite.py models=[runs/a,runs/b] prompts=tetim.csv guidance.scale=3

Picture n of a prompt has the same noise for every model. Stopped and started again, it goes on where it was; models
that are added later are drawn beside those that are there. scripts/study_export.py asks people about the pictures.
"""

from ldm.asked import check_there
from ldm.config import compose, guarded, helped


def main(arguments: list[str]) -> int:
    """Draw what is not drawn yet, score it, and print the means of all prompts, groups and categories."""
    if helped("prompt_suite", __doc__, arguments):
        return 0
    tree = compose("prompt_suite", arguments)
    check_there(tree)
    from rich import print as show

    from ldm.study.grouped import table_of
    from ldm.study.suite import prompt_suite

    rows, folder = prompt_suite(tree, arguments)
    if not rows:
        return 0  # another process writes
    show(table_of(rows))
    print(f"look at {folder / 'index.html'}; the numbers are in {folder}/groups.csv and scores.csv")
    return 0


if __name__ == "__main__":
    guarded(main)
