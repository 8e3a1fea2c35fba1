"""A peer of an ablation: the loop of diffusers' text-to-image example with its defaults, on our latents and texts.

    python scripts/dev/diffusers_loop.py cell=diffusers-seed0 tree=runs/ablation-emoji/ablation.json
    python scripts/dev/diffusers_loop.py cell=diffusers-seed1 tree=runs/ablation-emoji/ablation.json device=cpu

cell=        # a peer of the ablation, and its seed
tree=        # what scripts/ablation.py, which starts this, has written of itself
device=cpu
stage=peer   # or check: only whether the peer's network can be built

As examples/text_to_image/train_text_to_image.py of diffusers: DDPM's noise at uniform timesteps of Stable Diffusion's
schedule, eps by squared error, AdamW with a constant rate, no average, no dropped captions, gradients clipped at 1. It
trains until it has used the ablation's device_seconds, and draws with the schedulers of its own pipeline and with the
best of diffusers for few steps; the lower KID counts. It is not resumed: killed, it begins anew.
"""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from options import parse

from ldm.config import compose, guarded, named_in_step, tree_of_step
from ldm.errors import UserError

Tree = dict[str, Any]
KEYS = {"cell": "", "tree": "", "device": "cpu", "stage": "peer"}
# Stable Diffusion's, which the example reads from the model that it begins with.
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
WEIGHT_DECAY, MAX_GRADIENT_NORM = 1e-2, 1.0


def main(arguments: list[str]) -> int:
    """Train the peer, and measure it at the ablation's moments."""
    if not arguments or "--help" in arguments or "-h" in arguments:
        print(__doc__.strip())
        return 0
    options = parse(arguments, KEYS)
    from ldm.ablation.cells import cell_named
    from ldm.ablation.plan import read_plan

    tree = tree_of_step("ablation", options["tree"])
    plan = read_plan(tree["plan"])
    cell = cell_named(tree, plan, options["cell"])
    peer = named_in_step("cell", cell.row, {peer.name: peer for peer in plan.peers})
    if named_in_step("stage", options["stage"], {"peer": False, "check": True}):
        check(tree, plan, peer)
        return 0
    run({**tree, "device": options["device"]}, plan, cell)
    return 0


def check(tree: Tree, plan: Any, peer: Any) -> None:
    """Raises UserError, naming the peer, if its network cannot be built for the latents and texts of its row."""
    import torch

    from ldm.ablation.cells import channels_of, row_words
    from ldm.build import Parts

    parts = Parts(compose("config", row_words(tree, plan, peer.data_of)))
    with torch.device("meta"):
        network_of(peer, channels_of(tree, plan)["in_channels"], parts["conditioner"])


def network_of(peer: Any, channels: int, conditioner: Any) -> Any:
    """The UNet2DConditionModel of a peer. Raises UserError for what there is none of."""
    from diffusers import UNet2DConditionModel

    width = conditioner.widths()["tokens_width"]
    if not width:
        raise UserError(f"peer {peer.name!r}: data_of {peer.data_of!r}: has no tokens, which the peer reads")
    try:
        return UNet2DConditionModel(
            in_channels=channels, out_channels=channels, cross_attention_dim=width, **peer.network
        )
    except (TypeError, ValueError, LookupError, ArithmeticError, RuntimeError, AttributeError) as error:
        raise UserError(f"peer {peer.name!r}: network: {error}") from error


def run(tree: Tree, plan: Any, cell: Any) -> None:
    """Train a peer for the ablation's time and keep what is measured of it."""
    from ldm.ablation.cells import cell_words
    from ldm.ablation.stage import keep
    from ldm.build import Parts
    from ldm.device import choose, keep_memory
    from ldm.fit import read_cache

    keep_memory()
    peer = next(peer for peer in plan.peers if peer.name == cell.row)
    own = compose("config", cell_words(tree, plan, type(cell)(peer.data_of, cell.seed)))
    parts = Parts({**own, "data": {**own["data"], "batch_size": peer.batch_size}})
    parts["data"].setup()
    read_cache(parts)
    trained = Peer(peer, parts, cell.seed, choose(tree["device"]))
    points = list(moments(tree, trained))
    row = {"parameters": sum(each.numel() for each in trained.network.parameters()), "batch_size": peer.batch_size}
    keep(tree, plan, cell, {**row, **points[-1]}, points)


class Peer:
    """A UNet2DConditionModel, its optimizer and its schedulers, on the data, latents and texts of `parts`."""

    def __init__(self, peer: Any, parts: Any, seed: int, device: Any):
        import torch
        from diffusers import DDPMScheduler

        from ldm.device import computes_bf16

        torch.manual_seed(seed)
        self.peer, self.parts, self.seed, self.device = peer, parts, seed, device
        self.first_stage, self.conditioner = parts["first_stage"].to(device), parts["conditioner"].to(device)
        self.network = network_of(peer, self.first_stage.spec.channels, self.conditioner).to(device)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=peer.lr, betas=(0.9, 0.999), weight_decay=WEIGHT_DECAY, eps=1e-8
        )
        self.mixed = peer.bf16 and computes_bf16(device.type)
        self.noise = DDPMScheduler(**NOISE, clip_sample=False)
        self.seconds, self.steps = 0.0, 0
        self._batches = iter(parts["data"].train_loader())

    def train(self, until: float) -> None:
        """Steps until `until` device-seconds of them have passed; waiting for data is left out, as for our rows."""
        from ldm.device import device_clock
        from ldm.measuring import moved

        self.network.train()
        while self.seconds < until:
            batch = next(self._batches)
            began = device_clock(self.device)
            self.step(moved(self.device, batch))
            self.seconds += device_clock(self.device) - began
            self.steps += 1

    def step(self, batch: dict[str, Any]) -> None:
        """The body of the example's loop."""
        import torch
        import torch.nn.functional as F

        from ldm.first_stage.first_stage import moments_of

        with torch.no_grad():
            moments = moments_of(self.first_stage, batch)
            shape = self.first_stage.spec.shape(moments.shape[2:])
            x0 = self.first_stage.sample(moments, torch.randn(len(moments), *shape, device=self.device))
            texts = self.texts(batch, False)
        noise = torch.randn_like(x0)
        steps = torch.randint(self.noise.config.num_train_timesteps, (len(x0),), device=self.device)
        output = self.predict(self.noise.add_noise(x0, noise, steps), steps, texts)
        losses = F.mse_loss(output.float(), noise, reduction="none").mean((1, 2, 3))
        if self.peer.snr_gamma is not None:  # for eps: min(snr, gamma) / snr
            alpha_bar = self.noise.alphas_cumprod.to(steps.device)[steps]
            losses = losses * (self.peer.snr_gamma * (1 - alpha_bar) / alpha_bar).clamp(max=1)
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), MAX_GRADIENT_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def texts(self, batch: dict[str, Any], dropped: bool) -> dict[str, Any]:
        """Tokens [B, N, D] of a batch's captions, or of '' where dropped, and their mask, as the network takes them."""
        import torch

        count = next(len(value) for value in batch.values() if isinstance(value, torch.Tensor))
        drop = {name: torch.full((count,), dropped, device=self.device) for name in self.conditioner.parts}
        found = self.conditioner(batch, drop=drop)
        return {"encoder_hidden_states": found["tokens"], "encoder_attention_mask": found["tokens_mask"]}

    def predict(self, x: Any, steps: Any, texts: dict[str, Any]) -> Any:
        """eps [B, C, h, w] in the peer's precision; bf16 where it is computed, as trainer.precision=auto."""
        import torch

        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
            return self.network(x, steps, **texts).sample

    def drawn(self, scheduler: Any, num_steps: int, scale: float, batch: dict[str, Any], numbers: Any) -> Any:
        """Images [B, 3, H, W] in [-1, 1] by a scheduler, as StableDiffusionPipeline does; sample n has noise n."""
        import torch

        from ldm.diffusion.counter_random import normal

        side = self.parts["latent_size"]
        shape = (self.first_stage.spec.channels, side, side)
        scheduler.set_timesteps(num_steps, device=self.device)
        x = normal(0, "peer", numbers, shape).to(self.device) * scheduler.init_noise_sigma
        with torch.no_grad():
            given, null = self.texts(batch, False), self.texts(batch, True)
            for step in scheduler.timesteps:
                scaled = scheduler.scale_model_input(x, step)
                eps = self.predict(scaled, step, given).float()
                if scale != 1:
                    reference = self.predict(scaled, step, null).float()
                    eps = reference + scale * (eps - reference)
                x = scheduler.step(eps, step, x).prev_sample
            return self.first_stage.decode(x).clamp(-1, 1)


def schedulers() -> dict[str, Callable[[], Any]]:
    """Those that a peer draws with: Stable Diffusion's own, and what diffusers has for few steps."""
    from diffusers import DPMSolverMultistepScheduler, PNDMScheduler

    return {
        "pndm": partial(PNDMScheduler, **NOISE, skip_prk_steps=True, steps_offset=1),
        "dpmpp_2m": partial(DPMSolverMultistepScheduler, **NOISE, use_karras_sigmas=True),
    }


def moments(tree: Tree, trained: Peer) -> Iterator[dict[str, Any]]:
    """A point at each moment of the training: the better of the schedulers', with the intervals of its metrics."""
    from ldm.evaluation.evaluate import curve_keys

    measure = measuring(tree, trained)
    for moment in range(1, tree["moments"] + 1):
        trained.train(tree["device_seconds"] * moment / tree["moments"])
        trained.network.eval()
        found = [{"sampler": name, **measure(make())} for name, make in schedulers().items()]
        kid = curve_keys(found[0])[0]
        best = min(found, key=lambda row: row[kid])
        yield {"steps": trained.steps, "device_seconds": trained.seconds, **best}
        print(f"{trained.peer.name}: step {trained.steps}, {trained.seconds:.1f} s, {kid} {best[kid]:.4g}", flush=True)


def measuring(tree: Tree, trained: Peer) -> Callable[[Any], dict[str, float]]:
    """scheduler -> metrics, as scripts/evaluate.py has them of our rows: the same conditions and reference."""
    from ldm.evaluation.evaluate import reference_of
    from ldm.evaluation.guidance_curve import table_of
    from ldm.evaluation.yardsticks import yardsticks_of
    from ldm.measuring import Ranks, make

    asked = {**compose("evaluate", ["model=none"]), "metric": tree["metric"], "reference": tree["reference"]}
    by = yardsticks_of(asked, trained.device)
    data, ranks = trained.parts["data"], Ranks(trained.device)
    against = by.reference(reference_of(data, tree["reference"]))

    def measured(scheduler: Any) -> dict[str, float]:
        draw = partial(trained.drawn, scheduler, tree["num_steps"], tree["scale"])
        made = make(draw, data, tree["num_samples"], tree["batch_size"], by.backbone, by.alignment, ranks)
        return table_of(made, against, by.backbone, by.alignment, None, asked["resamples"], 0)

    return measured


if __name__ == "__main__":
    guarded(main)
