"""Draws are addressed; views stay inside the image and depend on nothing but their address."""

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.data.counter_random import philox, uniform
from ldm.data.framing import framing
from ldm.data.transforms import Augmentation, View, fitted, resize, resize_nearest, to_tensor

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


def test_a_part_is_cut_out_of_an_image_that_has_the_size_already() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    part = image.resize((8, 8), Image.Resampling.BICUBIC, box=(0, 0, 4, 8))
    assert np.array_equal(resize(image, (8, 8), (0, 0, 4, 8)), np.asarray(part))
    for box in (None, (0, 0, 8, 8), (0.0, 0.0, 8.0, 8.0)):
        assert np.array_equal(resize(image, (8, 8), box), np.asarray(image)), "all of it is not changed by a bit"


def test_masks_stay_binary_when_resized() -> None:
    mask = (np.random.default_rng(0).random((64, 48)) > 0.5).astype(np.uint8) * 255
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


def test_a_share_of_the_short_side_is_cut_and_resized() -> None:
    found = framing(8, [0.5, 1])
    assert (found.short_side, found.window, found.plain) == (16, 8, View(share=1.0))
    views = Augmentation(0, 0.5, True, found.shares).views(np.arange(400))
    array = np.arange(16 * 20).reshape(16, 20).astype(np.int32)
    sides = [view.side(16, 20, 8) for view in views]
    assert min(sides) == 8 and max(sides) == 16 and 11 < np.mean(sides) < 13
    for view, side in zip(views, sides, strict=True):
        left, top = view.corner(16, 20, 8)
        assert left >= 0 <= top and left + side <= 20 and top + side <= 16
        labels = view.crop(array, 8)
        assert labels.shape == (8, 8) and set(labels.flat) <= set(array[top : top + side, left : left + side].flat)
    ramp = np.broadcast_to(np.arange(16, dtype=np.uint8)[None, :, None] * 16, (16, 16, 3))
    whole = View(share=1.0).crop(ramp, 8)
    assert whole.shape == (8, 8, 3) and (np.diff(whole[0, :, 0].astype(int)) > 20).all()
    assert [view.top for view in views] == [view.top for view in Augmentation(0, 0.5, True).views(np.arange(400))]


@pytest.mark.parametrize("wrong", [0, 9, [0.5], [0, 1], [0.9, 0.5], [0.5, 1.5]])
def test_windows_that_cannot_be_cut_are_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match="crop_size="):
        framing(8, wrong)


def test_tensors_span_minus_one_to_one() -> None:
    image = np.zeros((4, 6, 3), dtype=np.uint8)
    image[..., 1] = 255
    tensor = to_tensor([image, image])
    assert tensor.shape == (2, 3, 4, 6) and tensor.dtype == torch.float32 and tensor.is_contiguous()
    assert tensor[:, 0].eq(-1).all() and tensor[:, 1].eq(1).all()
