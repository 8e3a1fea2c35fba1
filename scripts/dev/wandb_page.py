"""A run's W&B page as one PNG, out of the log that the client wrote offline: what docs/images shows of it.

    python scripts/dev/wandb_page.py runs/quickstart-diffusion docs/images/wandb.png
    python scripts/dev/wandb_page.py runs/quickstart-autoencoder page.png

The first word is the folder of a run with logger.mode=offline, its wandb/ within; the second the picture to write.
It shows
- the curves of quality, over what the log says that they are drawn over, and with them those of an expert's parents,
- the losses,
- quality against alignment, out of the tables that were logged,
- the last panel of pictures.
"""

import io
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ldm.config import guarded
from ldm.training.offline_log import OfflineLog, read_offline

COLUMNS, INCHES, DPI, NUM_COLOURS = 3, (3.4, 2.3), 80, 96
QUALITY = ("kid/", "fd/", "fid/", "rfd/", "rfid/", "precision/", "recall/", "is/", "alignment_score/", "clip_score/",
           "psnr", "ssim", "lpips")  # fmt: skip
LOSSES = ("train/loss", "validation/loss")


def page(log: OfflineLog, out: Path) -> None:
    """The curves of quality over what the log says they are drawn over, losses, the trade-off, and the last panel."""
    names = [name for name in log.names if name.startswith(tuple(f"quality/{name}" for name in QUALITY))]
    drawn = [*names, *(name for name in LOSSES if name in log.names)]
    tables = [name for name in log.charts if log.media(f"{name}_table")]
    panels = [(name, *files[-1]) for name in ("panels/samples", "panels/reconstructions") if (files := log.media(name))]
    count = len(drawn) + len(tables)
    rows = -(-count // COLUMNS)
    figure = Figure((COLUMNS * INCHES[0], (rows + bool(panels)) * INCHES[1]), DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{log.name}   (group {log.group}, id {log.run_id})", fontsize=9)
    grid = figure.add_gridspec(rows + bool(panels), COLUMNS)
    for place in range(count):
        axes = figure.add_subplot(grid[divmod(place, COLUMNS)])
        axes.tick_params(labelsize=6)
        if place < len(drawn):
            _curve(axes, log, drawn[place])
        else:
            _chart(axes, log, tables[place - len(drawn)])
    for name, step, path in panels[:1]:
        axes = figure.add_subplot(grid[rows, :])
        axes.imshow(Image.open(path))
        axes.set_axis_off()
        axes.set_title(f"{name}, step {step}", fontsize=7)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    Image.open(drawn).convert("RGB").quantize(NUM_COLOURS).save(out, optimize=True)


def _curve(axes: Any, log: OfflineLog, name: str) -> None:
    over = log.axes.get(name, "trainer/global_step")
    axes.plot(*log.curve(name, over), marker="o" if name.startswith("quality/") else "", markersize=3, linewidth=1)
    parent = name.replace("quality/", "quality/parent/", 1)
    if parent != name and parent in log.names:
        axes.plot(*log.curve(parent, over), "--", linewidth=1, label="parent")
        axes.legend(fontsize=6)
    axes.set_title(name, fontsize=7)
    axes.set_xlabel(over, fontsize=6)


def _chart(axes: Any, log: OfflineLog, name: str) -> None:
    fields = log.charts[name]["panel_config"]["fieldSettings"]
    columns, rows = log.table(f"{name}_table")
    x, y, stroke = (columns.index(fields[key]) for key in ("x", "y", "stroke"))
    for value in dict.fromkeys(row[stroke] for row in rows):
        own = [row for row in rows if row[stroke] == value]
        axes.plot([row[x] for row in own], [row[y] for row in own], marker="o", markersize=3, linewidth=1,
                  label=f"{columns[stroke]} {value}")  # fmt: skip
    axes.legend(fontsize=6)
    axes.set_title(name, fontsize=7)
    axes.set_xlabel(columns[x], fontsize=6)
    axes.set_ylabel(columns[y], fontsize=6)


def main(arguments: list[str]) -> int:
    """Draw the page of the run's folder that is named first into the PNG that is named second."""
    if len(arguments) != 2 or arguments[0].startswith("-"):
        print(__doc__.strip())
        return 0 if {"--help", "-h"} & set(arguments) else 2
    page(read_offline(Path(arguments[0])), Path(arguments[1]))
    return 0


if __name__ == "__main__":
    guarded(main)
