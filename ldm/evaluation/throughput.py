"""How fast a model draws: images a second with all that it costs, decoding too."""

import torch
from torch import Tensor

from ldm.device import device_clock
from ldm.drawer import Drawer
from ldm.measuring import conditions
from ldm.sampling import Sampling


def samples_per_second(
    model: Drawer, short: Sampling, sampling: Sampling, batch_size: int, device: torch.device
) -> float:
    """Of one batch under `sampling`, for conditions of the training data, by the device's clock; `short` warms up."""
    model.data.setup()
    batch, numbers = next(conditions(model.data, batch_size, batch_size))
    batch = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    seconds = 0.0
    for recipe in (short, sampling):
        began = device_clock(device)
        model.generate(recipe, batch, numbers.to(device), 0)
        seconds = device_clock(device) - began
    return len(numbers) / seconds
