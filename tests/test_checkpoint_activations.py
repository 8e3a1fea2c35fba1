"""Activation checkpointing: the same gradients bit for bit, dropout and bf16 included, from fewer bytes."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from toys import assert_equal_runs

from ldm.networks.autoencoder import Autoencoder
from ldm.networks.dit import DiT
from ldm.networks.efficient_unet import EfficientUNet
from ldm.networks.encoder_unet import EncoderUNet
from ldm.networks.unet import UNet
from ldm.run import Run
from ldm.training.dry_run import LiveBytes

Train = Callable[..., Run]


def unet(**more: bool) -> nn.Module:
    return UNet(3, 3, 16, [1, 2], 2, [1, 2], head_channels=8, tokens_width=8, dropout=0.3, norm_groups=8, **more)


def dit(**more: bool) -> nn.Module:
    return DiT(3, 3, 2, 16, depth=4, num_heads=2, tokens_width=8, dropout=0.3, **more)


def efficient(**more: bool) -> nn.Module:
    return EfficientUNet(
        3, 3, 16, [1, 2], [1, 2], 2, [2], [2], head_channels=8, tokens_width=8, dropout=0.3, norm_groups=8, **more
    )


def classifier(**more: bool) -> nn.Module:
    return EncoderUNet(3, 16, 5, 16, [1, 2], 2, [1], head_channels=8, dropout=0.3, norm_groups=8, **more)


def autoencoder(**more: bool) -> nn.Module:
    return Autoencoder(6, 3, 16, [1, 2], 2, [2], dropout=0.3, norm_groups=8, **more)


def evaluate(network: nn.Module, x: Tensor) -> Tensor:
    if isinstance(network, Autoencoder):
        return network.decode(network.encode(x)[:, :3])
    tokens = {} if isinstance(network, EncoderUNet) else {"tokens": torch.ones(len(x), 4, 8)}
    return network(x, torch.linspace(0, 1, len(x)), **tokens)


def gradients(make: Callable, precision: torch.dtype, **more: bool) -> tuple[list[Tensor], int]:
    """Of one step, and the most bytes that were alive in it."""
    torch.manual_seed(0)
    network = make(**more).train()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.05)
    x = torch.randn(4, 3, 16, 16)
    torch.manual_seed(1)
    with LiveBytes() as live, torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        loss = evaluate(network, x).float().square().mean()
        loss.backward()
    return [parameter.grad for parameter in network.parameters()], live.peak


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("make", [unet, efficient, dit, classifier, autoencoder], ids=lambda make: make.__name__)
def test_gradients_are_the_same_bits_from_fewer_bytes(make, precision):
    kept, all_bytes = gradients(make, precision)
    again, fewer_bytes = gradients(make, precision, checkpoint_activations=True)
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True)) and any(g.any() for g in kept)
    assert fewer_bytes < 0.75 * all_bytes


def test_without_gradients_nothing_is_checkpointed(monkeypatch):
    monkeypatch.setattr("ldm.networks.layers.checkpoint", None)
    with torch.no_grad():
        evaluate(unet(checkpoint_activations=True), torch.randn(1, 3, 16, 16))


def test_bytes_alive_are_counted():
    with LiveBytes() as live:
        a = torch.ones(1000)
        b = (a + 1).view(10, 100)
        assert live.now == 8000
        b.add_(1)
        assert live.now == 8000
        del a, b
        assert live.now == 0
        torch.ones(500)
    assert live.peak == 8000


def test_a_run_may_change_it_and_stays_the_same(train_diffusion: Train, train_autoencoder: Train):
    for train, key in ((train_diffusion, "network"), (train_autoencoder, "autoencoder")):
        own = "callback.validation.every_steps=1"
        plain = train(own, "max_steps=3", run=f"{key}-plain").folder
        train(own, "max_steps=1", run=f"{key}-parts")
        parts = train(own, "max_steps=3", f"{key}.checkpoint_activations=true", run=f"{key}-parts").folder
        assert_equal_runs(plain, parts, 3)
