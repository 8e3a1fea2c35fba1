"""Representation alignment: what it learns from and changes, that only training has it, resuming, and its cache."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from toys import assert_equal_runs, curve, state

from ldm.checkpoint import weights
from ldm.conditioners.clip_image import PictureEncoder
from ldm.config import compose
from ldm.diffusion.consistency import Consistency
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.experts import Expert
from ldm.diffusion.precond import EDM
from ldm.diffusion.schedule import VE
from ldm.latent_cache import encode
from ldm.networks.dit import DiT
from ldm.networks.efficient_unet import EfficientUNet
from ldm.networks.unet import UNet
from ldm.run import Run
from ldm.training.representation import Representation

Train = Callable[..., Run]
ALIGNED = ("representation=efficientnet_lite0", "representation.encoder.size=32", "representation.hidden=8")


class Means(PictureEncoder):
    """The mean of each channel as the embedding."""

    key, name, width = "image", "means", 3

    def identity(self):
        return {}

    def encode(self, batch, device):
        return {"embedding": batch["image"].mean((2, 3))}


NETWORKS = {
    "unet": lambda: UNet(4, 4, 8, (1, 2), 1, (2,), head_channels=8, norm_groups=4),
    "dit": lambda: DiT(4, 4, 2, width=8, depth=4, num_heads=2),
    "efficient_unet": lambda: EfficientUNet(4, 4, 8, (1, 2), (1, 1), 1, head_channels=8, norm_groups=4),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_layer_learns_what_the_encoder_sees_and_what_comes_after_it_does_not(name):
    torch.manual_seed(0)
    network = NETWORKS[name]()
    for parameter in network.parameters():  # what is zero at first passes no gradient
        nn.init.normal_(parameter, std=0.2)
    head = Representation(Means(), hidden=8).head(network)
    x, batch = torch.randn(2, 4, 8, 8), {"image": torch.randn(2, 3, 8, 8)}
    network(x, torch.ones(2))
    distance = head(batch)
    assert distance.shape == (2,) and (distance >= 0).all() and (distance <= 2).all()
    distance.sum().backward()
    moved = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert moved and not any(name.startswith("out.") for name in moved)
    assert not any(name.startswith("project") for name, _ in network.named_parameters())


def test_features_that_are_the_same_but_for_their_length_are_at_no_distance():
    network = NETWORKS["dit"]()
    head = Representation(Means(), hidden=8).head(network)
    head.project = nn.Linear(8, 3)
    network(torch.randn(2, 4, 8, 8), torch.ones(2))
    seen = head.project(head._seen.mean(1)).detach()
    images = (2 * seen)[:, :, None, None].expand(-1, -1, 4, 4)
    assert head({"image": images}).abs().max() < 1e-5


def test_a_target_that_is_estimated_without_a_gradient_is_not_what_is_aligned():
    torch.manual_seed(0)
    network = NETWORKS["dit"]()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    denoiser = Denoiser(network, EDM(VE(), sigma_data=1.0))
    head = Representation(Means(), hidden=8).head(network)
    x0, noise = torch.randn(2, 2, 4, 8, 8)
    Consistency(denoiser.precond, Expert(), max_steps=4, every_steps=1)(denoiser, x0, torch.ones(2), noise, {}, step=3)
    head({"image": torch.randn(2, 3, 8, 8)}).sum().backward()
    assert network.x_embedder.weight.grad.any()


def test_what_is_sampled_leaves_nothing_behind():
    network = NETWORKS["unet"]().eval()
    head = Representation(Means()).head(network)
    network(torch.randn(2, 4, 8, 8), torch.ones(2))
    assert head._seen is None


def test_mistakes_are_named():
    for words, said in (({"weight": 0}, "weight"), ({"hidden": 0}, "hidden")):
        with pytest.raises(ValueError, match=rf"representation\.{said}="):
            Representation(Means(), **words)
    with pytest.raises(ValueError, match="Linear names no layer"):
        Representation(Means()).head(nn.Linear(2, 2))


def test_a_run_learns_it_beside_the_model_which_does_not_have_it(train_diffusion: Train):
    plain, run = train_diffusion(run="plain"), train_diffusion(*ALIGNED, run="aligned")
    assert any("representation." in name for name in state(run.folder, 2)["trained"])
    for kind in ("ema", "raw"):
        own, other = (weights.load(each.folder, kind).state for each in (run, plain))
        assert own.keys() == other.keys()
    assert curve(plain.folder)[1] == curve(run.folder)[1]  # the first step's loss is that without it
    assert all(0 <= value <= 2 and math.isfinite(value) for value in curve(run.folder, "train/representation").values())
    with pytest.raises(ValueError, match=r"task\.compile"):
        train_diffusion(*ALIGNED, "task.compile=true", run="compiled")


def test_it_resumes_bit_for_bit_and_a_branch_leaves_it(train_diffusion: Train):
    whole = train_diffusion(*ALIGNED, "max_steps=4", "callback.validation.every_steps=2", run="whole")
    for steps in (2, 4):
        parts = train_diffusion(*ALIGNED, f"max_steps={steps}", "callback.validation.every_steps=2", run="parts")
    assert_equal_runs(whole.folder, parts.folder, step=4)
    left = train_diffusion("expert.node=[1,1]", "max_steps=1", f"branch={whole.folder}", run="left")
    assert not any("representation" in name for name in state(left.folder, 1)["trained"])


def test_the_cache_has_the_features_that_would_be_computed(train_diffusion: Train, first_stage: Run, tmp_path: Path):
    plain = train_diffusion(*ALIGNED, "task.keep_latents=false", run="plain")
    data = plain.tree["data"]
    words = [f"first_stage={first_stage.folder}", f"out={tmp_path}/cache", "device=cpu", "precision=fp32", *ALIGNED]
    encode({**compose("encode", words), "data": data})
    cached = train_diffusion(*ALIGNED, "task.keep_latents=false", f"data.cache={tmp_path}/cache", run="cached")
    own, other = (curve(run.folder, "train/representation") for run in (plain, cached))
    assert own[1] == pytest.approx(other[1], abs=1e-4)
