"""The quickstart's report: what was trained, what it draws, what it costs; every image drawn is shown.

All it shows was left in files by the chain's stages; here it is read, drawn and written.
"""

from pathlib import Path

from ldm.quickstart import numbers, pictures
from ldm.quickstart.chain import Chain
from ldm.quickstart.found import Found, find
from ldm.quickstart.sample_sheet import write_sheet
from ldm.report.page import write_report
from ldm.training.loggers import log_summary


def write_chain_report(chain: Chain) -> Path:
    """Draw and write ``report/index.html``, and beside it ``samples.png``, the samples as one picture."""
    found = find(chain)
    sheet = write_sheet(found.folder / "samples.png", chain.samples_folder(chain.base), found.samples["base"])
    sections = [*pictures.sections(found, sheet), *numbers.sections(found)]
    _log(found)
    size = found.trees[chain.base]["image_size"]
    more = ", experts and their control" if chain.nodes else ""
    subtitle = (
        f"A first stage, a text-conditional diffusion model{more}, trained on this machine on the built-in images at "
        f"{size} px. Every image that was drawn is shown."
    )
    title = "Quickstart: experts" if chain.nodes else "Quickstart"
    return write_report(found.folder, title, subtitle, sections)


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
