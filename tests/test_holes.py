"""Holes of every kind: of LaMa's sizes, boxes, borders, objects, files; what is not in them is kept."""

import csv
import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toys import annotated_shard, tiny
from untrained import untrained_run

from ldm.build import Parts
from ldm.config import compose, groups, overriding
from ldm.data.errors import BadSample
from ldm.data.fields import Mask
from ldm.data.fields.borders import Borders
from ldm.data.fields.field_set import FieldSet
from ldm.data.fields.lama_holes import LamaHoles
from ldm.data.fields.object_hole import ObjectHole
from ldm.data.rasters import picture
from ldm.data.transforms import View
from ldm.evaluation.holes_sheet import holes_sheet

SHARES = (0, 0.1, 0.2, 0.3, 0.4, 0.5, 1)
# How many of LaMa's holes cover such shares of the image: 2,000 by its public code's rules and numbers, drawn apart
# from the code here (numpy's random numbers, whole pixels).
PUBLISHED = {
    "lama": (0.087, 0.173, 0.211, 0.175, 0.128, 0.227),
    "lama_thin_256": (0.118, 0.209, 0.229, 0.279, 0.167, 0),
    "lama_medium_256": (0.236, 0.106, 0.316, 0.262, 0.081, 0),
    "lama_thick_256": (0.130, 0.210, 0.245, 0.221, 0.195, 0),
    "lama_thin_512": (0.131, 0.190, 0.223, 0.256, 0.201, 0),
    "lama_medium_512": (0.167, 0.179, 0.187, 0.241, 0.227, 0),
    "lama_thick_512": (0.130, 0.215, 0.247, 0.225, 0.184, 0),
}
COUNT = 300


def made(option: str, **changes: object) -> object:
    words = [f"derived.mask.{key}={value}" for key, value in changes.items()]
    return Parts(compose("config", ["experiment=ldm/inpainting", f"derived=[{option}]", *words], complete=False))[
        "derived"
    ]["mask"]


def windows(count: int, side: int) -> torch.Tensor:
    return torch.zeros(1, 3, side, side).expand(count, -1, -1, -1)


@pytest.mark.parametrize("option", PUBLISHED)
def test_lamas_holes_cover_as_much_of_the_image_as_published_ones(option: str) -> None:
    side = 128 if "thin" in option else 64  # their lengths go with it
    masks = made(option).make(windows(COUNT, side), torch.arange(COUNT))
    assert masks.shape == (COUNT, 1, side, side) and set(masks.unique().tolist()) == {0, 1}
    shares = masks.mean((1, 2, 3)).numpy()
    assert shares.min() > 0, "none is empty"
    found = np.histogram(shares, SHARES)[0] / COUNT
    spread = np.sqrt(np.maximum(PUBLISHED[option], 0.01) / COUNT)
    assert (np.abs(found - PUBLISHED[option]) < 4 * spread).all(), found.round(3)
    assert np.abs(np.cumsum(found) - np.cumsum(PUBLISHED[option])).max() < 1.95 / COUNT**0.5  # Kolmogorov, p = 0.001


def test_all_six_of_lamas_evaluation_are_there_at_both_sizes() -> None:
    options = {name for name in groups()["derived"] if name.startswith("lama_")}
    assert options == {f"lama_{kind}_{side}" for kind in ("thin", "medium", "thick") for side in (256, 512)}


def test_lengths_of_holes_go_with_the_image() -> None:
    small, large = (made("lama_thick_256").make(windows(40, side), torch.arange(40)) for side in (64, 128))
    assert (small.mean((1, 2, 3)) - large.mean((1, 2, 3))).abs().max() < 0.02
    assert (torch.nn.functional.avg_pool2d(large, 2).round() != small).float().mean() < 0.03


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ({"num_strokes": [0, 3]}, r"num_strokes=\[0, 3\]"),
        ({"length": [9, 3]}, r"length=\[9, 3\]"),
        ({"box_prob": 2}, "box_prob=2"),
        ({"max_share": 0}, "max_share=0"),
        ({"of_size": 100, "box_prob": 0.5}, "of_size=100 has no room"),
        ({"of_size": 0}, "of_size=0"),
    ],
)
def test_holes_that_cannot_be_drawn_are_refused(words: dict, problem: str) -> None:
    whole = {"of_size": 256, "num_strokes": [1, 5], "length": [10, 200], "width": [5, 100]}
    with pytest.raises(ValueError, match=problem):
        LamaHoles(seed=0, **{**whole, **words})
    LamaHoles(seed=0, **{**whole, "of_size": 100})  # without boxes it needs no room for them


def test_borders_leave_the_middle_and_touch_one_side_at_least() -> None:
    masks = Borders(seed=0).make(torch.zeros(1, 3, 16, 24).expand(400, -1, -1, -1), torch.arange(400))[:, 0]
    assert masks.shape == (400, 16, 24) and not masks[:, 6:10, 9:15].any()
    ends = torch.stack([masks[:, :, 0].all(1), masks[:, :, -1].all(1), masks[:, 0].all(1), masks[:, -1].all(1)], 1)
    counts = {tuple(sides.tolist()): 0 for sides in ends}
    assert len(counts) == 15 and (False,) * 4 not in counts
    assert torch.equal(masks[:, 8, 0] > 0, ends[:, 0]) and torch.equal(masks[:, 0, 12] > 0, ends[:, 2])
    for wrong in ({"max_share": 0.5}, {"min_share": 0.0}, {"min_share": 0.3, "max_share": 0.2}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Borders(0, **wrong)


# Objects


def png(array: np.ndarray, mode: str | None = None) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array, mode).save(file, "PNG")
    return file.getvalue()


def scene() -> np.ndarray:
    """Two parts of class 3 and one, larger, of class 5, on class 0, [32, 32]."""
    classes = np.zeros((32, 32), np.uint8)
    classes[2:6, 2:6] = classes[20:25, 3:8] = 3
    classes[10:20, 18:30] = 5
    return classes


SQUARE = picture((32, 32), 1, 32)


def test_a_hole_is_one_whole_object_and_a_little_more() -> None:
    field = ObjectHole(grow=0.0)
    value = field.read(png(scene()), SQUARE)
    largest = field.collate([value], [View()], 32)
    assert torch.equal(largest[0, 0], torch.from_numpy(scene() == 5).float()), "of validation"
    seen = {field.collate([value], [View(choice=choice)], 32).sum().item() for choice in (0.1, 0.5, 0.9)}
    assert seen == {120, 25, 16}
    grown = ObjectHole(grow=2 / 32).collate([value], [View()], 32)
    assert grown[0, 0, 8:22, 18:30].all() and grown.sum() < (14 * 16) and (grown >= largest).all()
    cropped = field.collate([value], [View(left=0.0, top=0.0, choice=0.9)], 8)
    assert cropped.shape == (1, 1, 8, 8) and cropped.sum() == 16, "only what is seen"
    assert not field.collate([value], [View(left=0.0, top=0.4)], 4).any(), "no object is seen"


def test_the_shape_of_an_object_may_lie_elsewhere() -> None:
    field = ObjectHole(grow=0.0, moved=True)
    value = field.read(png(scene()), SQUARE)
    holes = field.collate([value] * 20, [View(choice=0.1 + place / 1000) for place in range(20)], 32)
    assert (holes.sum((1, 2, 3)) == 120).all() and len({tuple(hole.flatten().tolist()) for hole in holes}) > 10
    others = [np.roll(value, by, 1) for by in range(8)]  # held-out pictures, whose choice is 0: not one place for all
    held_out = field.collate(others, [View()] * 8, 32)
    assert torch.equal(held_out, field.collate(others, [View()] * 8, 32))
    assert len({tuple(hole.flatten().tolist()) for hole in held_out}) > 4


def test_a_noisy_map_of_tens_of_thousands_of_parts_takes_no_more_memory_than_its_objects() -> None:
    noisy = np.random.default_rng(0).integers(0, 100, (512, 512)).astype(np.uint8)
    noisy[100:200, 100:200] = 7
    tracemalloc.start()
    hole = ObjectHole(grow=0.0).collate([noisy], [View()], 512)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert hole[0, 0, 100:200, 100:200].all() and hole.sum() < 11_000 and peak < 100e6


def test_opaque_pixels_are_objects_too_and_a_given_file_is_the_hole_itself() -> None:
    pixels = np.full((32, 32, 4), 90, np.uint8)
    pixels[..., 3] = np.where(scene() == 5, 255, 0)
    field = ObjectHole(extension=None, grow=0.0)
    assert field.collate([field.read(png(pixels), SQUARE)], [View()], 32).sum() == 120
    with pytest.raises(BadSample, match="nothing of it is transparent"):
        field.read(png(pixels[..., :3]), SQUARE)
    with pytest.raises(BadSample, match="background's classes"):
        ObjectHole().read(png(np.zeros((32, 32), np.uint8)), SQUARE)
    keys = FieldSet({}, {"mask": field})
    assert isinstance(keys.reader("mask"), Mask) and not keys.from_image and keys.reader("other") is None


# Files


def test_no_part_of_a_hole_is_lost_when_its_file_is_larger_than_the_image() -> None:
    thin = np.zeros((320, 320), np.uint8)
    thin[101] = 255  # between the rows that a nearest pixel would see
    nearest, whole = (Mask(touched=touched).read(png(thin), picture((320, 320), 1, 32)) for touched in (False, True))
    assert not nearest.any() and whole[10].all() and whole.sum() <= 64
    same = Mask(touched=True).read(png(scene() // 5 * 255), SQUARE)
    assert (same == (scene() == 5)).all(), "as it is where the sizes are the same"


def test_holes_and_objects_lie_beside_the_images_of_shards(tmp_path: Path) -> None:
    shards = [f"data.train={annotated_shard()}", f"data.validation={annotated_shard()}"]
    for chosen in (["data=masked_shards", "derived=[]"], ["derived=[masks]"], ["derived=[objects]"]):
        data = Parts(compose("config", tiny("ldm/inpainting", tmp_path, "first_stage=none", *chosen, *shards)))["data"]
        data.setup()
        batch = next(iter(data.statistics_loader(batch_size=4)))
        assert batch["mask"].shape == (4, 1, 32, 32) and set(batch["mask"].unique().tolist()) == {0, 1}
        lower = batch["mask"][:, :, 17:].any()
        assert lower == ("objects" in chosen[-1]), "holes of the toys end at half of the height"
    changed = data.with_fields({"mask": Borders(seed=0)})
    assert not torch.equal(next(iter(changed.statistics_loader(batch_size=4)))["mask"], batch["mask"])
    assert torch.equal(next(iter(data.statistics_loader(batch_size=4)))["mask"], batch["mask"])


# The sheet


def test_a_sheet_shows_several_answers_to_each_hole_and_keeps_what_is_known(tmp_path: Path) -> None:
    model = untrained_run(tmp_path / "run", "conditioner=[masked_image]", "derived=[lama]", "image_size=32")
    words = [f"model={model}", "num_samples=3", "num_answers=2", "batch_size=2", "device=cpu"]

    def sheet(*more: str) -> tuple[dict, Path]:
        asked = overriding([*words, *more])
        return holes_sheet(compose("holes_sheet", asked), asked)

    row, folder = sheet()
    assert row["known_off"] == 0 and row["lpips_alex_apart"] > 0.01 and 0 < row["hole"] < 1
    assert row["lpips_alex_low"] <= row["lpips_alex"] <= row["lpips_alex_high"] and "lpips_alex_mean_colour" in row
    picture = Image.open(folder / "sheet.png")
    assert picture.size == (4 * 34 + 2, 3 * 34 + 2), "a picture, its hole and two answers, three times"
    with (folder / "holes.csv").open() as file:
        assert next(csv.DictReader(file))["answers"] == "2"
    other, _ = sheet("derived=[borders]", "num_answers=1", f"out={tmp_path}/borders")
    assert other["hole"] != row["hole"] and "lpips_alex_apart" not in other
    gone, _ = sheet("derived=[objects]", f"data=[{annotated_shard()}]", f"out={tmp_path}/gone")
    assert 0.05 < gone["hole"] < 0.9 and gone["known_off"] == 0
    for wrong, problem in (
        ("num_answers=0", "num_answers=0"),
        ("num_samples=9999", "there are 506 pictures"),
        ("derived=[style]", "derived: run reads no style; it reads image, mask"),
        (f"model={untrained_run(tmp_path / 'label')}", "fills no holes"),
    ):
        with pytest.raises(ValueError, match=problem):
            sheet(wrong)
