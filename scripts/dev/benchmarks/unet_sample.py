"""One evaluation of the U-Net as in sampling, in eager mode and with compile=true compiled.

Then each in a process of its own, as sample.py and a pipeline of diffusers are, which ask the C library for memory in
different ways.
"""

import json
import statistics

import torch

from benchmarks import unet
from benchmarks.findings import Row, judged
from benchmarks.measure import Case, alone, compare, cpu_seconds, spread
from ldm.device import keep_memory
from ldm.networks.layers import tuned
from ldm.networks.precision import Precision, lower

GOALS = {False: 1.10, True: 1.20}
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
LAYOUTS = {"diffusers": torch.contiguous_format, "diffusers channels_last": torch.channels_last}
TURNS = 3  # of the processes


def run(options: dict) -> None:
    """Print the suite's table, or in a process of its own the seconds of one contestant."""
    given = unet.inputs(options["batch_size"] or 4, options["image_size"] or 32)
    if options["memory_of"]:
        case = _as_shipped(options["memory_of"], given, options["precision"])
        print(json.dumps({"seconds": statistics.median(cpu_seconds({"alone": case}, 5)["alone"])}))
        return
    state = unet.ours().state_dict()
    unet.same_output(unet.ours(), unet.theirs(state), given)
    print(f"torch {torch.__version__}, one thread, batch {len(given.x)}")
    for name in DTYPES:
        if options["precision"] not in (name, "both"):
            continue
        for compiled in (False, True) if options["compile"] else (False,):
            contestants = {f"ours{' compiled' * compiled}": _ours(given, name, compiled)}
            contestants |= {who: _theirs(given, name, who, state) for who in LAYOUTS}
            compare(f"sampling {name}", contestants, options["repeats"], GOALS[compiled])
        _apart({**options, "precision": name})


def _apart(options: dict) -> None:
    """Print the CPU seconds of each contestant in processes of its own, in turns, and hold ours against the fastest."""
    times: dict[str, list[float]] = {who: [] for who in ("ours", *LAYOUTS)}
    for _ in range(min(TURNS, options["repeats"])):
        for who, found in times.items():
            found.append(alone(options, who)["seconds"])
    for who, found in times.items():
        print(f"{'a process of its own':<22} {who:<28} {1e3 * statistics.median(found):9.1f} ms", flush=True)
    fastest = min(LAYOUTS, key=lambda who: statistics.median(times[who]))
    ratios = [peer / own for peer, own in zip(times[fastest], times["ours"], strict=True)]
    quantity = f"sampling {options['precision']} as shipped, against {fastest}"
    print(
        f"{'':<22} {judged(Row(quantity, statistics.median(ratios), GOALS[False], spread=spread(ratios)))}", flush=True
    )


def _as_shipped(who: str, given: unet.Inputs, name: Precision) -> Case:
    """A contestant alone; ours keeps the memory that it frees, as sample.py does on a CPU."""
    if who in LAYOUTS:
        return _theirs(given, name, who)
    keep_memory()
    return _ours(given, name)


def _ours(given: unet.Inputs, name: Precision, compiled: bool = False) -> Case:
    network = unet.ours().eval().requires_grad_(False)
    lower(network, name)
    return _evaluation(tuned(network, torch.device("cpu"), compile=compiled), unet.run_ours, given, DTYPES[name])


def _theirs(given: unet.Inputs, name: Precision, who: str, state: dict | None = None) -> Case:
    """In bf16 its weights are that too, as its pipelines hold them."""
    peer = unet.theirs(state).eval().to(memory_format=LAYOUTS[who], dtype=DTYPES[name])
    return _evaluation(peer, unet.run_theirs, given, DTYPES[name])


def _evaluation(network: torch.nn.Module, evaluate: object, given: unet.Inputs, dtype: torch.dtype) -> Case:
    def step() -> None:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            evaluate(network, given)

    network.requires_grad_(False)
    return step
