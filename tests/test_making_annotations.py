"""COCO's annotations become objects and captions; an image with a wrong record is left out by name."""

import json
from pathlib import Path

import numpy as np
import pytest
from photos import facts_of, left_out, picture, run
from PIL import ExifTags, Image

from ldm.data.decoding import upright
from ldm.data.fields import Caption, Layout
from ldm.data.module import ShardData


def annotated(folder: Path) -> tuple[Path, Path]:
    """COCO's two files for three images."""
    for seed, name in enumerate(("1.png", "2.png", "3.png")):
        picture(folder / "images" / name, seed)
    images = [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in (1, 2, 3)]
    categories = [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}]
    boxes = [
        {"id": 5, "image_id": 1, "category_id": 18, "bbox": [10, 0, 20, 15], "iscrowd": 0},
        {"id": 6, "image_id": 1, "category_id": 3, "bbox": [30, 15, 20, 30], "iscrowd": 1},
        {"id": 7, "image_id": 2, "category_id": 3, "bbox": [0, 0, 0, 10]},
    ]
    texts = [{"id": 9, "image_id": 1, "caption": "second"}, {"id": 8, "image_id": 1, "caption": " first\n"},
             {"id": 10, "image_id": 3, "caption": "third"}]  # fmt: skip
    files = folder / "instances.json", folder / "captions.json"
    files[0].write_text(json.dumps({"images": images, "categories": categories, "annotations": boxes}))
    files[1].write_text(json.dumps({"images": images, "annotations": texts}))
    return files


def test_annotations_become_objects_and_captions(tmp_path: Path) -> None:
    instances, captions = annotated(tmp_path)
    options = {"annotations": f"{instances},{captions}", "validation": 0}
    manifest = run(tmp_path / "images", tmp_path / "shards", **options)
    assert manifest["class_names"] == ["car", "dog"]
    assert [(row["name"], row["kind"]) for row in manifest["skipped"]] == [("2.png", "missing caption")]
    found = facts_of(tmp_path / "shards")
    assert found["1.png"]["caption"] == ["first", "second"]
    assert found["1.png"]["objects"] == [
        {"category": 1, "box": [0.25, 0.0, 0.75, 0.5]},
        {"category": 0, "box": [0.75, 0.5, 1.0, 1.0], "group": True},
    ]
    assert found["3.png"]["objects"] == []
    fields = {"layout": Layout(num_classes=2), "caption": Caption()}
    data = ShardData(f"{tmp_path}/shards/train-*.tar", image_size=16, batch_size=2, fields=fields)
    assert next(iter(data.train_loader()))["layout"].shape == (2, 92) and data.skipped == []


def test_sizes_are_those_of_any_file_and_the_same_in_all(tmp_path: Path) -> None:
    instances, captions = annotated(tmp_path)
    content = json.loads(captions.read_text())
    for size in ({}, {"width": None, "height": None}, {"width": 80, "height": 60}):
        content["images"] = [{"id": i, "file_name": f"{i}.png", **size} for i in (1, 3)]
        captions.write_text(json.dumps(content))
        for order in (f"{captions},{instances}", f"{instances},{captions}"):
            out = tmp_path / f"{len(size)}-{size.get('width')}-{order[-7:]}"
            manifest = run(tmp_path / "images", out, annotations=order, validation=0)
            reasons = [row["reason"] for row in manifest["skipped"] if row["name"] == "1.png"]
            if size.get("width"):
                assert len(reasons) == 1 and "image 1: its height is " in reasons[0]
            else:
                assert not reasons and facts_of(out)["1.png"]["objects"][0]["box"] == [0.25, 0.0, 0.75, 0.5]
            assert "3.png" in facts_of(out), "without a box, its size says nothing"


def test_objects_alone_need_no_captions(tmp_path: Path) -> None:
    instances, _ = annotated(tmp_path)
    assert run(tmp_path / "images", tmp_path / "shards", annotations=instances)["samples"] == 3


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"images": []}, "lists no images"),
        ({"annotations": None}, "not of COCO's form"),
        ({"categories": [{"id": 3, "name": None}]}, "name None no text"),
        ({"categories": [{"id": True, "name": "x"}]}, "id True is no number"),
    ],
)
def test_annotations_of_another_form_are_one_clear_line(tmp_path: Path, change: dict, reason: str) -> None:
    instances, _ = annotated(tmp_path)
    instances.write_text(json.dumps({**json.loads(instances.read_text()), **change}))
    with pytest.raises(ValueError, match=f"annotation.*{reason}"):
        run(tmp_path / "images", tmp_path / "shards", annotations=instances)


# -- single records ------------------------------------------------------------------------------------------------

KNOWN = [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in (1, 2, 3)]
GOOD = [{"id": i, "image_id": i, "category_id": 3, "bbox": [0, 0, 20, 15]} for i in (1, 3)]


def coco(folder: Path, records: list, images: list = KNOWN, categories: tuple = ({"id": 3, "name": "car"},)) -> str:
    """An annotation file for three images."""
    for seed, name in enumerate(("1.png", "2.png", "3.png")):
        picture(folder / "images" / name, seed)
    content = {"images": images, "categories": categories, "annotations": records}
    (folder / "boxes.json").write_text(json.dumps(content))
    return str(folder / "boxes.json")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"bbox": [0, 0, 1, 1]}, "category_id None is not among"),
        ({"category_id": 99, "bbox": [0, 0, 1, 1]}, "category_id 99 is not among"),
        ({"category_id": [3], "bbox": [0, 0, 1, 1]}, "is not among"),
        ({"category_id": 3, "segmentation": [[1, 2, 3, 4]]}, "bbox None"),
        ({"category_id": 3, "bbox": [0, 0, 1]}, "bbox"),
        ({"category_id": 3, "bbox": ["0", "0", "5", "5"]}, "bbox"),
        ({"category_id": 3, "bbox": [float("nan"), 0, 5, 5]}, "bbox"),
        ({"category_id": 3, "bbox": [1e300, 0, 1e300, 5]}, "bbox"),
        ({"category_id": 3, "bbox": [0, 0, 5, 5], "iscrowd": "0"}, "iscrowd '0' is neither 0 nor 1"),
        ({"caption": None}, "its caption is no text"),
        ({"caption": "\ud800"}, "its caption is no text"),
    ],
)
def test_one_wrong_record_leaves_its_image_out_by_name(tmp_path: Path, record: dict, reason: str) -> None:
    file = coco(tmp_path, [*GOOD, {"id": 2, "image_id": 2, **record}])
    manifest = run(tmp_path / "images", tmp_path / "shards", annotations=file, validation=0)
    (row,) = manifest["skipped"]
    assert (row["name"], row["kind"]) == ("2.png", "broken annotation")
    assert row["reason"].startswith("boxes.json: annotation 2: ") and reason in row["reason"]
    assert set(facts_of(tmp_path / "shards")) == {"1.png", "3.png"}


def test_images_that_the_records_describe_wrongly_are_left_out_by_name(tmp_path: Path) -> None:
    one, two, three = KNOWN
    images = [one, {**two, "width": 0}, three, {"id": 4}, 7, {**three, "id": 6}]
    images.append({**one, "id": 5, "file_name": "../1.png"})
    (tmp_path / "1.png").touch()
    records = [*GOOD, {"id": 2, "image_id": 2, "category_id": 3, "bbox": [0, 0, 5, 5]}, 8]
    manifest = run(tmp_path / "images", tmp_path / "shards", annotations=coco(tmp_path, records, images))
    assert left_out(manifest) == {
        "2.png": "broken annotation",
        "3.png": "broken annotation",  # two records of one file: which boxes are its own?
        "../1.png": "outside images=",
        "boxes.json: image 4": "broken annotation",
        "boxes.json: image at place 4": "broken annotation",
        "boxes.json: annotation at place 3": "broken annotation",
    }


def test_boxes_are_never_dropped_in_silence(tmp_path: Path) -> None:
    flat = {"id": 7, "image_id": 1, "category_id": 3, "bbox": [40, 0, 5, 5]}
    stray = {"id": 8, "image_id": 99, "category_id": 3, "bbox": [0, 0, 5, 5]}
    file = coco(tmp_path, [*GOOD, flat, stray])
    manifest = run(tmp_path / "images", tmp_path / "shards", annotations=file, validation=0)
    assert manifest["notes"] == [
        "1 annotations are of images that no file lists; the first: boxes.json: annotation 8",
        "1 boxes have no area inside their image; left out; the first: boxes.json: annotation 7",
    ]
    file = coco(tmp_path, GOOD, KNOWN[::2], categories=())
    with pytest.raises(
        ValueError, match=r"none of the 2 .*1.png: boxes.json: annotation 1: .*boxes.json: annotation 3"
    ):
        run(tmp_path / "images", tmp_path / "none", annotations=file)


# -- turned pictures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("drawn", ["before the turn", "after the turn", "on another picture"])
def test_boxes_lie_where_the_upright_picture_has_them(tmp_path: Path, orientation: int, drawn: str) -> None:
    pixels = np.zeros((30, 40, 3), np.uint8)
    pixels[3:9, 5:25] = 255
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images" / "a.png", exif=exif)
    seen = upright(pixels, orientation)[..., 0] > 0
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    inside = [int(columns[0]), int(rows[0]), len(columns), len(rows)]
    shape, bbox = {
        "before the turn": ((40, 30), [5, 3, 20, 6]),
        "after the turn": (seen.shape[::-1], inside),
        "on another picture": ((40, 80), [5, 3, 20, 6]),
    }[drawn]
    image = {"id": 1, "file_name": "a.png", "width": shape[0], "height": shape[1]}
    boxes = [{"id": 1, "image_id": 1, "category_id": 3, "bbox": bbox}]
    categories = [{"id": 3, "name": "car"}]
    file = tmp_path / "boxes.json"
    file.write_text(json.dumps({"images": [image], "annotations": boxes, "categories": categories}))
    if drawn == "on another picture" or orientation in (2, 3, 4):  # there the two rasters have one shape
        with pytest.raises(ValueError, match=r"boxes of another shape|boxes before or after the turn"):
            run(tmp_path / "images", tmp_path / "shards", annotations=file)
        return
    left, top, across, down = inside
    height, width = seen.shape
    expected = [left / width, top / height, (left + across) / width, (top + down) / height]
    for size in (0, 10):
        run(tmp_path / "images", tmp_path / f"shards{size}", annotations=file, size=size)
        facts = facts_of(tmp_path / f"shards{size}")["a.png"]
        assert facts["objects"][0]["box"] == pytest.approx(expected, abs=1e-5)
        told = orientation != 1 and size == 0  # to whoever reads the file, which is turned by its EXIF
        assert (facts.get("width"), facts.get("height")) == ((width, height) if told else (None, None))


def test_one_file_or_picture_described_twice_is_refused_however_it_is_spelt(tmp_path: Path) -> None:
    file = coco(tmp_path, GOOD)
    (tmp_path / "link.json").symlink_to(file)
    with pytest.raises(ValueError, match=r"annotations= names .*boxes\.json twice"):
        run(tmp_path / "images", tmp_path / "shards", annotations=f"{file},{tmp_path}/link.json")
    again = {**KNOWN[0], "id": 9, "file_name": "./1.png"}
    file = coco(tmp_path, GOOD, [*KNOWN, again])
    manifest = run(tmp_path / "images", tmp_path / "shards", annotations=file)
    assert left_out(manifest) == {"1.png": "broken annotation"} and manifest["samples"] == 2


@pytest.mark.parametrize("size", [0, 16])
def test_boxes_turn_with_what_a_png_says_behind_its_pixels(tmp_path: Path, size: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    file = coco(tmp_path, [{**GOOD[0], "bbox": [0, 0, 20, 10]}], KNOWN[:1])
    Image.new("RGB", (40, 30)).save(tmp_path / "images" / "1.png", exif=exif)
    content = (tmp_path / "images" / "1.png").read_bytes()
    start = content.index(b"eXIf") - 4
    stop = start + 12 + int.from_bytes(content[start : start + 4], "big")
    late = content[:start] + content[stop:-12] + content[start:stop] + content[-12:]
    (tmp_path / "images" / "1.png").write_bytes(late)
    run(tmp_path / "images", tmp_path / "shards", annotations=file, size=size)
    facts = facts_of(tmp_path / "shards")["1.png"]
    assert facts["objects"][0]["box"] == [0.666667, 0.0, 1.0, 0.5]
    assert size or (facts["width"], facts["height"]) == (30, 40)
