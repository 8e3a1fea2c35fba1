"""Images of no condition: how far from held-out ones, and which training images are nearest."""

import torch
from torch import Tensor

from ldm.images import grid
from ldm.metrics.nearest import nearest
from ldm.tasks.bench import Bench, Judgement

SHOWN = 10
MEASURES = ("kid", "precision", "recall")


def judge_unconditional(bench: Bench) -> Judgement:
    """KID, precision and recall against held-out images, with those of training images and reconstructions beside."""
    model = bench.model("unconditional")
    data = model.drawer.data
    train, held_out = bench.training(data), bench.held_out(data)
    real = bench.features(held_out["image"])
    images = model.sample(num_images=bench.count(), batch_size=bench.tree["batch_size"]).tensor
    bench.add_set("samples", real, images, MEASURES)
    some = train["image"][: len(images)]
    bench.add_set("training images", real, some, MEASURES)
    bench.add_set("first stage's training images", real, bench.reconstructed(model, some), MEASURES)
    shown = images[:SHOWN]
    places = nearest(_unit(bench.features(shown)), _unit(bench.features(train["image"])), k=2)[1]
    neighbours = [train["image"][places[:, k]] for k in range(2)]
    caption = "Samples; below each the two training images nearest to it by the backbone's features."
    return Judgement(bench.rows, grid(torch.cat([shown, *neighbours]), columns=SHOWN), caption)


def _unit(features: Tensor) -> Tensor:
    return torch.nn.functional.normalize(features.float(), dim=1)
