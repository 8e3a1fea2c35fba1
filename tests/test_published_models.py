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
    "celeba_f32": 257.86, "layout_coco": 312.24, "layout_coco_ft": 246.28, "superres": 113.62, "superres_big": 498.87,
    "superres_x2": 113.64, "superres_pixel": 113.62, "superres_regression": 113.62, "inpainting": 215.23,
    "inpainting_kl": 215.23, "inpainting_noattn": 215.23, "inpainting_pixel": 215.23, "inpainting_big_512": 387.25,
    "sd_v1": 859.52,
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


# What was published of each: [first stage's f, its latent's channels], beta_end, batch, optimizer steps, rate, sampling
# steps, eta, guidance's scale. None: not published, or of another kind. Tables 1 to 3, 5, 12 to 15 (arXiv 2112.10752).
RECIPES = {
    "celebahq": (4, 3, 0.0195, 48, 410_000, 9.6e-5, 500, 0, 1), "ffhq": (4, 3, 0.0195, 42, 635_000, 8.4e-5, 200, 1, 1),
    "lsun_churches": (8, 4, 0.0155, 96, 500_000, 5e-5, 200, 0, 1),
    "lsun_beds": (4, 3, 0.0195, 48, 1_900_000, 9.6e-5, 200, 1, 1),
    "cin256_f1": (1, 3, 0.0195, 7, 2_000_000, 4.9e-5, 100, 0, 1),
    "cin256_f2": (2, 2, 0.0195, 9, 2_000_000, 6.3e-5, 100, 0, 1),
    "cin256_f4": (4, 3, 0.0195, 40, 2_000_000, 8e-5, 100, 0, 1),
    "cin256_f8_sweep": (8, 4, 0.0195, 64, 2_000_000, 6.4e-5, 100, 0, 1),
    "cin256_f16": (16, 8, 0.0195, 112, 2_000_000, 4.5e-5, 100, 0, 1),
    "cin256_f32": (32, 32, 0.0195, 112, 2_000_000, 4.5e-5, 100, 0, 1),
    "celeba_f1": (1, 3, 0.0195, 9, 500_000, 9e-5, 200, 0, 1),
    "celeba_f2": (2, 2, 0.0195, 11, 500_000, 1.1e-4, 200, 0, 1),
    "celeba_f4": (4, 3, 0.0195, 48, 500_000, 9.6e-5, 200, 0, 1),
    "celeba_f8": (8, 4, 0.0195, 96, 500_000, 9.6e-5, 200, 0, 1),
    "celeba_f16": (16, 8, 0.0195, 128, 500_000, 1.3e-4, 200, 0, 1),
    "celeba_f32": (32, 32, 0.0195, 128, 500_000, 1.3e-4, 200, 0, 1),
    "cin256_f8": (8, 4, 0.0195, 64, 4_800_000, 6.4e-5, None, 0, 1),
    "cin256_v2": (4, 3, 0.0195, 1200, 178_000, 1e-4, 250, 0, 1.5),
    "text2img_1p45b": (8, 4, 0.012, 680, 390_000, 1e-4, 250, 0, 1.5),
    "text2img_cc": (4, 3, 0.0195, 28, None, 5.6e-5, 100, 0, 1),
    "layout_openimages": (4, 3, 0.0205, 24, 4_400_000, 4.8e-5, 200, 0, 1),
    "layout_coco": (8, 4, 0.0205, 48, 170_000, 4.8e-5, None, 0, 1),
    "layout_coco_ft": (4, 3, 0.0205, 24, None, 4.8e-5, None, 0, 1),
    "semantic_landscapes": (4, 3, 0.0205, 48, 360_000, 4.8e-5, None, 0, 1),
    "semantic_landscapes_512": (4, 3, 0.0205, 8, None, 8e-6, None, 0, 1),
    "superres": (4, 3, 0.0155, 64, 860_000, 6.4e-5, 100, 0, 1),
    "inpainting": (4, 3, 0.0205, 128, 360_000, 1.28e-4, None, 0, 1),
    "inpainting_big": (4, 3, 0.0205, None, None, None, None, 0, 1),
    "rdm_768": (16, 16, 0.015, None, None, 1e-4, None, 0, None),
}  # fmt: skip
# Of the first stages (table 8, and what its code published): batch for one GPU, steps.
FIRST_STAGES = {
    "kl_f4": (10, 176_991), "kl_f8": (4, 246_803), "kl_f16": (6, 442_998), "kl_f32": (6, 406_763),
    "vq_f4": (8, 533_066), "vq_f4_noattn": (8, 658_131), "vq_f8": (10, 971_043), "vq_f8_n256": (10, 1_608_649),
    "vq_f16": (14, 1_101_166),
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_the_numbers_of_its_table(name):
    own, published = tree(name), RECIPES[name]
    f = 2 ** (len(own["autoencoder"]["multipliers"]) - 1) if own["autoencoder"] else 1
    channels = own["regularizer"]["channels"] if own["autoencoder"] else 3
    numbers = (
        f, channels, own["schedule"]["beta_end"], own["data"]["batch_size"], own["max_steps"], own["optimizer"]["lr"],
        own["num_steps"], own["sampler"]["eta"], own["guidance"]["scale"],
    )  # fmt: skip
    asked = [(mine, theirs) for mine, theirs in zip(numbers, published, strict=True) if theirs is not None]
    assert [mine for mine, _ in asked] == pytest.approx([theirs for _, theirs in asked])
    sampling = Parts(own)["sampling"]
    assert sampling.sampler.func.__name__ == "ddim" and len(sampling.sigmas) == own["num_steps"] + 1
    assert own["ema"]["decay"] == 0.9999, "every model was averaged, also those whose file has the average alone"
    assert own["noise"]["_target_"].endswith("DiscreteNoise") and len(Parts(own)["noise"].atoms) == 1000


@pytest.mark.parametrize("name", FIRST_STAGES)
def test_a_first_stage_has_the_numbers_of_its_table(name):
    own = tree(f"first_stage/{name}")
    batch, steps = FIRST_STAGES[name]
    assert (own["data"]["batch_size"], own["max_steps"]) == (batch, steps)
    assert own["optimizer"]["lr"] == pytest.approx(4.5e-6 * batch) and own["data"]["random_crop"]
    assert (own["image_size"], own["crop_size"]) == ((256, None) if name == "vq_f4" else (384, 256))


def test_crops_and_fine_tunes_are_the_published_ones():
    sizes = {"semantic_landscapes": (384, 256), "semantic_landscapes_512": (768, 512)}
    for name, size in sizes.items():
        assert (tree(name)["image_size"], tree(name)["crop_size"]) == size and tree(name)["data"]["random_crop"]
    assert tree("semantic_landscapes_512")["branch"] == "runs/ldm-semantic_landscapes"
    assert tree("inpainting_big_512")["branch"] == "runs/ldm-inpainting_big"
    assert tree("layout_coco_ft")["branch"] == "runs/ldm-layout_openimages"
    with pytest.raises(ValueError, match=r"data\.fields\.layout\.classes"):
        compose("config", ["experiment=ldm/layout_coco_ft", "data.train=x.tar"])


def test_recipes_are_the_published_ones():
    absolute = {"lsun_churches", "layout_openimages", "layout_coco", "layout_coco_ft",
                "semantic_landscapes", "semantic_landscapes_512",
                "inpainting_big"}  # fmt: skip
    for name in MODELS.keys() | {"layout_coco", "layout_coco_ft", "cin256_f4"}:
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
