"""Decoding is safe and true to the eye; views stay inside the image and depend on nothing but their address."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from data.draws import philox, uniform
from data.errors import BadSample
from data.transforms import Augmentation, View, decode_image, decode_mask, fitted, resize, resize_nearest, to_tensor


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def gradient(height: int = 24, width: int = 36) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 255 / height, columns * 255 / width, 128 + 0 * rows], axis=-1).astype(np.uint8)


# -- draws ---------------------------------------------------------------------------------------------------------


def test_philox_gives_the_published_answers() -> None:
    # Random123, kat_vectors: philox4x32 10 rounds
    cases = [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    ]
    for counter, key, words in cases:
        found = philox([np.array([word], dtype=np.uint64) for word in counter], np.array(key, dtype=np.uint64))
        assert [int(word[0]) for word in found] == words


def test_a_draw_depends_on_its_address_alone() -> None:
    numbers = np.array([5, 2**40, 0])
    together = uniform(1, "crop", numbers, 5)
    assert together.shape == (3, 5)
    for row, number in zip(together, numbers, strict=True):
        assert (uniform(1, "crop", np.array([number]), 5)[0] == row).all()
        assert (uniform(1, "crop", np.array([number]), 3)[0] == row[:3]).all()
    others = [uniform(2, "crop", numbers, 5), uniform(1, "flip", numbers, 5)]
    assert all((other != together).all() for other in others)


def test_draws_are_uniform_and_uncorrelated() -> None:
    draws = uniform(0, "crop", np.arange(20000), 3)
    assert draws.min() >= 0 and draws.max() < 1
    assert np.abs(draws.mean(0) - 0.5).max() < 0.01 and np.abs(draws.var(0) * 12 - 1).max() < 0.03
    assert np.abs(np.corrcoef(draws.T) - np.eye(3)).max() < 0.03
    assert abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 0.03


# -- decoding ------------------------------------------------------------------------------------------------------


def test_lossless_formats_give_the_stored_pixels() -> None:
    pixels = gradient()
    for content in (encoded(Image.fromarray(pixels)), encoded(Image.fromarray(pixels), "WEBP", lossless=True)):
        assert (np.asarray(decode_image(content)) == pixels).all()


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "1"])
def test_other_colour_models_become_rgb(mode: str) -> None:
    image = Image.fromarray(gradient()).convert(mode)
    decoded = decode_image(
        encoded(image, "JPEG" if mode == "CMYK" else "PNG", **({"quality": 95} if mode == "CMYK" else {}))
    )
    assert decoded.mode == "RGB"
    difference = np.asarray(decoded, np.float32) - np.asarray(image.convert("RGB"), np.float32)
    assert np.abs(difference).mean() < 3


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    deep = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    decoded = np.asarray(decode_image(encoded(Image.fromarray(deep))))
    assert np.abs(decoded[..., 0].astype(float) - deep / 257).max() <= 0.5
    assert (np.asarray(decode_mask(encoded(Image.fromarray(deep)))) == decoded[..., 0]).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_on_white(mode: str) -> None:
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((10, 10, 10, 255), (0, 0, 4, 8))
    decoded = np.asarray(decode_image(encoded(image.convert(mode))))
    assert (decoded[:, 4:] == 255).all() and (decoded[:, :4] <= 12).all()


def test_photographs_stand_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    pixels = gradient()
    content = encoded(Image.fromarray(pixels), "JPEG", quality=100, subsampling=0, exif=exif)
    decoded = np.asarray(decode_image(content), np.float32)
    assert np.abs(decoded - np.rot90(pixels, -1)).mean() < 2


@pytest.mark.parametrize("kind", ["WEBP", "PNG"])
def test_an_animation_gives_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    assert np.asarray(decode_image(content))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_broken_images_are_bad_samples(kind: str) -> None:
    content = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)), kind)
    for broken in (content[: len(content) // 2], content[:20], b"", b"not an image", b"\0" * 100):
        with pytest.raises(BadSample) as caught:
            decode_image(broken)
        assert caught.value.kind == "broken image"


def test_other_formats_are_not_even_tried() -> None:
    with pytest.raises(BadSample, match="cannot identify"):
        decode_image(encoded(Image.new("RGB", (4, 4)), "BMP"))


def test_a_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    for side in (9000, 60000):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
        with pytest.raises(BadSample) as caught:
            decode_image(bomb)
        assert caught.value.kind == "too many pixels"


# -- geometry ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(100, 50), (50, 100), (33, 33), (1, 40), (4000, 3001)])
def test_the_shortest_side_fits_exactly(width: int, height: int) -> None:
    size = fitted(width, height, 32)
    assert min(size) == 32
    assert max(size) / 32 == pytest.approx(max(width, height) / min(width, height), abs=1 / 32)


def test_downscaling_is_antialiased() -> None:
    board = np.zeros((128, 128, 3), dtype=np.uint8)
    board[::2, ::2] = board[1::2, 1::2] = 255
    small = resize(Image.fromarray(board), (32, 32))
    assert np.abs(small.astype(int) - 127).max() <= 2


def test_masks_stay_binary_when_resized() -> None:
    mask = Image.fromarray((np.random.default_rng(0).random((64, 48)) > 0.5).astype(np.uint8) * 255)
    assert set(np.unique(resize_nearest(mask, (24, 32)))) == {0, 255}


def test_views_stay_inside_and_reach_both_ends() -> None:
    array = np.arange(10 * 14).reshape(10, 14)
    views = Augmentation(seed=0, horizontal_flip_prob=0.5, random_crop=True).views(np.arange(400))
    windows = [view.crop(array, 8) for view in views]
    assert all(window.shape == (8, 8) for window in windows)
    corners = {int(window.min()) for window in windows}
    assert corners == {row * 14 + column for row in range(3) for column in range(7)}
    assert 0.4 < np.mean([view.flip for view in views]) < 0.6


def test_the_plain_view_is_the_centre() -> None:
    array = np.arange(8 * 12).reshape(8, 12)
    assert (View().crop(array, 8) == array[:, 2:10]).all()
    assert (View(flip=True).crop(array, 8) == array[:, 2:10][:, ::-1]).all()
    plain = Augmentation(seed=0, horizontal_flip_prob=0.0, random_crop=False).views(np.arange(3))
    assert [(view.top, view.left, view.flip) for view in plain] == [(0.5, 0.5, False)] * 3


def test_tensors_span_minus_one_to_one() -> None:
    image = np.zeros((4, 6, 3), dtype=np.uint8)
    image[..., 1] = 255
    tensor = to_tensor([image, image])
    assert tensor.shape == (2, 3, 4, 6) and tensor.dtype == torch.float32 and tensor.is_contiguous()
    assert tensor[:, 0].eq(-1).all() and tensor[:, 1].eq(1).all()
