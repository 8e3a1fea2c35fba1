"""The systems of a tree side by side: what each is made of, and what papers report of it (eDiff-I, Table 1)."""

import math
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ldm.ensemble import read_members
from ldm.lineage_tree import lineage_of, total
from ldm.trees.schedule import Schedule

Row = dict[str, Any]


def systems(manifests: dict[str, Path], schedule: Schedule) -> list[Row]:
    """A row for each manifest, by name: experts, parameters (that of all, and of what one evaluation asks), runs, steps
    and samples of all training behind it, each run counted once; and as ``quoted_...`` what the schedule quotes.
    """
    rows = []
    for name, path in manifests.items():
        counts = [parameters(member.file) for member in read_members(path)]
        runs = lineage_of([path])
        steps, samples = total(runs)
        row: Row = {
            "system": name,
            "experts": len(counts),
            "parameters": sum(counts),
            "parameters_at_once": max(counts),
        }
        row |= {"runs": len(runs), "steps": steps, "samples": samples}
        rows.append(row | {f"quoted_{key}": value for key, value in schedule.quoted.get(name, {}).items()})
    return rows


def parameters(file: Path) -> int:
    """How many numbers a safetensors file holds, from its header."""
    with safe_open(file, "pt") as opened:
        shapes = [opened.get_slice(name).get_shape() for name in opened.keys()]  # noqa: SIM118  # no mapping
    return sum(math.prod(shape) for shape in shapes)
