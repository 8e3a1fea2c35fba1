"""Which samples lose a condition: a tensor on the device, whose values the processor knows without asking it."""

import torch

from ldm.conditioners.drop import Drop

META = torch.device("meta")  # has no values: who asks it for one fails


def test_what_is_dropped_is_known_without_asking():
    values = torch.tensor([True, False, True])
    drop = Drop.of(values).to(META)
    assert drop.device == META and drop.tolist() == [True, False, True]
    assert bool(drop.any()) and not bool(drop.all())
    assert type(~drop) is torch.Tensor and type(drop[:, None]) is torch.Tensor
    assert torch.equal(Drop.of(values).to(torch.device("cpu")).long(), values.long())
    assert torch.equal(torch.where(Drop.of(values), 1, 0), values.long())
