"""The quickstart's report: what was trained, what it draws, what it costs; every image drawn is shown.

All it shows was left in files by the chain's stages; here it is read, drawn and written.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.config import load_tree
from ldm.evaluation import chain_numbers, chain_pictures
from ldm.evaluation.report.page import write_report
from ldm.evaluation.sample_sheet import write_sheet
from ldm.files import read_json
from ldm.training.loggers import curves, log_summary

if TYPE_CHECKING:
    from ldm.evaluation.chain import Chain

Points = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Found:
    """What the stages left: `samples` and `points` by the models' names, the rest by run."""

    chain: "Chain"
    folder: Path  # of the report
    reconstructions: dict[str, Any]
    samples: dict[str, dict[str, Any]]
    points: dict[str, Points]
    experts: dict[str, Any] | None
    lineages: dict[Path, dict[str, Any]]
    trees: dict[Path, dict[str, Any]]
    logs: dict[Path, dict[str, tuple[list[int], list[float]]]]


def find(chain: "Chain") -> Found:
    """Read it all."""
    runs = list(chain.commands)
    return Found(
        chain=chain,
        folder=chain.folder / "report",
        reconstructions=read_json(chain.folder / "reconstructions" / "reconstructions.json"),
        samples={name: read_json(chain.samples_folder(path) / "samples.json") for name, path in chain.drawn.items()},
        points={
            name: read_json(chain.curve_folder(path) / "points.json")["points"] for name, path in chain.models.items()
        },
        experts=read_json(chain.expert_losses) if chain.nodes else None,
        lineages={run: read_json(run / "lineage.json") for run in runs},
        trees={run: load_tree(run / "config.yaml") for run in runs},
        logs={run: curves(run / "metrics.csv") for run in runs},
    )


def write_chain_report(chain: "Chain") -> Path:
    """Draw and write ``report/index.html``, and beside it ``samples.png``, the samples as one picture."""
    found = find(chain)
    sheet = write_sheet(found.folder / "samples.png", chain.samples_folder(chain.base), found.samples["base"])
    sections = [*chain_pictures.sections(found, sheet), *chain_numbers.sections(found)]
    _log(found)
    size = found.trees[chain.base]["image_size"]
    more = ", experts and their control" if chain.nodes else ""
    subtitle = (
        f"A first stage, a text-conditional diffusion model{more}, trained on this machine on the built-in images at "
        f"{size} px. Every image that was drawn is shown."
    )
    return write_report(found.folder, "Quickstart", subtitle, sections)


def _log(found: Found) -> None:
    """The numbers and the plots in W&B too."""
    errors = found.reconstructions["errors"]["first stage"]
    metrics = {f"reconstruction/{name}": value for name, value in errors.items()}
    base = found.samples["base"]
    metrics |= {name: base[name] for name in ("median_rank", "diversity") if base[name] is not None}
    tables = {
        name: [{"scale": float(s), **point} for s, point in points.items()] for name, points in found.points.items()
    }
    plots = {
        path.stem: path for name in ("guidance", "experts", "times") if (path := found.folder / f"{name}.png").exists()
    }
    logger, folder = found.chain.tree["logger"], found.chain.folder
    log_summary(folder, f"{folder.name}-report", logger["project"], logger["mode"], metrics, tables, plots)
