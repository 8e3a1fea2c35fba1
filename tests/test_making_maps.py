"""Maps of classes become members of their images as class numbers; one that does not fit leaves its image out."""

from pathlib import Path

import numpy as np
import pytest
from photos import left_out, picture, run
from PIL import ExifTags, Image

from ldm.data.fields import SemanticMap
from ldm.data.module import ShardData
from ldm.data.user_error import UserError

NUMBERS = np.kron(np.array([[0, 1, 2, 7], [2, 2, 1, 0], [5, 0, 255, 1]], np.uint8), np.ones((10, 10), np.uint8))


def paired(folder: Path, values: np.ndarray = NUMBERS, mode: str = "P", names: tuple[str, ...] = ("a", "c")) -> Path:
    """Images of 40x30 px in images/, and their maps in maps/."""
    for seed, name in enumerate(names):
        picture(folder / "images" / f"{name}.jpg", seed)
        path = folder / "maps" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(values)
        if mode == "P":
            image.putpalette([value for number in range(256) for value in (255 - number, number * 7 % 256, 90)])
        (image if mode in ("P", image.mode) else image.convert(mode)).save(path)
    return folder / "images"


def maps_of(out: Path, size: int) -> np.ndarray:
    data = ShardData(f"{out}/train-*.tar", size, 2, fields={"segmentation": SemanticMap()})
    [batch] = list(data.statistics_loader(batch_size=2))
    return batch["segmentation"].numpy()


@pytest.mark.parametrize("mode", ["P", "L"])
@pytest.mark.parametrize("size", [0, 15])
def test_palettes_and_grey_are_kept_as_class_numbers(tmp_path: Path, mode: str, size: int) -> None:
    options = {"maps": tmp_path / "maps", "num_classes": 8, "unlabelled": 255, "validation": 0, "size": size}
    manifest = run(paired(tmp_path, mode=mode), tmp_path / "out", **options)
    assert manifest["samples"] == 2 and manifest["fields"]["segmentation.png"] == 2
    assert manifest["made_with"]["num_classes"] == 8 and manifest["made_with"]["unlabelled"] == 255
    expected = np.where(NUMBERS == 255, 8, NUMBERS)[:, 5:35]  # the middle of 40 px
    found = maps_of(tmp_path / "out", size or 30)
    assert (found == (expected if not size else expected[1::2, 1::2])[None]).mean() > 0.95
    assert set(np.unique(found)) == set(np.unique(expected))
    assert run(tmp_path / "images", tmp_path / "out", **options) == manifest
    with pytest.raises(UserError, match="num_classes=8"):
        run(tmp_path / "images", tmp_path / "out", **{**options, "num_classes": 9})


def test_a_map_as_it_is_keeps_its_bytes(tmp_path: Path) -> None:
    source = paired(tmp_path, np.minimum(NUMBERS, 7))
    for name in ("images/a.jpg", "maps/a.png"):  # in a folder, as Cityscapes has one for each city
        (tmp_path / name).parent.joinpath("bonn").mkdir()
        (tmp_path / name).rename((tmp_path / name).parent / "bonn" / Path(name).name)
    manifest = run(source, tmp_path / "out", maps=tmp_path / "maps", num_classes=8, validation=0)
    assert left_out(manifest) == {"c.jpg": "missing caption"}  # where others have the name of their folder
    shard = (tmp_path / "out" / "train-00000.tar").read_bytes()
    assert (tmp_path / "maps" / "bonn" / "a.png").read_bytes() in shard


def test_maps_beside_their_images_are_no_images(tmp_path: Path) -> None:
    source = paired(tmp_path)
    (tmp_path / "maps" / "a.png").rename(source / "a.segmentation.png")
    manifest = run(source, tmp_path / "out", num_classes=256, validation=0)
    assert manifest["samples"] == 1 and left_out(manifest) == {"c.jpg": "missing map"}


WRONG = [
    (NUMBERS[:, :20], "L", "another shape", "the map has 20x30, and its picture 40x30"),
    (NUMBERS, "L", "unknown class", "a.png: the pixel 20 from the left, 20 from the top has the number 255"),
    (np.dstack([NUMBERS, NUMBERS[::-1], NUMBERS]), "RGB", "unusable map", "of the mode RGB"),
    (NUMBERS.astype(np.uint16) * 300, "I;16", "unknown class", "has the number 300"),
]


@pytest.mark.parametrize(("values", "mode", "kind", "reason"), WRONG, ids=[row[2] + row[1] for row in WRONG])
def test_a_map_that_does_not_fit_leaves_its_image_out(tmp_path, values, mode, kind, reason) -> None:
    source = paired(tmp_path, values, mode, ("a",))
    with pytest.raises(UserError, match=f"none of the 1 images can be used: a.jpg: .*{reason}.*{kind}"):
        run(source, tmp_path / "out", maps=tmp_path / "maps", num_classes=8)
    picture(source / "good.jpg", 9)
    Image.fromarray(np.minimum(NUMBERS, 7)).save(tmp_path / "maps" / "good.png")
    manifest = run(source, tmp_path / "out", maps=tmp_path / "maps", num_classes=8)
    assert left_out(manifest) == {"a.jpg": kind} and reason in manifest["skipped"][0]["reason"]


@pytest.mark.parametrize("size", [0, 15])
def test_a_map_turns_with_its_image(tmp_path: Path, size: int) -> None:
    (tmp_path / "images").mkdir()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "images" / "a.png", exif=exif)
    (tmp_path / "maps").mkdir()
    Image.fromarray(np.minimum(NUMBERS, 7)).save(tmp_path / "maps" / "a.png")  # as the camera stored it
    options = {"maps": tmp_path / "maps", "num_classes": 8, "validation": 0, "size": size}
    run(tmp_path / "images", tmp_path / "out", **options)
    turned = np.rot90(np.minimum(NUMBERS, 7), -1)[5:35]
    assert (maps_of(tmp_path / "out", size or 30)[0] == (turned if not size else turned[1::2, 1::2])).mean() > 0.95


def test_a_link_out_of_the_folder_of_maps_is_not_followed(tmp_path: Path) -> None:
    source = paired(tmp_path, np.minimum(NUMBERS, 7))
    (tmp_path / "maps" / "a.png").rename(tmp_path / "a.png")
    (tmp_path / "maps" / "a.png").symlink_to(tmp_path / "a.png")
    manifest = run(source, tmp_path / "out", maps=tmp_path / "maps", num_classes=8, validation=0)
    assert manifest["samples"] == 1 and left_out(manifest) == {"a.jpg": "missing map"}


def test_wrong_words_are_one_line(tmp_path: Path) -> None:
    source = paired(tmp_path)
    inside = source / "labels"
    inside.mkdir()
    for words, reason in (
        ({"maps": tmp_path / "nowhere", "num_classes": 8}, "nowhere is no folder"),
        ({"maps": tmp_path / "maps"}, "num_classes= is missing"),
        ({"maps": source, "num_classes": 8}, "lies in source="),
        ({"maps": inside, "num_classes": 8}, "labels: lies in source=.* keep them apart"),
        ({"num_classes": 8, "unlabelled": 7}, "a number above theirs"),
        ({"num_classes": 8, "members": "segmentation.png"}, "leave it out"),
    ):
        with pytest.raises(UserError, match=reason):
            run(source, tmp_path / "out", **words)


def test_a_window_of_384_px_is_the_same_for_image_and_map(tmp_path: Path) -> None:
    """LDM's recipe for landscapes (D.4): 256 px anywhere in images of 384 px; toy sides of 24 and 36."""
    values = np.arange(36 * 60, dtype=np.int64).reshape(36, 60) % 251
    (tmp_path / "images").mkdir()
    (tmp_path / "maps").mkdir()
    for name in ("a", "b"):
        Image.fromarray(np.repeat(values[..., None], 3, 2).astype(np.uint8)).save(tmp_path / "images" / f"{name}.png")
        Image.fromarray(values.astype(np.uint8)).save(tmp_path / "maps" / f"{name}.png")
    run(tmp_path / "images", tmp_path / "out", maps=tmp_path / "maps", num_classes=251, validation=0)
    data = ShardData(
        f"{tmp_path}/out/train-*.tar", 36, 2, fields={"segmentation": SemanticMap()}, crop_size=24, random_crop=True,
        horizontal_flip_prob=0.5,
    )  # fmt: skip
    windows = set()
    for batch, _ in zip(data.train_loader(), range(6), strict=False):
        image = ((batch["image"][:, 0] + 1) * 127.5).round().long()
        assert batch["segmentation"].shape == (2, 24, 24) and (image == batch["segmentation"]).all()
        windows |= {tuple(row[0, :2].tolist()) for row in batch["segmentation"]}
    assert len(windows) > 4
