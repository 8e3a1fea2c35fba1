"""Fields read one member each and say what they yield; what they cannot use is a named bad sample."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from data.errors import BadSample
from data.fields import Caption, Field, Label, Mask
from data.transforms import Augmentation, View

SIZE = (8, 8)


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


def test_long_captions_are_cut() -> None:
    assert collate(Caption(max_chars=5), Caption(max_chars=5).read(as_json(caption="x" * 100_000), SIZE)) == ["xxxxx"]


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
    value = Mask().read(file.getvalue(), (16, 8))
    left = collate(Mask(), value, View(left=0.0))
    assert isinstance(left, torch.Tensor) and left.shape == (1, 1, 8, 8) and left.dtype == torch.float32
    assert left[..., :4].eq(1).all() and left[..., 4:].eq(0).all()
    assert collate(Mask(), value, View(left=0.0, flip=True)).equal(left.flip(-1))
    assert collate(Mask(), value, View(left=0.999)).sum() == 0
