"""Whole diffusion models as folders of diffusers: the same latents from the same noise, and what is refused."""

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from test_convert_diffusion import _narrow_clip, random_state, saved, tree  # noqa: F401
from torch import Tensor

from ldm.convert import export_model, import_checkpoint
from ldm.diffusion.draws import normal
from ldm.run import Run, load

NUMBERS = torch.arange(2)
STEPS = 4


@pytest.fixture(autouse=True)
def _no_cache_of_modules(tmp_path, monkeypatch):
    """Code that comes with a folder is copied before it is imported; not into the user's cache."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))


def run_of(name: str, folder: Path, *more: str, factor: float | None = None, size: int = 64) -> Run:
    """A published model with random weights, narrow, imported."""
    own = tree(name, f"image_size={size}", f"num_steps={STEPS}", *more)
    state = random_state(name, *more)
    return import_checkpoint(saved(folder / "model.ckpt", state), own, folder / name, factor)


class Spied:
    """A function that notes its first argument."""

    def __init__(self, function: Any):
        self.function, self.seen = function, None

    def __call__(self, z: Tensor, *args: Any, **options: Any) -> Any:
        self.seen = z.clone()
        return self.function(z, *args, **options)


def ours(run: Run, batch: dict, size: int = 64, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """(first noise, last latents, images) of this package."""
    model = load(run.folder)
    guidance = {**model.parts.tree["guidance"], "scale": scale}
    sampling = model.sampling({"sampler": None, "sigmas": None, "guidance": guidance, "num_steps": STEPS})
    decode = Spied(model.first_stage.decode)
    model.first_stage.decode = decode
    images = model.generate(sampling, batch, NUMBERS, seed=0, size=size)
    noise = normal(0, "first noise", NUMBERS, tuple(decode.seen.shape[1:]))
    return noise, decode.seen, images


def theirs(folder: Path, noise: Tensor, monkeypatch: pytest.MonkeyPatch, *args, **options) -> tuple[Tensor, Tensor]:
    """(last latents, images) of a folder's pipeline."""
    pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=options.pop("trust_remote_code", False))
    pipeline.set_progress_bar_config(disable=True)
    module = __import__(type(pipeline).__module__, fromlist=["randn_tensor"])
    monkeypatch.setattr(module, "randn_tensor", lambda shape, **_: noise.clone().reshape(shape), raising=False)
    first_stage = getattr(pipeline, "vqvae", None) or pipeline.vae
    decode = Spied(first_stage.decode)
    first_stage.decode = decode
    images = pipeline(*args, num_inference_steps=STEPS, output_type="np", **options).images
    images = torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1
    return decode.seen * first_stage.config.scaling_factor, images


def close(a: Tensor, b: Tensor) -> None:
    """Equal to 1e-4, whatever the size of the values."""
    torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


UPDOWN = ["network.resblock_updown=true", "network.scale_shift_norm=true"]
ONE_HEAD = ["network.num_heads=1", "network.head_channels=null"]
NEW_ORDER = ["network.legacy_attention_order=false"]
TRAILING = ["sigmas=trailing"]
COSINE = ["schedule=cosine", "precond=v", "~schedule.beta_start", "~schedule.beta_end"]
LINEAR = ["schedule=linear", "precond=x0"]


@pytest.mark.parametrize(
    ("name", "more", "size", "factor"),
    [
        ("celebahq", [], 64, None),
        ("celebahq", UPDOWN, 64, 0.5),
        ("celebahq", [*UPDOWN, "network.attention_factors=[4]", "network.num_blocks=2"], 64, None),
        ("celebahq", [*ONE_HEAD, *NEW_ORDER], 64, None),
        ("celebahq", [*TRAILING, *COSINE], 64, None),
        ("celebahq", LINEAR, 64, None),
        ("lsun_churches", ["network.num_heads=null", "network.head_channels=8"], 128, None),
    ],
)
def test_unconditional_models_give_the_same_latents_and_images(name, more, size, factor, tmp_path, monkeypatch):
    run = run_of(name, tmp_path, *more, size=size, factor=factor)
    noise, z, images = ours(run, {}, size)
    export_model(run.folder, "diffusers", tmp_path / "out")
    their_z, their_images = theirs(tmp_path / "out", noise, monkeypatch, batch_size=2)
    close(their_z, z)
    close(their_images, images)


def test_a_number_of_heads_for_all_widths_comes_as_code_that_has_to_be_trusted(tmp_path, monkeypatch):
    run = run_of("lsun_churches", tmp_path, size=128)
    noise, z, images = ours(run, {}, 128)
    export_model(run.folder, "diffusers", tmp_path / "out")
    their_z, their_images = theirs(tmp_path / "out", noise, monkeypatch, batch_size=2, trust_remote_code=True)
    close(their_z, z)
    close(their_images, images)
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(tmp_path / "out")


CAPTIONS = ["a red fox", "two blue houses by the sea"]


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize(
    ("name", "more", "size"),
    [
        ("text2img_1p45b", [], 64),
        ("text2img_1p45b", ["network.transformer_depth=2", "network.scale_shift_norm=true"], 128),
        ("text2img_cc", [], 64),
        ("sd_v1", [], 64),
        ("sd_v1", ["regularizer=vq", "regularizer.channels=4", "regularizer.num_codes=16"], 64),
    ],
)
def test_text_models_give_the_same_latents_and_images(name, more, size, scale, tmp_path, monkeypatch):
    run = run_of(name, tmp_path, *more, size=size)
    noise, z, images = ours(run, {"caption": CAPTIONS}, size, scale)
    export_model(run.folder, "diffusers", tmp_path / "out")
    their_z, their_images = theirs(
        tmp_path / "out", noise, monkeypatch, CAPTIONS, guidance_scale=scale, latents=noise.clone()
    )
    close(their_z, z)
    close(their_images, images)


@pytest.mark.parametrize("factor", [None, 0.5])
def test_super_resolution_gives_the_same_latents_and_images(factor, tmp_path, monkeypatch):
    run = run_of("superres_bsr", tmp_path, factor=factor)
    low = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    noise, z, images = ours(run, {"low_resolution": low})
    export_model(run.folder, "diffusers", tmp_path / "out")
    their_z, their_images = theirs(tmp_path / "out", noise, monkeypatch, low)
    close(their_z, z)
    close(their_images, images)


def scripted(folder: Path, noise: Tensor, scale: float, *condition: Any, null: Any = None) -> tuple[Tensor, Tensor]:
    """(last latents, images) of a folder's sample.py."""
    script = runpy.run_path(str(folder / "sample.py"))
    given = script["condition"](*condition)
    null = None if null is None else script["condition"](null)
    z = script["sample"](noise, given, null, scale, STEPS)
    return z, script["decode"](z)


def batch_of(name: str) -> tuple[dict, tuple, Any]:
    """(our batch, what condition() takes, the same of null) of a model."""
    random = torch.Generator().manual_seed(1)
    image = torch.rand(2, 3, 64, 64, generator=random) * 2 - 1
    mask = (torch.rand(2, 1, 64, 64, generator=random) < 0.3).float()
    label, layout = torch.tensor([3, 7]), torch.randint(0, 8192, (2, 92), generator=random)
    classes, tokens = torch.randint(0, 182, (2, 64, 64), generator=random), torch.randn(2, 21, 768, generator=random)
    return {
        "cin256_v2": ({"label": label}, (label,), torch.full((2,), 9)),
        "cin256_f8": ({"label": label}, (label,), None),
        "layout_openimages": ({"layout": layout}, (layout,), None),
        "semantic_landscapes": ({"segmentation": classes}, (classes,), None),
        "inpainting_big": ({"image": image, "mask": mask}, (image, mask), None),
        "inpainting_kl": ({"image": image, "mask": mask}, (image, mask), None),
        "rdm_768": ({"embeddings": tokens}, (tokens,), torch.zeros_like(tokens)),
        "text2img_cc": ({"caption": CAPTIONS}, (CAPTIONS,), ["", ""]),
        "celebahq": ({"caption": CAPTIONS}, (CAPTIONS,), ["", ""]),
    }[name]


@pytest.mark.parametrize(
    ("name", "more", "size"),
    [
        ("cin256_v2", [], 64),
        ("cin256_f8", [], 64),
        ("layout_openimages", [], 64),
        ("semantic_landscapes", [], 64),
        ("inpainting_big", [], 64),
        ("rdm_768", [], 128),
        ("text2img_cc", ["conditioner.caption_transformer.max_tokens=20"], 64),
        ("celebahq", ["conditioner=[text]"], 64),
    ],
)
def test_other_models_are_parts_and_a_script_with_the_same_latents_and_images(name, more, size, tmp_path):
    run = run_of(name, tmp_path, *more, size=size)
    batch, condition, null = batch_of(name)
    scale = 1.0 if null is None else 2.0
    noise, z, images = ours(run, batch, size, scale)
    files = export_model(run.folder, "diffusers", tmp_path / "out")
    assert tmp_path / "out/sample.py" in files and not (tmp_path / "out/model_index.json").exists()
    their_z, their_images = scripted(tmp_path / "out", noise, scale, *condition, null=null)
    close(their_z, z)
    close(their_images, images)
