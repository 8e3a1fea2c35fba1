"""Samples of fixed prompts at fixed seeds, and what tells whether they are what was asked for, or copies.

Beside each sample: the training image nearest to it in feature space, and the rank of its prompt among all training
captions, against the rank that the unconditional sample of the same noise gets.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ldm.evaluation.reference import reference
from ldm.files import write_json
from ldm.generate import Sampling
from ldm.images import save_image
from ldm.metrics.alignment_score import alignment_score
from ldm.model import Model
from ldm.run import load


def draw_samples(path: Path, folder: Path, tree: dict[str, Any]) -> dict[str, Any]:
    """PNG files and ``samples.json`` in `folder`; what is there for these weights and settings is kept."""
    model = load(path)
    keys = ("prompts", "num_seeds", "shown_scale", "num_steps", "seed")
    facts = {"weights": [weights.digest for weights in model.weights], **{key: tree[key] for key in keys}}
    identity = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    index = folder / "samples.json"
    if index.exists() and json.loads(index.read_text())["identity"] == identity:
        return json.loads(index.read_text())
    prompts = list(tree["prompts"])
    sampling = model.sampling({"sampler": None, "sigmas": None, "guidance": None})
    images = _draw(model, sampling, prompts, tree, tree["shown_scale"])  # [seeds, prompts, 3, H, W]
    unconditional = _draw(model, sampling, prompts, tree, 0.0)
    score = alignment_score()
    against = reference(model.parts["data"], score.features, torch.device("cpu"))
    train, captions = _training_images(model), against.captions
    known = normalize(against.features, dim=1)
    seeds = [
        _seed_facts(folder, seed, images[seed], unconditional[seed], prompts, train, captions, known, score)
        for seed in range(tree["num_seeds"])
    ]
    content = {
        "identity": identity,
        "prompts": prompts,
        "backbone": score.name,
        "captions": len(set(captions)),
        "seeds": seeds,
    }
    write_json(index, content)
    return content


def _seed_facts(
    folder: Path, seed: int, images: Tensor, unconditional: Tensor, prompts: list[str], train: Tensor,
    captions: list[str], known: Tensor, score: Any,
) -> list[dict[str, Any]]:  # fmt: skip
    similarity = normalize(score.features(images), dim=1) @ known.T  # [prompts, train]
    nearest = similarity.argmax(1).tolist()
    ranks = score.rank(images, prompts, captions).tolist()
    free = score.rank(unconditional, prompts, captions).tolist()
    rows = []
    for place, prompt in enumerate(prompts):
        name = f"{place:02d}-{seed}"
        save_image(folder / f"{name}.png", images[place], text={"prompt": prompt, "seed": seed})
        save_image(folder / f"{name}-nearest.png", train[nearest[place]])
        rows.append(
            {
                "image": f"{name}.png",
                "nearest": f"{name}-nearest.png",
                "nearest_caption": captions[nearest[place]],
                "similarity": similarity[place].max().item(),
                "rank": ranks[place],
                "rank_unconditional": free[place],
            }
        )
    return rows


def _draw(model: Model, sampling: Sampling, prompts: list[str], tree: dict[str, Any], scale: float) -> Tensor:
    guided = sampling.with_scale(scale)
    number = torch.zeros(len(prompts), dtype=torch.int64)  # image 0 of each seed, as sample.py draws it
    batch = {"caption": prompts}
    return torch.stack([model.generate(guided, batch, number, tree["seed"] + s) for s in range(tree["num_seeds"])])


def _training_images(model: Model) -> Tensor:
    return torch.cat([batch["image"] for batch in model.parts["data"].statistics_loader(batch_size=100)])
