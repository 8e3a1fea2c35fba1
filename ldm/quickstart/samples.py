"""Samples of fixed prompts at fixed seeds, with measures of whether they match their prompts, or are copies.

Beside each sample of a training caption: the training image nearest to it in feature space, and the rank of its prompt
among all training captions, against the rank of the unconditional sample of the same noise.
"""

import hashlib
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ldm.checkpoint import weights
from ldm.evaluation.diversity import mean_distance, of_one_caption
from ldm.evaluation.yardsticks import Yardsticks
from ldm.files import read_json, write_json
from ldm.generate import Sampling
from ldm.images import save_image
from ldm.loading import load
from ldm.metrics.alignment_score import AlignmentScore
from ldm.model import Model
from ldm.networks.lpips import pretrained_lpips

KEYS = ("prompts", "new_prompts", "num_seeds", "shown_scale", "num_steps", "seed")
NUM_MOMENTS = 4
NUM_CAPTIONS = 200  # whose styles are compared with each other


def draw_samples(path: Path, folder: Path, tree: dict[str, Any], by: Yardsticks) -> dict[str, Any]:
    """PNG files and ``samples.json`` in `folder`; what is there for these weights and settings is kept."""
    model = load(path).to(by.device)
    saved = _moments(path)
    facts = {"weights": [weights.digest for weights in model.weights], **{key: tree[key] for key in KEYS}}
    facts["moments"] = [file.name for file in saved.values()]
    identity = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    index = folder / "samples.json"
    if index.exists() and read_json(index)["identity"] == identity:
        return read_json(index)
    prompts, new = list(tree["prompts"]), list(tree["new_prompts"])
    drawn = _draw(model, [*prompts, *new], tree, tree["shown_scale"])  # [seeds, prompts + new, 3, H, W]
    images = drawn[:, : len(prompts)]
    unconditional = _draw(model, [""], tree, 0.0)[:, 0]  # one per seed: they do not depend on the prompt
    for seed in range(len(drawn)):
        for place, prompt in enumerate([*prompts, *new]):
            save_image(folder / file_name(place, seed), drawn[seed, place], text={"prompt": prompt, "seed": seed})
    known = _captions(model)
    (train, captions), against = _training_set(model), by.reference(model.data)
    content = {
        "identity": identity,
        "prompts": prompts,
        "new_prompts": new,
        "prompts_unknown": [prompt for prompt in prompts if prompt not in known],
        "new_prompts_known": [prompt for prompt in new if prompt in known],
        "new_words": sorted(
            {word for prompt in new for word in prompt.split()} - {w for c in known for w in c.split()}
        ),
        "backbone": by.alignment.name,
        "features": by.backbone.name,
        "captions": len(set(captions)),
        "seeds": _facts(folder, images, unconditional, prompts, train, captions, against.features, by.alignment),  # type: ignore[arg-type]  # the quickstart has no other kind
        "moments": [_draw_moment(model, step, file, folder, prompts, tree) for step, file in saved.items()],
        **_diversity(images, train, captions),
    }
    content["median_rank"] = statistics.median(row["rank"] for seed in content["seeds"] for row in seed)
    write_json(index, content)
    return content


def file_name(place: int, seed: int) -> str:
    """The file of the image of prompt number `place`, new prompts after the others, at a seed."""
    return f"{place:02d}-{seed}.png"


def _facts(
    folder: Path, images: Tensor, unconditional: Tensor, prompts: list[str], train: Tensor,
    captions: list[str], known: Tensor, score: AlignmentScore,
) -> list[list[dict[str, Any]]]:  # fmt: skip
    """For each seed and prompt what is near and how the prompt ranks; the nearest training images become files."""
    seeds, count = images.shape[:2]
    flat = images.flatten(0, 1)
    similarity = normalize(score.features(flat), dim=1).cpu() @ normalize(known, dim=1).T
    ranks = score.rank(flat, prompts * seeds, captions).tolist()
    free = score.rank(unconditional.repeat_interleave(count, 0), prompts * seeds, captions).tolist()
    rows = []
    for place, nearest in enumerate(similarity.argmax(1).tolist()):
        name = file_name(place % count, place // count).replace(".png", "-nearest.png")
        save_image(folder / name, train[nearest])
        rows.append(
            {
                "nearest": name,
                "nearest_caption": captions[nearest],
                "similarity": similarity[place, nearest].item(),
                "rank": ranks[place],
                "rank_unconditional": free[place],
            }
        )
    return [rows[start : start + count] for start in range(0, len(rows), count)]


def _diversity(images: Tensor, train: Tensor, captions: list[str]) -> dict[str, float | None]:
    """LPIPS between seeds of a prompt, between styles of a training caption, and the former by the latter."""
    lpips = pretrained_lpips("alex")
    seeds = mean_distance(list(images.cpu().transpose(0, 1)), lpips)
    styles = mean_distance(of_one_caption(train, captions, NUM_CAPTIONS), lpips)
    return {"lpips_seeds": seeds, "lpips_styles": styles, "diversity": seeds / styles if seeds and styles else None}


def _moments(path: Path) -> dict[int, Path]:
    """Up to four files of EMA weights that a run kept, by step, evenly spread and with the last; an ensemble has none.

    A run keeps as many as ``callback.checkpoint.keep_weights`` says.
    """
    found = [(step, json_file.with_suffix(".ema.safetensors")) for step, json_file in weights.steps(path).items()]
    found = [(step, file) for step, file in found if file.exists()]
    places = {round((number + 1) * len(found) / NUM_MOMENTS) - 1 for number in range(NUM_MOMENTS)}
    return dict(found[place] for place in sorted(places) if place >= 0)


def _draw_moment(
    model: Model, step: int, file: Path, folder: Path, prompts: list[str], tree: dict[str, Any]
) -> dict[str, Any]:
    """PNG files of the first seed of all prompts from the weights of a step; the network of `model` takes them on."""
    state = weights.read(file).state
    own = {name.removeprefix("network."): value for name, value in state.items() if name.startswith("network.")}
    weights.load_strict(model.denoiser.network, own, str(file))
    [images] = _draw(model, prompts, {**tree, "num_seeds": 1}, tree["shown_scale"])
    names = [file_name(place, 0).replace(".png", f"-step-{step}.png") for place in range(len(prompts))]
    for name, image in zip(names, images, strict=True):
        save_image(folder / name, image)
    return {"step": step, "images": names}


def _draw(model: Model, prompts: list[str], tree: dict[str, Any], scale: float) -> Tensor:
    """Images [seeds, prompts, 3, H, W], each as sample.py draws it first."""
    sampling = _sampling(model, tree).with_scale(scale)
    number = torch.zeros(len(prompts), dtype=torch.int64, device=next(model.networks[0].parameters()).device)
    batch = {"caption": prompts}
    return torch.stack([model.generate(sampling, batch, number, tree["seed"] + s) for s in range(tree["num_seeds"])])


def _sampling(model: Model, tree: dict[str, Any]) -> Sampling:
    return model.sampling({"sampler": None, "sigmas": None, "guidance": None, "num_steps": tree["num_steps"]})


def _captions(model: Model) -> set[str]:
    """Every text that a training image may have come with, styles and all."""
    data = model.data
    return {text for _, texts in data.peek("caption", data.num_train) for text in texts}


def _training_set(model: Model) -> tuple[Tensor, list[str]]:
    """All training images [M, 3, H, W] and their captions, in the order of references."""
    images, captions = [], []
    for batch in model.data.statistics_loader(batch_size=100):
        images.append(batch["image"])
        captions += batch["caption"]
    return torch.cat(images), captions
