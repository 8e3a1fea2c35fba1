"""Fields read one member each and say what they yield; what they cannot use is a named bad sample."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.data import counter_random as draws
from ldm.data.errors import BadSample
from ldm.data.fields import Caption, Derived, Embeddings, Field, Label, Layout, Mask, Picture, SemanticMap
from ldm.data.fields import layout as layout_module
from ldm.data.fields.field_set import FieldSet
from ldm.data.fields.holes import Holes, _inner
from ldm.data.fields.low_resolution import LowResolution
from ldm.data.fields.window import Window
from ldm.data.rasters import picture
from ldm.data.transforms import Augmentation, View
from ldm.diffusion.counter_random import uniform
from scripts import map_classes

SIZE = picture((8, 8), 1, 8)
WIDE = picture((16, 8), 1, 8)


def as_json(**entries: object) -> bytes:
    return json.dumps(entries).encode()


def collate(field: Field, value: object, view: View = View()) -> object:  # noqa: B008
    return field.collate([value], [view], 8)


def test_captions_come_from_json_or_text() -> None:
    assert collate(Caption(), Caption().read(as_json(caption=" red heart\n"), SIZE)) == ["red heart"]
    text = Caption(key=None, extension="txt")
    assert collate(text, text.read("\u00e9t\u00e9".encode(), SIZE)) == ["\u00e9t\u00e9"]


def test_a_choice_of_captions_and_prefixes_is_drawn_evenly_by_number() -> None:
    field = Caption(key="names", prefixes=["", "a picture of "])
    value = field.read(as_json(names=["key", "old key"]), SIZE)
    views = Augmentation(seed=0, horizontal_flip_prob=0, random_crop=False).views(np.arange(800))
    texts = field.collate([value] * 800, views, 8)
    counts = {text: texts.count(text) for text in set(texts)}
    assert set(counts) == {"key", "old key", "a picture of key", "a picture of old key"}
    assert all(150 < count < 250 for count in counts.values())
    assert texts == field.collate([value] * 800, views, 8)
    assert collate(field, value) == ["key"]  # unaugmented: the first of each


def test_a_caption_goes_on_with_other_entries_by_chance() -> None:
    field = Caption(suffixes=["", "", " in {style} style"], prefixes=["", "a "])
    values = [field.read(as_json(caption="key", style=style), SIZE) for style in ("noto", "twemoji")]
    assert field.num_choices(values[0]) == 6 and collate(field, values[0]) == ["key"]  # unaugmented: the first of each
    views = Augmentation(seed=0, horizontal_flip_prob=0, random_crop=False).views(np.arange(1200))
    texts = field.collate([values[0]] * 1200, views, 8)
    assert texts == [field.collate([values[0]], [view], 8)[0] for view in views]  # by number alone
    assert set(texts) == {"key", "a key", "key in noto style", "a key in noto style"}
    assert 350 < sum(text.endswith(" in noto style") for text in texts) < 450  # one in three
    assert "key in twemoji style" in field.collate([values[1]] * 1200, views, 8)


def test_suffixes_change_nothing_where_there_are_none() -> None:
    views = Augmentation(seed=0, horizontal_flip_prob=0, random_crop=False).views(np.arange(100))
    content = as_json(caption=["key", "old {key}"], style="noto")
    plain, one = Caption(prefixes=["", "a "]), Caption(prefixes=["", "a "], suffixes=[" {style}"])
    texts = plain.collate([plain.read(content, SIZE)] * 100, views, 8)
    assert one.collate([one.read(content, SIZE)] * 100, views, 8) == [f"{text} noto" for text in texts]


@pytest.mark.parametrize("style", [None, 3, "", "no\0to"])
def test_a_suffix_needs_its_entry(style: object) -> None:
    with pytest.raises(BadSample, match=r"style|caption"):
        Caption(suffixes=[" in {style} style"]).read(as_json(caption="key", style=style), SIZE)


def test_suffixes_that_cannot_be_filled_are_refused() -> None:
    with pytest.raises(ValueError, match="suffixes"):
        Caption(suffixes=[])
    with pytest.raises(ValueError, match="suffixes"):
        Caption(key=None, extension="txt", suffixes=[" in {style} style"])


def test_long_captions_are_cut() -> None:
    assert collate(Caption(max_chars=5), Caption(max_chars=5).read(as_json(caption="x" * 100_000), SIZE)) == ["xxxxx"]
    with pytest.raises(ValueError, match="max_chars=0: would leave nothing of any caption"):
        Caption(max_chars=0)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (as_json(other="x"), "missing caption"),
        (as_json(caption=None), "missing caption"),
        (as_json(caption="  "), "missing caption"),
        (as_json(caption=7), "missing caption"),
        (b"[1, 2]", "missing caption"),
        (b"{cut", "broken json"),
        (b"[" * 100_000, "broken json"),
        (b"\xff\xfe", "not utf-8"),
    ],
)
def test_unusable_captions_are_named(content: bytes, kind: str) -> None:
    with pytest.raises(BadSample) as caught:
        Caption().read(content, SIZE)
    assert caught.value.kind == kind


def test_labels_come_from_json_or_cls() -> None:
    plain = Label(key=None, extension="cls")
    values = [Label().read(as_json(label=3), SIZE), plain.read(b"12\n", SIZE)]
    labels = Label().collate(values, [View()] * 2, 8)
    assert labels.tolist() == [3, 12] and labels.dtype == torch.int64


@pytest.mark.parametrize("value", [-1, 1.5, True, "3", None, 2**40])
def test_labels_are_class_numbers(value: object) -> None:
    with pytest.raises(BadSample, match=r"class number|no .label."):
        Label().read(as_json(label=value), SIZE)
    with pytest.raises(BadSample, match="class number"):
        Label(key=None, extension="cls").read(b"cat", SIZE)


def test_a_mask_moves_with_its_image() -> None:
    pixels = np.zeros((16, 32), dtype=np.uint8)
    pixels[:, :8] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).convert("1").save(file, "PNG")
    value = Mask().read(file.getvalue(), WIDE)
    left = collate(Mask(), value, View(left=0.0))
    assert isinstance(left, torch.Tensor) and left.shape == (1, 1, 8, 8) and left.dtype == torch.float32
    assert left[..., :4].eq(1).all() and left[..., 4:].eq(0).all()
    assert collate(Mask(), value, View(left=0.0, flip=True)).equal(left.flip(-1))
    assert collate(Mask(), value, View(left=0.999)).sum() == 0


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    return buffer.getvalue()


def test_a_semantic_map_is_cut_like_the_image() -> None:
    classes = np.arange(64, dtype=np.uint8).reshape(8, 8)
    field = SemanticMap()
    value = field.read(png(classes), SIZE)
    assert torch.equal(collate(field, value), torch.from_numpy(classes).long()[None])
    flipped = field.collate([value], [View(top=0.99, left=0, flip=True)], 4)
    assert torch.equal(flipped[0], torch.from_numpy(classes[4:, 3::-1].copy()).long())


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def test_embeddings_are_filled_up_and_never_unpickled() -> None:
    field, tokens = Embeddings(num_tokens=3), np.ones((2, 4), np.float16)
    found = collate(field, field.read(npy(tokens), SIZE))
    assert found.dtype == torch.float32 and found.tolist() == [[[1] * 4, [1] * 4, [0] * 4]]
    for broken in (
        b"",
        npy(np.ones((4, 4))),
        npy(np.ones(3)),
        npy(np.array([{}], dtype=object)),
        npy(np.ones((2, 2), int)),
    ):
        with pytest.raises(BadSample):
            field.read(broken, SIZE)


LAYOUT = Layout(num_classes=10, vocabulary=170, max_objects=2)  # a grid of 13 a side, none is 169


def test_objects_become_their_class_and_the_places_of_their_corners() -> None:
    objects = [{"category": 3, "box": [0.25, 0, 0.5, 1]}, {"category": 9, "box": [0, 0, 1, 0.5], "occluded": True}]
    value = LAYOUT.read(as_json(objects=objects), SIZE)
    tokens = collate(LAYOUT, value)[0].tolist()
    assert tokens == [3, 3, 12 * 13 + 6, 9 + 10 * 2, 0, 6 * 13 + 12, 0, 168]
    flipped = LAYOUT.collate([value], [View(flip=True)], 8)[0].tolist()
    assert flipped == [3, 6, 12 * 13 + 9, 29, 0, 6 * 13 + 12, 0, 168]
    one = LAYOUT.read(as_json(objects=objects[:1]), SIZE)
    assert collate(LAYOUT, one)[0].tolist()[3:6] == [169] * 3


def test_a_crop_leaves_out_what_it_does_not_show_and_says_where_it_lies() -> None:
    objects = [{"category": 1, "box": [0, 0, 0.4, 1]}, {"category": 2, "box": [0.6, 0, 1, 1]}]
    value = LAYOUT.read(as_json(objects=objects), WIDE)
    right = LAYOUT.collate([value], [View(left=0.999)], 8)[0].tolist()
    assert right[0] == 2 and right[3] == 169
    assert right[6:] == [6, 168]


def test_the_first_objects_are_taken_and_then_what_is_outside_or_without_area_is_left_out() -> None:
    whole = [0, 0, 1, 1]
    boxes = {
        1: [0, 0, 0.4, 1],
        2: whole,
        3: [0.6, 0, 1, 1],
    }
    value = LAYOUT.read(as_json(objects=[{"category": c, "box": box} for c, box in boxes.items()]), WIDE)
    right = LAYOUT.collate([value], [View(left=0.999)], 8)[0].tolist()
    assert right[:6:3] == [2, 169]  # the first lies outside, the third is not looked at
    flat = [{"category": 1, "box": [0.5, 0, 0.5, 1]}, {"category": 2, "box": whole}]
    assert collate(LAYOUT, LAYOUT.read(as_json(objects=flat), SIZE))[0].tolist()[:6:3] == [2, 169]


def test_objects_come_in_an_order_drawn_by_the_view() -> None:
    objects = [{"category": c, "box": [0, 0, 1, 1]} for c in range(6)]
    value = LAYOUT.read(as_json(objects=objects), SIZE)
    views = Augmentation(seed=0, horizontal_flip_prob=0, random_crop=False).views(np.arange(300))
    first = LAYOUT.collate([value] * 300, views, 8)[:, 0]
    assert first.bincount(minlength=6).tolist()[2:] == [0] * 4 and first.bincount()[:2].min() > 100
    assert torch.equal(first, LAYOUT.collate([value] * 300, views, 8)[:, 0])


@pytest.mark.parametrize(
    "objects",
    [[{"category": 10, "box": [0, 0, 1, 1]}], [{"category": 1}], [{"category": 1, "box": [0.5, 0, 0.2, 1]}], [3], "x"],
)
def test_broken_objects_are_bad_samples(objects: object) -> None:
    with pytest.raises(BadSample, match="objects"):
        LAYOUT.read(as_json(objects=objects), SIZE)


def test_objects_of_another_data_set_become_the_models_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(num_classes=10, vocabulary=170, max_objects=3, classes=[7, None, 2])
    objects = [{"category": c, "box": [0, 0, 1, 1], "group": c == 2} for c in (0, 1, 2)]
    assert collate(layout, layout.read(as_json(objects=objects), SIZE))[0].tolist()[:9:3] == [7, 2 + 10, 169]
    with pytest.raises(BadSample, match=r"category 3 is not in 0\.\.2"):
        layout.read(as_json(objects=[{"category": 3, "box": [0, 0, 1, 1]}]), SIZE)
    said: list[list[str]] = []
    with monkeypatch.context() as patch:
        patch.setattr(layout_module, "draw_boxes", lambda picture, boxes, words, kinds: said.append(words))
        value = layout.read(as_json(objects=objects), SIZE)
        layout.drawing(value, ["person", "tv", "cat", "dog", "cup", "car", "bus", "tree"])(None)
    assert said == [["person", "cat"]], "names of the shards' own classes"
    assert layout.unmeant(value) is None and "all 1 are of classes" in layout.unmeant(
        layout.read(as_json(objects=objects[1:2]), SIZE)
    )
    with pytest.raises(ValueError, match=r"classes: 10 .*num_classes=10"):
        Layout(num_classes=10, vocabulary=170, classes=[10])


def test_classes_are_mapped_by_the_names_in_the_manifests(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    names = {
        "coco": ["person", "tv", "spork", "hot dog"],
        "open": ["Television", "Hot dog", "Cat", "Person"],
        "none": [],
    }
    for folder, own in names.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train-0.tar").touch()
        (tmp_path / folder / "manifest.json").write_text(json.dumps({"class_names": own}))
    words = [f"from={tmp_path}/coco", f"to={tmp_path}/open"]
    assert map_classes.main(words) == 0
    said = capsys.readouterr()
    assert said.out == "data.fields.layout.classes=[3,0,null,1]\n" and said.err.endswith(": spork\n")
    for given, problem in (
        (words[:1], "to=: is missing"),
        ([words[0], f"to={tmp_path}/gone"], "no such folder"),
        ([words[0], f"to={tmp_path}/none"], "class_names"),
        ([words[0], "to=~nobody-of-that-name/x"], "to=~nobody-of-that-name/x: "),
        ([*words, "x=1"], "x: is none of"),
        ([*words, words[1]], "to is given 2 times"),
    ):
        with pytest.raises(ValueError, match=problem):
            map_classes.main(given)
    (tmp_path / "none" / "manifest.json").write_text(json.dumps({"class_names": ["x"]}))
    with pytest.raises(ValueError, match="has none of the classes"):
        map_classes.main([words[0], f"to={tmp_path}/none"])


def test_a_vocabulary_too_small_for_the_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="num_classes=600"):
        Layout(num_classes=600)


@pytest.mark.parametrize("array", [np.full((2, 4), np.nan, np.float32), np.full((2, 4), 1e300)])
def test_embeddings_that_are_not_finite_are_bad_samples(array: np.ndarray) -> None:
    with pytest.raises(BadSample, match="not finite, or too large"):
        Embeddings(3).read(npy(array), None)


def test_embeddings_of_different_widths_are_named() -> None:
    values = [Embeddings(3).read(npy(np.ones((2, width), np.float16)), None) for width in (4, 5)]
    with pytest.raises(ValueError, match=r"embeddings \(.npy\) of different widths in one data set: \[4, 5\]"):
        Embeddings(3).collate(values, [View()] * 2, 8)


@pytest.mark.parametrize(("text", "kind"), [("\ufeff\u200b", "missing caption"), ("a\0b", "not utf-8")])
def test_a_caption_has_letters_and_no_zero_bytes(text: str, kind: str) -> None:
    with pytest.raises(BadSample) as found:
        Caption().read(as_json(caption=text), None)
    assert found.value.kind == kind


# Pictures, and what is made of them


def test_a_picture_is_read_again_at_its_own_size_and_moves_with_the_image() -> None:
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None] * 4, (32, 64, 3))
    field = Picture(size=16)
    value = field.read(png(np.ascontiguousarray(ramp)), picture((64, 32), 1, 8))
    assert value.values.shape == (16, 32, 3)
    left, right = (field.collate([value], [View(left=place)], 8) for place in (0.0, 0.999))
    assert left.shape == (1, 3, 16, 16) and left.min() >= -1 and right.mean() > left.mean() + 0.5
    assert torch.equal(field.collate([value], [View(left=0.0, flip=True)], 8), left.flip(-1))
    assert torch.equal(field.collate([value], [View(left=0.0, share=0.5)], 8), left), "the largest square all the same"
    small = Picture(factor=4)
    assert small.collate([small.read(png(np.ascontiguousarray(ramp)), WIDE)], [View()], 8).shape == (1, 3, 2, 2)
    for wrong in ({"size": 0}, {"factor": 0}, {"size": 8, "factor": 2}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Picture(**wrong)


@pytest.mark.parametrize(("width", "left"), [(33, 0.9), (44, 0.5), (48, 0.9), (64, 0.3)])
def test_a_small_picture_shows_the_image_s_window(width: int, left: float) -> None:
    ramp = np.broadcast_to((np.arange(width) * 4).astype(np.uint8)[None, :, None], (32, width, 3)).copy()
    small = np.asarray(Image.fromarray(ramp).resize((round(width / 4), 8), Image.Resampling.BICUBIC))
    field, view = Picture(factor=4), View(left=left)
    shown = field.collate([field.read(png(small), picture((width, 32), 1, 32))], [view], 32)
    window = Image.fromarray(np.ascontiguousarray(view.crop(ramp, 32))).resize((8, 8), Image.Resampling.BICUBIC)
    expected = torch.tensor(np.asarray(window)).permute(2, 0, 1)[None] / 127.5 - 1
    assert (shown - expected)[..., 2:6].abs().max() < 0.1 * 16 / 127.5, "of a small pixel"
    flipped = field.collate([field.read(png(small), picture((width, 32), 1, 32))], [replace(view, flip=True)], 32)
    assert torch.equal(flipped, shown.flip(-1))
    whole = field.collate([field.read(png(small), picture((width, 32), 1, 32))], [View(left=0.0)], 32)
    assert width % 4 or torch.equal(whole[0, 0, 0], torch.tensor(small[0, :8, 0]) / 127.5 - 1), "pixels as they are"


WINDOWS = torch.rand(6, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("field", [LowResolution(4), Holes(seed=0), Window()], ids=lambda field: type(field).__name__)
def test_what_is_derived_depends_on_the_sample_s_own_window_and_number(field: Derived) -> None:
    numbers, kept = torch.tensor([5, 0, 2**40, 7, 7, 1]), WINDOWS.clone()
    together = field.make(WINDOWS, numbers)
    assert torch.equal(WINDOWS, kept)
    for place in range(6):
        assert torch.equal(field.make(WINDOWS[place : place + 1], numbers[place : place + 1]), together[place][None])


def test_low_resolution_is_reduced_as_pillow_does() -> None:
    low = LowResolution(4).make(WINDOWS, torch.arange(6))
    assert low.shape == (6, 3, 4, 6)
    expected = np.asarray(Image.fromarray(WINDOWS[0, 0].numpy()).resize((6, 4), Image.Resampling.BICUBIC))
    np.testing.assert_allclose(low[0, 0].numpy(), expected.clip(-1, 1), atol=1e-5)
    with pytest.raises(ValueError, match=r"16x24: .*factor=5"):
        LowResolution(5).make(WINDOWS, torch.arange(6))


def test_holes_are_drawn_by_seed_and_number() -> None:
    numbers = torch.arange(500)
    shown = torch.zeros(500, 3, 16, 24)
    masks = Holes(seed=0).make(shown, numbers)
    assert masks.shape == (500, 1, 16, 24) and set(masks.unique().tolist()) == {0, 1}
    assert not torch.equal(masks, Holes(seed=1).make(shown, numbers))
    covered = masks.mean((1, 2, 3))
    assert covered.min() > 0 and covered.max() < 1 and 0.1 < covered.mean() < 0.5


def test_holes_are_those_that_the_conditioner_once_drew() -> None:
    numbers = torch.tensor([0, 3, 2**33, 12345678])
    found = _inner(draws.uniform(7, "hole", numbers.numpy(), 17))
    assert torch.equal(torch.from_numpy(found), uniform(7, "hole", numbers, 17))


def test_a_key_of_the_batch_has_one_field() -> None:
    with pytest.raises(ValueError, match=r"derived\.mask: data\.fields gives it already"):
        FieldSet({"mask": Mask()}, {"mask": Holes(seed=0)})
    with pytest.raises(ValueError, match=r"data\.fields may not have 'image'"):
        FieldSet({"image": Mask()}, {}, reserved=["image"])
