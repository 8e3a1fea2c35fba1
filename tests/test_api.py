"""Models in Python: the lines of docs/sampling.md, images as sample.py makes them, options that name what is wrong."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from untrained import untrained_run

from ldm import load
from ldm.api import Codec, Images
from ldm.config import overriding
from ldm.ensemble import write_manifest
from ldm.loading import load as load_parts
from ldm.run import Run
from sample import main

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained run conditioned on 5 labels, in pixel space at 8 px. Not to be changed."""
    return untrained_run(tmp_path_factory.mktemp("labelled") / "toy")


def files(out: Path, *words: str) -> list[np.ndarray]:
    """The images of sample.py, in the order of its rows and numbers."""
    assert main(overriding([f"out={out}", *words])) == 0
    return [np.asarray(Image.open(path)) for path in sorted(out.glob("*.png")) if path.name != "grid.png"]


def same(images: Images, expected: list[np.ndarray]) -> bool:
    return len(images) == len(expected) and all(np.array_equal(a, b) for a, b in zip(images, expected, strict=True))


def test_importing_the_package_brings_no_torch():
    shown = "[name in sys.modules for name in ('torch', 'ldm.api')], callable(load)"
    code = f"import sys; from ldm import load; print({shown})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[False, False] True"


def test_the_lines_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    words = ["conditioner=[text]", "network.attention_factors=[1]"]
    run = untrained_run(tmp_path / "runs" / "quickstart-diffusion", *words)
    lines = (
        (ROOT / "docs" / "sampling.md")
        .read_text()
        .split("```python\nimport torch\nfrom ldm import load\n")[1]
        .split("```")[0]
    )
    monkeypatch.chdir(tmp_path)
    seen = {"torch": torch, "load": load}
    exec(lines, seen)
    images, z, x0 = seen["images"], seen["z"], seen["x0"]
    assert [image.size for image in images] == 4 * [(8, 8)] and images.tensor.shape == (4, 3, 8, 8)
    assert images.tensor.abs().max() <= 1 and seen["picture"].size == (8, 8)
    assert z.shape == x0.shape == (3, 8, 8) and Image.open("heart.png").tobytes() == images[0].tobytes()
    asked = [f"model={run}", "prompt=red heart", "num_images=4", "guidance.scale=3.0", "seed=0"]
    assert same(images, files(tmp_path / "out", *asked))
    rows = seen["model"].sample(prompts=["red heart", "blue, 'moon'"], num_images=2, negative_prompt="null", guidance=2)
    (tmp_path / "prompts.txt").write_text("red heart\nblue, 'moon'\n")
    asked = [f"model={run}", "prompts=prompts.txt", "num_images=2", "guidance.scale=2"]
    drawn = files(tmp_path / "rows", *asked)  # by name: the blue ones come first
    assert not same(rows[2:] + rows[:2], drawn), "a negative prompt is heard, whatever it says"
    rows = seen["model"].sample(prompts="prompts.txt", num_images=2, guidance=2)
    assert same(rows[2:] + rows[:2], drawn)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, []),
        ({"num_images": 5, "batch_size": 3, "seed": 7}, ["num_images=5", "batch_size=3", "seed=7"]),
        (
            {"guidance": {"scale": 9, "limits": {"sigma_lo": 0.3, "channels": [0]}}},
            ["guidance.scale=9", "guidance.limits.sigma_lo=0.3", "guidance.limits.channels=[0]"],
        ),
        (
            {"guidance": {"per_condition": {"scales": {"label": 9}}}},
            ["guidance=per_condition", "guidance.scales={label:9}"],
        ),
        ({"sampler": "heun", "num_steps": 4}, ["sampler=heun", "num_steps=4"]),
        ({"sampler": {"ddim": {"eta": 1.0}}}, ["sampler=ddim", "sampler.eta=1.0"]),
        ({"sigmas": {"karras": {"rho": 3.0}}}, ["sigmas=karras", "sigmas.rho=3.0"]),
        ({"height": 16, "width": 24, "tiling": "blended"}, ["height=16", "width=24", "tiling=blended"]),
        ({"use_conditions": [], "guidance": 1.0}, ["use_conditions=[]", "guidance.scale=1.0"]),
    ],
)
def test_images_are_those_of_sample_py(labelled: Path, tmp_path: Path, options: dict, words: list[str]):
    label = {} if "use_conditions" in options else {"label": 2}
    expected = files(tmp_path / "out", f"model={labelled}", *[f"label={n}" for n in label.values()], *words)
    assert same(load(labelled).sample(**label, **options), expected)


def test_loss_guidance_takes_pictures_and_keys(labelled: Path, tmp_path: Path):
    target = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    target.save(tmp_path / "target.png")
    words = ["label=1", "loss_guidance=[image]", "loss_guidance.image.scale=2.0", f"target={tmp_path}/target.png"]
    expected = files(tmp_path / "out", f"model={labelled}", *words)
    model = load(labelled)
    for given in (target, tmp_path / "target.png", f"{tmp_path}/target.png"):
        assert same(model.sample(label=1, loss_guidance={"image": {"scale": 2.0}}, target=given), expected)


def test_a_hole_is_filled_from_pictures(tmp_path: Path):
    run = untrained_run(tmp_path / "holes", "conditioner=[masked_image]")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    picture, hole = Image.fromarray(pixels), Image.fromarray(np.eye(8, dtype=np.uint8) * 255)
    picture.save(tmp_path / "picture.png")
    hole.save(tmp_path / "hole.png")
    expected = files(
        tmp_path / "out", f"model={run}", f"image={tmp_path}/picture.png", f"mask={tmp_path}/hole.png", "num_images=2"
    )
    assert same(load(run).sample(image=picture, mask=hole, num_images=2), expected)


def test_a_sample_begins_at_a_picture_of_python(labelled: Path, tmp_path: Path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    hole = Image.fromarray(np.eye(8, dtype=np.uint8) * 255)
    picture.save(tmp_path / "picture.png")
    hole.save(tmp_path / "hole.png")
    words = [f"model={labelled}", "label=1", f"start={tmp_path}/picture.png", "strength=0.4"]
    model = load(labelled)
    assert same(model.sample(label=1, start=picture, strength=0.4), files(tmp_path / "out", *words))
    words = [*words[:3], f"start_mask={tmp_path}/hole.png"]
    assert same(model.sample(label=1, start=picture, start_mask=hole), files(tmp_path / "held", *words))
    words = [*words[:3], "canvas=[0,8,0,0]", "to_seed=9", "num_images=2"]
    expected = files(tmp_path / "canvas", *words)
    assert same(model.sample(label=1, start=picture, canvas=(0, 8, 0, 0), to_seed=9, num_images=2), expected)
    with pytest.raises(ValueError, match="strength: is for sample"):
        model.denoise(torch.zeros(3, 8, 8), 1.0, strength=0.5)


def test_an_ensemble_and_a_weights_file_from_another_folder(labelled: Path, tmp_path: Path, monkeypatch):
    write_manifest(tmp_path / "e.yaml", [labelled])
    (file,) = (labelled / "weights").glob("*.ema.safetensors")
    expected = load(labelled).sample(label=1, num_images=2)
    monkeypatch.chdir(tmp_path)
    for path in ("e.yaml", file):
        model = load(path, device="cpu")
        assert torch.equal(model.sample(label=1, num_images=2).tensor, expected.tensor)
    assert torch.equal(
        model.denoise(torch.zeros(3, 8, 8), 1.0, label=1), load("e.yaml").denoise(torch.zeros(3, 8, 8), 1, label=1)
    )


def test_a_first_stage_encodes_and_decodes_one_or_several(first_stage: Run, tmp_path: Path):
    stage, parts = load(str(first_stage.folder)), load_parts(first_stage.folder)
    pictures = [Image.fromarray(np.full((32, 32, 3), value, dtype=np.uint8)) for value in (0, 200)]
    z = stage.encode(pictures)
    assert isinstance(stage, Codec) and torch.equal(z, parts.encode(torch.stack([-torch.ones(3, 32, 32), grey(200)])))
    assert torch.allclose(stage.encode(pictures[1]), z[1], atol=1e-4) and stage.encode(pictures[1]).shape == z[1].shape
    pictures[1].save(tmp_path / "grey.png")
    for given in (tmp_path / "grey.png", f"{tmp_path}/grey.png", grey(200)):
        assert torch.equal(stage.encode(given), stage.encode(pictures[1]))
    assert stage.decode(z[0]).size == (32, 32) and len(stage.decode(z)) == 2
    assert torch.equal(stage.decode(z).tensor, parts.decode(z).clamp(-1, 1))
    for wrong, problem in ((pictures[0].resize((31, 32)), "31 px: must be a multiple"), ("nowhere.png", "nowhere")):
        with pytest.raises((ValueError, OSError), match=problem):
            stage.encode(wrong)
    with pytest.raises(ValueError, match=r"latents \[2, 2\]: expected \["):
        stage.decode(torch.zeros(2, 2))


def grey(value: int) -> torch.Tensor:
    return torch.full((3, 32, 32), float(value)).div(127.5).sub(1)


def test_denoise_is_the_guided_estimate(labelled: Path):
    model = load(labelled)
    x, sigma = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5, 5.0])
    cond = model.drawer.conditioner({"label": torch.tensor([3, 3])}, drop={"label": torch.zeros(2, dtype=torch.bool)})
    own = model.drawer.denoiser(x, sigma, cond)
    assert torch.allclose(model.denoise(x, sigma, label=3, guidance=1.0), own, atol=1e-5)
    none = model.denoise(x, sigma, label=3, guidance=0.0)
    led = model.denoise(x, sigma, label=3, guidance=3.0)
    assert torch.allclose(led, none + 3 * (own - none), atol=1e-4) and not torch.allclose(led, own)
    assert torch.allclose(model.denoise(x[0], 0.5, label=3, guidance=1.0), own[0], atol=1e-5)
    x.requires_grad_()
    assert model.denoise(x, 1.0, label=3).sum().backward() is None and x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"num_image": 3}, "num_image: no such option; did you mean 'num_images'"),
        ({"sampler": "huen"}, "sampler=huen: no such option; did you mean 'heun'"),
        (
            {"guidance": {"sigma_low": 1}},
            r"guidance\.sigma_low: no such key; did you mean 'guidance\.limits\.sigma_lo'",
        ),
        ({"num_images": "4"}, "num_images='4': expected int"),
        ({"num_images": 0}, "num_images=0: must be at least 1"),
        ({"ema": "raw"}, r"ema: is said to ldm\.load\(path, ema="),
        ({"enlarge": 4}, "enlarge: is for the files of sample.py"),
        ({"prompts": []}, "prompts: no prompt"),
        ({"prompt": "cat"}, "prompt: this model reads no caption; it is conditioned on label"),
        ({"use_conditions": ["text"]}, "use_conditions"),
        ({"width": 7, "label": 1}, "weight|width|image_size|multiple"),
    ],
)
def test_a_wrong_option_is_one_line(labelled: Path, options: dict, problem: str):
    with pytest.raises(ValueError, match=problem) as caught:
        load(labelled).sample(**options)
    assert "\n" not in str(caught.value)


def test_denoise_refuses_what_draws_and_what_does_not_fit(labelled: Path):
    model, x = load(labelled), torch.zeros(2, 3, 8, 8)
    for sigma, options, problem in (
        (1.0, {"seed": 1}, "seed: is for sample"),
        (0.0, {}, "sigma=0.0: expected a number above 0"),
        (torch.ones(3), {}, "or one for each of 2 latents"),
        (1.0, {"lable": 1}, "lable: no such option; did you mean 'label'"),
    ):
        with pytest.raises(ValueError, match=problem):
            model.denoise(x, sigma, **options)
    with pytest.raises(ValueError, match=r"nowhere: no such run or manifest"):
        load("runs/nowhere")
