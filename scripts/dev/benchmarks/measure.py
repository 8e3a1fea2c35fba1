"""Time and memory of contestants, in CPU time of one thread and peak resident memory of a process for each."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.findings import Row, judged

SCRIPT = Path(__file__).resolve().parents[1] / "benchmark.py"
Case = Callable[[], object]


def cpu_seconds(contestants: dict[str, Case], repeats: int) -> dict[str, list[float]]:
    """CPU seconds of each contestant, `repeats` times in turn, after one run each to warm up."""
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {who: [] for who in contestants}
    for run in contestants.values():
        run()
    for _ in range(repeats):
        for who, run in contestants.items():
            began = time.process_time()
            run()
            times[who].append(time.process_time() - began)
    return times


def compare(name: str, contestants: dict[str, Case], repeats: int, goal: float | None = None) -> float:
    """Print the medians and how many times as fast the first is as each other, then as the fastest other.

    Returns the median seconds of the first. The spread is the distance of the quartiles, in parts of the median.
    """
    times = cpu_seconds(contestants, repeats)
    medians = {who: statistics.median(values) for who, values in times.items()}
    (ours, own), *peers = medians.items()
    print(f"{name:<22} {ours:<28} {1e3 * own:9.1f} ms   spread {_spread(times[ours])}", flush=True)
    for peer, value in peers:
        print(f"{'':<22} {peer:<28} {1e3 * value:9.1f} ms   spread {_spread(times[peer])}   {value / own:5.2f}x")
    if goal is not None:
        fastest, value = min(peers, key=lambda peer: peer[1])
        ratios = [peer / mine for peer, mine in zip(times[fastest], times[ours], strict=True)]
        row = Row(f"{name}, against {fastest}", value / own, goal, spread=spread(ratios))
        print(f"{'':<22} {judged(row)}", flush=True)
    return own


def spread(values: list[float]) -> float | None:
    """The distance of the quartiles, in parts of the median; None of a single value."""
    if len(values) < 2:
        return None
    low, _, high = statistics.quantiles(values, n=4)
    return (high - low) / statistics.median(values)


def _spread(values: list[float]) -> str:
    found = spread(values)
    return "   -" if found is None else f"{100 * found:3.0f} %"


def conv_peak(dtype: torch.dtype, repeats: int = 5) -> float:
    """FLOP per CPU second of the fastest 3x3 convolution among both layouts and widths 64 to 256 of a 16x16 map."""
    torch.set_num_threads(1)
    best = 0.0
    for width in (64, 128, 256):
        for memory_format in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(4, width, 16, 16, dtype=dtype).contiguous(memory_format=memory_format)
            weight = torch.randn(width, width, 3, 3, dtype=dtype).contiguous(memory_format=memory_format)
            with torch.inference_mode():
                run = {"conv": lambda x=x, weight=weight: F.conv2d(x, weight, padding=1)}
                seconds = min(cpu_seconds(run, repeats)["conv"])
            best = max(best, 2 * 9 * width**2 * 4 * 16**2 / seconds)
    return best


def peak_memory(options: dict, contestants: list[str], goal: float, what: str) -> None:
    """Print the peak memory of a process that has only this contestant, for each; the first is ours."""
    peaks = {who: _peak(options, who) for who in contestants}
    for who, (total, own) in peaks.items():
        print(f"{'peak memory':<22} {who:<28} {total:9.0f} MiB  {own:.0f} MiB above what its imports take", flush=True)
    (total, own), *others = peaks.values()
    row = Row(f"peak memory, {what}", total / min(other[0] for other in others), goal, at_most=True)
    print(f"{'':<22} {judged(row)}")
    print(f"{'':<22} {own / min(other[1] for other in others):.2f}x above the imports")


def _peak(options: dict, who: str) -> tuple[float, float]:
    """MiB of a fresh process: its peak, and its peak above what it had before it built anything."""
    found = alone(options, who)
    return found["peak"], found["peak"] - found["before"]


def alone(options: dict, who: str) -> dict:
    """What the suite's `memory_of=who` says, as a line of JSON, in a fresh process."""
    words = [f"{key}={options[key]}" for key in ("suite", "batch_size", "image_size", "precision")]
    command = [sys.executable, str(SCRIPT), *words, f"memory_of={who}"]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(said.strip().splitlines()[-1])


def report_memory(make: Callable[[], Case], num_steps: int = 2) -> None:
    """In the process of one contestant: make it, run it, print its memory for `peak_memory`."""
    torch.set_num_threads(1)
    before = resident("VmRSS")
    step = make()
    for _ in range(num_steps):
        step()
    print(json.dumps({"before": before, "peak": resident("VmHWM")}))


def resident(field: str) -> float:
    """MiB that this process has in memory now (VmRSS), of these its own (RssAnon), or had at most (VmHWM).

    Not ru_maxrss: a process that another starts begins with the peak of that one.
    """
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 1024
