"""What people said of the pictures of a study: accuracy and preference with intervals, agreement, rank correlation.

    python scripts/study_import.py study=runs/prompts/study answers=answers/
    python scripts/study_import.py study=runs/prompts/study answers=[anna.json,ben.json] out=runs/results

Answers are files that the page of scripts/study_export.py saved. One that is damaged, or of another study, is named,
and nothing is written.
"""

from ldm.config import compose, guarded, helped


def main(arguments: list[str]) -> int:
    """Write the tables and the page, and print the shares over all prompts."""
    if helped("study_import", __doc__, arguments):
        return 0
    tree = compose("study_import", arguments)
    from rich import print as show

    from ldm.study.results import import_study, table_of

    rows, folder = import_study(tree)
    show(table_of(rows))
    print(f"look at {folder / 'index.html'}; the numbers are in {folder}/results.csv and correlations.csv")
    return 0


if __name__ == "__main__":
    guarded(main)
