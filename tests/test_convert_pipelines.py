"""Whole diffusion models as folders of diffusers: the same latents from the same noise, and what is refused."""

import json
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel, UNet2DModel
from PIL import Image
from safetensors.torch import load_file
from test_convert_diffusion import _narrow_clip, random_state, saved, tree  # noqa: F401
from torch import Tensor

from ldm.checkpoint import weights
from ldm.conditioners.label import Label
from ldm.conditioners.text import frozen_text
from ldm.config import dump, load_tree
from ldm.convert import conditions, diffusers_unet, export_model, import_checkpoint
from ldm.diffusion.counter_random import normal
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
    words = (f"image_size={size}", f"num_steps={STEPS}", *more)
    state = random_state(name, *words)
    return import_checkpoint(saved(folder / "model.ckpt", state), tree(name, *words), folder / name, factor)


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


def factor_of(folder: Path) -> float:
    """The scale factor that a folder's first stage says; neither library's default stands where another was used."""
    return json.loads((folder / "vqvae/config.json").read_text())["scaling_factor"]


def assert_every_name_is_met(folder: Path, network: type) -> None:
    """The names and shapes in a folder's network are those that diffusers' own class gives it."""
    expected = network.from_config(network.load_config(folder / "unet")).state_dict()
    found = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    assert {name: value.shape for name, value in found.items()} == {n: v.shape for n, v in expected.items()}


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
    ("name", "more", "size", "factor", "expected"),
    [
        ("celebahq", [], 64, None, 1),
        ("celebahq", UPDOWN, 64, 0.5, 0.5),
        ("celebahq", [*UPDOWN, "network.attention_factors=[4]", "network.num_blocks=2"], 64, None, 1),
        ("celebahq", [*ONE_HEAD, *NEW_ORDER], 64, None, 1),
        ("celebahq", [*TRAILING, *COSINE], 64, None, 1),
        ("celebahq", LINEAR, 64, None, 1),
        ("lsun_churches", ["network.num_heads=null", "network.head_channels=8"], 128, None, 0.25),
    ],
)
def test_unconditional_models_give_the_same_latents_and_images(
    name, more, size, factor, expected, tmp_path, monkeypatch
):
    run = run_of(name, tmp_path, *more, size=size, factor=factor)
    noise, z, images = ours(run, {}, size)
    export_model(run.folder, "diffusers", tmp_path / "out")
    assert factor_of(tmp_path / "out") == pytest.approx(expected)
    assert_every_name_is_met(tmp_path / "out", UNet2DModel)
    their_z, their_images = theirs(tmp_path / "out", noise, monkeypatch, batch_size=2)
    close(their_z, z)
    close(their_images, images)


def test_a_number_of_heads_for_all_widths_comes_as_code_that_has_to_be_trusted(tmp_path, monkeypatch):
    run = run_of("lsun_churches", tmp_path, size=128)
    noise, z, images = ours(run, {}, 128)
    export_model(run.folder, "diffusers", tmp_path / "out")
    assert factor_of(tmp_path / "out") == pytest.approx(0.25)
    their_z, their_images = theirs(tmp_path / "out", noise, monkeypatch, batch_size=2, trust_remote_code=True)
    close(their_z, z)
    close(their_images, images)
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(tmp_path / "out")


CAPTIONS = ["a red fox", "two blue houses by the sea"]


@pytest.mark.parametrize(
    ("name", "more", "size"),
    [
        ("text2img_1p45b", [], 64),
        (
            "text2img_1p45b",
            ["network.transformer_depth=2", "network.scale_shift_norm=true", "network.linear_projections=true"],
            128,
        ),
        ("text2img_cc", [], 64),
        ("sd_v1", [], 64),
        ("sd_v1", ["regularizer=vq", "regularizer.channels=4", "regularizer.num_codes=16"], 64),
    ],
)
def test_text_models_give_the_same_latents_and_images(name, more, size, tmp_path, monkeypatch):
    run = run_of(name, tmp_path, *more, size=size)
    export_model(run.folder, "diffusers", tmp_path / "out")
    assert_every_name_is_met(tmp_path / "out", UNet2DConditionModel)
    for scale in (1.0, 3.0):
        noise, z, images = ours(run, {"caption": CAPTIONS}, size, scale)
        given = {"guidance_scale": scale, "latents": noise.clone()}
        their_z, their_images = theirs(tmp_path / "out", noise, monkeypatch, CAPTIONS, **given)
        close(their_z, z)
        close(their_images, images)


def whiten(folder: Path, mean: list[float], std: list[float]) -> None:
    """Say that the first stage of an imported run was whitened so, and its diffusion model trained on that."""
    stage = load(folder).first_stage.spec.to_dict()
    weights.amend(folder / "first_stage" / "weights", {"latent": {"mean": mean, "std": std, "count": 1}})
    weights.amend(folder / "weights", {"latent": {**stage, "mean": mean, "std": std}})


def test_kl_latents_whitened_by_channel_go_into_the_weights(tmp_path, monkeypatch):
    run = run_of("text2img_1p45b", tmp_path)
    whiten(run.folder, [0.125, -0.25, 0.0, 0.5], [2.0, 3.0, 1.0, 0.5])
    noise, z, images = ours(run, {"caption": CAPTIONS})
    export_model(run.folder, "diffusers", tmp_path / "out")
    assert json.loads((tmp_path / "out/vqvae/config.json").read_text())["scaling_factor"] == 1
    their_z, their_images = theirs(tmp_path / "out", noise, monkeypatch, CAPTIONS, latents=noise.clone())
    close(their_z, z)
    close(their_images, images)


@pytest.mark.parametrize("factor", [None, 0.5])
def test_super_resolution_gives_the_same_latents_and_images(factor, tmp_path, monkeypatch):
    run = run_of("superres_bsr", tmp_path, factor=factor)
    low = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    noise, z, images = ours(run, {"low_resolution": low})
    export_model(run.folder, "diffusers", tmp_path / "out")
    assert factor_of(tmp_path / "out") == 1
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
def test_other_models_are_parts_and_a_script_with_the_same_latents_and_images(name, more, size, tmp_path, monkeypatch):
    run = run_of(name, tmp_path, *more, size=size)
    batch, condition, null = batch_of(name)
    scale = 1.0 if null is None else 2.0
    noise, z, images = ours(run, batch, size, scale)
    files = export_model(run.folder, "diffusers", tmp_path / "out")
    assert tmp_path / "out/sample.py" in files
    if name == "celebahq":
        assert_every_name_is_met(tmp_path / "out", UNet2DConditionModel)
    their_z, their_images = scripted(tmp_path / "out", noise, scale, *condition, null=null)
    if "mask" in batch:
        their_images = their_images.where(batch["mask"] >= 0.5, batch["image"])
    close(their_z, z)
    close(their_images, images)
    fields = {{"caption": "prompt", "label": "class_labels"}.get(name, name): value for name, value in batch.items()}
    given = {**fields, "guidance_scale": scale, "latents": noise, "trust_remote_code": True}
    their_z, their_images = theirs(tmp_path / "out", noise, monkeypatch, **given)
    close(their_z, z)
    close(their_images, images)


def test_the_script_runs_as_it_is(tmp_path):
    run = run_of("cin256_v2", tmp_path)
    export_model(run.folder, "diffusers", tmp_path / "out")
    runpy.run_path(str(tmp_path / "out/sample.py"), run_name="__main__")
    pictures = [np.asarray(Image.open(tmp_path / f"out/sample_{number}.png")) for number in range(2)]
    assert pictures[0].shape == (64, 64, 3) and (pictures[0] != pictures[1]).any()


# --- what diffusers cannot hold


@pytest.fixture(scope="module")
def imported(tmp_path_factory) -> Path:
    """The folder of an imported unconditional model."""
    return run_of("celebahq", tmp_path_factory.mktemp("celebahq")).folder


def altered(imported: Path, tmp_path: Path, change: Callable[[dict], None]) -> Path:
    """A copy of an imported model, its first stage with it, whose tree is changed."""
    folder = shutil.copytree(imported, tmp_path / "run")
    changed = {**load_tree(folder / "config.yaml"), "first_stage": str(folder / "first_stage")}
    change(changed)
    (folder / "config.yaml").write_text(dump(changed))
    return folder


FLOW = {"_target_": "ldm.diffusion.precond.Flow"}
EXPERT = {"intervals": [[1.0, float("inf")]]}


def test_what_diffusers_cannot_hold_is_refused_by_its_key(imported, tmp_path):
    folder = altered(imported, tmp_path, lambda t: t.update(precond=FLOW))
    with pytest.raises(ValueError, match=r"precond: .*eps, v and x0.*format=safetensors"):
        export_model(folder, "diffusers", tmp_path / "out")
    weights.amend(folder / "weights", EXPERT)
    with pytest.raises(ValueError, match="expert: "):
        export_model(folder, "diffusers", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_conditions_that_no_pipeline_of_theirs_takes_are_told_apart():
    latent, label = conditions.Latent(3, 16, 4, is_vq=True), Label(3, width=4)
    known, text = {"a": "ldm.conditioners.label.Label"}, {"a": "ldm.conditioners.text.frozen_text"}
    assert conditions.has_form({}, {}, latent) and conditions.has_form({"a": label}, known, latent)
    assert not conditions.has_form({"a": label, "b": label}, {**known, "b": known["a"]}, latent)
    assert not conditions.has_form({"a": label}, {"a": "mine.Label"}, latent)
    for more in ({"slots": ["tokens", "vector"]}, {"width": 4}, {"zero_null": True}):
        assert not conditions.has_form({"a": frozen_text(**more)}, text, latent)


NETWORK = {
    "channels": 8, "multipliers": [1, 2], "num_blocks": 1, "attention_factors": [2], "num_heads": 2, "norm_groups": 4,
    "head_channels": None, "transformer_depth": 1, "dropout": 0.0, "scale_shift_norm": False, "resblock_updown": True,
    "legacy_attention_order": True, "patch_size": 1,
}  # fmt: skip


def test_blocks_that_neither_network_of_theirs_has_are_told_apart():
    plain = {"tokens_width": 0, "vector_width": 0, "concat_channels": 0}
    tokens, vector = {**plain, "tokens_width": 4}, {**plain, "vector_width": 4}
    assert diffusers_unet.holds(NETWORK, plain) and not diffusers_unet.holds(NETWORK, vector)
    assert not diffusers_unet.holds(NETWORK, tokens)  # resblock_updown
    assert diffusers_unet.holds({**NETWORK, "attention_factors": []}, tokens)
    for change in ({"patch_size": 2}, {"project_vector": False}):
        assert not diffusers_unet.holds({**NETWORK, **change}, plain)
    with pytest.raises(ValueError, match=r"network: mine\.weight"):
        diffusers_unet.names({"mine.weight": torch.zeros(1)}, NETWORK, by_tokens=False)
