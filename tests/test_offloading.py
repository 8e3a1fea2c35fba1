"""Activations kept in the CPU's memory: the same bits, and nothing but activations."""

from collections.abc import Callable

import torch
from torch import nn
from toys import curve, same, state

from ldm.networks import offloading
from ldm.networks.offloading import offloaded
from ldm.run import Run


def gradients(network: nn.Module, x: torch.Tensor, offload: bool) -> tuple[list[torch.Tensor], list[tuple[int, ...]]]:
    """Gradients by the weights and the input, and the shapes of what was copied meanwhile."""
    copied: list[tuple[int, ...]] = []
    x = x.clone().requires_grad_()
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        if offload:
            hooks = offloaded(network)
            pack = hooks.pack_hook

            def watched(tensor: torch.Tensor) -> offloading.Packed:
                packed = pack(tensor)
                if isinstance(packed, tuple):
                    copied.append(tuple(tensor.shape))
                    assert packed[1].data_ptr() != tensor.data_ptr() and packed[1].stride() == tensor.stride()
                return packed

            hooks.pack_hook = watched
            with hooks:
                out = network(x)
        else:
            out = network(x)
    out.float().square().mean().backward()
    return [x.grad, *(parameter.grad for parameter in network.parameters())], copied


def test_gradients_are_the_same_bits_and_weights_stay_where_they_are():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(8, 128, 3, padding=1), nn.GroupNorm(4, 128), nn.SiLU(), nn.Conv2d(128, 128, 3, padding=1),
        nn.Flatten(2), nn.Linear(256, 512), nn.SiLU(), nn.Linear(512, 256),
    )  # fmt: skip
    x = torch.randn(3, 8, 16, 16)
    plain, nothing = gradients(network, x, offload=False)
    found, copied = gradients(network, x, offload=True)
    assert not nothing and all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))
    weights = {tuple(parameter.shape) for parameter in network.parameters()}
    assert (3, 128, 16, 16) in copied and not weights & {*copied, *(shape[::-1] for shape in copied)}


def test_a_run_may_take_it_up_where_it_stands(train_diffusion: Callable[..., Run], monkeypatch, capsys):
    monkeypatch.setattr(offloading, "MIN_BYTES", 0)
    plain = train_diffusion("max_steps=2", run="plain").folder
    train_diffusion("max_steps=1", run="offloaded")
    assert "offload_activations" not in capsys.readouterr().out
    found = train_diffusion("max_steps=2", "task.offload_activations=true", run="offloaded").folder
    assert "task.offload_activations=true: on a CPU they are in its memory anyway" in capsys.readouterr().out
    for part in ("trained", "ema", "optimizer"):
        assert same(state(plain, 2)[part], state(found, 2)[part])
    assert curve(plain)[2] == curve(found)[2]
