"""Degraded small pictures, a derived field of its own file: drawn by number, trained on crops, resumed, sampled."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toys import assert_equal_runs, train

from ldm.config import overriding
from ldm.data.fields.degraded import Degraded
from ldm.data.fields.low_resolution import LowResolution
from ldm.run import Run
from sample import main

WINDOWS = torch.rand(6, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
NUMBERS = torch.tensor([5, 0, 2**40, 7, 8, 1])


def test_degradations_are_drawn_by_seed_and_number_and_nothing_else():
    together = Degraded(seed=0).make(WINDOWS, NUMBERS)
    assert together.shape == (6, 3, 4, 6) and together.abs().max() <= 1
    for place in range(6):
        alone = Degraded(seed=0).make(WINDOWS[place : place + 1], NUMBERS[place : place + 1])
        assert torch.equal(alone, together[place : place + 1])
    assert not torch.equal(Degraded(seed=1).make(WINDOWS, NUMBERS), together)
    clean = LowResolution(4).make(WINDOWS, NUMBERS)
    assert torch.equal(Degraded(0, max_blur=0.0, max_noise=0.0).make(WINDOWS, NUMBERS), clean)
    grey, noisy = torch.zeros(400, 3, 16, 16), Degraded(seed=0, max_noise=0.3)
    stds = noisy.make(grey, torch.arange(400)).flatten(1).std(1)
    assert 0.13 < stds.mean() < 0.17 and stds.min() < 0.02 and stds.max() > 0.27
    assert Degraded(0, max_noise=0.0).make(WINDOWS, NUMBERS).std() < clean.std(), "a blur"
    with pytest.raises(ValueError, match="max_noise=-1"):
        Degraded(0, max_noise=-1.0)
    with pytest.raises(ValueError, match=r"image 16x24: its sides must be multiples of .*factor=3"):
        Degraded(0, factor=3).make(WINDOWS, NUMBERS)


@pytest.mark.parametrize(
    ("derived", "crop"),
    [("degraded", ["crop_size=16", "image_size=32"]), ("bsrgan", ["crop_size=[0.5,1]", "image_size=32"])],
)
def test_it_trains_on_crops_resumes_exactly_and_is_sampled(
    first_stage: Run, tmp_path: Path, derived: str, crop: list[str]
):
    words = [f"first_stage={first_stage.folder}", f"derived=[{derived}]", *crop, "callback.validation.every_steps=2"]
    whole = train("ldm/superres", tmp_path, *words, "max_steps=4", run="whole")
    train("ldm/superres", tmp_path, *words, "max_steps=2", run="parts")
    parts = train("ldm/superres", tmp_path, *words, "max_steps=4", "data.num_workers=2", run="parts")
    assert_equal_runs(whole.folder, parts.folder, step=4)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "small.png")
    common = [f"model={whole.folder}", "num_images=1", "num_steps=2", "device=cpu"]
    window = 16 if "crop_size=16" in crop else 32
    for key, side, size in (("low", 32, []), ("image", window, []), ("low", 64, [64]), ("image", 64, [64])):
        words = [f"{key}={tmp_path}/small.png", *(f"image_size={px}" for px in size)]
        assert main(overriding([*common, *words, f"out={tmp_path}/out"])) == 0
        assert Image.open(tmp_path / "out" / "image_0000.png").size == (side, side)
