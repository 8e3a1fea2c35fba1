"""The report's second half: guidance, experts, training curves, time, lineage; one question and one plot a section."""

from pathlib import Path
from typing import Any

from ldm.quickstart.found import Found
from ldm.quickstart.pictures import curve_columns, groups
from ldm.quickstart.quality import quality, short
from ldm.report.page import Code, Figure, Fold, Gallery, Section, Table, Text
from ldm.report.plots import duration, interval_bars, loss_curves, stage_times, trade_off


def sections(found: Found) -> list[Section]:
    """From guidance to lineage."""
    experts = [_experts(found)] if found.experts else []
    return [_guidance(found), *experts, *quality(found), *_training(found), _time(found), _lineage(found)]


def _guidance(found: Found) -> Section:
    quality, alignment = curve_columns(found.points["base"])
    curve = {
        name: [(float(scale), point[quality], point[alignment]) for scale, point in points.items()]
        for name, points in found.points.items()
    }
    path = trade_off(
        found.folder / "guidance.png", curve, quality_label="KID", alignment_label=short(alignment)
    )  # fmt: skip
    columns = list(next(iter(found.points["base"].values())))
    main = [column for column in columns if column.startswith(("kid/", "fd/", "fid/"))] + [alignment]
    tree, chain = found.chain.tree, found.chain
    backbones = " and ".join(dict.fromkeys(column.partition("/")[2] for column in columns if "/" in column))
    intro = (
        f"More guidance is meant to bring images closer to the prompt; too much takes them away from real ones. "
        f"{tree['num_samples']} samples a point, the same captions and noise everywhere, against all training images."
    )
    caption = (
        f"The backbones are {backbones}: none of this is FID, nor a CLIP score. Few samples bias FD upwards; read KID."
    )
    return Section("What does guidance buy?", intro, [
        Figure(path, "Numbers are guidance scales.", "KID against alignment over guidance"),
        _table(found, main, caption),
        Fold("All the numbers", [_table(found, columns)]),
        Code("\n".join(f"python scripts/evaluate.py {' '.join(chain.curve_command(p))}" for p in chain.models.values()),
             "These points again (add num_samples=5000 for numbers to rely on):"),
    ])  # fmt: skip


def _table(found: Found, columns: list[str], caption: str = "") -> Table:
    rows = [
        [f"{name}, {scale}", *[f"{point[column]:.3g}" for column in columns]]
        for name, points in found.points.items()
        for scale, point in points.items()
    ]
    headers = ["model, guidance", *map(short, columns)]
    return Table(headers, rows, caption, numeric=range(1, len(headers)))


def _experts(found: Found) -> Section:
    chain, measured = found.chain, found.experts
    losses = {
        f"{_who(row)} against {name}": tuple(row[against][key] for key in ("over", "loss", "half_interval"))
        for row in measured["experts"]
        for against, name in WHO.items()
    }
    path = interval_bars(found.folder / "experts.png", losses)
    intro = (
        "An expert is the base model trained on inside its own part of the noise. Each is held against its parent, and "
        "against a control: " + control_words(found)
    )
    count = measured["experts"][0]["parent"]["captions"]
    caption = (
        f"Weighted loss inside the interval on {measured['images']} held-out images, {measured['levels']} "
        f"noise levels each, the same draws for all three. Whiskers are 95 % intervals of the mean difference, paired, "
        f"over {count} captions, whose pictures are averaged first. Grey: the interval reaches 0."
    )
    ensemble = Fold("The prompts above, drawn by the experts together", [Gallery(groups(found, "ensemble"))])
    commands = "\n".join(f"python train.py {' '.join(chain.commands[run])}" for run in (*chain.experts, chain.control))
    return Section("Are experts better than training on?", intro, [
        Text("\n\n".join(expert_words(row) for row in measured["experts"])),
        Figure(path, caption, "Change of the loss against parent and control"),
        ensemble,
        Fold("The commands that trained them", [Code(commands)]),
    ])  # fmt: skip


WHO = {"parent": "its parent", "control": "the control"}


def expert_words(row: dict[str, Any]) -> str:
    """A sentence on what the confidence intervals show for an expert, or for the ensemble."""
    (lo, hi), said = row["sigma"], []
    where = f"below {hi:.3g}" if lo == 0 else f"above {lo:.3g}" if hi > 1e6 else f"from {lo:.3g} to {hi:.3g}"
    for against, name in WHO.items():
        gain, half, over = (row[against][key] for key in ("gain", "half_interval", "over"))
        size = f"by {100 * abs(gain) / over:.2f} % ± {100 * half / over:.2f}"
        if gain > half:
            said.append(f"beats {name} {size}")
        elif gain < -half:
            said.append(f"is worse than {name} {size}")
        else:
            said.append(f"cannot be told from {name} ({size.removeprefix('by ')})")
    who = "The ensemble, over all of the noise," if row["node"] is None else f"Expert {_who(row)}, for sigma {where},"
    return f"{who} {said[0]}, and {said[1]}."


def _who(row: dict[str, Any]) -> str:
    return "all" if row["node"] is None else str(tuple(row["node"]))


def control_words(found: Found) -> str:
    """A description of the control run, from the runs' own files."""
    chain = found.chain
    of_expert, of_control = found.trees[chain.experts[0]], found.trees[chain.control]
    seen = found.lineages[chain.control]["samples_seen"]
    together = sum(found.lineages[run]["samples_seen"] for run in chain.experts)
    differ = [name for name, (a, b) in _recipes(of_expert, of_control).items() if a != b]
    same = "the same learning rate, warm-up and batch size" if not differ else f"another {' and '.join(differ)}"
    fresh = of_control["branch_optimizer"] == of_expert["branch_optimizer"] == "fresh"
    optimizer = "a new optimizer" if fresh else "the optimizer's state that branch_optimizer says"
    number = "as many as" if seen == together else f"not as many as the {together:,} of"
    return (
        f"the base trained on over all of the noise for {seen:,} samples, {number} the experts together. It began as "
        f"they did, from the base's weights with {optimizer}, and had {same}; each schedule ends with its run."
    )


def _recipes(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    def lr(tree: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in tree["lr"].items() if key != "max_steps"}

    return {
        "optimizer": (a["optimizer"], b["optimizer"]),
        "learning rate schedule": (lr(a), lr(b)),
        "batch size": (a["data"]["batch_size"], b["data"]["batch_size"]),
    }


def _training(found: Found) -> list[Section]:
    chain = found.chain
    first, two = found.logs[chain.autoencoder], found.logs[chain.base]
    of_first = {name: first[f"train/{name}"] for name in ("l1", "perceptual") if f"train/{name}" in first}
    stage_two = {"training": two["train/loss"]}
    if "validation/loss" in two:
        stage_two["held out"] = two["validation/loss"]
    branches = {run.name.removeprefix(f"{chain.family}-"): found.logs[run]["train/loss"]
                for run in (*chain.experts, *([chain.control] if chain.nodes else []))}  # fmt: skip
    asked = [
        (chain.autoencoder, "autoencoder", "Is the first stage still learning?", of_first,
         "L1 and LPIPS of training batches, smoothed."),
        (chain.base, "diffusion", "Is the diffusion model still learning?", stage_two,
         "Weighted loss, smoothed. Held-out loss rises where training images are learnt by heart."),
    ]  # fmt: skip
    if branches:
        said = (
            "Weighted loss of training batches, smoothed. Each expert's is of its own half of the noise: compare none."
        )
        asked.append((chain.control, "experts", "Were the experts still learning?", branches, said))
    return [
        Section(title, "", [
            Figure(loss_curves(found.folder / f"loss-{name}.png", series, smoothing=0.5, log_y=name == "autoencoder"),
                   caption, title),
            Code(f"python train.py {' '.join(chain.commands[run])}", "The run again, or on from where it was stopped:"),
        ])
        for run, name, title, series, caption in asked
    ]  # fmt: skip


def _time(found: Found) -> Section:
    times, install = found.chain.times(), found.chain.install_seconds()
    path = stage_times(found.folder / "times.png", times)
    installed = f"Installation took {duration(install)} besides." if install else "Installation is not counted."
    said = f"{duration(sum(times.values()))} of wall time for all stages, over restarts. {installed}"
    return Section("Where did the time go?", said, [Figure(path, "Stages one after the other.", "stage times")])


def _lineage(found: Found) -> Section:
    rows, skipped = [], []
    for run, lineage in found.lineages.items():
        parent = Path((lineage.get("parent") or {}).get("run", "")).name
        counts = (lineage[key] for key in ("finished_step", "samples_seen", "samples_seen_total"))
        rows.append([run.name, *[f"{count:,}" for count in counts], parent])
        skipped += [f"{run.name}: {row['kind']}, {row['shard']}, {row['key']}" for row in lineage["skipped_samples"]]
    return Section("What comes from what?", "", [
        Table(["run", "steps", "samples", "with its parents'", "parent"], rows, numeric=(1, 2, 3)),
        Text("Bad samples skipped: " + ("; ".join(skipped) if skipped else "none.")),
    ])  # fmt: skip
