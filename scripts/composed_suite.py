"""Attributes, counting, relations, spelling and long prompts of text-to-image models, judged exactly on emoji.

    python scripts/composed_suite.py models=runs/canvases out=runs/composed
    python scripts/composed_suite.py models=[runs/base,runs/ensemble.yaml] categories=[colour,counting] num_prompts=100

For models trained on composed emoji (data=canvases, best with canvases://train/textured=0). Prompts are captions that
the generator of canvases gives to canvases of its own, so the truth is known; what a model draws is judged by rules: a
finder of boxes, and the built-in emoji whose picture is nearest to each. composed.csv has the share of right pictures
by category with Wilson's 95 % interval, beside that by chance; pictures.csv what was seen on each; sheet.png shows
some. set.csv has the prompts as scripts/prompt_suite.py takes them. Stopped and started again it goes on.
"""

from ldm.asked import check_there
from ldm.config import compose, guarded, helped


def main(arguments: list[str]) -> int:
    """Draw what is not drawn yet, judge, and print the scores."""
    if helped("composed_suite", __doc__, arguments):
        return 0
    tree = compose("composed_suite", arguments)
    check_there(tree)
    from ldm.diagnostics.composed_suite import composed_suite
    from ldm.evaluation.table import show

    rows, folder = composed_suite(tree, arguments)
    show(rows)
    print(f"also in {folder}/, with sheet.png")
    return 0


if __name__ == "__main__":
    guarded(main)
