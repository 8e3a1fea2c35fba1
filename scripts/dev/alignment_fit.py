"""The fit of scripts/dev/make_alignment_heads.py: two linear heads that join EfficientNet-lite0 and MiniLM features.

Regularised CCA in closed form, then InfoNCE with dropout on the features from there. The settings were chosen on an
eighth of the training bases; the validation split is only measured.
"""

import hashlib
import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from rich.progress import track
from safetensors.torch import save
from torch import Tensor

from ldm.errors import UserError
from ldm.metrics.alignment_score import AlignmentHeads, AlignmentScore, sentence_encoder
from ldm.metrics.features import Features, efficientnet_features

Heads = tuple[Tensor, Tensor]  # image [1280, dim] and text [384, dim], for standardised features


@dataclass(frozen=True)
class Samples:
    images: Tensor  # [N, 3, 64, 64] in [-1, 1], on white
    captions: list[str]
    tagged: list[str]  # caption, tag, tag, ...


def read_split(folder: Path, split: str) -> tuple[Samples, str]:
    """All samples of a split, and the sha256 over its shards' sha256."""
    shards = sorted(folder.glob(f"{split}-*.tar"))
    if not shards:
        raise UserError(f"no {split}-*.tar in {folder}: scripts/dev/make_quickstart_data.py makes them")
    fingerprint, images, facts = hashlib.sha256(), [], []
    for shard in shards:
        data = shard.read_bytes()
        fingerprint.update(hashlib.sha256(data).digest())
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
        for name in sorted(name for name in members if name.endswith(".webp")):
            images.append(np.asarray(Image.open(io.BytesIO(members[name])).convert("RGB")))
            facts.append(json.loads(members[name.removesuffix(".webp") + ".json"]))
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    captions = [fact["caption"] for fact in facts]
    tagged = [", ".join([fact["caption"], *fact["tags"]]) for fact in facts]
    return Samples(pixels, captions, tagged), fingerprint.hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Views: the heads shall judge generated samples of 32 px, not only clean pictures of 64 px. No flips: captions say
# left and right.


def shrunk(images: Tensor, size: int = 32) -> Tensor:
    return F.interpolate(images, (size, size), mode="bicubic", antialias=True).clamp(-1, 1)


def moved(images: Tensor, generator: torch.Generator, scale: float = 0.12, shift: float = 0.1) -> Tensor:
    """Scaled by up to 12 % and shifted by up to 5 % of the width, on white."""
    zoom = 1 + (2 * torch.rand(len(images), generator=generator) - 1) * scale
    theta = torch.zeros(len(images), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = zoom
    theta[:, :, 2] = (2 * torch.rand(len(images), 2, generator=generator) - 1) * shift
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images - 1, grid, align_corners=False) + 1


def worn(images: Tensor, generator: torch.Generator) -> Tensor:
    """Some noise and blur, as in reconstructions of a small autoencoder."""
    noisy = images + 0.05 * torch.randn(images.shape, generator=generator)
    small = F.interpolate(noisy, scale_factor=0.75, mode="bilinear", antialias=True)
    return F.interpolate(small, images.shape[-2:], mode="bicubic").clamp(-1, 1)


def image_features(images: Tensor, network: Features, label: str) -> Tensor:
    return torch.cat([network(batch) for batch in track(images.split(64), label, transient=True)])


# ---------------------------------------------------------------------------------------------------------------------
# Fitting, on standardised features x [V, N, 1280] of V views and y [W, N, 384] of W texts.


def inverse_root(covariance: Tensor, ridge: float) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp_min(0) + ridge * values.mean()
    return (vectors * values.rsqrt()) @ vectors.T


def canonical(x: Tensor, y: Tensor, dim: int, ridge: float = 1.0) -> Heads:
    """Regularised canonical correlation analysis: the directions in which both sides agree most, by agreement."""
    x, y = x.double(), y.double()
    white_x, white_y = (inverse_root(z.flatten(0, 1).T @ z.flatten(0, 1) / z[..., 0].numel(), ridge) for z in (x, y))
    cross = x.mean(0).T @ y.mean(0) / x.shape[1]  # over all pairs of a view and a text of the same sample
    u, s, vt = torch.linalg.svd(white_x @ cross @ white_y, full_matrices=False)
    return (white_x @ u[:, :dim] * s[:dim]).float(), (white_y @ vt[:dim].T * s[:dim]).float()


def info_nce(
    x: Tensor, y: Tensor, text: Tensor, heads: Heads, generator: torch.Generator, num_steps: int = 600,
    batch_size: int = 512,
) -> Heads:  # fmt: skip
    """Symmetric InfoNCE (van den Oord et al. 2018) at temperature 0.05 from `heads`; dropout is the regulariser.

    Samples whose numbers in `text` [N] are equal have one caption in several styles: they are no negatives.
    """
    heads = tuple((head / head.std()).requires_grad_() for head in heads)
    optimizer = torch.optim.AdamW(heads, lr=1e-2, weight_decay=0.0)
    ramp = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 20) * (1 - step / num_steps))
    for _ in track(range(num_steps), "InfoNCE", transient=True):
        samples = torch.randperm(x.shape[1], generator=generator)[:batch_size]
        sides = []
        for features, head, drop_prob in zip((x, y), heads, (0.5, 0.3), strict=True):
            chosen = features[torch.randint(len(features), samples.shape, generator=generator), samples]
            kept = torch.rand(chosen.shape, generator=generator) >= drop_prob
            sides.append(F.normalize(chosen * kept @ head, dim=1))
        logits = sides[0] @ sides[1].T / 0.05
        target = torch.arange(len(samples))
        same = text[samples][:, None] == text[samples]
        logits = logits.masked_fill(same.fill_diagonal_(False), float("-inf"))
        loss = F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ramp.step()
    return tuple(head.detach() for head in heads)


def as_linear(head: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias in fp16 of a head for raw features; a cosine does not see the scale of the output."""
    weight = (head / std[:, None]).T
    weight = weight / weight.std()
    return weight.half().contiguous(), (-weight @ mean).half()


def fit(samples: Samples, score: AlignmentScore, dim: int, seed: int) -> dict[str, Tensor]:
    """State of AlignmentHeads, in fp16, fitted to the samples."""
    generator = torch.Generator().manual_seed(seed)
    small = shrunk(samples.images)
    views = {"64 px": samples.images, "32 px": small}
    views["32 px, moved"] = shrunk(moved(samples.images, generator))
    views["32 px, moved and worn"] = worn(shrunk(moved(samples.images, generator)), generator)
    x = torch.stack([image_features(view, score.features, label) for label, view in views.items()])
    y = torch.stack([score.sentences(samples.captions), score.sentences(samples.tagged)])
    (x_mean, x_std), (y_mean, y_std) = ((z.mean((0, 1)), z.flatten(0, 1).std(0) + 1e-3) for z in (x, y))
    x, y = (x - x_mean) / x_std, (y - y_mean) / y_std
    numbers = {caption: number for number, caption in enumerate(dict.fromkeys(samples.captions))}
    same = torch.tensor([numbers[caption] for caption in samples.captions])
    image, text = info_nce(x, y, same, canonical(x, y, dim), generator)
    state = dict(zip(("image.weight", "image.bias"), as_linear(image, x_mean, x_std), strict=True))
    return state | dict(zip(("text.weight", "text.bias"), as_linear(text, y_mean, y_std), strict=True))


def recall(score: AlignmentScore, images: Tensor, captions: list[str]) -> dict[str, float]:
    """Share of images whose own caption is among the first k of all these captions, each counted once."""
    different = list(dict.fromkeys(captions))
    ranks = torch.cat(
        [score.rank(images[i : i + 64], captions[i : i + 64], different) for i in range(0, len(images), 64)]
    )
    return {f"r_at_{k}": round((ranks <= k).double().mean().item(), 4) for k in (1, 5, 10)}


def make_heads(data: Path, out: Path, dim: int, seed: int) -> None:
    """Fit the heads to the training shards in the folder `data`, write them to `out`, and print what they are worth."""
    torch.set_num_threads(1)  # another number rounds differently, and two threads that share a busy core wait a lot

    train, fingerprint = read_split(data, "train")
    validation, _ = read_split(data, "validation")
    features = efficientnet_features()
    heads = AlignmentHeads(dim=dim)
    score = AlignmentScore(features, sentence_encoder(), heads)
    state = fit(train, score, dim, seed)
    heads.load_state_dict(state)

    held_out = recall(score, validation.images, validation.captions)
    held_out_32 = recall(score, shrunk(validation.images), validation.captions)
    facts = {
        "backbones": score.name,
        "split": "train",
        "data_sha256": fingerprint,
        "samples": len(train.captions),
        "seed": seed,
        "validation_samples": len(validation.captions),
        "validation_captions": len(set(validation.captions)),
        **held_out,
        **{f"{name}_32px": value for name, value in held_out_32.items()},
    }
    # One entry: the order of several would differ from run to run.
    out.write_bytes(save(state, {"facts": json.dumps(facts)}))
    print(json.dumps(facts, indent=1))
