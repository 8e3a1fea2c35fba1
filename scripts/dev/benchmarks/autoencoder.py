"""First stages: KL, f = 8, half the published width, LPIPS-VGG and PatchGAN; training, encoding, decoding, memory."""

from collections.abc import Callable

import torch
from diffusers import AutoencoderKL

from benchmarks.measure import Case, compare, peak_memory, report_memory
from ldm.convert.export import diffusers_names
from ldm.first_stage.reconstruction import ReconstructionLoss
from ldm.first_stage.regularizers import KL
from ldm.networks.autoencoder import Autoencoder
from ldm.networks.discriminator import PatchDiscriminator
from ldm.networks.lpips import LPIPS
from ldm.training.optim import adam

GOAL, MEMORY_GOAL = 1.10, 0.9
MULTIPLIERS, WIDTH = (1, 2, 4, 4), 64
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def run(options: dict) -> None:
    """Print the suite's table, or in a process of its own the memory of one contestant's training."""
    size = options["image_size"] or 64
    image = torch.rand(options["batch_size"] or 2, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noise = torch.randn(len(image), 4, size // 8, size // 8, generator=torch.Generator().manual_seed(1))
    precisions = [name for name in DTYPES if options["precision"] in (name, "both")]
    lowest = DTYPES[precisions[-1]]
    if options["memory_of"]:
        train = {"ours": _train_ours, "diffusers": _train_theirs}[options["memory_of"]]
        make = {"ours": _ours, "diffusers": _theirs}[options["memory_of"]]
        report_memory(lambda: train(make(), image, noise, lowest))
        return
    print(f"torch {torch.__version__}, one thread, batch {len(image)} of {size} px")
    ours = _ours()
    theirs = _theirs(ours.state_dict())
    for name in precisions:
        cases = {
            "training": {"ours": _train_ours(ours, image, noise, DTYPES[name]),
                         "diffusers": _train_theirs(theirs, image, noise, DTYPES[name])},
            "encode": {who: _inference(model.encode, image, DTYPES[name])
                       for who, model in (("ours", ours), ("diffusers", theirs))},
            "decode": {who: _inference(model.decode, noise, DTYPES[name])
                       for who, model in (("ours", ours), ("diffusers", theirs))},
        }  # fmt: skip
        for case, contestants in cases.items():
            compare(f"{case} {name}", contestants, options["repeats"], GOAL)
    peak_memory(options, ["ours", "diffusers"], MEMORY_GOAL, "autoencoder training")


def _ours() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(8, 4, WIDTH, MULTIPLIERS)


def _theirs(state: dict | None = None) -> AutoencoderKL:
    model = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[WIDTH * m for m in MULTIPLIERS], layers_per_block=2, latent_channels=4,
    )  # fmt: skip
    if state is not None:
        model.load_state_dict(diffusers_names(state, 4))
    return model


def _train_ours(ours: Autoencoder, image: torch.Tensor, noise: torch.Tensor, dtype: torch.dtype) -> Case:
    regularizer = KL(4)
    loss = ReconstructionLoss(LPIPS("vgg"), PatchDiscriminator(), start_step=0)
    trained = torch.nn.ModuleDict({"autoencoder": ours, "reconstruction": loss})
    optimizer = adam(lr=1e-5)(trained)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
            z, terms = regularizer(ours.encode(image), noise)
            total, _ = loss(image, ours.decode(z), terms, ours.last_layer, 1)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()

    return step


def _train_theirs(peer: AutoencoderKL, image: torch.Tensor, noise: torch.Tensor, dtype: torch.dtype) -> Case:
    """The published losses with one forward of the autoencoder, two optimizers, two passes over the fakes."""
    lpips = LPIPS("vgg")
    discriminator = PatchDiscriminator()
    optimizers = [torch.optim.Adam(m.parameters(), 1e-5, (0.5, 0.9), fused=True) for m in (peer, discriminator)]
    last = peer.decoder.conv_out.weight

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
            posterior = peer.encode(image).latent_dist
            output = peer.decode(posterior.mean + posterior.std * noise).sample
            nll = (image - output).abs().mean() + lpips(image, output).mean()
            kl = posterior.kl().mean()
            discriminator.requires_grad_(False)
            generator = -discriminator(output).mean()
            norms = [torch.autograd.grad(term, last, retain_graph=True)[0].norm() for term in (nll, generator)]
            weight = (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4).detach()
            total = nll + 1e-6 * kl / image[0].numel() + 0.5 * weight * generator
        optimizers[0].zero_grad()
        total.backward()
        optimizers[0].step()
        discriminator.requires_grad_(True)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
            real, fake = discriminator(image), discriminator(output.detach())
            hinge = 0.5 * (torch.relu(1 - real).mean() + torch.relu(1 + fake).mean())
        optimizers[1].zero_grad()
        hinge.backward()
        optimizers[1].step()

    return step


def _inference(function: Callable, x: torch.Tensor, dtype: torch.dtype) -> Case:
    def step() -> None:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
            function(x)

    return step
