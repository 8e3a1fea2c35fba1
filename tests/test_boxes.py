"""Objects in boxes as tokens (conditioner=[boxes]): who sees which, in crops, beside texts, in windows, in networks."""

import pytest
import torch

from ldm.conditioners.base import Conditioners
from ldm.conditioners.boxes import Boxes
from ldm.conditioners.null_token import NullToken
from ldm.diffusion.tiles import blended
from ldm.networks.attention import Attention
from ldm.networks.context import Context, mask_at
from ldm.networks.dit import DiT
from ldm.networks.unet import UNet

SIDE, NONE = 17, 288
KEEP = torch.tensor([False, False])


def corner(x: float, y: float) -> int:
    """The number of a place, in shares of the sides."""
    return round(y * (SIDE - 1)) * SIDE + round(x * (SIDE - 1))


def layout(*objects: tuple[int, tuple[float, ...]], crop: tuple[float, ...] = (0, 0, 1, 1)) -> torch.Tensor:
    """Of up to two objects, class and box each."""
    rows = [[kind, corner(*box[:2]), corner(*box[2:])] for kind, box in objects]
    rows += [[NONE] * 3] * (2 - len(rows))
    return torch.tensor([[number for row in rows for number in row] + [corner(*crop[:2]), corner(*crop[2:])]])


@pytest.fixture
def boxes():
    torch.manual_seed(0)
    return Boxes(8, vocabulary=NONE + 1, max_objects=2, drop_prob=0.1)


def test_an_object_is_seen_from_its_box_and_the_ground_from_everywhere(boxes):
    given = layout((3, (0.25, 0.5, 0.75, 1)))
    found = boxes({"layout": given}, KEEP[:1])
    assert found["tokens"].shape == (1, 3, 8)
    ground, thing, none = Context(found["tokens"], found["tokens_mask"]).at((8, 8)).mask[0]
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[4:, 2:6] = True
    assert ground.all() and not none.any() and torch.equal(thing, expected)
    other = boxes({"layout": layout((4, (0.25, 0.5, 0.75, 1)))}, KEEP[:1])
    assert torch.equal(other["tokens_mask"], found["tokens_mask"])
    assert not torch.equal(other["tokens"][:, 1], found["tokens"][:, 1])


def test_a_box_lies_where_it_is_in_the_crop(boxes):
    whole = boxes({"layout": layout((3, (0, 0, 0.5, 0.5)))}, KEEP[:1])
    part = boxes({"layout": layout((3, (0.5, 0.5, 0.75, 0.75)), crop=(0.5, 0.5, 1, 1))}, KEEP[:1])
    assert torch.equal(whole["tokens_mask"], part["tokens_mask"])
    torch.testing.assert_close(whole["tokens"], part["tokens"])


@pytest.mark.parametrize("box", [(0.5, 0.5, 0.5, 0.5), (1, 1, 1, 1), (0, 1, 0.0625, 1)])
def test_the_smallest_box_is_seen_on_every_map(boxes, box):
    mask = boxes({"layout": layout((3, box))}, KEEP[:1])["tokens_mask"]
    for size in ((1, 1), (2, 4), (8, 8), (40, 30)):
        assert Context(torch.zeros(1, 3, 8), mask).at(size).mask[0, 1].any()


def test_without_objects_or_dropped_only_the_ground_is_seen(boxes):
    given = layout((3, (0, 0, 1, 1))).repeat(2, 1)
    found = boxes({"layout": given}, torch.tensor([False, True]))
    assert found["tokens_mask"][0, 1].all() and not found["tokens_mask"][1, 1:].any()
    assert found["tokens_mask"][:, 0].all() and found["tokens"].isfinite().all()
    null = boxes({}, ~KEEP)
    assert null["tokens"].shape == (2, boxes.num_tokens, 8) and not null["tokens_mask"][:, 1:].any()


def test_other_numbers_are_refused_by_its_name(boxes):
    for wrong in (layout()[:, :5], layout() + 1):
        with pytest.raises(ValueError, match=r"conditioner\.boxes takes 8 numbers in 0\.\.288"):
            boxes({"layout": wrong}, KEEP[:1])
        with pytest.raises(ValueError, match=r"conditioner\.boxes"):
            boxes.check({"layout": wrong})


def test_tokens_beside_them_stay_seen_from_everywhere(boxes):
    both = Conditioners({"boxes": boxes, "null_token": NullToken(8, num_tokens=2)})
    batch = {"layout": layout((3, (0, 0, 0.5, 1)))}
    cond = both(batch, drop=both.drop_none(1))
    assert cond["tokens"].shape == (1, 5, 8) and cond["tokens_mask"].shape == (1, 5, 64, 64)
    assert cond["tokens_mask"][:, [0, 3, 4]].all() and not cond["tokens_mask"][:, 1].all()


def test_a_token_changes_nothing_where_it_is_not_seen():
    torch.manual_seed(0)
    layer, x, tokens = Attention(8, 4, 2), torch.randn(1, 16, 8), torch.randn(1, 3, 4)
    mask = torch.ones(1, 3, 4, 4, dtype=torch.bool)
    mask[:, 1, :, 2:] = False
    moved = tokens.clone()
    moved[:, 1] += 1
    before, after = (layer(x, Context(one, mask).at((4, 4))).unflatten(1, (4, 4)) for one in (tokens, moved))
    assert torch.equal(before[:, :, 2:], after[:, :, 2:]) and (before != after)[:, :, :2].any(-1).all()


@pytest.mark.parametrize(
    "network",
    [
        DiT(4, 4, patch_size=2, width=8, depth=2, num_heads=2, tokens_width=8),
        UNet(
            4, 4, channels=8, multipliers=[1, 2], num_blocks=1, attention_factors=[1, 2], head_channels=8,
            norm_groups=4, tokens_width=8,
        ),
    ],
    ids=["dit", "unet"],
)  # fmt: skip
def test_networks_take_them_at_every_size(boxes, network):
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # the last layer begins as zero
    asked = [layout((3, box)) for box in ((0, 0, 0.5, 1), (0.5, 0, 1, 1))]
    for size in ((8, 8), (4, 12)):
        x = torch.randn(1, 4, *size)
        left, right = (network(x, torch.ones(1), **boxes({"layout": one}, KEEP[:1])) for one in asked)
        assert left.shape == x.shape and not torch.allclose(left, right)


def test_windows_see_their_part_of_a_box(boxes):
    def denoiser(x, sigma, cond):
        mask = mask_at(cond["tokens_mask"], x.shape[-2:]).float()
        return x + mask[:, 1:2]

    x, sigma = torch.zeros(1, 1, 17, 17), torch.ones(1)
    cond = boxes({"layout": layout((3, (0.25, 0.5, 0.75, 1)))}, KEEP[:1])
    torch.testing.assert_close(blended(8)(denoiser)(x, sigma, cond), denoiser(x, sigma, cond))
