"""The quickstart's report: what was trained, what it draws, what it costs; nothing in it is chosen by eye."""

import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ldm.checkpoint.weights import load as load_weights
from ldm.evaluation.evaluate import curve_keys
from ldm.evaluation.interval_loss import interval_loss
from ldm.evaluation.report.page import Cell, Code, Figure, ImageGrid, Section, Stat, Stats, Table, Text, write_report
from ldm.evaluation.report.plots import duration, interval_bars, loss_curves, stage_times, trade_off
from ldm.files import write_json
from ldm.images import save_image
from ldm.metrics.reconstruction import bicubic, reconstruction_errors
from ldm.model import Model
from ldm.networks.lpips import pretrained_lpips
from ldm.run import load
from ldm.training.loggers import curves, log_summary

if TYPE_CHECKING:
    from ldm.evaluation.chain import Chain

NUM_SHOWN = 12  # reconstructions in the picture
L1_GOAL = 0.056


def write_chain_report(chain: "Chain") -> Path:
    """Gather, draw and write ``report/index.html``."""
    folder = chain.folder / "report"
    base = load(chain.base)
    errors, pictures = _reconstructions(base, folder)
    drawn = {path.stem: _samples(chain, path) for path in (chain.base, chain.ensemble)}
    points = {path.stem: _points(chain, path) for path in (chain.base, chain.ensemble)}
    intervals = _intervals(chain, base)
    sections = [
        _summary(errors, drawn[chain.base.stem], points),
        _reconstruction_section(errors, pictures),
        _sample_section(chain, "Samples of the base model", drawn[chain.base.stem], chain.base),
        _sample_section(chain, "The same from the ensemble of experts", drawn[chain.ensemble.stem], chain.ensemble),
        _curve_section(folder, points, chain.tree["num_samples"]),
        _expert_section(folder, intervals),
        _training_section(folder, chain),
        _cost_section(folder, chain),
    ]
    _log(chain, folder, points, errors)
    subtitle = (
        "First stage, text-conditional diffusion and two experts, trained on this machine on the built-in images."
    )
    return write_report(folder, "Quickstart", subtitle, sections)


# What the stages left


def _reconstructions(model: Model, folder: Path) -> tuple[dict[str, dict[str, float]], list[tuple[Path, Path, Path]]]:
    """Errors of all held-out images, first stage and bicubic, and the pictures of the first few."""
    lpips, f = pretrained_lpips("alex"), model.first_stage.spec.f
    found: dict[str, dict[str, list[Tensor]]] = {"first stage": {}, "bicubic": {}}
    pictures = []
    for batch in model.parts["data"].validation_loader(batch_size=64):
        image = batch["image"]
        with torch.no_grad():
            decoded = model.first_stage.decode(model.first_stage.encode(image)).clamp(-1, 1)
        resampled = bicubic(image, f)
        for name, output in (("first stage", decoded), ("bicubic", resampled)):
            for metric, values in reconstruction_errors(output, image, lpips).items():
                found[name].setdefault(metric, []).append(values)
        for place in range(len(image)):
            if len(pictures) < NUM_SHOWN:
                stem = folder / "reconstructions" / f"{len(pictures):02d}"
                versions = {"original": image, "decoded": decoded, "bicubic": resampled}
                pictures.append(
                    tuple(save_image(stem.with_name(f"{stem.name}-{n}.png"), v[place]) for n, v in versions.items())
                )
    means = {name: {m: torch.cat(v).mean().item() for m, v in metrics.items()} for name, metrics in found.items()}
    return means, pictures


def _samples(chain: "Chain", model: Path) -> dict[str, Any]:
    return json.loads((chain.folder / f"samples-{model.stem}" / "samples.json").read_text())


def _points(chain: "Chain", model: Path) -> dict[str, dict[str, float]]:
    return json.loads((chain.curve_folder(model) / "points.json").read_text())["points"]


def _intervals(chain: "Chain", base: Model) -> dict[str, tuple[float, float]]:
    """Held-out loss of parent and expert inside each expert's interval, from the same draws; kept once computed."""
    kept = chain.folder / "interval_losses.json"
    digests = [load_weights(run).digest for run in (chain.base, *chain.experts)]
    if kept.exists() and json.loads(kept.read_text())["weights"] == digests:
        return {name: tuple(pair) for name, pair in json.loads(kept.read_text())["losses"].items()}
    losses = {}
    for run in chain.experts:
        expert = load(run)
        noise = expert.parts["expert"].restrict(expert.parts["noise"])
        data = expert.parts["data"]
        pair = [interval_loss(model, data, noise, chain.tree["seed"]).mean().item() for model in (base, expert)]
        (lo, hi) = expert.parts["expert"].intervals(expert.parts["noise"])[0]
        losses[f"{tuple(expert.parts['expert'].node)}, sigma {lo:.3g} to {hi:.3g}"] = tuple(pair)
    write_json(kept, {"weights": digests, "losses": losses})
    return losses


# Sections


def _summary(errors: dict, drawn: dict, points: dict) -> Section:
    ranks = [row["rank"] for seed in drawn["seeds"] for row in seed]
    free = [row["rank_unconditional"] for seed in drawn["seeds"] for row in seed]
    name, curve = next(iter(points.items()))
    quality, alignment = curve_keys(next(iter(curve.values())))
    best = min(curve.items(), key=lambda item: item[1][quality])
    first, coarse = errors["first stage"], errors["bicubic"]
    tiles = [
        Stat("Reconstruction L1", f"{first['l1']:.4f}", hint=f"goal: at most {L1_GOAL}", met=first["l1"] <= L1_GOAL),
        Stat("Reconstruction PSNR", f"{first['psnr']:.2f}", "dB", hint=f"bicubic {coarse['psnr']:.2f} dB"),
        Stat("Reconstruction LPIPS", f"{first['lpips_alex']:.4f}", hint=f"bicubic {coarse['lpips_alex']:.4f}"),
        Stat("Median rank of the prompt", f"{statistics.median(ranks):g}", f"of {drawn['captions']}",
             hint=f"unconditional {statistics.median(free):g}"),
        Stat("Best KID", f"{best[1][quality]:.4f}", hint=f"{name}, guidance {best[0]}, {quality.split('/')[1]}"),
        Stat("Alignment there", f"{best[1][alignment]:.3f}", hint=alignment),
    ]  # fmt: skip
    return Section("At a glance", items=[Stats(tiles)])


def _reconstruction_section(errors: dict, pictures: list) -> Section:
    cells = [
        [Cell(label="original"), *[Cell([original]) for original, _, _ in pictures]],
        [Cell(label="first stage"), *[Cell([decoded]) for _, decoded, _ in pictures]],
        [Cell(label="bicubic"), *[Cell([bicubic]) for _, _, bicubic in pictures]],
    ]
    metrics = list(errors["bicubic"])
    rows = [[name, *[f"{values[metric]:.4f}" for metric in metrics]] for name, values in errors.items()]
    intro = "Held-out images the first stage has never seen; bicubic goes down and up by the same factor."
    table = Table(["", *metrics], rows, caption="Means over all held-out images, in [-1, 1]; LPIPS is AlexNet's.",
                  numeric=range(1, len(metrics) + 1))  # fmt: skip
    return Section("Reconstructions", intro, [ImageGrid(cells, caption="The first held-out images, in order."), table])


def _sample_section(chain: "Chain", title: str, drawn: dict, model: Path) -> Section:
    folder = chain.folder / f"samples-{model.stem}"
    rows = []
    for place, prompt in enumerate(drawn["prompts"]):
        facts = [seed[place] for seed in drawn["seeds"]]
        cells = [
            Cell([folder / f["image"], folder / f["nearest"]],
                 sublabel=f"rank {f['rank']} ({f['rank_unconditional']} without)\nnear: {f['nearest_caption']}")
            for f in facts
        ]  # fmt: skip
        rows.append([Cell(label=prompt), *cells])
    headers = ["prompt", *[f"seed {chain.tree['seed'] + s}" for s in range(len(drawn["seeds"]))]]
    shown = chain.tree["shown_scale"]
    intro = (
        f"Every image drawn, guidance {shown:g}. Left the sample, right its nearest training image; the rank of the "
        f"prompt among {drawn['captions']} training captions by {drawn['backbone']}, in brackets that of the "
        "unconditional sample from the same noise. The prompts' own images are in the training set: this shows what "
        "was learnt."
    )
    code = f'python sample.py model={model} prompt="{drawn["prompts"][0]}" seed=0 num_images=1 guidance.scale={shown:g}'
    return Section(title, intro, [ImageGrid(rows, headers=headers, size=96), Code(code, "The first of them again:")])


def _curve_section(folder: Path, points: dict, num_samples: int) -> Section:
    quality, alignment = curve_keys(next(iter(next(iter(points.values())).values())))
    curve = {
        name: [(float(scale), point[quality], point[alignment]) for scale, point in found.items()]
        for name, found in points.items()
    }
    path = trade_off(folder / "guidance.png", curve, quality_label=quality, alignment_label=alignment)
    columns = list(next(iter(next(iter(points.values())).values())))
    rows = [
        [name, scale, *[f"{point[column]:.4g}" for column in columns]]
        for name, found in points.items()
        for scale, point in found.items()
    ]
    intro = (
        f"{num_samples} samples a point, the same captions and noise everywhere, against all training images. The "
        "backbone stands in each name; these are not FID and not CLIP score, and small sets bias FD upwards: read KID."
    )
    items = [
        Figure(path, "Quality against alignment; numbers are guidance scales.", "guidance curve"),
        Table(["model", "guidance", *columns], rows, numeric=range(1, len(columns) + 2)),
    ]
    return Section("Guidance", intro, items)


def _expert_section(folder: Path, intervals: dict) -> Section:
    path = interval_bars(folder / "experts.png", intervals)
    rows = [[name, f"{a:.5f}", f"{b:.5f}", f"{100 * (b / a - 1):+.2f} %"] for name, (a, b) in intervals.items()]
    intro = "Held-out loss inside each expert's own interval, from the same draws, whichever wins."
    items = [
        Figure(path, "Change of the loss against the parent.", "experts against their parent"),
        Table(["node", "parent", "expert", "change"], rows, numeric=(1, 2, 3)),
    ]
    return Section("Experts", intro, items)


def _training_section(folder: Path, chain: "Chain") -> Section:
    logs = {run: curves(run / "metrics.csv") for run in (chain.autoencoder, chain.base, *chain.experts)}
    first = {name: logs[chain.autoencoder][f"train/{name}"] for name in ("l1", "lpips")}
    stage_two = {"diffusion, training": logs[chain.base]["train/loss"]}
    if "validation/loss" in logs[chain.base]:
        stage_two["diffusion, held out"] = logs[chain.base]["validation/loss"]
    experts = {run.name: logs[run]["train/loss"] for run in chain.experts}
    figures = [
        Figure(
            loss_curves(folder / f"{name}.png", series, smoothing=0.5, log_y=name == "autoencoder"), caption, caption
        )
        for name, series, caption in (
            ("autoencoder", first, "First stage: L1 and LPIPS of training batches."),
            ("diffusion", stage_two, "Diffusion: weighted loss."),
            ("expert", experts, "Experts: weighted loss in their own intervals, not comparable with each other."),
        )
    ]
    return Section("Training", items=figures)


def _cost_section(folder: Path, chain: "Chain") -> Section:
    times = chain.times()
    path = stage_times(folder / "times.png", times)
    runs = []
    skipped = []
    for run in (chain.autoencoder, chain.base, *chain.experts):
        lineage = json.loads((run / "lineage.json").read_text())
        parent = (lineage.get("parent") or {}).get("run", "")
        runs.append(
            [run.name, lineage["finished_step"], lineage["samples_seen"], lineage["samples_seen_total"], parent]
        )
        skipped += [f"{run.name}: {row['kind']}, {row['shard']}, {row['key']}" for row in lineage["skipped_samples"]]
    total = duration(sum(times.values()))
    items = [
        Figure(path, f"Wall time of each stage, {total} in all.", "stage times"),
        Table(["run", "steps", "samples", "samples with parents", "parent"], runs, numeric=(1, 2, 3)),
        Text("Bad samples skipped: " + ("; ".join(skipped) if skipped else "none.")),
    ]
    return Section("Time and lineage", items=items)


def _log(chain: "Chain", folder: Path, points: dict, errors: dict) -> None:
    """The curve, the table and the pictures in W&B too."""
    metrics = {f"reconstruction/{name}": value for name, value in errors["first stage"].items()}
    tables = {name: [{"scale": float(s), **point} for s, point in found.items()] for name, found in points.items()}
    pictures = {path.stem: path for path in (folder / "guidance.png", folder / "experts.png", folder / "times.png")}
    logger = chain.tree["logger"]
    log_summary(
        chain.folder, f"{chain.folder.name}-report", logger["project"], logger["mode"], metrics, tables, pictures
    )
