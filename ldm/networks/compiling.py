"""How a network is compiled: block by block, whole, or whole and replayed as one CUDA graph.

What inductor makes is kept in a folder of the cache, so that the next process of the same code and GPU finds it. Names
in the state dict stay. Nothing here says what is compiled, or when.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.networks.downloads import cache_folder

Compile = bool | Literal["blocks", "whole", "graphs"]  # true is whole, as it was before there was a choice
KEPT_IN = "TORCHINDUCTOR_CACHE_DIR"  # torch's own variable; set by a user it stays


def blocks_of(network: nn.Module) -> Iterator[nn.Module]:
    """The modules in `network`'s lists, and in lists of lists; not what is inside them."""
    for child in network.children():
        for entry in child if isinstance(child, nn.ModuleList) else ():
            if isinstance(entry, nn.ModuleList):
                yield from blocks_of(nn.ModuleList([entry]))
            else:
                yield entry


def compile_network(network: nn.Module, how: Compile, device: torch.device) -> None:
    """Compile `network` in place, as `how` says, at its first evaluation.

    Raises UserError for graphs off a GPU, and for what there is not.
    """
    if how and how not in WAYS:
        raise UserError(f"compile={how}: there are true, false, {', '.join(way for way in WAYS if way is not True)}")
    if how == "graphs" and device.type != "cuda":
        raise UserError(f"compile=graphs: replays CUDA graphs, which a {device.type} has none of; take blocks or whole")
    if how:
        keep_compiled()
        WAYS[how](network)


def keep_compiled() -> None:
    """Have inductor keep what it makes in ``compiled/`` of the cache folder, and not in the system's temporary one."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    own = default_cache_dir()  # torch writes it into the variable itself, once it has been asked
    if os.environ.get(KEPT_IN, own) == own:
        os.environ[KEPT_IN] = str(cache_folder() / "compiled")


def _whole(network: nn.Module) -> None:
    network.compile()


def _by_blocks(network: nn.Module) -> None:
    """Each block by itself, for the shapes that it meets; a network without lists of blocks whole.

    Blocks that are alike differ in nothing that inductor sees: it makes the kernels of the first, and finds those of
    the others in its cache. Each has its own count of recompilations, since all have one code: those of a U-Net have
    more shapes together than one code may have.
    """
    for block in list(blocks_of(network)) or [network]:
        block.compile(isolate_recompiles=True, dynamic=False)


def _graphed(network: nn.Module) -> None:
    """Whole, for the shapes that it meets; each evaluation replays a CUDA graph, and its result is copied out of it.

    For evaluations that wait for the processor between kernels, as those of few images do.
    """
    network.compile(mode="reduce-overhead", dynamic=False)
    replay: Callable[..., Tensor] = network._compiled_call_impl  # type: ignore[assignment]  # what compile() has made

    def evaluate(*arguments: Any, **named: Any) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return replay(*arguments, **named).clone()  # the next replay writes where this result lies

    network._compiled_call_impl = evaluate  # type: ignore[assignment]


WAYS: Mapping[Any, Callable[[nn.Module], None]] = {
    True: _whole, "whole": _whole, "blocks": _by_blocks, "graphs": _graphed,
}  # fmt: skip
