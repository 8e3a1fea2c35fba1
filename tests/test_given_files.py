"""Conditions from files: the sizes they set, what of them reaches the network, and what becomes of unusable ones."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from untrained import untrained_run

from ldm import load
from ldm.config import compose, overriding
from ldm.data.drawn_boxes import draw_boxes
from ldm.diffusion.denoiser import Denoiser
from ldm.files import sha256
from sample import main


def noise(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def saved(path: Path, pixels: np.ndarray | Image.Image, **how) -> Path:
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path, **how)
    return path


def drawn(model: Path, out: Path, *words: str) -> np.ndarray:
    """The only image, [H, W, 3]."""
    assert main(overriding([f"model={model}", "num_images=1", "num_steps=2", f"out={out}", *words])) == 0
    (image,) = [path for path in out.glob("*_0000.png")]
    return np.asarray(Image.open(image)).astype(int)


@pytest.fixture
def seen(monkeypatch) -> list[dict[str, torch.Tensor]]:
    """The conditions of each call of a network."""
    found, forward = [], Denoiser.forward
    monkeypatch.setattr(Denoiser, "forward", lambda *given: found.append(given[3]) or forward(*given))
    return found


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Untrained runs at 8 px in pixel space, their latents multiples of 2, by the condition they read."""
    folder = tmp_path_factory.mktemp("models")
    words = {
        "low": ["conditioner=[low_resolution]", "conditioner.low_resolution.factor=1", "derived=[low_resolution]",
                "derived.low_resolution.factor=1"],
        "map": ["data=segmented_shards", "data.train=nowhere.tar", "conditioner=[semantic_map]",
                "conditioner.semantic_map.num_classes=3", "conditioner.semantic_map.factor=1"],
        "holes": ["conditioner=[masked_image]", "derived=[holes]"],
        "layout": ["data=layout_shards", "data.train=nowhere.tar", "conditioner=[layout_transformer]",
                   "conditioner.layout_transformer.width=8", "conditioner.layout_transformer.depth=1",
                   "network.attention_factors=[1]", "network.channels=8"],
        "embeddings": ["data=embedded_shards", "data.train=nowhere.tar", "conditioner=[embeddings]",
                       "network.attention_factors=[1]", "conditioner.embeddings.width=8", "network.channels=8"],
    }  # fmt: skip

    def made(name: str) -> Path:
        path = folder / name
        return path if path.exists() else untrained_run(path, *words[name])

    return made


# Sizes


@pytest.mark.parametrize(("width", "height"), [(8, 8), (13, 7), (5, 21), (1, 3)])
def test_a_small_picture_of_any_shape_reaches_the_network_bit_for_bit(models, tmp_path, seen, width, height):
    pixels = noise(width, height)
    image = drawn(models("low"), tmp_path / "out", f"low={saved(tmp_path / 'a, b=c.png', pixels)}")
    assert image.shape == (height, width, 3)
    given = seen[0]["concat"][0].permute(1, 2, 0)
    assert torch.equal(given[:height, :width], torch.from_numpy(pixels).float().div(127.5).sub(1))
    assert torch.equal(given[height:], given[height - 1 : height].expand_as(given[height:])), "its border is repeated"


def test_a_map_sets_the_size_and_is_numbers_or_a_palette(models, tmp_path, caplog):
    classes = np.random.default_rng(0).integers(0, 3, (12, 29), dtype=np.uint8)
    palette = Image.fromarray(classes, "P")
    palette.putpalette([200, 10, 10, 0, 0, 0, 10, 200, 10])
    grey = drawn(models("map"), tmp_path / "1", f"map={saved(tmp_path / 'grey.png', classes)}")
    assert grey.shape == (12, 29, 3)
    coloured = drawn(models("map"), tmp_path / "2", f"map={saved(tmp_path / 'palette.png', palette)}")
    assert np.array_equal(grey, coloured)
    tiled = drawn(models("map"), tmp_path / "3", f"map={tmp_path}/grey.png", "tiling=blended")
    assert tiled.shape == grey.shape and not np.array_equal(tiled, grey)
    half = drawn(models("map"), tmp_path / "4", f"map={tmp_path}/grey.png", "height=6")
    assert half.shape == (6, 14, 3)
    assert caplog.messages == [f"map={tmp_path}/grey.png: its 29 x 12 px are resized to 14 x 6"]


def test_a_picture_to_begin_from_has_the_size_that_is_asked_for_and_not_the_filled_one(models, tmp_path):
    low, start = saved(tmp_path / "low.png", noise(13, 7)), saved(tmp_path / "start.png", noise(13, 7))
    hole = np.zeros((7, 13), np.uint8)
    hole[:, 5:] = 255
    mask = saved(tmp_path / "mask.png", hole)
    image = drawn(models("low"), tmp_path / "out", f"low={low}", f"start={start}", f"start_mask={mask}")
    assert image.shape == (7, 13, 3) and np.array_equal(image[:, :5], noise(13, 7)[:, :5])


def test_the_same_in_python(models, tmp_path):
    pixels = noise(13, 7)
    image = drawn(models("low"), tmp_path / "out", f"low={saved(tmp_path / 'low.png', pixels)}")
    images = load(models("low"), device="cpu").sample(low=Image.fromarray(pixels), num_images=1, num_steps=2)
    assert images[0].size == (13, 7) and np.array_equal(np.asarray(images[0]), image)


def test_what_a_map_shows_at_a_place_does_not_depend_on_what_is_added_at_the_border(models, tmp_path, seen):
    classes = np.random.default_rng(0).integers(0, 3, (8, 12), dtype=np.uint8)
    for name, part in {"whole": classes, "cut": classes[:, :11]}.items():
        drawn(models("map"), tmp_path / name, f"map={saved(tmp_path / f'{name}.png', np.ascontiguousarray(part))}")
    whole, cut = seen[0]["concat"], seen[-1]["concat"]
    assert whole.shape == cut.shape and torch.equal(whole[..., :11], cut[..., :11])


@pytest.mark.parametrize(("words", "size"), [
    ([], (8, 12)), (["image_size=10"], (10, 15)), (["height=9", "width=9"], (9, 9)), (["width=24"], (16, 24)),
])  # fmt: skip
def test_a_picture_with_a_hole_is_resized_and_keeps_its_shape(models, tmp_path, words, size):
    hole = np.zeros((40, 60), np.uint8)
    hole[10:30, 20:40] = 255
    picture, mask = saved(tmp_path / "photo.png", noise(60, 40)), saved(tmp_path / "hole.png", hole)
    image = drawn(models("holes"), tmp_path / "out", f"image={picture}", f"mask={mask}", *words)
    assert image.shape == (*size, 3)


def test_what_another_shape_cuts_off_is_told_and_what_whole_pixels_do_is_not(models, tmp_path, caplog):
    picture, hole = noise(48, 64), np.zeros((64, 48), np.uint8)
    hole[20:40, 10:30] = 255
    files = [f"image={saved(tmp_path / 'photo.png', picture)}", f"mask={saved(tmp_path / 'hole.png', hole)}"]
    assert drawn(models("holes"), tmp_path / "1", *files).shape == (11, 8, 3)  # 10.67 x 8
    assert caplog.messages == []
    drawn(models("holes"), tmp_path / "2", *files, "height=8", "width=8")
    [told] = caplog.messages
    assert told.endswith("photo.png: of 48 x 64 px the middle 48 x 48 are used; leave out height= or width= to use all")


# The picture made anew


@pytest.mark.parametrize(("kind", "words"), [
    ("low", ["low={photo}"]), ("low", ["image={photo}"]), ("map", ["map={map}", "height=6"]),
    ("holes", ["image={photo}", "mask={hole}"]), ("holes", ["image={photo}", "mask={hole}", "paste=true"]),
    ("layout", ["boxes={boxes}"]), ("embeddings", ["neighbours={neighbours}"]),
])  # fmt: skip
def test_a_picture_from_files_has_their_hashes_and_is_made_anew_bit_for_bit(models, tmp_path, capsys, kind, words):
    hole = np.zeros((9, 13), np.uint8)
    hole[2:5, 3:9] = 255
    files = {"photo": saved(tmp_path / "photo.png", noise(13, 9)), "hole": saved(tmp_path / "hole.png", hole),
             "map": saved(tmp_path / "map.png", noise(13, 9)[..., 0] % 3)}  # fmt: skip
    files["boxes"] = Path(layout(tmp_path / "boxes.json", [0.1, 0.2, 0.6, 0.9]).partition("=")[2])
    files["neighbours"] = tmp_path / "neighbours.npy"
    np.save(files["neighbours"], np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32))
    given = [word.format(**files) for word in words]
    out = tmp_path / "out"
    assert main([f"model={models(kind)}", *given, "num_images=2", "num_steps=2", f"out={out}"]) == 0
    [picture] = out.glob("*_0001.png")
    recipe = json.loads(Image.open(picture).text["recipe"])
    used = dict(word.split("=") for word in given if str(tmp_path) in word)
    assert {key: file["sha256"] for key, file in recipe["files"].items()} == {
        key: sha256(Path(path)) for key, path in used.items()
    }
    capsys.readouterr()
    assert main([f"again={picture}", f"out={tmp_path}/new"]) == 0
    assert f"made anew, bit for bit as {picture} was" in capsys.readouterr().out
    Path(next(iter(used.values()))).unlink()
    with pytest.raises(ValueError, match=rf"made with {next(iter(used))}=.*, which is not there"):
        main([f"again={picture}", f"out={tmp_path}/new"])


# What else is given


def test_neighbours_are_tokens_and_fewer_than_the_most_may_be_given(models, tmp_path, seen):
    tokens = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float16)
    np.save(tmp_path / "a, b=c.npy", tokens)
    drawn(models("embeddings"), tmp_path / "out", f"neighbours={tmp_path}/a, b=c.npy", "guidance.scale=1")
    assert compose("nearest", ["model=x", "neighbours=2"])["neighbours"] == 2, "a number where there are no files"
    given = seen[0]["tokens"][0]
    assert torch.equal(given[:4], torch.from_numpy(tokens).float()) and not given[4:].any()


def test_what_of_a_prompt_is_longer_than_the_encoder_reads_is_told(tmp_path, caplog):
    text = untrained_run(tmp_path / "text", "conditioner=[text]", "network.attention_factors=[1]")
    start = "a red heart on a table beside a cup of tea"
    drawn(text, tmp_path / "1", f"prompt={start}", "negative_prompt=grey")
    assert not caplog.messages
    drawn(text, tmp_path / "2", f"prompt={start} and TWO old chairs, in the evening sun")
    told = next(line for line in caplog.messages if line.startswith("prompt "))
    assert "conditioner.text.max_tokens=16, so that the end is not read: 'chairs, in the evening sun'" in told
    caplog.clear()
    drawn(text, tmp_path / "3", f"prompt={start}", f"negative_prompt={start} and two old chairs")
    assert any("not read" in line for line in caplog.messages)


# What cannot be used


@pytest.mark.parametrize("kind", ["transparent", "16 bit", "CMYK", "turned", "palette"])
def test_a_picture_of_any_kind_is_seen_as_it_looks(models, tmp_path, seen, kind):
    pixels = noise(6, 4)
    expected, how = pixels, {"format": "PNG"}
    if kind == "transparent":
        alpha = np.zeros((4, 6, 1), np.uint8)
        alpha[:2] = 255
        picture, expected = Image.fromarray(np.dstack([pixels, alpha])), np.where(alpha > 0, pixels, 255)
    elif kind == "16 bit":
        picture, expected = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), pixels[..., :1].repeat(3, 2)
    elif kind == "CMYK":
        picture, how = Image.fromarray(255 - np.dstack([pixels, pixels[..., :1] * 0 + 255]), "CMYK"), {"format": "TIFF"}
    elif kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        picture, expected, how = Image.fromarray(pixels), np.rot90(pixels, -1), {"format": "PNG", "exif": exif}
    else:
        picture = Image.fromarray(pixels).quantize(24)
        expected = np.asarray(picture.convert("RGB"))
    image = drawn(models("low"), tmp_path / "out", f"low={saved(tmp_path / 'file', picture, **how)}")
    assert image.shape == expected.shape
    given = seen[0]["concat"][0, :, : expected.shape[0], : expected.shape[1]].permute(1, 2, 0)
    assert torch.equal(((given + 1) * 127.5).round().to(torch.uint8), torch.from_numpy(expected.astype(np.uint8)))


def layout(path: Path, *boxes: list[float], category: int = 3) -> str:
    path.write_text(json.dumps({"objects": [{"category": category, "box": box} for box in boxes]}))
    return f"boxes={path}"


def test_files_that_cannot_be_meant_are_named_before_the_model_is_loaded(models, tmp_path, monkeypatch):
    loads = []
    monkeypatch.setattr("ldm.loading.load_drawer", lambda *given: loads.append(given))
    photo, square = saved(tmp_path / "photo.png", noise(12, 8)), saved(tmp_path / "square.png", np.zeros((8, 8), "u1"))
    jpeg, broken = saved(tmp_path / "map.jpg", noise(12, 8)), tmp_path / "broken.png"
    broken.write_bytes(photo.read_bytes()[:300])
    np.save(tmp_path / "flat.npy", np.zeros(8, np.float32))
    (tmp_path / "list.json").write_text("[1, 2")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    box = [0.1, 0.1, 0.5, 0.5]
    for kind, words, problem in (
        ("low", [f"low={tmp_path}/nowhere.png"], r"low=.*nowhere\.png: no such file"),
        ("low", [f"low={broken}"], r"low=.*broken\.png: broken image"),
        ("low", [f"low={tmp_path}/flat.npy"], r"low=.*flat\.npy: broken image .not a JPEG, PNG"),
        ("low", [f"low={photo}", f"start={tmp_path}/nowhere.png"], r"start=.*nowhere\.png: no such file"),
        ("map", [f"map={photo}"], r"map=.*photo\.png: unusable map .*mode RGB: it is read from grey or palette"),
        ("map", [f"map={jpeg}"], r"map=.*map\.jpg: unusable map .*JPEG, which changes numbers"),
        (
            "holes",
            [f"image={photo}", f"mask={square}"],
            r"mask=.*square\.png: another shape .*8x8, and its picture 12x8",
        ),
        ("holes", [f"image={photo}", f"mask={photo}"], r"mask=.*photo\.png: unusable mask .*several colours"),
        (
            "layout",
            [layout(tmp_path / "a.json", [0.2, 0.2, 1.4, 0.5])],
            r"a\.json: broken objects .*shares of the image",
        ),
        ("layout", [layout(tmp_path / "b.json", [0.5, 0.2, 0.5, 0.5])], r"b\.json: .*number 0, .*has no area"),
        ("layout", [layout(tmp_path / "c.json", [0.6, 0.2, 0.5, 0.5])], r"c\.json: broken objects"),
        ("layout", [layout(tmp_path / "d.json", *[box] * 31)], r"d\.json: .*31 of them, and the model reads 30"),
        ("layout", [layout(tmp_path / "e.json", box, category=400)], r"e\.json: .*category 400 is not in 0\.\.399"),
        ("layout", [f"boxes={tmp_path}/list.json"], r"list\.json: broken json"),
        ("layout", [f"boxes={tmp_path}/loop"], r"boxes=.*loop: too many levels of symbolic links"),
        ("layout", [f"boxes={photo}"], r"boxes=.*photo\.png: not utf-8 .*something other than text"),
        ("embeddings", [f"neighbours={tmp_path}/flat.npy"], r"flat\.npy: broken array .*\[tokens, width\]"),
        ("embeddings", [f"map={photo}"], "map: this model reads no segmentation: nothing in the data"),
    ):
        with pytest.raises((ValueError, OSError), match=problem) as caught:
            main([f"model={models(kind)}", *words, f"out={tmp_path}/out"])
        assert "\n" not in str(caught.value)
    assert not loads and not (tmp_path / "out").exists()


def test_files_that_a_model_does_not_take_are_named_before_anything_is_drawn(models, tmp_path, seen):
    photo, black, white = (
        saved(tmp_path / name, pixels)
        for name, pixels in {"photo.png": noise(12, 8), "black.png": np.zeros((8, 12), "u1"),
                             "white.png": np.full((8, 12), 255, "u1")}.items()
    )  # fmt: skip
    other = Image.fromarray(np.array([[0, 1, 7, 2]], "u1").repeat(4, 0), "P")
    other.putpalette(list(range(24)))
    saved(tmp_path / "other.png", other)
    np.save(tmp_path / "wide.npy", np.zeros((2, 9), np.float32))
    for kind, words, problem in (
        (
            "map",
            [f"map={tmp_path}/other.png"],
            r"map=.*other\.png: segmentation 0\.\.7: .*num_classes=3 asks for 0\.\.2",
        ),
        ("holes", [f"image={photo}", f"mask={black}"], r"mask=.*black\.png: hides nothing: the hole is white"),
        ("holes", [f"image={photo}", f"mask={white}"], r"mask=.*white\.png: hides everything"),
        ("low", [f"low={photo}", f"map={photo}"], "map: this model reads no segmentation"),
        ("low", [f"low={photo}", "low_noise=0.1"], "low_noise: this model reads no low_noise"),
        ("embeddings", [f"neighbours={tmp_path}/wide.npy"], r"wide\.npy: embeddings .*this model takes them 8 wide"),
    ):
        with pytest.raises(ValueError, match=problem) as caught:
            main([f"model={models(kind)}", *words, f"out={tmp_path}/out"])
        assert "\n" not in str(caught.value)
    assert not seen and not (tmp_path / "out").exists()


def test_a_small_picture_that_is_larger_than_the_images_or_makes_too_large_ones(tmp_path):
    model = untrained_run(
        tmp_path / "large", "conditioner=[low_resolution]", "conditioner.low_resolution.factor=4",
        "derived=[low_resolution]", "derived.low_resolution.factor=4",
    )  # fmt: skip
    for (width, height), words, problem in (
        ((20, 16), ["image_size=8"], r"20 x 16 px, and is larger than the images, 10 x 8; without .* makes 80 x 64"),
        ((5000, 3000), [], r"makes images of 20000 x 12000 px, more than 64 million; cut it, or say a smaller image_s"),
    ):
        path = saved(tmp_path / f"{width}.png", Image.new("RGB", (width, height)))
        with pytest.raises(ValueError, match=rf"low=.*{width}\.png: .*{problem}"):
            main([f"model={model}", f"low={path}", *words, f"out={tmp_path}/out"])


# What is shown


def test_boxes_are_drawn_beside_each_sample_where_they_lie_and_with_names(models, tmp_path):
    boxes = layout(tmp_path / "boxes.json", [0.0, 0.5, 0.5, 1.0], [0.25, 0.25, 1.0, 0.75])
    assert main([f"model={models('layout')}", boxes, "num_images=2", "num_steps=2", f"out={tmp_path}/out"]) == 0
    sheet = np.asarray(Image.open(tmp_path / "out" / "conditions.png")).astype(int)
    samples = [np.asarray(Image.open(tmp_path / "out" / f"image_000{n}.png")).astype(int) for n in range(2)]
    assert sheet.shape == (192 + 8, 4 * (192 + 4) + 4, 3)
    for number, sample in enumerate(samples):
        left = 4 + 2 * number * 196
        assert np.array_equal(sheet[4:196, left : left + 192], np.kron(sample, np.ones((24, 24, 1))))
        drawn = sheet[4:196, left + 196 : left + 388]
        plain = sample * 0.4 + 255 * 0.6
        changed = np.abs(drawn - np.kron(plain, np.ones((24, 24, 1)))).max(2) > 2
        assert not changed[:48].any() and not changed[:96, :48].any(), "nothing outside of the boxes"
        assert changed[96:, 0].all() and changed[-1, :96].all() and changed[48:144, -1].all(), "their edges"
        assert not changed[150:180, 30:60].any(), "nor within, away from the name"


def test_names_are_told_apart_and_stay_within_the_picture():
    def drawn_as(name: str, *box: float) -> np.ndarray:
        return np.asarray(draw_boxes(Image.new("RGB", (192, 192), "white"), np.array([box]), [name], [3])).astype(int)

    assert not np.array_equal(drawn_as("cat", 0, 0, 1, 1), drawn_as("hat", 0, 0, 1, 1))
    corner = drawn_as("animals-nature", 0.9, 0.95, 1, 1).min(2) < 255
    assert corner[-12:, 110:190].all(1).any() and not corner[:170].any(), "moved to the left and up"
