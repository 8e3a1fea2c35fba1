"""What belongs to a picture lies on it as it is seen, whichever way the camera was held; else the sample is refused."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.data.decoding import FastDecoder, PilDecoder, read_picture
from ldm.data.errors import BadSample
from ldm.data.fields import Field, Layout, Mask, SemanticMap
from ldm.data.module import ShardData
from ldm.data.rasters import picture, upright
from ldm.data.samples import Sample
from ldm.data.transforms import MAX_ASPECT, fitted, kept

COLOURS = np.array([[220, 30, 30], [30, 200, 30], [30, 30, 220], [230, 220, 30]], np.uint8)
SCENE = np.kron(np.array([[0, 1], [2, 3]]), np.ones((24, 32), int))  # quadrants; [48, 64]


def encoded(values: np.ndarray, orientation: int | None = None, kind: str = "PNG") -> bytes:
    file, exif = io.BytesIO(), Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(values)).save(file, kind, exif=exif)
    return file.getvalue()


def stored(seen: np.ndarray, orientation: int) -> np.ndarray:
    """The raster of a camera held that way."""
    return next(back for o in range(1, 9) if np.array_equal(upright(back := upright(seen, o), orientation), seen))


def read(tmp_path: Path, members: dict[str, bytes], images: bool = True, **fields: Field) -> Sample | BadSample:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(f"a.{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    data = ShardData(str(tmp_path / "x.tar"), image_size=24, batch_size=1, fields=fields)
    data.setup()
    samples = data._train_samples
    return (samples.get_all([0]) if images else samples.without_images([0]))[0]


def marks_the_top_left(found: Sample | BadSample) -> bool:
    """Whether the mask and the map agree with the colours of the picture."""
    assert isinstance(found, Sample), found
    colours = COLOURS[found.fields["classes"]].astype(int)
    where = np.abs(found.image.astype(int) - colours).max(-1) < 90  # but for the edges between colours
    return where.mean() > 0.9 and (found.fields["mask"] == (found.fields["classes"] == 0)).all()


FIELDS = {"mask": Mask("mask.png"), "classes": SemanticMap("classes.png")}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_and_maps_turn_with_their_picture(tmp_path: Path, orientation: int, kind: str) -> None:
    camera = stored(SCENE, orientation)
    members = {
        "png": encoded(COLOURS[camera], orientation, kind),
        "mask.png": encoded((camera == 0).astype(np.uint8) * 255, orientation),
        "classes.png": encoded(camera.astype(np.uint8), orientation),
    }
    assert marks_the_top_left(read(tmp_path, members, **FIELDS))
    for of_camera in (True, False):  # without a word of their own: their shape tells, or nothing does
        raster = camera if of_camera else SCENE
        values = {name: {0: (raster == 0).astype(np.uint8), 1: raster.astype(np.uint8)}[n] for n, name in
                  enumerate(["mask.png", "classes.png"])}  # fmt: skip
        found = read(tmp_path, members | {name: encoded(v) for name, v in values.items()}, **FIELDS)
        if orientation in (2, 3, 4):
            assert isinstance(found, BadSample) and found.kind == "turned or not"
        else:
            assert marks_the_top_left(found)
            without = read(tmp_path, members | {n: encoded(v) for n, v in values.items()}, images=False, **FIELDS)
            assert without.image is None and all((without.fields[n] == found.fields[n]).all() for n in FIELDS)


def test_a_square_picture_that_is_turned_needs_a_word(tmp_path: Path) -> None:
    square = SCENE[:, 8:56]
    members = {"jpg": encoded(COLOURS[square], 6, "JPEG"), "mask.png": encoded((square == 0).astype(np.uint8))}
    found = read(tmp_path, members, mask=Mask("mask.png"))
    assert isinstance(found, BadSample) and "orientation 6" in str(found)
    found = read(tmp_path, members | {"mask.png": encoded((square == 0).astype(np.uint8), 6)}, mask=Mask("mask.png"))
    assert isinstance(found, Sample) and found.fields["mask"][:12, 12:].all() and found.fields["mask"].sum() == 144


@pytest.mark.parametrize(
    ("shape", "fits"),
    [((48, 64), True), ((24, 32), True), ((96, 128), True), ((16, 21), True), ((16, 22), True), ((100, 133), True),
     ((64, 48), False), ((48, 48), False), ((48, 60), False), ((40, 64), False), ((100, 140), False)],
)  # fmt: skip
def test_a_shape_that_is_no_scaled_copy_is_refused_by_name(shape: tuple[int, int], fits: bool) -> None:
    laid = picture((64, 48), 1, 24)
    if fits:
        assert laid.lay(np.zeros(shape, np.uint8), None, "mask").shape == (24, 32)
    else:
        with pytest.raises(BadSample, match=f"mask has {shape[1]}x{shape[0]}, and its picture 64x48"):
            laid.lay(np.zeros(shape, np.uint8), None, "mask")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_turn_with_the_raster_that_the_json_names(tmp_path: Path, orientation: int) -> None:
    camera = stored(SCENE, orientation)
    layout = Layout(num_classes=4, vocabulary=170)

    def boxes(raster: np.ndarray, **named: int) -> Sample | BadSample:
        objects = []
        for category in range(4):
            rows, columns = np.nonzero(raster == category)
            height, width = raster.shape
            box = [columns.min() / width, rows.min() / height, (columns.max() + 1) / width, (rows.max() + 1) / height]
            objects.append({"category": category, "box": box})
        members = {
            "jpg": encoded(COLOURS[camera], orientation, "JPEG"),
            "json": json.dumps({"objects": objects, **named}),
        }
        return read(tmp_path, members | {"json": members["json"].encode()}, layout=layout)

    expected = [[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1], [0.5, 0.5, 1, 1]]
    unnamed = boxes(SCENE)
    if orientation == 1:
        assert unnamed.fields["layout"][1].tolist() == expected
    else:
        assert isinstance(unnamed, BadSample) and unnamed.kind == "turned or not"
    if orientation >= 5:
        for raster in (camera, SCENE):
            found = boxes(raster, width=raster.shape[1], height=raster.shape[0])
            assert found.fields["layout"][1].tolist() == expected


# -- thin pictures ---------------------------------------------------------------------------------------------------


def test_only_what_is_very_long_is_cut_and_the_same_at_both_ends() -> None:
    assert kept(64, 48) == (0, 0, 64, 48) and kept(48, 48 * MAX_ASPECT) == (0, 0, 48, 48 * MAX_ASPECT)
    for long in range(3000, 3004):
        left, top, right, bottom = kept(long, 3)
        assert (top, bottom) == (0, 3) and left == long - right and 3 * MAX_ASPECT - 2 < right - left <= 3 * MAX_ASPECT
        assert kept(3, long) == (0, left, 3, right)
    assert kept(1, 3001) == (0, 1493, 1, 1508)


@pytest.mark.parametrize("decoder", [PilDecoder(), FastDecoder()], ids=["pil", "fast"])
@pytest.mark.parametrize(("width", "height"), [(1, 3000), (3000, 1), (4, 4000), (400, 30000)])
def test_a_line_is_cut_before_it_is_enlarged_and_its_map_with_it(decoder, width: int, height: int) -> None:
    along = np.abs(np.linspace(-120, 120, max(width, height))).round().astype(np.uint8)
    values = np.broadcast_to(along if width > height else along[:, None], (height, width))
    for kind, orientation in (("PNG", 1), ("JPEG", 6), ("TIFF", 6)):
        content = encoded(values, orientation, kind)
        pixels, laid = decoder(content, 64), read_picture(content, 64)
        assert pixels.shape[:2] == laid.size[::-1] and max(pixels.shape) <= 64 * MAX_ASPECT
        part = laid.lay(np.ascontiguousarray(values), orientation, "map").astype(int)
        assert np.abs(pixels[..., 0] - part).max() <= 6


def test_boxes_lie_on_what_is_left_of_a_line() -> None:
    laid = picture((16, 1024), 1, 8)  # the middle quarter is used
    assert laid.size == fitted(16, 256, 8)
    found = laid.lay_boxes(np.array([[0, 0, 1, 1], [0, 0.5, 0.5, 1], [0, 0, 1, 0.2]]), (None, None))
    assert found.tolist() == [[0, 0, 1, 1], [0, 0.5, 0.5, 1], [0, 0, 1, 0]]
