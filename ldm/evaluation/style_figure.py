"""The sheet of scripts/style_sheet.py: prompts in rows, styles in columns, and what it was made with below."""

import io
from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from ldm.files import write_bytes
from ldm.images import to_uint8

MOST = 8  # rows, and columns of styles
INCH = 1.1  # of a picture's side


def draw_sheet(
    path: Path, plain: Tensor, styled: Tensor, styles: Tensor, prompts: Sequence[str], told: str
) -> Path:  # fmt: skip
    """Write to `path` the references [M, 3, h, w] above, and below them, a row for each prompt, its sample without a
    style, plain [N, 3, H, W], and under each, styled [N, M, 3, H, W]; all in [-1, 1]. `told` stands below all.
    """
    rows, columns = min(len(plain), MOST), min(len(styles), MOST)
    figure = Figure(figsize=((columns + 2.5) * INCH, (rows + 1.5) * INCH), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows + 1, columns + 1, squeeze=False)
    for each in axes.flat:
        each.set(xticks=[], yticks=[])
        each.spines[:].set_visible(False)
    pictures = {(0, 1 + m): styles[m] for m in range(columns)}
    pictures |= {(1 + n, 0): plain[n] for n in range(rows)}
    pictures |= {(1 + n, 1 + m): styled[n, m] for n in range(rows) for m in range(columns)}
    for place, image in pictures.items():
        axes[place].imshow(to_uint8(image).permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
    axes[0, 0].text(1, 0, "without", ha="right", va="bottom", transform=axes[0, 0].transAxes, fontsize=7)
    axes[0, 0].text(1, 1, "style", ha="right", va="top", transform=axes[0, 0].transAxes, fontsize=7)
    for n in range(rows):
        axes[1 + n, 0].set_ylabel(prompts[n][:60], rotation=0, ha="right", va="center", fontsize=7, wrap=True)
    figure.supxlabel(told, fontsize=6, wrap=True)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return write_bytes(path, buffer.getvalue())
