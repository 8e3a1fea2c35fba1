"""Two and four ranks on this machine, gloo over loopback: bytes that a rank sends in a step, and the step's CPU time.

Bytes are those that the process wrote (Linux counts them), held against the formulas that scripts/cluster_plan.py uses.
What gloo does on loopback says nothing about the time that NCCL takes on a cluster's network.
"""

import os
import tempfile
import time
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from benchmarks.findings import Curve, Row, curves, judged
from benchmarks.overhead import COMMON
from ldm.build import Parts
from ldm.config import compose, overriding
from ldm.evaluation.cluster_formulas import bytes_sent
from ldm.training.sharded import shard

GOAL = 5.0  # per cent
RANKS = (1, 2, 4)
BATCH_SIZE, NUM_STEPS, WARM_UP = 8, 3, 2
NETWORK = ["network.width=192", "network.depth=4", "network.num_heads=4"]


def run(options: dict) -> None:
    """Print the suite's table."""
    size = 4 * sum(p.numel() for p in _network().parameters())
    print(
        f"torch {torch.__version__}, gloo, one thread a rank; {size / 1e6:.1f} MB of fp32 gradients, batch {BATCH_SIZE}"
    )
    lines = {}
    for strategy in ("ddp", "fsdp"):
        seconds = []
        for ranks in RANKS:
            if ranks == 1 and strategy == "fsdp":
                continue
            with tempfile.TemporaryDirectory() as folder:
                processes = [_begun(rank, ranks, strategy, folder) for rank in range(ranks)]
                for process in processes:
                    process.join()
                assert not any(process.exitcode for process in processes)
                found = [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(ranks)]
            sent, cpu, wall = (max(own[name] for own in found) for name in ("sent", "cpu", "wall"))
            seconds.append((ranks, 1e3 * cpu))
            times = f"{1e3 * cpu:8.0f} ms of CPU time, {1e3 * wall:.0f} ms of the wall's"
            print(f"{strategy:<6} {ranks} ranks {sent / 1e6:10.2f} MB a rank and step   {times}", flush=True)
            if ranks > 1:
                reduced = size if strategy == "ddp" else 2 * size  # gloo scatters by reducing all to all; NCCL does not
                expected = bytes_sent(strategy, ranks, gradients=reduced, gathered=size)
                print(f"{'':<15} by the formula {expected / 1e6:.2f} MB")
                apart = 100 * abs(sent / expected - 1)
                row = Row(f"bytes of {strategy}, {ranks} ranks: apart from the formula", apart, GOAL, True, unit="%")
                print(judged(row), flush=True)
        lines[strategy] = tuple(zip(*seconds, strict=True))
    curves.append(Curve("ranks on one machine", "ranks", "CPU ms of a rank's step", lines))


def _network() -> nn.Module:
    torch.manual_seed(0)
    return Parts(compose("config", overriding([*COMMON, *NETWORK])))["network"]


def _begun(rank: int, ranks: int, strategy: str, folder: str) -> BaseProcess:
    """The process of a rank. Forked: what all of them import is imported once."""
    process = get_context("fork").Process(target=_step, args=(rank, ranks, strategy, folder))
    process.start()
    return process


def _step(rank: int, ranks: int, strategy: str, folder: str) -> None:
    """One rank: steps of forward, backward and AdamW, as the training's strategies wrap them."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=ranks)
    network: nn.Module = _network()
    if strategy == "fsdp":
        shard(nn.ModuleDict({"network": network}), torch.device("cpu"))
    elif ranks > 1:
        network = nn.parallel.DistributedDataParallel(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    x, c_noise = torch.randn(BATCH_SIZE, 3, 32, 32), torch.zeros(BATCH_SIZE)
    for step in range(WARM_UP + NUM_STEPS):
        if step == WARM_UP:
            sent, cpu, wall = _written(), time.process_time(), time.monotonic()
        network(x, c_noise).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    found = {"sent": _written() - sent, "cpu": time.process_time() - cpu, "wall": time.monotonic() - wall}
    torch.save({name: value / NUM_STEPS for name, value in found.items()}, Path(folder) / f"{rank}.pt")
    dist.barrier()
    os._exit(0)  # groups of a mesh live on, and their threads abort at the interpreter's end


def _written() -> int:
    """Bytes that this process wrote so far, to files and sockets."""
    line = next(line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("wchar:"))
    return int(line.split()[1])
