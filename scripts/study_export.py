"""A study of people's judgement: one HTML page of pairs of pictures, to be opened anywhere, which saves the answers.

    python scripts/study_export.py suite=runs/prompts
    python scripts/study_export.py suite=runs/prompts tasks=[real,text] num_pairs=60 seconds=3 out=runs/study

The page needs no network and no server. Beside it lies key.json, which says what the pictures are: keep it, and do not
send it with the page. scripts/study_import.py reads the answers.
"""

from ldm.config import compose, guarded, helped


def main(arguments: list[str]) -> int:
    """Write the page and its key."""
    if helped("study_export", __doc__, arguments):
        return 0
    tree = compose("study_export", arguments)
    from ldm.study.export import export_study

    page = export_study(tree)
    print(f"send {page} to those whose judgement you want; {page.parent / 'key.json'} stays here")
    return 0


if __name__ == "__main__":
    guarded(main)
