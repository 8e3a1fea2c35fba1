"""eDiff-I's models (arXiv 2211.01324): parameters, the numbers of table 7, tokens, evaluations, and tiny ones."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toys import clip_image_folder, t5_folder, train

from ldm.build import Parts
from ldm.config import CONF, compose
from ldm.errors import UserError
from ldm.run import Run
from sample import main

# Concatenated channels, M parameters of the network under tokens of width 1024 and CLIP's image as a vector of 768.
MODELS = {"base64": (0, 710.71), "sr256": (3, 450.47), "sr1024": (3, 197.16)}
# Image, crop, steps of the training and of a sample, rho, evaluations of a sample (a step into 0 is one).
RECIPES = {
    "base64": (64, None, 1_900_000, 25, 6, 3 * 24 + 1), "sr256": (256, None, 2_000_000, 10, 3, 3 * 9 + 1),
    "sr1024": (1024, 256, 1_700_000, 10, 3, 3 * 9 + 1),
}  # fmt: skip
PATHS = {"t5": t5_folder, "clip_text": clip_image_folder, "clip_image": clip_image_folder}


def tree(name: str, *more: str) -> dict:
    return compose("config", [f"experiment=ediffi/{name}", *more], complete=False)


def test_every_experiment_is_counted():
    assert {path.stem for path in CONF.glob("experiment/ediffi/*.yaml")} - {"conditions_tiny"} == MODELS.keys()


@pytest.mark.parametrize("name", MODELS)
def test_the_networks_have_their_parameters(name):
    concat, millions = MODELS[name]
    with torch.device("meta"):
        network = Parts(tree(name), tokens_width=1024, vector_width=1536, concat_channels=concat)["network"]
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize("name", RECIPES)
def test_the_numbers_of_table_7(name):
    own, (size, crop, steps, num_steps, rho, evaluations) = tree(name), RECIPES[name]
    assert (own["image_size"], own["crop_size"], own["max_steps"], own["num_steps"]) == (size, crop, steps, num_steps)
    optimizer = own["optimizer"]
    assert (optimizer["lr"], optimizer["weight_decay"], list(optimizer["betas"])) == (1e-4, 0.01, [0.9, 0.999])
    assert optimizer["_target_"].endswith("adamw") and own["ema"]["decay"] == 0.9999
    assert own["data"]["batch_size"] == 2048 and own["network"]["checkpoint_activations"]
    assert (own["noise"]["mean"], own["noise"]["std"], own["precond"]["sigma_data"]) == (-1.2, 1.2, 0.5)
    assert own["schedule"]["c_noise_scale"] == 1.0 and own["sigmas"]["rho"] == rho
    drops = {key: part.get("drop_prob", 0.0) for key, part in own["conditioner"].items()}
    beside = {} if name == "base64" else {"low_resolution": 0.0}
    assert drops == {"t5": 0.25, "clip_text": 0.2, "clip_image": 0.9, "null_token": 0.0, **beside}
    assert (name == "base64") == ("low_resolution" not in own["derived"]), "the small pictures are degraded at random"

    sampling, seen = Parts(own)["sampling"], []

    def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        seen.append(sigma)
        return x / (1 + sigma.view(-1, 1, 1, 1) ** 2)

    sampling.sampler(denoise, torch.randn(1, 3, 2, 2), sampling.sigmas)
    assert len(sampling.sigmas) == num_steps + 1 and len(seen) == evaluations


@pytest.mark.parametrize("name", ["base64", "sr1024"])
def test_attention_sees_192_tokens_of_two_texts_the_image_and_none(name):
    own = tree(name, *(f"conditioner.{key}.path={folder()}" for key, folder in PATHS.items()))
    conditioner = Parts(own)["conditioner"]
    tokens = {key: part.num_tokens for key, part in conditioner.parts.items() if part.num_tokens}
    assert tokens == {"t5": 113, "clip_text": 77, "clip_image": 1, "null_token": 1}
    assert conditioner.widths()["tokens_width"] == 1024
    drop = {key: torch.ones(1, dtype=torch.bool) for key in conditioner.parts}
    batch = {"caption": [""], "low_resolution": torch.zeros(1, 3, 8, 8)}
    given = conditioner(batch, drop=drop)
    assert given["tokens"].shape == (1, 192, 1024) and not given["tokens"][:, :-1].any(), "dropped is zero"
    assert not given["vector"].any()


# From small pictures, in pixels: with noise conditioning augmentation, and four times the size.


@pytest.fixture(scope="module")
def enlarger(tmp_path_factory: pytest.TempPathFactory) -> Run:
    factors = ["conditioner.low_resolution.factor=4", "derived.low_resolution.factor=4"]
    noisy = "conditioner.low_resolution.max_noise_level=0.5"
    return train("ediffi/tiny/sr32", tmp_path_factory.mktemp("runs"), *factors, noisy)


def drawn(run: Run, out: Path, *words: str) -> np.ndarray:
    low = out / "low.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8)).save(low)
    fixed = ["prompt=red heart", "num_images=1", "guidance.scale=2", "device=cpu"]
    assert main([f"model={run.folder}", f"low={low}", *fixed, *words, f"out={out}"]) == 0
    return np.asarray(Image.open(out / "red-heart_0000.png"))


def test_a_small_picture_of_any_shape_is_enlarged_in_pixels_by_what_was_trained_on_crops(enlarger, tmp_path):
    own = drawn(enlarger, tmp_path)
    assert own.shape == (4 * 6, 4 * 10, 3) and enlarger.tree["crop_size"] == 32
    assert np.array_equal(drawn(enlarger, tmp_path), own), "the noise is drawn by number"
    assert np.array_equal(drawn(enlarger, tmp_path, "low_noise=0.1"), own), "the run's own level"
    assert not np.array_equal(drawn(enlarger, tmp_path, "low_noise=0.5"), own)
    with pytest.raises(UserError, match=r"low_noise=0\.6: must lie in \[0, 0\.5\]"):
        drawn(enlarger, tmp_path, "low_noise=0.6")
