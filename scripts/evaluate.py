"""Quality and alignment over guidance scales: a table, a CSV and a curve.

    python scripts/evaluate.py model=runs/quickstart-diffusion guidance.scale=[1,2,4] num_samples=500
    python scripts/evaluate.py model=runs/ensemble.yaml num_samples=5000 metric=inception metric.path=inception.pth

Every column carries the name of the backbone that made it. Sample n has the same noise at every scale and model.
"""

from rich.console import Console
from rich.table import Table

from ldm.config import compose, guarded, help_text


def main(arguments: list[str]) -> int:
    """Measure each scale in turn; what is done already is written after each."""
    if "--help" in arguments or "-h" in arguments:
        usage, examples, note = __doc__.strip().split("\n\n")
        print(help_text("evaluate", f"python scripts/evaluate.py model=...\n\n{usage}\n{note}", examples))
        return 0
    tree = compose("evaluate", arguments)
    from ldm.evaluation.evaluate import evaluate

    rows, folder = evaluate(tree)
    table = Table("guidance", *[name for name in rows[0] if name != "scale"])
    for row in rows:
        table.add_row(f"{row['scale']:g}", *[f"{value:.4g}" for name, value in row.items() if name != "scale"])
    Console().print(table)
    print(f"also in {folder}/: curve.csv, curve.png")
    return 0


if __name__ == "__main__":
    guarded(main)
