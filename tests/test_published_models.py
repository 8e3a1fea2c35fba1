"""The published latent diffusion models: counts, layouts to the line, and what their experiments refuse."""

import hashlib

import pytest
import torch

from ldm.build import Parts
from ldm.conditioners.label import Label
from ldm.config import CONF, compose
from ldm.convert import layout

# M parameters of the network; lines of the published list and the first 12 hex digits of their sha256, where there is
# one.
MODELS = {
    "celebahq": (274.06, 955, "6273902990a1"),
    "ffhq": (274.06, 955, "6273902990a1"),
    "lsun_beds": (274.06, 955, "6273902990a1"),
    "lsun_churches": (294.97, 1303, "e767984dedb0"),
    "cin256_f8": (394.98, 1566, "5ac23bf0d91a"),
    "cin256_v2": (400.92, 906, "8fdf419739d7"),
    "text2img_1p45b": (872.30, 1368, "a3df8efca227"),
    "text2img_cc": (403.62, 2017, "b10fe833ea11"),
    "layout_openimages": (246.28, 3089, "a54793d93e32"),
    "semantic_landscapes": (215.23, 652, "0afa399f7695"),
    "semantic_landscapes_512": (215.23, 652, "0afa399f7695"),
    "superres_bsr": (113.62, 831, "49d6ef22af0f"),
    "inpainting_big": (387.25, 1216, "7d7dfcea4ea1"),
    "rdm_768": (1335.48, 1732, "df2dd7f3efa3"),
}
# Of those without a published list: tables 13, 14 and 15, table 6, Stable Diffusion v1.
UNLISTED = {
    "cin256_f1": 396.84, "cin256_f2": 390.89, "cin256_f4": 400.92, "cin256_f16": 395.00, "cin256_f32": 395.11,
    "cin256_f8_sweep": 394.98,
    "celeba_f1": 270.46, "celeba_f2": 264.51, "celeba_f4": 274.06, "celeba_f8": 257.73, "celeba_f16": 257.75,
    "celeba_f32": 257.86, "layout_coco": 312.24, "superres": 113.62, "inpainting": 215.23, "inpainting_kl": 215.23,
    "superres_big": 498.87, "superres_x2": 113.64, "superres_pixel": 113.62, "superres_regression": 113.62,
    "inpainting_noattn": 215.23, "inpainting_pixel": 215.23, "inpainting_big_512": 387.25, "sd_v1": 859.52,
}  # fmt: skip
# M parameters of the conditioners that come with them.
CONDITIONERS = {"text2img_1p45b": 581.99, "text2img_cc": 186.15, "layout_openimages": 58.86, "cin256_v2": 0.51}


def tree(name: str, *more: str) -> dict:
    return compose("config", [f"experiment=ldm/{name}", *more], complete=False)


def test_every_experiment_of_the_paper_is_counted():
    found = {path.stem for path in CONF.glob("experiment/ldm/*.yaml")}
    assert found == MODELS.keys() | UNLISTED.keys() | {"cin256_classifier"}


@pytest.mark.parametrize("name", [*MODELS, *UNLISTED])
def test_the_published_models_have_their_parameters(name):
    with torch.device("meta"):
        network = Parts(tree(name))["network"]
    assert millions(network) == (MODELS[name][0] if name in MODELS else UNLISTED[name])


@pytest.mark.parametrize("name", CONDITIONERS)
def test_their_conditioners_have_theirs(name):
    with torch.device("meta"):
        assert millions(Parts(tree(name))["conditioner"]) == CONDITIONERS[name]


def millions(module: torch.nn.Module) -> float:
    return round(sum(p.numel() for p in module.parameters()) / 1e6, 2)


def test_the_classifier_of_ldm_8_g_has_its_parameters():
    with torch.device("meta"):
        network = Parts(tree("cin256_classifier"))["network"]
    count = sum(p.numel() for p in network.parameters()) / 1e6
    assert round(count, 2) == 111.60
    assert int(MODELS["cin256_f8"][0] + count) == 506  # table 10's "506M" for LDM-8 and its classifier


@pytest.mark.parametrize("name", MODELS)
def test_layouts_are_the_published_ones_to_the_line(name):
    lines = layout(tree(name))
    _, count, digest = MODELS[name]
    assert len(lines) == count
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12] == digest


def test_recipes_are_the_published_ones():
    absolute = {"lsun_churches", "layout_openimages", "layout_coco", "semantic_landscapes", "semantic_landscapes_512",
                "inpainting_big"}  # fmt: skip
    for name in MODELS.keys() | {"layout_coco", "cin256_f4"}:
        own = tree(name)
        assert Parts(own)["loss"].func.__name__ == "absolute" if name in absolute else own["loss"] is None
        assert own["optimizer"]["decay_vectors"] and own["optimizer"]["weight_decay"] == 0.01
    big = tree("inpainting_big")
    with_base = big["optimizer"]["lr"] * 10 / big["data"]["batch_size"]  # the published base rate times its factor
    rates = [with_base * factor / 10 * 1e6 for factor in map(Parts(big)["lr"], (0, 1000, 50_000, 300_000))]
    assert rates == pytest.approx([0.001, 0.1, 0.0001, 0.0001])


def test_an_experiment_takes_another_option_of_a_group_than_its_own():
    assert "beta_start" not in tree("inpainting", "schedule=cosine")["schedule"]
    assert Parts(tree("celebahq", "schedule=cosine"))["precond"].schedule.num_timesteps == 1000
    assert "eta" not in tree("lsun_beds", "sampler=euler")["sampler"]
    assert tree("celebahq", "schedule=linear")["schedule"]["beta_end"] == 0.0195
    with pytest.raises(ValueError, match=r"schedule\.beta_start: no such key"):
        tree("celebahq", "schedule=cosine", "schedule.beta_start=0.1")


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


def test_ldm_8_of_the_sweep_is_not_the_one_that_was_released():
    swept, released = tree("cin256_f8_sweep"), tree("cin256_f8")
    assert (swept["max_steps"], swept["num_steps"], swept["network"]["num_heads"]) == (2_000_000, 100, 1)
    assert (released["max_steps"], released["network"]["head_channels"]) == (4_800_000, 32)
    of_table_13 = ("channels", "multipliers", "attention_factors")
    assert all(swept["network"][key] == released["network"][key] for key in of_table_13)
    assert (swept["data"]["batch_size"], swept["optimizer"]["lr"]) == (64, 6.4e-5)
