"""The published latent diffusion models: counts, layouts to the line, and what their experiments refuse."""

import hashlib

import pytest
import torch

from ldm.build import Parts
from ldm.conditioners.label import Label
from ldm.config import compose
from ldm.convert import layout

# M parameters of the network; lines of the published list and the first 12 hex digits of their sha256, where there is
# one.
MODELS = {
    "celebahq": (274.06, 955, "6273902990a1"),
    "ffhq": (274.06, 955, "6273902990a1"),
    "lsun_beds": (274.06, 955, "6273902990a1"),
    "lsun_churches": (294.97, 1303, "6bbfbf96d23a"),
    "cin256_f8": (394.98, 1566, "5ac23bf0d91a"),
    "cin256_v2": (400.92, 906, "8fdf419739d7"),
}


def tree(name: str, *more: str) -> dict:
    return compose("config", [f"experiment=ldm/{name}", *more], complete=False)


@pytest.mark.parametrize("name", MODELS)
def test_the_published_models_have_their_parameters(name):
    with torch.device("meta"):
        network = Parts(tree(name))["network"]
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == MODELS[name][0]


@pytest.mark.parametrize("name", MODELS)
def test_layouts_are_the_published_ones_to_the_line(name):
    lines = layout(tree(name))
    _, count, digest = MODELS[name]
    assert len(lines) == count
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12] == digest


def test_a_model_whose_first_stage_is_only_described_asks_for_it():
    with pytest.raises(ValueError, match="first_stage: has to be given"):
        Parts(tree("celebahq"))["task"]


def test_a_class_without_null_is_neither_dropped_nor_guided():
    with pytest.raises(ValueError, match="drop_prob"):
        Label(10, has_null=False)
    label = Label(10, drop_prob=0.0, has_null=False)
    batch = {"label": torch.tensor([3, 9])}
    assert label(batch, torch.zeros(2, dtype=torch.bool))["tokens"].shape == (2, 1, 512)
    with pytest.raises(ValueError, match=r"guidance\.scale=1"):
        label(batch, torch.ones(2, dtype=torch.bool))


def test_latents_whitened_by_channel_are_refused_where_one_factor_is_meant(first_stage):
    given = f"first_stage={first_stage.folder}"
    words = ["experiment=quickstart/diffusion", given, "task.single_factor=true"]
    with pytest.raises(ValueError, match=r"task\.single_factor"):
        Parts(compose("config", words))["task"]
