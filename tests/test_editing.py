"""From a picture that is there: image to image, holes, canvases, and frames between two seeds."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_sample import first_image, pixels
from untrained import untrained_run

from ldm.config import overriding
from ldm.diffusion.counter_random import normal
from ldm.diffusion.interpolation import Frames, slerp
from ldm.editing import Edit, on_canvas
from ldm.ensemble import write_manifest
from ldm.first_stage.first_stage import Identity
from ldm.loading import load
from ldm.run import Run
from sample import main

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained run conditioned on 5 labels, in pixel space at 8 px. Not to be changed."""
    return untrained_run(tmp_path_factory.mktemp("model") / "toy")


def drawn_picture(path: Path, height: int, width: int) -> np.ndarray:
    """A picture of noise in a new file, and its pixels."""
    array = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(array).save(path)
    return array


# Image to image


def test_a_sample_begins_at_a_picture_and_stays_near_it_by_its_strength(model, tmp_path):
    picture = drawn_picture(tmp_path / "start, a=b.png", 8, 8)
    words = ["label=1", "num_steps=20", "guidance.scale=1"]
    plain = first_image(model, tmp_path / "plain", *words)
    start = f"start={tmp_path}/start, a=b.png"
    strengths = (0.05, 0.3, 0.6, 0.9)
    drawn = [first_image(model, tmp_path / f"{s}", *words, start, f"strength={s}") for s in strengths]
    distances = [np.abs(image - picture).mean() for image in drawn]
    assert distances == sorted(distances) and distances[0] < 3 < distances[-1]
    assert np.array_equal(plain, first_image(model, tmp_path / "1", *words, start, "strength=1"))
    usual = first_image(model, tmp_path / "usual", *words, start)
    assert np.array_equal(usual, first_image(model, tmp_path / "0.8", *words, start, "strength=0.8"))


# Holes


def test_what_of_a_picture_is_kept_comes_out_as_it_was(model, tmp_path):
    words = ["label=1", "num_steps=4"]
    members = [untrained_run(tmp_path / f"{n}", f"expert.node=[1,{n}]", shared=n, seed=n) for n in range(2)]
    write_manifest(tmp_path / "experts.yaml", members)
    for name, path, more, width in (
        ("plain", model, [], 8), ("guided", model, ["guidance.scale=5", "sampler=ddpm"], 8),
        ("strength", model, ["strength=0.5"], 8), ("tiled", model, ["width=16", "tiling=blended"], 16),
        ("experts", tmp_path / "experts.yaml", ["guidance.scale=2"], 8), ("jumps", model, ["sampler=repaint"], 8),
    ):  # fmt: skip
        picture = drawn_picture(tmp_path / "picture.png", 8, width)
        hole = np.zeros((8, width), dtype=np.uint8)
        hole[2:6, 3:7] = 255
        Image.fromarray(hole).save(tmp_path / "hole.png")
        given = [f"start={tmp_path}/picture.png", f"start_mask={tmp_path}/hole.png"]
        image = first_image(path, tmp_path / f"out {name}", *words, *given, *more)
        assert np.array_equal(image[hole == 0], picture[hole == 0]), name
        assert np.abs(image - picture)[hole > 0].mean() > 5, name


def test_a_hole_takes_all_places_of_the_latent_that_it_touches(first_stage: Run):
    stage = load(first_stage.folder)
    f = stage.spec.f
    picture, hole = torch.rand(1, 3, 8 * f, 8 * f) * 2 - 1, torch.zeros(1, 1, 8 * f, 8 * f, dtype=torch.bool)
    hole[..., 0, 0], hole[..., 3 * f : 4 * f, -1] = True, True
    sigmas = torch.tensor([9.0, 3.0, 1.0, 0.0])
    start, known = Edit(picture, 0.7, hole).begin(stage, sigmas, CPU)
    assert start.sigma == 3.0 and torch.equal(start.x0, stage.encode(picture)) and start.x0.shape[1] != 3
    assert known.mask.nonzero()[:, 2:].tolist() == [[0, 0], [3, 7]] and known.x0 is start.x0
    begun = [Edit(picture, s).begin(stage, sigmas, CPU) for s in (1.0, 0.99, 0.1)]
    assert begun[0] == (None, None) and [start.sigma for start, _ in begun[1:]] == [3.0, 1.0]


# In latents: what a first stage does not give back is the picture's own all the same


def test_pixels_that_are_not_drawn_are_the_picture_s_whatever_the_first_stage(diffusion: Run, tmp_path, caplog):
    picture = drawn_picture(tmp_path / "picture.png", 32, 32)
    hole = np.zeros((32, 32), dtype=np.uint8)
    hole[5:19, 7:30] = 255
    Image.fromarray(hole).save(tmp_path / "hole.png")
    words = ["prompt=a cat", "num_steps=2", f"start={tmp_path}/picture.png"]

    def drawn(name: str, *more: str) -> np.ndarray:
        return first_image(diffusion.folder, tmp_path / name, *words, *more)

    assert np.array_equal(drawn("0", "strength=0"), picture)
    assert np.abs(drawn("0.5", "strength=0.5") - picture).mean() > 5, "the first stage gives noise back as a blur"
    filled = drawn("hole", f"start_mask={tmp_path}/hole.png")
    assert np.array_equal(filled[hole == 0], picture[hole == 0])
    assert np.abs(filled - picture)[hole > 0].mean() > 5
    with caplog.at_level(logging.WARNING):
        wide = drawn("wide", "canvas=[0,30,8,2]")
    assert wide.shape == (40, 64, 3) and np.array_equal(wide[:32, 2:34], picture)
    assert "canvas: 64 x 40 px are more than the 32 of the training; denoised as tiling=blended" in caplog.text
    both = drawn("both", "canvas=[0,30,8,2]", f"start_mask={tmp_path}/hole.png", "tiling=blended")
    assert np.array_equal(both[:32, 2:34][hole == 0], picture[hole == 0])
    assert not np.array_equal(both[:32, 2:34], picture)


# Canvases


def test_a_picture_is_put_on_a_canvas_that_goes_on_as_it_ends():
    picture = torch.arange(12.0).view(1, 1, 3, 4).expand(-1, 3, -1, -1)
    hole = torch.zeros(1, 1, 3, 4, dtype=torch.bool)
    hole[..., 1, 2] = True
    canvas, drawn = on_canvas(picture, hole, [1, 2, 0, 3])
    assert canvas.shape == (1, 3, 4, 9) and torch.equal(canvas[..., 1:, 3:7], picture)
    assert canvas[0, 0, :, 0].tolist() == [0, 0, 4, 8] and canvas[0, 0, :, -1].tolist() == [3, 3, 7, 11]
    assert torch.equal(drawn[..., 1:, 3:7], hole) and drawn.sum() == 4 * 9 - 12 + 1
    assert on_canvas(picture, None, [1, 2, 0, 3])[1].sum() == 4 * 9 - 12


def test_a_canvas_is_filled_around_the_picture(model, tmp_path):
    words = ["label=1", f"start={tmp_path}/picture.png"]
    picture = drawn_picture(tmp_path / "picture.png", 6, 4)  # at the size of the training, of no size of the network
    whole = first_image(model, tmp_path / "whole", *words, "canvas=[1,2,1,2]")
    assert whole.shape == (8, 8, 3) and np.array_equal(whole[1:7, 2:6], picture)
    around = first_image(model, tmp_path / "all", *words, "canvas=3", "tiling=null")
    assert around.shape == (12, 10, 3) and np.array_equal(around[3:9, 3:7], picture)
    tiled = first_image(model, tmp_path / "tiled", *words, "canvas=3")
    assert tiled.shape == around.shape and not np.array_equal(tiled, around)


# Frames between two seeds


def test_between_two_draws_noise_stays_standard_normal_and_turns_at_constant_speed():
    numbers = torch.arange(5)
    frames = Frames(to_seed=7, num_frames=5)(3, "first noise", numbers, (4, 40, 50))
    ends = [normal(seed, "first noise", torch.tensor([0]), (4, 40, 50))[0] for seed in (3, 7)]
    assert torch.equal(frames[0], ends[0]) and torch.equal(frames[4], ends[1])
    for frame in frames:
        assert abs(frame.mean().item()) < 0.04 and abs(frame.std().item() - 1) < 0.03
    turns = torch.cosine_similarity(frames[1:].flatten(1), frames[:-1].flatten(1)).acos()
    torch.testing.assert_close(turns, turns.mean().expand(4), rtol=0.02, atol=0)
    assert torch.equal(slerp(ends[0][None], ends[0][None], torch.tensor([0.3]))[0].round(decimals=3),
                       ends[0].round(decimals=3))  # fmt: skip


@pytest.mark.parametrize("more", [[], ["sampler=ddpm"], ["derived"]])
def test_a_row_of_frames_ends_in_the_samples_of_its_seeds(model, tmp_path, more):
    words = ["label=1", "num_images=4", "batch_size=1", *more]
    if more == ["derived"]:  # what is made of a picture at random is made alike for all frames
        model = untrained_run(tmp_path / "model", "conditioner=[low_resolution]", "derived=[degraded]")
        drawn_picture(tmp_path / "picture.png", 8, 8)
        words = [f"image={tmp_path}/picture.png", *words[1:3]]

    def row(name: str, *more: str) -> list[np.ndarray]:
        assert main(overriding([f"model={model}", *words, f"out={tmp_path / name}", *more])) == 0
        return [image for file, image in pixels(tmp_path / name).items() if file != "grid.png"]

    frames = row("frames", "seed=1", "to_seed=2")
    first, last = (row(f"{seed}", f"seed={seed}") for seed in (1, 2))
    assert np.array_equal(frames[0], first[0]) and np.array_equal(frames[-1], last[0])
    distances = [np.abs(frame - frames[0]).mean() for frame in frames]
    assert distances == sorted(distances) and distances[1] > 0


def test_what_is_kept_is_kept_beside_an_image_that_is_not_finite(model, tmp_path, monkeypatch):
    picture = drawn_picture(tmp_path / "start.png", 8, 8)
    Image.fromarray(np.pad(np.full((4, 8), 255, np.uint8), ((0, 4), (0, 0)))).save(tmp_path / "hole.png")
    decode = Identity.decode
    monkeypatch.setattr(Identity, "decode", lambda self, z: decode(self, z).index_fill(0, torch.tensor([1]), torch.inf))
    words = [f"start={tmp_path}/start.png", f"start_mask={tmp_path}/hole.png", "num_images=3", "num_steps=2"]
    with pytest.raises(ValueError, match="not finite: image number 1;"):
        main([f"model={model}", "label=1", *words, f"out={tmp_path}/out"])
    for number in (0, 2):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / f"1_000{number}.png"))[4:], picture[4:])
    assert not (tmp_path / "out" / "1_0001.png").exists()


# What contradicts


def test_a_picture_to_begin_from_that_does_not_fit_is_named(model, tmp_path, monkeypatch):
    start, other, mask = (f"{tmp_path}/{name}.png" for name in ("small", "picture", "mask"))
    Image.new("RGB", (8, 8)).save(start)
    Image.new("L", (8, 8), 255).save(mask)
    drawn_picture(Path(other), 12, 16)
    for words, problem in (
        ([f"start={other}"], r"start=.*picture\.png: has 16 x 12 px, .* will have 8 x 8; .*width="),
        ([f"start={start}", f"start_mask={other}"], r"start_mask=.*picture\.png: has 16 x 12 px"),
        ([f"start={start}", f"start_mask={start}"], "start_mask: nothing in it is white"),
        *[([f"{key}"], f"{key[:6]}.*: says what is done with start=FILE") for key in
          (f"start_mask={start}", "strength=0.5", "canvas=8")],
        *[([f"start={start}", f"strength={s}"], "strength=.*: must be in") for s in ("-0.1", "1.1", "-1", "nan")],
        *[([f"start={start}", "strength=0", key], r"strength=0: draws nothing, where start_mask= or canvas=")
          for key in (f"start_mask={mask}", "canvas=8")],
        ([f"start={start}", "strength=much"], "strength='much': expected float"),
        *[([f"start={start}", f"canvas={given}"], r"canvas=.*: expected \[top,right,bottom,left\]")
          for given in ("[8,8]", "0", "[0,-8,0,0]", "[0,0,0,0]")],
        ([f"start={start}", "canvas=wide"], "canvas='wide': expected"),
        ([f"start={start}", "canvas=[0,0,0,70000]"], r"canvas=.*: at most 65536 px a side"),
        ([f"start={start}", "canvas=8", "width=16"], "width: the size is that of start= with the borders of canvas="),
        ([f"start={start}", "canvas=8", f"start_mask={other}"], "start_mask=.*has 16 x 12 px, and start= has 8 x 8"),
        ([f"start={tmp_path}/nowhere.png"], r"nowhere\.png"),
        (["start=/dev/zero"], "start=/dev/zero: not a regular file"),
        ([f"start={__file__}"], r"start=.*test_editing\.py: "),
        (["to_seed=1", "num_images=1"], "to_seed=1: needs num_images=2 at least"),
        (["to_seed=other"], "to_seed='other': expected int"),
        (["sampler=repaint", "sampler.num_resamples=0"], "sampler.num_resamples=0, .*: must be at least 1"),
    ):  # fmt: skip
        with pytest.raises((ValueError, OSError), match=problem) as caught:
            main([f"model={model}", "label=1", *words, f"out={tmp_path}/out"])
        assert "\n" not in str(caught.value)
    monkeypatch.setattr("ldm.first_stage.first_stage.Identity.key", "tokens")
    with pytest.raises(ValueError, match="start: the first stage of this model encodes 'tokens', not pictures"):
        main([f"model={model}", "label=1", f"start={start}", f"out={tmp_path}/out"])
    assert not (tmp_path / "out").exists()


def test_a_canvas_of_a_wrong_size_and_a_model_of_holes_say_so(diffusion: Run, tmp_path):
    drawn_picture(tmp_path / "picture.png", 32, 32)
    start = f"start={tmp_path}/picture.png"
    with pytest.raises(ValueError, match="canvas: makes 33 x 32 px, and this model draws 36 x 32"):
        main([f"model={diffusion.folder}", "prompt=x", start, "canvas=[0,1,0,0]", f"out={tmp_path}/out"])
    holes = untrained_run(tmp_path / "holes", "conditioner=[masked_image]")
    with pytest.raises(ValueError, match=r"canvas: a condition of this model stands beside the latent.* mask="):
        main([f"model={holes}", start, "canvas=8", f"image={tmp_path}/picture.png", f"out={tmp_path}/out"])
