"""Compiled networks: the same function under the same names, block by block or whole, kept for the next process."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from ldm.networks.compiling import KEPT_IN, WAYS, blocks_of, keep_compiled
from ldm.networks.dit import DiT
from ldm.networks.layers import tuned
from ldm.networks.unet import UNet

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Compiled without inductor, whose C++ takes minutes: the number of operations of each graph that torch traces."""
    found: list[int] = []

    def counted(graph: torch.fx.GraphModule, inputs: list) -> torch.fx.GraphModule:
        found.append(len(graph.graph.nodes))
        return graph

    compile_by = torch.compile

    def traced(*arguments, mode=None, **named):
        return compile_by(*arguments, backend=counted, **named)

    monkeypatch.setattr(torch, "compile", traced)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield found
    torch._dynamo.reset()


def unet(checkpoint_activations: bool = False) -> UNet:
    torch.manual_seed(0)
    network = UNet(
        4, 4, 8, (1, 2, 3), 1, (1, 2), head_channels=8, tokens_width=8, norm_groups=4,
        checkpoint_activations=checkpoint_activations,
    )  # fmt: skip
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network


def evaluated(network: nn.Module) -> list[torch.Tensor]:
    """Output, and gradients by the parameters."""
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    out = network(x, torch.tensor([1.0, 5.0]), tokens=torch.ones(2, 3, 8).cumsum(1))
    network.zero_grad()
    out.square().mean().backward()
    return [out.detach(), *(parameter.grad for parameter in network.parameters())]


@pytest.mark.parametrize("checkpointed", [False, True])
def test_blocks_are_compiled_each_by_itself_and_compute_the_same(graphs: list[int], checkpointed: bool):
    plain, compiled = unet(), tuned(unet(checkpointed), CPU, compile="blocks")
    assert list(compiled.state_dict()) == list(plain.state_dict())
    for ours, theirs in zip(evaluated(compiled), evaluated(plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    blocks = len(list(blocks_of(compiled)))
    assert blocks > torch._dynamo.config.recompile_limit  # more than share one code
    assert len(graphs) == blocks, "a graph for each block: none was traced in pieces, none twice, none left out"


def test_a_network_is_compiled_whole_by_its_old_name_too(graphs: list[int]):
    for how in (True, "whole"):
        compiled = tuned(unet(), CPU, compile=how)
        torch.testing.assert_close(evaluated(compiled), evaluated(unet()), rtol=1e-4, atol=1e-6)
    assert len(graphs) in (1, 2)  # the second time the first one's serves


def test_a_network_without_lists_of_blocks_is_one_block(graphs: list[int]):
    plain = nn.Sequential(nn.Conv2d(2, 3, 3), nn.SiLU())
    x = torch.randn(1, 2, 4, 4)
    torch.testing.assert_close(tuned(plain, CPU, compile="blocks")(x), plain[1](plain[0](x)))
    assert len(graphs) == 1


def test_the_blocks_of_a_network_hold_all_that_is_repeated():
    network = DiT(4, 4, patch_size=1, width=8, depth=3, num_heads=2)
    assert list(blocks_of(network)) == list(network.blocks)
    entries = list(blocks_of(unet()))
    assert not any(isinstance(entry, nn.ModuleList) for entry in entries) and len(entries) == len(set(entries))


def test_a_folder_of_the_users_own_keeps_what_was_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("LDM_CACHE", str(tmp_path))
    for there, expected in (
        ("", tmp_path / "compiled"),
        ("theirs", tmp_path / "compiled"),
        ("mine", tmp_path / "mine"),
    ):
        monkeypatch.delenv(KEPT_IN, raising=False)
        if there:
            monkeypatch.setenv(KEPT_IN, default_cache_dir() if there == "theirs" else str(tmp_path / there))
        keep_compiled()
        assert os.environ[KEPT_IN] == str(tmp_path / expected)


@pytest.mark.parametrize(("how", "said"), [("graphs", "compile=graphs: .*cpu"), ("block", "compile=block: there are")])
def test_what_cannot_be_is_refused_in_one_line(how: str, said: str):
    with pytest.raises(ValueError, match=said) as error:
        tuned(unet(), CPU, compile=how)
    assert "\n" not in str(error.value)
    assert set(WAYS) == {True, "whole", "blocks", "graphs"}


COMPILED = """
import sys, torch
from torch._dynamo.utils import counters
from ldm.networks.dit import DiT
from ldm.networks.layers import tuned
network = DiT(4, 4, patch_size=1, width=8, depth=2, num_heads=1).requires_grad_(False)
tuned(network, torch.device("cpu"), "blocks")(torch.randn(1, 4, 4, 4), torch.ones(1))
print(counters["inductor"]["fxgraph_cache_hit"], counters["inductor"]["fxgraph_cache_miss"])
"""


@pytest.mark.slow
def test_what_was_compiled_is_there_for_the_next_process_and_the_next_block(tmp_path: Path):
    own = {name: value for name, value in os.environ.items() if name != KEPT_IN} | {"LDM_CACHE": str(tmp_path)}
    counts = []
    for _ in range(2):
        found = subprocess.run([sys.executable, "-c", COMPILED], cwd=ROOT, env=own, capture_output=True, text=True)
        assert found.returncode == 0, found.stderr
        counts.append(tuple(map(int, found.stdout.split()[-2:])))
    assert counts == [(1, 1), (2, 0)]  # of two blocks that are alike
    assert list((tmp_path / "compiled").iterdir())
