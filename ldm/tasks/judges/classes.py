"""Images of a class: how many a classifier of real pictures takes for that class.

As where the classifier is a published one, it has seen the pictures that the model was trained on; and held-out ones
too, for what it judges are samples. What it says of emoji that it has never seen stands beside: there are emoji whose
group their picture does not tell.
"""

from typing import Any

import torch
from torch import Tensor

from ldm.api import Pipeline
from ldm.images import grid
from ldm.tasks.bench import Bench, Judgement
from ldm.tasks.probe import Probe

SCALES = (1.0, 1.5, 3.0)  # of guidance
TRAINING = 6000  # real pictures that the classifier is trained on, at most
SHOWN = 10  # samples of each class on the sheet


def judge_classes(bench: Bench) -> Judgement:
    """Class accuracy at three scales of guidance, of real pictures, and of samples whose class was dropped."""
    model = bench.model(bench.part.task)
    data = model.drawer.data
    real, held_out = bench.training(data, TRAINING), bench.held_out(data, 2000)
    num_classes = int(real["label"].max()) + 1
    known, against = bench.features(real["image"]), bench.features(held_out["image"])
    probe = Probe(torch.cat([known, against]), torch.cat([real["label"], held_out["label"]]), num_classes)

    def right(images: Tensor, labels: Tensor) -> Tensor:
        return (probe(bench.features(images)) == labels).double()

    without = Probe(known, real["label"], num_classes)(against) == held_out["label"]
    bench.add_mean("accuracy, real held-out, by a classifier that has not seen them", without.double())
    bench.add_mean("accuracy, real held-out, which it knows", (probe(against) == held_out["label"]).double())
    back = bench.reconstructed(model, held_out["image"])
    bench.add_mean("accuracy, first stage's held-out", right(back, held_out["label"]))
    each = max(SHOWN, bench.count() // num_classes)
    labels = torch.arange(num_classes).repeat_interleave(each)
    drawn = {scale: _drawn(bench, model, num_classes, each, scale) for scale in SCALES}
    found = {scale: right(images, labels) for scale, images in drawn.items()}
    for scale, values in found.items():
        bench.add_mean(f"accuracy, guidance {scale:g}", values)
    free = [_sampled(bench, model, each, seed=c, use_conditions=[], guidance=1.0) for c in range(num_classes)]
    dropped = right(torch.cat(free), labels)
    bench.add_mean("accuracy, class dropped", dropped)
    bench.add_mean("obeyed: accuracy with less without the class, guidance 1", found[1.0] - dropped)
    for scale in SCALES:
        bench.add_set(f"guidance {scale:g}", against, drawn[scale])
    shown = drawn[SCALES[1]].unflatten(0, (num_classes, each))[:, :SHOWN].flatten(0, 1)
    caption = f"A row for each of {num_classes} classes, from label=N, guidance {SCALES[1]:g}."
    return Judgement(bench.rows, grid(shown, columns=SHOWN), caption)


def _drawn(bench: Bench, model: Pipeline, num_classes: int, each: int, scale: float) -> Tensor:
    """`each` samples of every class, one class after the other."""
    return torch.cat([_sampled(bench, model, each, seed=c, label=c, guidance=scale) for c in range(num_classes)])


def _sampled(bench: Bench, model: Pipeline, count: int, **options: Any) -> Tensor:
    return model.sample(num_images=count, batch_size=bench.tree["batch_size"], **options).tensor
