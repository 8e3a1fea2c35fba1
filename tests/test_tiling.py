"""Tiled encoding and decoding: exact for local maps, close to the untiled answer for a first stage, never a seam."""

from fractions import Fraction
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from ldm.first_stage.first_stage import FirstStage
from ldm.first_stage.regularizers import KL, VQ
from ldm.first_stage.tiling import starts, tiled
from ldm.networks.autoencoder import Autoencoder


@pytest.mark.parametrize("length", [1, 8, 9, 15, 16, 40, 41])
@pytest.mark.parametrize(("tile", "overlap"), [(8, 2), (8, 4), (16, 4)])
def test_tiles_cover_everything_with_their_overlap(length, tile, overlap):
    first = starts(length, tile, overlap)
    assert first[0] == 0 and max(first) + min(tile, length) == length
    assert all(0 < b - a <= tile - overlap for a, b in pairwise(first))


@pytest.mark.parametrize("scale", [Fraction(2), Fraction(1), Fraction(1, 2)])
@pytest.mark.parametrize("size", [(20, 44), (8, 32), (30, 30)])
def test_maps_of_single_positions_are_exact(scale, size):
    x = torch.randn(2, 3, *size)

    def function(part: torch.Tensor) -> torch.Tensor:
        if scale < 1:
            return F.avg_pool2d(part, 2).square()
        return F.interpolate(part, scale_factor=int(scale)).square()

    torch.testing.assert_close(tiled(function, x, 16, 4, scale), function(x))


def first_stage(regularizer: torch.nn.Module) -> FirstStage:
    torch.manual_seed(0)
    network = Autoencoder(
        regularizer.moment_channels, 3, channels=16, multipliers=[1, 2, 2], num_blocks=1, norm_groups=4
    )
    return FirstStage(network, regularizer, [0.1, 0.2, 0.3], [0.5, 1.0, 2.0], "x")


def test_tiled_is_near_untiled_and_no_worse_at_the_seams():
    stage = first_stage(KL(3))
    generator = torch.Generator().manual_seed(0)
    image = F.interpolate(torch.rand(1, 3, 40, 32, generator=generator) * 2 - 1, scale_factor=4, mode="bicubic")
    with torch.no_grad():
        z = stage.encode(image)
        whole = stage.decode(z)
        stage.tile = 64
        encoded, decoded = stage.encode(image), stage.decode(z)
    for tiled_answer, answer in ((encoded, z), (decoded, whole)):
        error = (tiled_answer - answer).abs()
        assert error.mean() < 0.4 * answer.std()  # of random weights; norms see a tile only
        rows = (tiled_answer - answer).diff(dim=2).abs().mean((0, 1, 3))  # how the error jumps from row to row
        assert rows.max() < 4 * rows.mean()


@pytest.mark.parametrize("regularizer", [KL(3), VQ(3, 16)])
@pytest.mark.parametrize("size", [(64, 64), (256, 64), (192, 320)])
def test_no_more_than_a_tile_is_in_work_whatever_the_size(regularizer, size):
    stage = first_stage(regularizer)
    stage.tile = 64
    seen = []
    for part in (stage.autoencoder.encoder, stage.autoencoder.decoder):
        part.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape[-2:])))
    with torch.no_grad():
        z = stage.encode(torch.zeros(1, 3, *size))
        assert z.shape[-2:] == (size[0] // 4, size[1] // 4) and stage.decode(z).shape[-2:] == size
    assert set(seen) == {(64, 64), (16, 16)}


def test_what_cannot_be_tiled_is_refused():
    stage = first_stage(KL(3))
    stage.tile = 66
    with pytest.raises(ValueError, match="tile=66"):
        stage.decode(torch.zeros(1, 3, 32, 32))
    stage.tile = 64
    with pytest.raises(ValueError, match=r"multiples of f = 4"):
        stage.encode(torch.zeros(1, 3, 130, 128))
    with pytest.raises(ValueError, match="overlap"):
        tiled(lambda x: x, torch.zeros(1, 1, 32, 32), 16, 12, Fraction(1))
