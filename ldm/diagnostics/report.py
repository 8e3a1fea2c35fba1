"""The report on eDiff-I's figures: what is missing is done, each step a process of its own, and all shown on a page."""

from pathlib import Path
from typing import Any

from ldm.asked import check_folder
from ldm.config import instantiate
from ldm.config.numbers import check_seeds
from ldm.device import choose
from ldm.diagnostics.report_steps import PARTS, Work, chosen
from ldm.errors import UserError
from ldm.files import read_json
from ldm.launching import Job
from ldm.launching.chain import Chain, Step, check_chain
from ldm.launching.work import finish
from ldm.report.page import Cell, Code, Figure, ImageGrid, Item, Section, Text, write_report

Tree = dict[str, Any]
WIDE = 900  # px of a sheet on the page
# What the figures depend on; the rest says how they are made.
DECIDES = ("seed", "seeds", "words")


def ediffi_report(tree: Tree) -> Path | None:
    """Do the steps of `tree` (conf/ediffi_report.yaml) that are not done. Returns the page, None if one was stopped.

    Raises UserError, before anything is begun, for a word that a step does not take and for a folder of other settings,
    and at the end for what failed.
    """
    _check(tree)
    launch = instantiate(tree["launcher"], {}, "launcher")
    folder = Path(tree["runs_dir"]) / "ediffi"
    works = chosen(tree, folder)
    for work in works:
        try:
            work.check()
        except UserError as error:  # the report's own words compose
            raise UserError(f"words.{work.name}: {error}" if tree["words"].get(work.name) else str(error)) from error
    _check_same(tree, folder)
    left = [work for work in works if not work.is_done()]
    names = {work.name for work in left}
    steps = [Step(Job(w.name, w.words, script=w.script), tuple(names.intersection(w.needs))) for w in left]
    chain = Chain(steps, launch, tree["jobs"])
    return finish(
        chain, folder, "reporting on eDiff-I into", {"report.json": {key: tree[key] for key in DECIDES}},
        f"{len(works)} steps, {len(works) - len(left)} of them done", lambda: _write_page(folder, works, chain),
    )  # fmt: skip


def _write_page(folder: Path, works: list[Work], chain: Chain) -> Path:
    undone = {step.name for step in chain.waiting} | set(chain.failed)
    said = f"{len(works) - len(undone)} of {len(works)} steps are done."
    return write_report(folder, "eDiff-I on the built-in data", said, [_section(work) for work in works if work.title])


def _check(tree: Tree) -> None:
    choose(tree["device"])
    check_chain(tree, "ediffi_report", "the report")
    parts = tree["parts"]
    if not parts or any(name not in PARTS for name in parts) or len(set(parts)) < len(parts):
        raise UserError(f"parts={parts}: some of {', '.join(PARTS)}, each once")
    check_seeds(tree)
    if not 0 <= tree["seed"] < 1 << 32:
        raise UserError(f"seed={tree['seed']}: must be between 0 and {(1 << 32) - 1}")
    check_folder("runs_dir", tree["runs_dir"])


def _check_same(tree: Tree, folder: Path) -> None:
    """Raises UserError for a folder whose figures are of other settings."""
    kept = folder / "report.json"
    if not kept.exists():
        return
    for key, value in read_json(kept).items():
        if tree.get(key) != value:
            raise UserError(f"{key}: {folder} has figures of {key}={value}; give another runs_dir=, or remove {folder}")


def _section(work: Work) -> Section:
    """What a step has to show: its plots at their size, its sheets scaled to the page, and its command."""
    items: list[Item] = []
    for path in work.pictures():
        if path.with_suffix(f".dark{path.suffix}").exists():
            items.append(Figure(path, path.stem.replace("_", " "), f"{work.title}: {path.stem.replace('_', ' ')}"))
        else:
            items.append(ImageGrid([[Cell((path,), path.stem.replace("_", " "))]], size=WIDE))
    items = items or [Text("Not done yet.")]
    command = f"python scripts/{work.script}.py {' '.join(work.words)}"
    return Section(work.title, work.intro, [*items, Code(command)])
