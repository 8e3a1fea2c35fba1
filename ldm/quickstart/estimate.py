"""How long the quickstart will take here: seconds once measured elsewhere, times how much slower this machine is.

The ratio is that of one small training step, repeated for two seconds. It knows nothing of what else runs here, so that
what comes of it is said with "about".
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ldm.quickstart.chain import Stage
from ldm.report.plots import duration

BENCHMARK_SECONDS = 2.0
LEAST_RATIO = 0.25  # Python's own part of a step does not shrink with the arithmetic


@dataclass(frozen=True)
class Measured:
    """A stage as it was measured: its seconds and, of a training, its steps."""

    seconds: float
    steps: int = 0


@dataclass(frozen=True)
class Reference:
    """A machine, the seconds of one `benchmark_step` there, and the stages of each family of experiments."""

    machine: str
    step_seconds: float
    families: dict[str, dict[str, Measured]]


# Measured with the machine to itself. To renew: the chain's times.json, the runs' steps, and what `benchmark` returns.
REFERENCE = Reference(
    "two cores of an AMD EPYC with AVX-512, bf16",
    0.029,
    {
        "quickstart": {
            "first stage": Measured(119, 1500),
            "diffusion": Measured(346, 5200),
            "reconstructions": Measured(2),
            "samples": Measured(5),
            "guidance, base": Measured(9),
        },
        "quickstart_experts": {  # with other work beside it, so at most
            "diffusion": Measured(392, 800),
            "expert (2, 0)": Measured(44, 200),
            "expert (2, 1)": Measured(29, 200),
            "control": Measured(85, 400),
            "reconstructions": Measured(2),
            "samples": Measured(24),
            "guidance, base": Measured(11),
            "guidance, ensemble": Measured(29),
            "guidance, control": Measured(11),
            "experts compared": Measured(11),
        },
    },
)


def estimate(stages: Sequence[Stage], known: dict[str, Measured], ratio: float) -> dict[str, float]:
    """Seconds that each stage still takes, done ones left out; training in proportion to steps. A stage that was never
    measured is left out too.
    """
    seconds = {}
    for stage in stages:
        left = stage.left()
        if left and stage.name in known:
            measured = known[stage.name]
            share = stage.steps / measured.steps if measured.steps else 1.0
            seconds[stage.name] = ratio * left * share * measured.seconds
    return seconds


def announce(stages: Sequence[Stage], family: str, precision: str) -> None:
    """Print the estimate, per stage and in all; nothing where all is done or nothing is known of the family."""
    known = REFERENCE.families.get(family, {})
    if not estimate(stages, known, 1.0):
        return
    ratio = max(LEAST_RATIO, benchmark(precision) / REFERENCE.step_seconds)
    seconds = estimate(stages, known, ratio)
    print(f"about {duration(sum(seconds.values()))} from here, by a benchmark of two seconds")
    print(f"({ratio:.2f} times what {REFERENCE.machine}, took; anything else that runs here makes it longer):")
    for name, value in seconds.items():
        print(f"  {name:<20} about {duration(value)}", flush=True)


def benchmark(precision: str) -> float:
    """Median seconds of a step of a small network, forward and backward, in the precision training will use."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(16, 16, 32, 32, generator=generator).to(device)
    tokens = torch.randn(1024, 384, generator=generator).to(device)
    conv = nn.Sequential(*[nn.Conv2d(16, 16, 3, padding=1) for _ in range(4)]).to(device)
    linear = nn.Sequential(nn.Linear(384, 1536), nn.GELU(), nn.Linear(1536, 384)).to(device)
    seconds: list[float] = []
    began = time.perf_counter()
    while len(seconds) < 4 or time.perf_counter() - began < BENCHMARK_SECONDS:
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled="bf16" in precision):
            loss = conv(image).float().square().mean() + linear(tokens).float().square().mean()
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[len(seconds) // 2]
