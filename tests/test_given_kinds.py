"""Every kind of model of the papers: trained as a toy, then sampled from files by one command."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toys import train

from ldm.run import Run
from sample import main

# experiment -> the words of the command and (width, height) of what it makes of files in no multiple of anything.
KINDS = {
    "ldm/celebahq": ([], (32, 32)),
    "ldm/cin256_v2": (["label=[3,7]"], (32, 32)),
    "quickstart/diffusion": (["prompts=prompts.txt"], (32, 32)),
    "ldm/layout_coco": (["boxes=boxes.json"], (32, 32)),
    "ldm/semantic_landscapes": (["map=map.png"], (75, 42)),
    "ldm/superres": (["low=low.png"], (4 * 13, 4 * 9)),
    "ldm/inpainting": (["image=photo.png", "mask=hole.png"], (43, 32)),
    "ldm/rdm_768": (["neighbours=neighbours.npy"], (32, 32)),
    "ediffi/sr1024": (["low=low.png", "given.style=photo.png", "prompt=red heart"], (4 * 13, 4 * 9)),
}


@pytest.fixture
def files(tmp_path, monkeypatch) -> Path:
    generator = np.random.default_rng(0)
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("a red heart\na blue car\n")
    Path("boxes.json").write_text(json.dumps({"objects": [{"category": 3, "box": [0.1, 0.2, 0.6, 0.9]}]}))
    Image.fromarray(generator.integers(0, 3, (42, 75), dtype=np.uint8)).save("map.png")
    for name, shape in {"low": (9, 13, 3), "photo": (60, 80, 3)}.items():
        Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(f"{name}.png")
    Image.fromarray(np.pad(np.full((20, 30), 255, np.uint8), ((10, 30), (40, 10)))).save("hole.png")
    np.save("neighbours.npy", generator.standard_normal((2, 8)))
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("experiment", KINDS)
def test_a_toy_of_every_kind_is_sampled_from_files(experiment, files, first_stage: Run):
    words, size = KINDS[experiment]
    latent = [] if experiment.startswith("ediffi/") else [f"first_stage={first_stage.folder}"]
    run = train(experiment, files / "runs", *latent)
    assert main([f"model={run.folder}", *words, "num_images=2", "out=out"]) == 0
    images = [path for path in Path("out").glob("*_0001.png")]
    assert len(images) == (2 if experiment in ("ldm/cin256_v2", "quickstart/diffusion") else 1)
    assert all(Image.open(path).size == size for path in images)
    assert Path("out/grid.png").exists() and Path("out/conditions.png").exists() == ("boxes=boxes.json" in words)
