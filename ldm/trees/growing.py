"""A tree grown by its schedule: each row a process of its own, those that need each other one after the other."""

import json
from pathlib import Path
from typing import Any

from ldm.config import instantiate
from ldm.ensemble import write_manifest
from ldm.errors import UserError
from ldm.evaluation.table import write_csv
from ldm.files import write_text
from ldm.launching import Job
from ldm.launching.chain import Chain, Step, check_chain
from ldm.launching.work import finish
from ldm.lineage_tree import lineage_of, lines
from ldm.trees.schedule import read_schedule
from ldm.trees.systems import systems
from ldm.trees.trainings import Growth

Tree = dict[str, Any]


def grow(tree: Tree) -> Path | None:
    """Grow the tree of `tree` (conf/grow_tree.yaml). Returns its folder, None if a training was stopped and saved.

    Raises UserError, before anything trains, for a row that could not, and at the end for rows that failed.
    """
    if not tree["schedule"]:
        raise UserError("schedule: has to be given, a name of conf/tree such as fig7, or a file")
    check_chain(tree, "grow_tree", "a tree")
    growth = Growth(tree, read_schedule(tree["schedule"]))
    launch = instantiate(tree["launcher"], {}, "launcher")
    done = growth.check()
    chain = Chain(steps(growth, done), launch, tree["jobs"])
    said = f"{len(growth.rows)} rows, {len(done)} of them finished"
    shown = finish(chain, growth.folder, "growing a tree into", {"tree.json": tree}, said, lambda: tell(growth))
    return None if shown is None else growth.folder


def steps(growth: Growth, done: list[str]) -> list[Step]:
    """The trainings of the rows that are not `done`, each after the one that it comes from."""
    left = {row.name for row in growth.rows} - set(done)
    return [
        Step(
            Job(growth.run(row.name).name, tuple(growth.words(row))),
            (growth.run(row.origin).name,) if row.origin in left else (),
        )
        for row in growth.rows
        if row.name in left
    ]


def tell(growth: Growth) -> dict[str, Path]:
    """Write the manifests of ensembles whose rows have finished, what they came from, and a table of them.

    Returns the manifests by name.
    """
    written: dict[str, Path] = {}
    for name, members in growth.schedule.ensembles.items():
        left = [member for member in members if not growth.is_finished(member)]
        if left:
            print(f"ensemble {name}: not written, not finished: {', '.join(left)}", flush=True)
            continue
        write_manifest(growth.manifest(name), [growth.run(member) for member in members])
        written[name] = growth.manifest(name)
    finished = [growth.run(row.name) for row in growth.schedule.rows if growth.is_finished(row.name)]
    if finished:
        text = lines(lineage_of(finished))
        write_text(growth.folder / "tree.txt", "\n".join(text) + "\n")
        print("\n".join(text), flush=True)
    if written:
        rows = systems(written, growth.schedule)
        write_csv(growth.folder / "systems.csv", rows)
        for row in rows:
            quoted = {key.removeprefix("quoted_"): value for key, value in row.items() if key.startswith("quoted_")}
            said = f"; papers report {json.dumps(quoted)}" if quoted else ""
            print(
                f"{written[row['system']]}: {row['experts']} experts of {row['runs']} runs, {row['steps']:,} steps and "
                f"{row['samples']:,} samples{said}"
            )
    return written
