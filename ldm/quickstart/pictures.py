"""The report's first half: what the models draw, and whether that is what was asked for or a copy."""

import statistics
from pathlib import Path
from typing import Any

from ldm.quickstart.found import Found
from ldm.quickstart.reconstructions import picture
from ldm.quickstart.samples import file_name
from ldm.report.page import Cell, Code, Fold, Gallery, Section, Stat, Stats, Table

L1_GOAL = 0.056
RANK_GOAL = 10
DIVERSITY_GOAL = 0.5


def sections(found: Found, sheet: Path) -> list[Section]:
    """From the first images to the question whether they are copies."""
    return [
        _drawn(found, sheet),
        _new(found),
        *_moments(found),
        _reconstructions(found),
        _numbers(found),
        _ranks(found),
        _copies(found),
    ]


def sample_command(found: Found, model: Path, prompt: str) -> str:
    """What draws a sample again."""
    tree = found.chain.tree
    return (
        f'python sample.py model={model} prompt="{prompt}" seed={tree["seed"]} num_images=1 '
        f"num_steps={tree['num_steps']} guidance.scale={tree['shown_scale']:g}"
    )


def groups(found: Found, name: str, new: bool = False) -> list[Cell]:
    """The samples of a model, a group for each prompt."""
    samples, folder = found.samples[name], found.chain.samples_folder(found.chain.drawn[name])
    first = len(samples["prompts"]) if new else 0
    return [
        Cell([folder / file_name(first + place, seed) for seed in range(len(samples["seeds"]))], label=prompt)
        for place, prompt in enumerate(samples["new_prompts" if new else "prompts"])
    ]


def _drawn(found: Found, sheet: Path) -> Section:
    tree, prompts = found.chain.tree, found.samples["base"]["prompts"]
    seeds = f"seeds {tree['seed']} to {tree['seed'] + tree['num_seeds'] - 1}"
    unknown = found.samples["base"]["prompts_unknown"]
    but = f" (all but {', '.join(unknown)})" if unknown else ""
    intro = (
        f"{len(prompts)} prompts, {seeds}, guidance {tree['shown_scale']:g}, {tree['num_steps']} steps. They are "
        f"captions of training images{but}: this shows what was learnt."
    )
    code = Code(sample_command(found, found.chain.base, prompts[0]), "The first of them again:")
    whole = Code(str(sheet), "All of them as one picture:")
    return Section("What does it draw?", intro, [Gallery(groups(found, "base")), code, whole])


def _new(found: Found) -> Section:
    base = found.samples["base"]
    known, words = base["new_prompts_known"], base["new_words"]
    if known:
        said = f"Captions of training after all: {', '.join(known)}. The others are not."
    else:
        said = f"None of these is among the {base['captions']:,} captions of training, with a style or without."
    theirs = f"Words that no caption has: {', '.join(words)}." if words else "Each of their words is in some caption."
    intro = f"{said} {theirs} The seeds are those above."
    code = Code(sample_command(found, found.chain.base, base["new_prompts"][0]), "The first of them again:")
    return Section("Can it join what it knows?", intro, [Gallery(groups(found, "base", new=True), wide=6), code])


def _moments(found: Found) -> list[Section]:
    base, folder = found.samples["base"], found.chain.samples_folder(found.chain.base)
    moments = base["moments"]
    if len(moments) < 2:
        return []
    steps = [f"{moment['step']:,}" for moment in moments]
    cells = [
        Cell([folder / moment["images"][place] for moment in moments], label=prompt)
        for place, prompt in enumerate(base["prompts"])
    ]
    intro = (
        f"The same noise and prompts, from the averaged weights after {', '.join(steps[:-1])} and {steps[-1]} steps, "
        "left to right."
    )
    weights = found.chain.base / "weights" / f"step_{moments[0]['step']:08d}.ema.safetensors"
    code = Code(sample_command(found, weights, base["prompts"][0]), "The first of them again:")
    return [Section("How did it learn?", intro, [Gallery(cells, across=len(moments), wide=2, narrow=1), code])]


def _reconstructions(found: Found) -> Section:
    kept, folder = found.reconstructions, found.chain.folder / "reconstructions"
    names = list(kept["errors"])
    cells = [
        Cell([folder / picture(place, name) for name in ("original", *names)], label=caption)
        for place, caption in enumerate(kept["captions"])
    ]
    metrics = list(kept["errors"]["bicubic"])
    rows = [
        [name, *[f"{values[m]:.2f}" if m == "psnr" else f"{values[m]:.4f}" for m in metrics]]
        for name, values in kept["errors"].items()
    ]
    intro = (
        f"Held-out images, which the first stage has never seen: original, its reconstruction, and bicubic down and up "
        f"by the same factor, {kept['f']}."
    )
    table = Table(["", *[LABELS.get(m, m) for m in metrics]], rows, numeric=range(1, len(metrics) + 1),
                  caption="Means over all held-out images, in [-1, 1]; LPIPS is AlexNet's.")  # fmt: skip
    code = Code(f"python scripts/evaluate.py model={found.chain.autoencoder}", "More numbers on it:")
    return Section("What does the first stage keep?", intro, [Gallery(cells, across=3, wide=4, narrow=2), table, code])


LABELS = {"psnr": "PSNR, dB", "ssim": "SSIM", "l1": "L1", "lpips_alex": "LPIPS"}


def _numbers(found: Found) -> Section:
    base = found.samples["base"]
    free = statistics.median(row["rank_unconditional"] for seed in base["seeds"] for row in seed)
    first, coarse = (found.reconstructions["errors"][name] for name in ("first stage", "bicubic"))
    diversity = base["diversity"]
    tiles = [
        Stat("Median rank of the prompt", f"{base['median_rank']:g}", f"of {base['captions']:,}",
             f"goal: at most {RANK_GOAL}; without the prompt {free:g}", base["median_rank"] <= RANK_GOAL),
        Stat("Diversity of seeds", "none" if diversity is None else f"{diversity:.2f}", "",
             f"goal: at least {DIVERSITY_GOAL:g} of the distance between the styles of a caption",
             diversity is not None and diversity >= DIVERSITY_GOAL),
        Stat("Reconstruction L1", f"{first['l1']:.4f}", "", f"goal: at most {L1_GOAL}; bicubic {coarse['l1']:.4f}",
             first["l1"] <= L1_GOAL),
        Stat("Reconstruction PSNR", f"{first['psnr']:.1f}", "dB", f"goal: above bicubic, {coarse['psnr']:.1f} dB",
             first["psnr"] > coarse["psnr"]),
        *_quality(found),
    ]  # fmt: skip
    distances = (
        f"Diversity is LPIPS (AlexNet) between two seeds of a prompt, {_figure(base['lpips_seeds'])}, over that "
        f"between training images of one caption in two styles, {_figure(base['lpips_styles'])}. The rank is the "
        f"prompt's among all captions of training, by {base['backbone']}: 1 where no caption fits the image better."
    )
    return Section("Is it good?", distances, [Stats(tiles)])


def _quality(found: Found) -> list[Stat]:
    points = found.points["base"]
    quality, alignment = curve_columns(points)
    scale, best = min(points.items(), key=lambda item: item[1][quality])
    return [
        Stat("Best KID", f"{best[quality]:.4f}", "", f"base at guidance {scale}, {quality.partition('/')[2]}"),
        Stat("Alignment there", f"{best[alignment]:.3f}", "", alignment.partition("/")[2]),
    ]


def curve_columns(points: dict[str, dict[str, float]]) -> tuple[str, str]:
    """KID and alignment of a curve's points."""
    from ldm.evaluation.evaluate import curve_keys

    return curve_keys(next(iter(points.values())))


def _ranks(found: Found) -> Section:
    base = found.samples["base"]
    rows = []
    for place, prompt in enumerate(base["prompts"]):
        ranks, free = ([seed[place][key] for seed in base["seeds"]] for key in ("rank", "rank_unconditional"))
        rows.append([prompt, " ".join(map(str, sorted(ranks))), f"{statistics.median(free):g}"])
    intro = (
        f"Where the prompt stands among {base['captions']:,} captions of training for each of its images, best first; "
        "and for images of the same noise drawn without a prompt, where chance would put it in the middle."
    )
    table = Table(["prompt", "ranks with it", "median without"], rows, numeric=(1, 2))
    return Section("Does the prompt decide?", intro, [table])


def _copies(found: Found) -> Section:
    base, folder = found.samples["base"], found.chain.samples_folder(found.chain.base)
    cells = [
        Cell([folder / file_name(place, number), folder / row["nearest"]], label=prompt,
             sublabel=f"{row['nearest_caption']}, {row['similarity']:.2f}")
        for place, prompt in enumerate(base["prompts"])
        for number, seed in enumerate(base["seeds"])
        for row in [seed[place]]
    ]  # fmt: skip
    same = sum(row["nearest_caption"] == prompt for seed in base["seeds"]
               for prompt, row in zip(base["prompts"], seed, strict=True))  # fmt: skip
    highest = max(row["similarity"] for seed in base["seeds"] for row in seed)
    intro = (
        f"Beside each sample the training image that is nearest to it in the features of {base['features']}. For "
        f"{same} of {len(cells)} that is an image of the prompt itself; the highest cosine is {highest:.2f} (1 is the "
        "same image). A small model on few images may well learn some by heart: look."
    )
    gallery = Gallery(cells, wide=6, narrow=3)
    return Section("Is it copied?", intro, [Fold(f"All {len(cells)} samples, each left of its nearest", [gallery])])


def _figure(value: Any) -> str:
    return "not known" if value is None else f"{value:.3f}"
