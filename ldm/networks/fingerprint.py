"""A fingerprint of a network's weights, in sixteen hex digits."""

import hashlib

import torch
from torch import nn


def fingerprint(*modules: nn.Module) -> str:
    """16 hex digits of the sha256 over names, shapes and bytes of all weights, in the order given."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
