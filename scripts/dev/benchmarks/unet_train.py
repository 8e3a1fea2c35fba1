"""One training step of the U-Net: forward, mean squared error, backward, fused AdamW; then its peak memory."""

import torch
from torch import nn

from benchmarks import unet
from benchmarks.findings import Row, judged
from benchmarks.measure import Case, compare, conv_peak, peak_memory, report_memory
from ldm.networks.layers import tuned
from ldm.training.optim import adamw

GOALS = {"fp32": 1.10, "bf16": 1.15}
SHARES = {"fp32": 0.50, "bf16": 0.36}  # of the peak of convolutions
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MEMORY_GOAL = 0.9
PEER, PEER_LAST = "diffusers", "diffusers channels_last"


def run(options: dict) -> None:
    """Print the suite's table, or in a process of its own the memory of one contestant."""
    batch_size, size = options["batch_size"] or 4, options["image_size"] or 32
    given = unet.inputs(batch_size, size)
    precisions = [name for name in DTYPES if options["precision"] in (name, "both")]
    if options["memory_of"]:
        report_memory(lambda: _contestant(options["memory_of"], given, DTYPES[precisions[0]]))
        return
    flop = batch_size * unet.training_flop(size)
    print(f"torch {torch.__version__}, one thread, batch {batch_size}, {flop / batch_size / 1e9:.1f} GFLOP a sample")
    state = unet.ours().state_dict()
    unet.same_output(unet.ours(), unet.theirs(state), given)
    for name in precisions:
        contestants = {who: _contestant(who, given, DTYPES[name], state) for who in ("ours", PEER, PEER_LAST)}
        seconds = compare(f"training {name}", contestants, options["repeats"], GOALS[name])
        peak = conv_peak(DTYPES[name])
        share = flop / seconds / peak
        row = Row(f"share of the convolutions' peak, {name}", 100 * share, 100 * SHARES[name], unit="%")
        print(f"{'':<22} {batch_size / seconds:.2f} samples/s, {flop / seconds / 1e9:.0f} of {peak / 1e9:.0f} GFLOP/s "
              f"of convolutions: {judged(row)}",
              flush=True)  # fmt: skip
    for name in precisions:
        print(f"{name}:")
        peak_memory({**options, "precision": name}, ["ours", PEER], MEMORY_GOAL, f"training {name}")


def _contestant(who: str, given: unet.Inputs, dtype: torch.dtype, state: dict | None = None) -> Case:
    if who == "ours":
        network, evaluate = tuned(unet.ours(), torch.device("cpu")), unet.run_ours
        optimizer = adamw(lr=1e-5)(network)
    else:
        layout = torch.channels_last if who == PEER_LAST else torch.contiguous_format
        network, evaluate = unet.theirs(state).to(memory_format=layout), unet.run_theirs
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            output = evaluate(network, given)
        nn.functional.mse_loss(output.float(), given.target).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
