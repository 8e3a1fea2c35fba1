"""Activations kept in the CPU's memory from the forward to the backward pass: less of a GPU's, for more time.

What is computed is the same bit for bit. Weights stay where they are; so does what is too small to be worth a copy.
"""

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

MIN_BYTES = 1 << 16  # of an activation that is moved

Packed = Tensor | tuple[torch.device, Tensor]


def offloaded(module: nn.Module) -> saved_tensors_hooks:
    """Within the block, what autograd saves of `module`'s forward pass is copied to the CPU's memory.

    A tensor of a weight's shape counts as one, as autocast saves them in another type. To and from a GPU the copies are
    of pinned memory, in the order of its stream: neither side waits.
    """
    shapes = {tuple(parameter.shape) for parameter in module.parameters()}
    shapes |= {shape[::-1] for shape in shapes if len(shape) == 2}  # a matrix is saved transposed too

    def pack(tensor: Tensor) -> Packed:
        if tuple(tensor.shape) in shapes or tensor.nbytes < MIN_BYTES:
            return tensor
        pinned = tensor.device.type == "cuda"
        kept = torch.empty_like(tensor, device="cpu", pin_memory=pinned)
        return tensor.device, kept.copy_(tensor, non_blocking=pinned)

    def unpack(packed: Packed) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        device, kept = packed
        return kept.to(device, non_blocking=True)

    return saved_tensors_hooks(pack, unpack)
