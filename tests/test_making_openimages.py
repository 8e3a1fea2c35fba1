"""OpenImages' csv files of boxes become objects of numbered classes; COCO's rules of areas and counts are the same."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from photos import facts_of, left_out, picture, run
from PIL import ExifTags, Image

from ldm.data.fields import Layout
from ldm.data.making.openimages_classes import COCO, FOLDED
from ldm.data.module import ShardData
from ldm.data.user_error import UserError

HEADER = ("ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,"
          "IsInside")  # fmt: skip
NAMES = {"/m/1": "Tree", "/m/2": "Cat", "/m/3": "Woman", "/m/4": "Person", "/m/5": "Sombrero", "/m/6": "Fig"}
ROWS = [
    "a1,xclick,/m/2,1,0.1,0.5,0.2,0.8,1,1,0,1,0",
    "a1,xclick,/m/3,1,0.5,0.9,0.2,0.8,-1,-1,-1,-1,-1",
    "a1,xclick,/m/5,1,0.5,0.505,0.5,0.51,0,0,0,0,0",  # 5e-5 of the image
    "b2,xclick,/m/5,1,0,1,0,1,0,0,1,0,1",
    "b2,xclick,/m/5,1,0,0.5,0,1,0,0,0,0,0",
    "b2,xclick,/m/1,1,0,0.5,0,1,0,0,0,0,0",
    "c3,xclick,/m/6,1,0,0.5,0,1,0,0,0,0,0",
    "not-here,xclick,/m/1,1,0,0.5,0,1,0,0,0,0,0",
]


def openimages(folder: Path, rows: list[str] = ROWS, header: str = HEADER) -> dict[str, object]:
    """The words for a folder of images and the two files."""
    for seed, name in enumerate(("a1", "b2", "c3", "plain")):
        picture(folder / "images" / f"{name}.jpg", seed)
    (folder / "boxes.csv").write_text("\n".join([header, *rows]) + "\n")
    (folder / "names.csv").write_text("".join(f"{label},{name}\n" for label, name in NAMES.items()))
    return {"annotations": folder / "boxes.csv", "descriptions": folder / "names.csv", "validation": 0}


def test_the_recipe_of_ldm(tmp_path: Path) -> None:
    words = openimages(tmp_path) | {"classes": 1, "min_area": 1e-4, "min_objects": 2, "max_objects": 30}
    manifest = run(tmp_path / "images", tmp_path / "out", **words)
    assert manifest["class_names"] == ["Cat", "Person", "Sombrero"]  # the commonest, and COCO's, a woman being a person
    assert facts_of(tmp_path / "out") == {
        "a1.jpg": {
            "objects": [
                {"category": 0, "box": [0.1, 0.2, 0.5, 0.8], "occluded": True, "depiction": True},
                {"category": 1, "box": [0.5, 0.2, 0.9, 0.8]},
            ]
        },
        "b2.jpg": {
            "objects": [
                {"category": 2, "box": [0.0, 0.0, 1.0, 1.0], "group": True, "inside": True},
                {"category": 2, "box": [0.0, 0.0, 0.5, 1.0]},
            ]
        },
    }
    assert [note.split(";")[0] for note in manifest["notes"]] == [
        "1 images with boxes are not in the folder",
        "1 images of the folder have no boxes",
        "78 of COCO's classes are not named in descriptions=",
        "1 boxes are smaller than min_area=0.0001 of their image",
        "1 images have not 2 to 30 objects",
    ]
    data = ShardData(f"{tmp_path}/out/train-*.tar", 16, 2, fields={"layout": Layout(3, max_objects=4)})
    tokens = next(iter(data.statistics_loader(batch_size=2)))["layout"]
    assert {int(token) for row in tokens for token in row[:6:3]} == {0 + 3 * (2 + 4), 1, 2 + 3 * (1 + 8), 2}
    again = words | {"classes": tmp_path / "out" / "manifest.json", "min_objects": 0}
    of_same = run(tmp_path / "images", tmp_path / "again", **again)
    assert of_same["class_names"] == manifest["class_names"] and of_same["samples"] == 3
    everything = run(tmp_path / "images", tmp_path / "all", **{**words, "classes": "", "min_objects": 0})
    assert everything["class_names"] == list(NAMES.values())
    assert facts_of(tmp_path / "all")["a1.jpg"]["objects"][1]["category"] == 2  # a woman


def test_endings_in_capitals_are_endings_and_a_name_that_is_there_twice_is_noted(tmp_path: Path) -> None:
    words = openimages(tmp_path)
    (tmp_path / "images" / "a1.jpg").rename(tmp_path / "images" / "a1.JPG")
    picture(tmp_path / "images" / "b2.png", 9)
    manifest = run(tmp_path / "images", tmp_path / "out", **words)
    assert set(facts_of(tmp_path / "out")) == {"a1.JPG", "b2.png", "c3.jpg"}
    assert any("1 images have the name of another" in note and "'b2.jpg', beside 'b2.png'" in note
               for note in manifest["notes"])  # fmt: skip


def test_cocos_things_all_have_a_class_of_openimages() -> None:
    assert len(COCO) == len(set(COCO.values())) == 80
    assert set(FOLDED.values()) <= set(COCO.values()) and not set(FOLDED) & set(COCO.values())


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a1,x,/m/9,1,0,1,0,1,0,0,0,0,0", "line 10: '/m/9'"),
        ("a1,x,/m/2,1,0,wide,0,1,0,0,0,0,0", "line 10: .*wide"),
        ("a1,x,/m/2,1,0.5,0.2,0,1,0,0,0,0,0", "line 10: a box of 0.5, 0, 0.2, 1 is none"),
        ("a1,x,/m/2,1,0,nan,0,1,0,0,0,0,0", "line 10: a box of"),
        ("a1,x,/m/2,1,0,1,0,1,yes,0,0,0,0", "line 10: flags are 1, 0 or -1"),
    ],
)
def test_one_wrong_row_leaves_its_image_out_by_name(tmp_path: Path, row: str, reason: str) -> None:
    manifest = run(tmp_path / "images", tmp_path / "out", **openimages(tmp_path, [*ROWS, row]))
    assert left_out(manifest) == {"a1.jpg": "broken annotation"} and manifest["samples"] == 2
    assert re.search(reason, manifest["skipped"][0]["reason"])


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"header": HEADER.replace("XMin", "x")}, "no column XMin"),
        ({"rows": ["a1,x,/m/2"]}, "line 2 has 3 columns"),
        ({"rows": ["z9,x,/m/2,1,0,1,0,1,0,0,0,0,0"]}, "none of the 1 images that annotations="),
    ],
)
def test_files_of_another_form_are_one_clear_line(tmp_path: Path, changed: dict, reason: str) -> None:
    words = openimages(tmp_path, **changed)
    with pytest.raises(UserError, match=reason):
        run(tmp_path / "images", tmp_path / "out", **words)


def test_wrong_words_are_one_clear_line(tmp_path: Path) -> None:
    words = openimages(tmp_path)
    (tmp_path / "a.json").write_text('{"class_names": ["Unicorn"]}')
    for changed, reason in (
        ({"descriptions": ""}, "descriptions= is missing"),
        ({"descriptions": tmp_path / "gone.csv"}, "gone.csv: No such file"),
        ({"descriptions": tmp_path / "boxes.csv"}, "lines are a label and a name"),
        ({"classes": "many"}, "classes=many: No such file"),
        ({"classes": tmp_path / "names.csv"}, "no manifest with class_names"),
        ({"classes": tmp_path / "a.json"}, "Unicorn is no class of descriptions="),
        ({"min_objects": 3, "max_objects": 2}, "min_objects=3 is more than"),
        ({"min_area": 1}, "min_area=1 must be"),
        ({"annotations": f"{tmp_path}/boxes.csv,{tmp_path}/a.json"}, "not both"),
        ({"annotations": f"{tmp_path}/boxes.csv,{tmp_path}/./boxes.csv"}, "names .*boxes.csv twice"),
        ({"annotations": "", "descriptions": "", "min_objects": 2}, "min_objects= belongs to annotations="),
    ):
        with pytest.raises(UserError, match=reason):
            run(tmp_path / "images", tmp_path / "out", **{**words, **changed})


def test_a_picture_turned_by_exif_is_left_out_for_its_boxes_may_lie_either_way(tmp_path: Path) -> None:
    words = openimages(tmp_path)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "images" / "a1.jpg", exif=exif)
    manifest = run(tmp_path / "images", tmp_path / "out", **words)
    assert left_out(manifest) == {"a1.jpg": "boxes before or after the turn"} and manifest["samples"] == 2


def test_cocos_boxes_follow_the_same_rules(tmp_path: Path) -> None:
    images = [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in (1, 2)]
    boxes = [{"image_id": 1, "category_id": 3, "bbox": [0, 0, 20, side]} for side in (1, 15, 30)]
    boxes.append({"image_id": 2, "category_id": 3, "bbox": [0, 0, 20, 20]})
    for image in images:
        picture(tmp_path / "images" / image["file_name"], image["id"])
    content = {"images": images, "categories": [{"id": 3, "name": "car"}], "annotations": boxes}
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    words = {"annotations": tmp_path / "boxes.json", "validation": 0, "min_area": 0.1, "min_objects": 2}
    manifest = run(tmp_path / "images", tmp_path / "out", **words)
    found = facts_of(tmp_path / "out")
    assert list(found) == ["1.png"] and manifest["made_with"]["min_area"] == 0.1
    np.testing.assert_allclose([entry["box"][3] for entry in found["1.png"]["objects"]], [0.5, 1.0])
    assert [note.split(";")[0] for note in manifest["notes"]] == [
        "1 boxes are smaller than min_area=0.1 of their image",
        "1 images have not 2 or more objects",
    ]
    with pytest.raises(UserError, match="belong to annotations= of OpenImages"):
        run(tmp_path / "images", tmp_path / "other", **words, classes=300)
