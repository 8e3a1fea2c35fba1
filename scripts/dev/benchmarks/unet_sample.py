"""One evaluation of the U-Net as in sampling, in eager mode and with compile=true compiled."""

import torch

from benchmarks import unet
from benchmarks.measure import Case, compare
from ldm.networks.layers import tuned
from ldm.networks.precision import Precision, lower

GOALS = {False: 1.10, True: 1.20}
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
LAYOUTS = {"diffusers": torch.contiguous_format, "diffusers channels_last": torch.channels_last}


def run(options: dict) -> None:
    """Print the suite's table."""
    given = unet.inputs(options["batch_size"] or 4, options["image_size"] or 32)
    state = unet.ours().state_dict()
    unet.same_output(unet.ours(), unet.theirs(state), given)
    print(f"torch {torch.__version__}, one thread, batch {len(given.x)}")
    for name, dtype in DTYPES.items():
        if options["precision"] not in (name, "both"):
            continue
        for compiled in (False, True) if options["compile"] else (False,):
            network = unet.ours().eval().requires_grad_(False)
            lower(network, name)
            ours = tuned(network, torch.device("cpu"), compile=compiled)
            contestants = {f"ours{' compiled' * compiled}": _evaluation(ours, unet.run_ours, given, dtype)}
            for who, layout in LAYOUTS.items():  # in bf16 its weights are that too, as its pipelines hold them
                peer = unet.theirs(state).eval().to(memory_format=layout, dtype=dtype)
                contestants[who] = _evaluation(peer, unet.run_theirs, given, dtype)
            compare(f"sampling {name}", contestants, options["repeats"], GOALS[compiled])


def _evaluation(network: torch.nn.Module, evaluate: object, given: unet.Inputs, dtype: torch.dtype) -> Case:
    def step() -> None:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            evaluate(network, given)

    network.requires_grad_(False)
    return step
