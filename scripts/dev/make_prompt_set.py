"""Make data/quickstart/prompts.csv: held-out captions of the built-in emoji in ten categories and three groups.

    python scripts/dev/make_prompt_set.py
    python scripts/dev/make_prompt_set.py --out prompts.csv

Of each category those captions come first whose hash does, and of their styles one by the same rule.
"""

import argparse
import csv
import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
FOLDER = ROOT / "data" / "quickstart"
SHARD = "validation-00000.tar"
EACH = 8  # prompts of a category
# (group, category): beginnings of class/subclass.
CATEGORIES = {
    ("beings", "faces"): ("smileys-emotion/face-", "smileys-emotion/cat-face"),
    ("beings", "people"): ("people-body/person-",),
    ("beings", "mammals"): ("animals-nature/animal-mammal",),
    ("beings", "birds and insects"): ("animals-nature/animal-bird", "animals-nature/animal-bug"),
    ("things", "food"): ("food-drink/",),
    ("things", "household"): (
        "objects/household", "objects/medical", "objects/clothing", "objects/tool", "objects/book-paper",
        "objects/writing", "objects/lock",
    ),
    ("things", "devices"): (
        "objects/light-video", "objects/phone", "objects/computer", "objects/science", "objects/office",
    ),
    ("things", "travel"): ("travel-places/transport-", "travel-places/place-"),
    ("signs", "symbols"): ("symbols/",),
    ("signs", "flags"): ("flags/",),
}  # fmt: skip


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, description=__doc__, formatter_class=form)
    parser.add_argument("--out", type=Path, default=FOLDER / "prompts.csv")
    parser.parse_args().out.write_text(prompt_set())


def prompt_set() -> str:
    """The CSV."""
    held_out = _held_out()
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("prompt", "category", "group", "image"))
    for (group, category), kinds in CATEGORIES.items():
        own = sorted({caption for caption, kind, _ in held_out if kind.startswith(kinds)}, key=_order)
        for caption in own[:EACH]:
            image = min((member for other, _, member in held_out if other == caption), key=_order)
            writer.writerow((caption, category, group, f"{SHARD}/{image}"))
    return table.getvalue()


def _held_out() -> list[tuple[str, str, str]]:
    """(caption, class/subclass, name of the picture) of each sample of the validation shard."""
    with tarfile.open(FOLDER / SHARD) as shard:
        names = [name for name in shard.getnames() if name.endswith(".json")]
        facts = {name: json.load(shard.extractfile(name)) for name in names}
    return [
        (fact["caption"], f"{fact['class']}/{fact['subclass']}", name.replace(".json", ".webp"))
        for name, fact in facts.items()
    ]


def _order(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


if __name__ == "__main__":
    main()
