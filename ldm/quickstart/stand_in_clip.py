"""A small CLIP of texts for where no CLIP is at hand: open_clip's BPE, trained on the built-in images and captions.

Its tower is CLIP's, narrow and shallow, and is fitted by CLIP's loss (Radford et al. 2021) to frozen EfficientNet-lite0
features of the pictures, as LiT does (arXiv 2111.07991). What it draws a figure for is said to be a stand-in's.
"""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn

from ldm.build import Parts
from ldm.conditioners.clip import CONFIG, MAX_TOKENS
from ldm.convert.clip_encoder import write_encoder
from ldm.data.module import ShardData
from ldm.device import choose
from ldm.errors import UserError
from ldm.files import write_json
from ldm.holding import NAME, held
from ldm.measuring import conditions
from ldm.metrics.features import efficientnet_features
from ldm.networks.huggingface import load_tokenizer

FEATURES_PX = 64  # of the pictures as the features see them: the built-in ones' own size
TEMPERATURE = 0.05
HEADS = 2
KEPT = 0.7  # of the features in each step: dropout, without which the few pictures are learnt by heart


def make_stand_in_clip(tree: dict[str, Any]) -> dict[str, Any]:
    """Fit the tower of `tree` (conf/stand_in_clip.yaml) and write its folder; what is known of it, as stand_in.json."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    _check(tree)
    out, device = Path(tree["out"]).expanduser(), choose(tree["device"])
    if out.exists() and any(path.name != NAME for path in out.iterdir()):  # of one that was killed
        raise UserError(f"out={out}: is there already; name another folder, or delete it")
    width = {"hidden_size": tree["width"], "intermediate_size": 4 * tree["width"], "projection_dim": tree["width"]}
    shape = {"num_hidden_layers": tree["depth"], "num_attention_heads": HEADS}
    config = {**CONFIG, "architectures": ["CLIPTextModelWithProjection"], **width, **shape}
    with held(out, "writing into"), TemporaryDirectory() as unfitted, torch.random.fork_rng(devices=[]):
        torch.manual_seed(tree["seed"])
        model = CLIPTextModelWithProjection(CLIPTextConfig(**config)).to(device)
        write_encoder(Path(unfitted), config, model.state_dict())  # with the tokenizer
        facts: dict[str, Any] = {"stand_in_for": "CLIP", "steps": tree["max_steps"], "seed": tree["seed"]}
        facts |= _fit(model, load_tokenizer(Path(unfitted), "out"), tree, device)
        write_encoder(out, config, model.state_dict())
        write_json(out / "stand_in.json", facts)
    return facts


def _check(tree: dict[str, Any]) -> None:
    """Raises UserError for numbers of which no tower can be made or fitted."""
    for key in ("depth", "max_steps", "batch_size"):
        if tree[key] < 1:
            raise UserError(f"{key}={tree[key]}: must be at least 1")
    if tree["width"] < HEADS or tree["width"] % HEADS:
        raise UserError(f"width={tree['width']}: must be a multiple of {HEADS}, the heads of its attention")


def _fit(model: nn.Module, tokenizer: Any, tree: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Train the tower in place; the data's facts, with the share of held-out pictures whose caption is found first."""
    data: ShardData = Parts({**tree, "image_size": FEATURES_PX})["data"]
    data.setup()
    if not {"caption", "image"} <= data.batch_spec.keys() or data.validation is None:
        raise UserError("data: a text tower is fitted to captions and their pictures, some of them held out")
    features = efficientnet_features(FEATURES_PX).to(device)
    batches = [batch for batch, _ in conditions(data, data.num_train, tree["batch_size"])]
    captions = [caption for batch in batches for caption in batch["caption"]]
    pictures = torch.cat([features(batch["image"].to(device)) for batch in track(batches, "pictures", transient=True)])
    mean, std = pictures.mean(0), pictures.std(0) + 1e-3
    head = nn.Linear(pictures.shape[1], tree["width"], bias=False).to(device)
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=1e-3, weight_decay=0.01, fused=True)
    ids = _ids(tokenizer, captions).to(device)
    number = {caption: place for place, caption in enumerate(dict.fromkeys(captions))}
    same = torch.tensor([number[caption] for caption in captions], device=device)
    model.train()
    for step in track(range(tree["max_steps"]), "fitting", transient=True):
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1.0, (step + 1) / 50) * (1 - step / tree["max_steps"])
        chosen = torch.randperm(len(captions))[: tree["batch_size"]].to(device)
        seen = F.dropout((pictures[chosen] - mean) / std, 1 - KEPT)
        texts = F.normalize(model(input_ids=ids[chosen]).text_embeds, dim=1)
        loss = info_nce(F.normalize(head(seen), dim=1), texts, same[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    held_out = list(data.validation_loader(batch_size=tree["batch_size"]))
    with torch.no_grad():
        images = torch.cat([head((features(batch["image"].to(device)) - mean) / std) for batch in held_out])
        own = [caption for batch in held_out for caption in batch["caption"]]
        every = list(dict.fromkeys(own))
        vectors = F.normalize(model(input_ids=_ids(tokenizer, every).to(device)).text_embeds, dim=1)
        found = (F.normalize(images, dim=1) @ vectors.T).argmax(1).cpu()
    right = torch.tensor([every.index(caption) for caption in own])
    return {
        "loss": loss.item(),
        "held_out_first": (found == right).double().mean().item(),
        "held_out_captions": len(every),
        "data": data.fingerprint,
        "pictures": features.name,
    }


def info_nce(images: Tensor, texts: Tensor, same: Tensor) -> Tensor:
    """CLIP's loss of unit vectors [B, D] of pairs; pictures whose numbers in `same` [B] are equal have one caption, and
    are no negatives of each other.
    """
    logits = images @ texts.T / TEMPERATURE
    own = torch.arange(len(logits), device=logits.device)
    equal = (same[:, None] == same).fill_diagonal_(False)
    logits = logits.masked_fill(equal, float("-inf"))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def _ids(tokenizer: Any, captions: Sequence[str]) -> Tensor:
    """Token numbers [N, T], padded to the longest: the tower is causal, so that padding changes no text's vector."""
    return tokenizer(
        list(captions), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
    ).input_ids
