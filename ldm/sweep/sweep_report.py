"""First stages side by side: the columns of table 8 (arXiv 2112.10752), and rate against distortion as for codecs."""

import math
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor

from ldm.build import load_autoencoder
from ldm.device import choose
from ldm.errors import UserError
from ldm.evaluation.first_stage import evaluate_first_stage, validation_of
from ldm.evaluation.table import write_csv
from ldm.files import read_json
from ldm.networks.lpips import pretrained_lpips
from ldm.report.page import Figure, Section, Table, Text, write_report
from ldm.report.plots import rate_distortion
from ldm.sweep.codecs import Point, at_bits, bicubic_point, codec_curve

Row = dict[str, Any]
CODECS = ("JPEG", "WebP")
SHOWN = {"psnr": "PSNR, dB", "lpips_alex": "LPIPS-AlexNet"}  # what is plotted against the rate


def sweep_report(tree: dict[str, Any]) -> Path:
    """Write the report of `tree` (conf/sweep_report.yaml). Returns its index.html."""
    runs = [Path(run) for run in tree["runs"]] if tree["runs"] else _finished(tree)
    folder = Path(tree["out"] or Path(tree["runs_dir"]) / f"{tree['prefix']}-report")
    _check(runs, tree, folder)
    rows: list[dict[str, Any]] = []
    images = None
    with Progress() as progress:
        bar = progress.add_task("first stages", total=len(runs))
        for run in runs:
            row, own_images = _row(run, tree, folder)
            rows, images = [*rows, row], own_images
            progress.advance(bar)
    rows.sort(key=lambda row: (row["f"], row["regularizer"], row["codes"] or 0))
    lpips = pretrained_lpips("alex")
    curves = {name: codec_curve(name, images, lpips) for name in CODECS}
    curves["bicubic"] = [bicubic_point(images, f, lpips) for f in sorted({row["f"] for row in rows} | {2, 4, 8})]
    for row in rows:
        for codec in CODECS:
            equal = at_bits(curves[codec], row["bits"])
            for name in SHOWN:
                row[f"{codec} {name}"] = None if equal is None else equal[name]
    return _write(folder, rows, curves, images)


def _finished(tree: dict[str, Any]) -> list[Path]:
    found = [
        path.parent
        for path in sorted(Path(tree["runs_dir"]).glob(f"{tree['prefix']}*/lineage.json"))
        if "finished_step" in read_json(path)
    ]
    if not found:
        raise UserError(f"runs: no finished run in {tree['runs_dir']} has a name that begins with {tree['prefix']}")
    return found


def _check(runs: list[Path], tree: dict[str, Any], folder: Path) -> None:
    """Raises ValueError naming a run that cannot be compared with the first, before any is measured."""
    choose(tree["device"])
    if folder.exists() and not folder.is_dir():
        raise UserError(f"out={folder}: is a file; name a folder for the report")
    names = [run.name for run in runs]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"runs: two are called {name}, and the report keeps each one's files under its name")
    sizes = {}
    for run in runs:
        parts, found = load_autoencoder(run)
        data, count = validation_of(parts, tree, run)
        if "latent" not in found.metadata or "finished_step" not in _lineage(run):
            raise UserError(f"runs: {run} has not finished; its own command resumes it")
        held_out = data.parts()[-1].shards.fingerprint()[:8]
        sizes[run.name] = f"{count} validation images of {data.framing.window} px, {held_out}"
    for name, size in sizes.items():
        if size != sizes[names[0]]:
            raise UserError(f"runs: {name} has {size}, and {names[0]} {sizes[names[0]]}; they have to be the same")


def _lineage(run: Path) -> dict[str, Any]:
    path = run / "lineage.json"
    return read_json(path) if path.exists() else {}


def _row(run: Path, tree: dict[str, Any], folder: Path) -> tuple[Row, Tensor]:
    """What the table says of one run, and the images it was measured on."""
    measured, _ = evaluate_first_stage({**tree, "model": str(run), "ema": "ema", "out": str(folder / run.name)})
    parts, _ = load_autoencoder(run)
    data = parts["data"]
    data.setup()
    images = torch.cat([b["image"] for b in data.validation_loader(batch_size=100, num_samples=tree["num_samples"])])
    codebook = getattr(parts["regularizer"], "embedding", None)
    facts = {
        "run": run.name,
        "f": parts["autoencoder"].f,
        "regularizer": "KL" if codebook is None else "VQ",
        "codes": None if codebook is None else codebook.num_embeddings,
        "channels": parts["regularizer"].latent_channels,
        "parameters": sum(p.numel() for p in parts["autoencoder"].parameters()),
        "steps": _lineage(run)["finished_step"],
        "bits": _bits(parts, images),
    }
    return {**facts, **{row["metric"]: row["value"] for row in measured}}, images


@torch.no_grad()
def _bits(parts: Any, images: Tensor) -> float:
    """Mean bits of an image's latent. VQ: log2(codes) a position. KL: of q(z|x) from the latents' own Gaussian.

    The latter is the rate of an ideal coder that sends a sample of the posterior, with the mean and std of each channel
    over these images as its prior, however the run whitens its latents.
    """
    autoencoder, regularizer = parts["autoencoder"], parts["regularizer"]
    if hasattr(regularizer, "embedding"):
        f = autoencoder.f
        return math.log2(regularizer.embedding.num_embeddings) * (images.shape[-1] // f) * (images.shape[-2] // f)
    moments = torch.cat([autoencoder.encode(part).float() for part in images.split(50)])
    mu, logvar = (part.double() for part in moments.chunk(2, 1))
    variance = logvar.clamp(-30, 20).exp()
    mean = mu.mean((0, 2, 3), keepdim=True)
    prior = (variance + (mu - mean).square()).mean((0, 2, 3), keepdim=True)
    nats = (prior.log() - variance.log()) / 2 + (variance + (mu - mean).square()) / (2 * prior) - 0.5
    return nats.sum().item() / math.log(2) / len(images)


def _write(folder: Path, rows: list[Row], curves: dict[str, list[Point]], images: Tensor) -> Path:
    pixels = images.shape[-1] * images.shape[-2]
    write_csv(folder / "table.csv", rows)
    figures = []
    for name, label in SHOWN.items():
        lines = {codec: [(p.bits / pixels, p.errors[name]) for p in points] for codec, points in curves.items()}
        marks = {kind: [(r["bits"] / pixels, r[name], f"f{r['f']}") for r in rows if r["regularizer"] == kind]
                 for kind in sorted({r["regularizer"] for r in rows})}  # fmt: skip
        path = rate_distortion(folder / f"rate_{name}.png", lines, marks, distortion_label=label)
        figures.append(Figure(path, f"{label} against the rate.", f"rate and {label}"))
    headers = list(rows[0])
    cells = [[_text(row[name]) for name in headers] for row in rows]
    intro = (
        f"{len(images)} validation images of {images.shape[-1]} px. PSIM is LPIPS-VGG; distances of sets and the "
        "Inception score carry the backbone's name, and only inception_v3 makes them FID and IS. Codec columns are the "
        "codec's errors at the bits of the same row; empty where it cannot be so small or so large."
    )
    rate = (
        "Bits of a VQ model are those of its codes, of a KL model the divergence of the posterior from the latents' "
        "Gaussian (an ideal coder's rate), of a codec whole files with their headers, of bicubic 24 bits a pixel kept."
    )
    sections = [
        Section("Table 8", intro, [Table(headers, cells, numeric=range(1, len(headers)))]),
        Section("Rate and distortion", rate, figures),
        Section("Worst and median reconstructions", items=[
            item for row in rows for item in (Text(row["run"]), Figure(
                folder / row["run"] / "reconstructions.png", "Worst by PSIM, then median; images above answers.",
                f"reconstructions of {row['run']}",
            ))
        ]),
    ]  # fmt: skip
    return write_report(folder, "First stages", f"{len(rows)} first stages compared.", sections)


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
