"""The plan of a training on many GPUs as a table and a plot: counts of real networks in `cluster_formulas`."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ldm.build import Parts
from ldm.config import compose
from ldm.evaluation.cluster_formulas import (
    GRADIENT_BYTES,
    Cluster,
    Load,
    bytes_sent,
    communication_seconds,
    efficiency,
    held_bytes,
    largest_batch,
    step_seconds,
)
from ldm.evaluation.table import write_csv
from ldm.networks.compiling import blocks_of
from ldm.report.plots import loss_curves
from ldm.training.flops import Counter

Row = dict[str, Any]
# Conditioners that read a folder: width and tokens of T5-XXL, CLIP ViT-L/14's text and image.
FILES = {"t5": (4096, 113), "clip_text": (768, 77), "clip_image": (768, 1)}
HALF = 2  # bytes of bf16, in which networks compute, and of fp16, in which a cache keeps its arrays


def cluster_plan(tree: dict[str, Any]) -> tuple[list[Row], list[Row], Path]:
    """Rows of the models, and of each with each strategy and number of GPUs (conf/cluster_plan.yaml); their folder."""
    cluster = Cluster(
        1e12 * tree["tflops"], tree["mfu"], 1e9 * tree["memory_gb"], 1e9 * tree["memory_gb_s"],
        1e9 * tree["link_gb_s"], 1e9 * tree["network_gb_s"], 1e-6 * tree["latency_us"], tree["gpus_per_node"],
        tree["overlap"],
    )  # fmt: skip
    models, rows = [], []
    for name in tree["experiments"]:
        own = compose("config", [f"experiment={name}"], complete=False)
        load, cached = counted(own)
        models.append(_model(name, load, cached, tree))
        for strategy in tree["strategies"]:
            for ranks in tree["gpus"]:
                size = ranks * (tree["per_gpu"] or math.ceil((tree["batch_size"] or own["data"]["batch_size"]) / ranks))
                rows.append({"model": name, **_row(cluster, strategy, ranks, size, load, cached, tree)})
    folder = Path(tree["out"])
    write_csv(folder / "models.csv", models)
    write_csv(folder / "cluster_plan.csv", rows)
    _draw(folder / "cluster_plan.png", rows)
    return models, rows, folder


def _model(name: str, load: Load, cached: float, tree: dict[str, Any]) -> Row:
    return {
        "model": name,
        "trained_m": load.trained / 1e6,
        "gflop_per_sample": load.flop / 1e9,
        "activations_mb_per_sample": load.activations / 1e6,
        "gradients_gb": GRADIENT_BYTES * load.trained / 1e9,
        "cached_kb_per_sample": cached / 1e3,
        "cache_tb": cached * tree["samples"] / 1e12,
        "shards_tb": tree["sample_bytes"] * tree["samples"] / 1e12,
    }


def _row(
    cluster: Cluster, strategy: str, ranks: int, size: int, load: Load, cached: float, tree: dict[str, Any]
) -> Row:
    """What one number of GPUs does with a step of `size` samples."""
    seconds = step_seconds(cluster, strategy, ranks, size, load)
    sent = bytes_sent(strategy, ranks, GRADIENT_BYTES * load.trained, load.gathered_bytes * load.trained)
    held = held_bytes(strategy, ranks, load)
    hours = tree["samples"] / size * seconds / 3600
    most = largest_batch(cluster, strategy, ranks, load)
    return {
        "strategy": strategy,
        "gpus": ranks,
        "batch": size,
        "sent_gb": sent / 1e9,
        "communication_ms": 1e3 * communication_seconds(cluster, strategy, ranks, load),
        "step_ms": 1e3 * seconds,
        "efficiency": efficiency(cluster, strategy, ranks, size, load),
        "held_gb": held / 1e9,
        "peak_gb": (held + load.activations * size / ranks) / 1e9,
        "most_per_gpu": most,
        "samples_per_s": size / seconds,
        "shards_gb_s": size / seconds * tree["sample_bytes"] / 1e9,
        "cache_gb_s": size / seconds * cached / 1e9,
        "days": hours / 24,
        "price": hours * ranks * tree["price"],
    }


class Conditions(NamedTuple):
    """What a network is given beside x: tokens and their width, a vector's width; what makes them: weights trained,
    those of them that multiply a token, and frozen; and the bytes of a sample's embeddings in a cache.
    """

    num_tokens: int
    tokens_width: int
    vector_width: int
    concat_channels: int
    trained: int = 0
    multiplied: int = 0
    frozen: int = 0
    encoded: int = 0


def counted(own: dict[str, Any]) -> tuple[Load, float]:
    """The load of an experiment's tree, and the bytes of a sample in its cache; nothing is allocated.

    FLOP are those of a forward and a backward pass of the network on one sample, with what checkpointing computes
    again, and 6 times weights times tokens of trained conditioners, tables left out. Activations are what the network
    keeps for its backward pass in bf16; those of conditioners, and what a kernel needs for itself, are not in them. A
    cache has the moments of a latent, and the embeddings of frozen encoders, which then take no part in the training.
    """
    parts = Parts(own)
    given = _of_files(own["conditioner"] or {}) or _built(parts)
    known = {name: getattr(given, name) for name in ("tokens_width", "vector_width", "concat_channels")}
    parts = Parts(own, **known)
    channels, side = parts["in_channels"], parts["latent_size"]
    assert parts["out_channels"] and parts["schedule"] is not None  # these look at numbers, which fake tensors lack
    with FakeTensorMode(allow_non_fake_inputs=True):
        network = parts["network"]
    inputs = {
        "tokens": (given.num_tokens, given.tokens_width), "vector": (given.vector_width,),
        "concat": (given.concat_channels, side, side),
    }  # fmt: skip
    flop, activations = passes(network, channels, side, {name: n for name, n in inputs.items() if all(n)})
    flop += 6 * given.num_tokens * given.multiplied
    trained = given.trained + sum(p.numel() for p in network.parameters())
    ema = own["ema"]
    averages = 0 if ema is None else len(ema["sigma_rels"]) if "sigma_rels" in ema else 1
    block = max((sum(p.numel() for p in part.parameters()) for part in blocks_of(network)), default=trained)
    moments = parts["moment_channels"] * side**2 * HALF if own["autoencoder"] else 0
    return Load(trained, given.frozen, flop, HALF, averages, activations, block), moments + given.encoded


def _of_files(nodes: dict[str, Any]) -> Conditions | None:
    """The conditions of an experiment whose encoders lie in folders of the user's; None if it has none such.

    Their widths are those of T5-XXL and CLIP ViT-L/14 (`FILES`); what is trained of them is projections.
    """
    if not nodes.keys() & FILES.keys():
        return None
    tokens, vector, projected, encoded, used = 0, 0, 0, 0, 0
    widths: list[int] = []
    for name, node in nodes.items():
        width, count = FILES.get(name, (node.get("width", 0), 1))
        count, slots = node.get("max_tokens", count), node.get("slots", ["tokens"])
        if "tokens" in slots:
            tokens, widths = tokens + count, [*widths, node.get("width") or width]
            if name in FILES and node.get("width"):
                projected, used = projected + width * node["width"], used + count * width * node["width"]
        vector += width * ("vector" in slots)
        if name in FILES:
            encoded += width * HALF * ((count if "tokens" in slots else 0) + ("vector" in slots))
    mean = used // max(1, tokens)  # weights that multiply a token, of all tokens' mean
    return Conditions(tokens, max(widths, default=0), vector, 0, trained=projected, multiplied=mean, encoded=encoded)


def _built(parts: Parts) -> Conditions:
    """The conditions of an experiment whose conditioners can be built here."""
    with torch.device("meta"):
        conditioner = parts["conditioner"]
    tables = {id(p) for part in conditioner.modules() if isinstance(part, nn.Embedding) for p in part.parameters()}
    weights = [p for p in conditioner.parameters() if p.requires_grad]
    frozen = sum(p.numel() for p in conditioner.parameters() if not p.requires_grad)
    count = sum(part.num_tokens for part in conditioner.parts.values())
    multiplied = sum(p.numel() for p in weights if id(p) not in tables)
    trained = sum(p.numel() for p in weights)
    return Conditions(count, **conditioner.widths(), trained=trained, multiplied=multiplied, frozen=frozen)


def passes(network: nn.Module, channels: int, side: int, conditions: dict[str, tuple[int, ...]]) -> tuple[int, float]:
    """FLOP of a forward and a backward pass on one sample [1, channels, side, side], and bytes kept between them.

    The network is one of fake tensors, which have shapes and no memory. It computes in fp32 with a fused attention;
    half of the bytes that it keeps are those of bf16.
    """
    mode: FakeTensorMode = next(getattr(p, "fake_mode") for p in network.parameters())  # noqa: B009  # of fake ones
    counter = Counter()
    with mode, counter, _kept(network) as kept:
        x = torch.empty(1, channels, side, side)
        given = {name: torch.empty(1, *shape) for name, shape in conditions.items()}
        network(x, torch.empty(1), **given).sum().backward()
    return counter.flop, sum(kept.values()) * HALF / 4


@contextmanager
def _kept(network: nn.Module) -> Iterator[dict[int, int]]:
    """Bytes of the storages that are kept for the backward pass, by storage; weights are not among them."""
    weights = {p.untyped_storage()._cdata for p in network.parameters()}
    kept: dict[int, int] = {}
    alive: list[Any] = []  # so that no storage's number is used again

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
            alive.append(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def _draw(path: Path, rows: list[Row]) -> None:
    curves: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        line = curves.setdefault(f"{row['model']}, {row['strategy']}", ([], []))
        line[0].append(row["gpus"])
        line[1].append(row["efficiency"])
    loss_curves(path, curves, smoothing=0.0, x_label="GPUs", y_label="efficiency")
