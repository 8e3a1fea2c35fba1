"""Images of maps of classes: whether what a segmenter finds, and a classifier of real pictures names, is the map."""

import colorsys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.data.making.canvases import Canvas
from ldm.data.making.cutouts import class_names
from ldm.data.module import ShardData
from ldm.images import grid
from ldm.tasks.bench import FILES, Batch, Bench, Judgement, in_batches
from ldm.tasks.canvases import held_out_canvases, maps, member_files, pixels
from ldm.tasks.naming import classes_of, cut_out, named
from ldm.tasks.probe import Nearest
from ldm.tasks.segmenter import confusion, miou, trained_segmenter

TRAINING = 4000  # real canvases that the segmenter is trained on, at most
STEPS = 600
KNOWN = 2500, 1000  # canvases whose things the classifier is trained on: of the training's emoji, of held-out ones
OTHER = 1_000_003  # seed of those of held-out emoji, which are none of those that are judged
LARGER = (2, 4)  # times the height and the width of the training
SHOWN = 10


def judge_semantic_map(bench: Bench) -> Judgement:
    """mIoU on real canvases, on samples of held-out maps, of others' maps, and of maps 2 x 4 times as large."""
    model = bench.model("semantic_map")
    data = model.drawer.data
    train = bench.training(data, TRAINING)
    num_classes = len(class_names()) + 1  # the ground is one
    steps = min(STEPS, 3 * bench.tree["num_samples"])
    segmenter = trained_segmenter(train["image"], (train["segmentation"] > 0).long(), 2, steps, bench.device)

    def things_of(images: Tensor) -> Tensor:
        return in_batches(lambda x: segmenter(x).argmax(1), images, bench).bool()

    known = _known(bench, data, train, things_of)

    def counts(images: Tensor, truth: Tensor) -> Tensor:
        found = named(images, things_of(images), lambda x: known(bench.features(x)))
        return confusion(found, truth, num_classes)

    real = held_out_canvases(data, bench.count(most=FILES))
    truth, asked = pixels(real), maps(real)
    files = member_files(real, "segmentation.png", bench.folder / "given")
    images = bench.sample(model, [{"map": file} for file in files])
    others = bench.sample(model, [{"map": file} for file in files[1:] + files[:1]])
    found = {"samples": images, "real held-out": truth, "first stage's held-out": bench.reconstructed(model, truth)}
    found["maps shuffled"] = others
    table = {name: counts(own, asked) for name, own in found.items()}
    for name, own in table.items():
        bench.add_statistic(f"IoU of ground and things, {name}", _things(own), miou)
    for name, own in table.items():
        bench.add_statistic(f"mIoU, {name}", own, miou)
    own = table["samples"]
    beside = torch.stack([own, table["real held-out"]], dim=1)
    bench.add_statistic("mIoU, samples, share of real held-out", beside, lambda x: miou(x[:, 0]) / miou(x[:, 1]))
    both = torch.stack([own, table["maps shuffled"]], dim=1)
    bench.add_statistic("obeyed: mIoU less with maps shuffled", both, lambda x: miou(x[:, 0]) - miou(x[:, 1]))
    bench.add_set("samples", bench.features(truth), images)
    large = _larger(bench, data)
    files = member_files(large, "segmentation.png", bench.folder / "given_large")
    wide = bench.sample(model, [{"map": file} for file in files])
    bench.add_statistic("mIoU, samples 2 x 4 times as large", counts(wide, maps(large)), miou)
    bench.add_statistic("mIoU, real ones 2 x 4 times as large", counts(pixels(large), maps(large)), miou)
    rows = torch.cat([coloured(asked[:SHOWN], num_classes), images[:SHOWN], others[:SHOWN]])
    sheet = _below(grid(rows, columns=SHOWN), coloured(maps(large)[:1], num_classes), wide[:1])
    caption = "Held-out maps, samples for them, samples given the next map; a map and its sample 2 x 4 times as large."
    return Judgement(bench.rows, sheet, caption)


def _known(bench: Bench, data: ShardData, train: Batch, things_of: Callable[[Tensor], Tensor]) -> Nearest:
    """A classifier of all emoji, as the segmenter cuts them out of canvases that are not judged; held-out ones as they
    are, too.
    """
    count = min(KNOWN[0], 12 * bench.tree["num_samples"]), min(KNOWN[1], 5 * bench.tree["num_samples"])
    held_out = held_out_canvases(data, count[1], seed=OTHER)
    others, asked = pixels(held_out), maps(held_out)
    images, own = train["image"][: count[0]], train["segmentation"][: count[0]]
    features, labels = [], []
    for real, inside, truth in ((images, things_of(images), own), (others, things_of(others), asked),
                                (others, asked > 0, asked)):  # fmt: skip
        cut, parts = cut_out(real, inside)
        classes = classes_of(parts, truth)
        if (classes >= 0).any():
            features.append(bench.features(cut[classes >= 0]))
            labels.append(classes[classes >= 0])
    return Nearest(torch.cat(features), torch.cat(labels))


def _things(counts: Tensor) -> Tensor:
    """Confusion [N, 2, 2] of the ground, class 0, and all that is none."""
    rows = torch.stack([counts[:, 0], counts[:, 1:].sum(1)], dim=1)
    return torch.stack([rows[:, :, 0], rows[:, :, 1:].sum(2)], dim=2)


def _larger(bench: Bench, data: ShardData) -> list[Canvas]:
    """Canvases 2 x 4 times as large with things of the same size, eight times as many."""
    size = LARGER[0] * data.image_size, LARGER[1] * data.image_size
    count = max(2, bench.count(most=FILES) // 8)
    return held_out_canvases(data, count, size=size, objects=(16, 28), sides=(0.15, 0.25))


def coloured(found: Tensor, num_classes: int) -> Tensor:
    """Maps [N, H, W] as images [N, 3, H, W] in [-1, 1], a colour for each class, the ground white."""
    hues = [colorsys.hsv_to_rgb(place / (num_classes - 1), 0.8, 0.9) for place in range(num_classes - 1)]
    palette = torch.tensor([(1.0, 1.0, 1.0), *hues]) * 2 - 1
    return palette[found].permute(0, 3, 1, 2)


def _below(sheet: Tensor, *more: Tensor) -> Tensor:
    """A sheet with a row of larger images under it."""
    row = grid(torch.cat(more), columns=len(more))
    width = max(sheet.shape[2], row.shape[2])
    parts = [F.pad(part, (0, width - part.shape[2], 0, 0), value=1.0) for part in (sheet, row)]
    return torch.cat(parts, dim=1)
