"""The samples as one picture, for a README: a block of seeds for each prompt, enlarged bicubically, prompts below."""

import io
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from ldm.files import write_bytes
from ldm.quickstart.samples import file_name
from ldm.report.sheet import font_of
from ldm.report.theme import LIGHT

SIDE = 128  # px of one image
GAP, MARGIN, LINE = 6, 28, 60  # px between images, between blocks, and for a prompt
COLUMNS = 5
FONT = (21, 9)  # px, at most and at least


def write_sheet(path: Path, folder: Path, samples: dict[str, Any]) -> Path:
    """Write `path` from the files of the prompts in `folder` (see chain_samples); two images across in each block."""
    prompts, seeds = samples["prompts"], len(samples["seeds"])
    across = min(2, seeds)
    width = across * SIDE + (across - 1) * GAP
    down = -(-seeds // across)
    height = down * SIDE + (down - 1) * GAP + LINE
    columns = min(COLUMNS, len(prompts))
    rows = -(-len(prompts) // columns)
    sheet = Image.new("RGB", (columns * (width + MARGIN) + MARGIN, rows * height + MARGIN), LIGHT.surface)
    draw = ImageDraw.Draw(sheet)
    for place, prompt in enumerate(prompts):
        left, top = MARGIN + place % columns * (width + MARGIN), MARGIN + place // columns * height
        for seed in range(seeds):
            with Image.open(folder / file_name(place, seed)) as image:
                large = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            sheet.paste(large, (left + seed % across * (SIDE + GAP), top + seed // across * (SIDE + GAP)))
        draw.text(
            (left + width / 2, top + height - LINE + 8), prompt, LIGHT.ink, font_of(prompt, width, *FONT), anchor="ma"
        )
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
    return write_bytes(path, buffer.getvalue())
