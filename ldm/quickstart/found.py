"""The output files of the quickstart's stages, read for the report."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.config import load_tree
from ldm.files import read_json
from ldm.quickstart.chain import Chain
from ldm.training.loggers import curves

Points = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Found:
    """What the stages left: `samples` and `points` by the models' names, the rest by run."""

    chain: Chain
    folder: Path  # of the report
    reconstructions: dict[str, Any]
    samples: dict[str, dict[str, Any]]
    points: dict[str, Points]
    experts: dict[str, Any] | None
    lineages: dict[Path, dict[str, Any]]
    trees: dict[Path, dict[str, Any]]
    logs: dict[Path, dict[str, tuple[list[int], list[float]]]]


def find(chain: Chain) -> Found:
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
