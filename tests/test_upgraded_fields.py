"""Trees of runs that older code began, kept in saved/fields/, mean what they meant and go on as they began."""

from pathlib import Path

import pytest
from toys import QUICKSTART, clip_image_folder, tiny

from ldm.build import Parts
from ldm.config import compose, load_tree, with_begun_fields
from ldm.run import check_unchanged

OLD = Path(__file__).parent / "saved" / "fields"
STEPS = ("max_steps=4", "data.horizontal_flip_prob=0.5", "callback.validation.every_steps=2")
CLIP = ("conditioner=[clip_image]", "conditioner.clip_image.drop_prob=0.3", "task.keep_latents=false")
# By the file's name: its command, and what now makes the field that its condition made by itself.
WHOLE = ("data.random_crop=true", "crop_size=null", "image_size=32")  # ldm/superres had no crops yet
RUNS = {
    "superres": ("ldm/superres", WHOLE, {"low_resolution": "LowResolution"}),
    "inpainting": ("ldm/inpainting", ("data.random_crop=true", "derived=[holes]"), {"mask": "Holes"}),
    "clip": ("quickstart/diffusion", CLIP, {"style": "Window"}),
}


@pytest.fixture(params=RUNS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def saved(name: str, tmp_path: Path) -> Path:
    """The config.yaml of a run of older code, in a folder of runs here."""
    text = (OLD / f"{name}.yaml").read_text()
    places = {"QUICKSTART": QUICKSTART, "FIRST_STAGE": "runs/ae", "RUNS": tmp_path, "CLIP": clip_image_folder()}
    for word, place in places.items():
        text = text.replace(word, str(place))
    path = tmp_path / name / "config.yaml"
    path.parent.mkdir()
    path.write_text(text)
    return path


def test_fields_that_conditions_made_by_themselves_are_derived(name: str, saved: Path):
    assert "derived" not in saved.read_text()
    tree = load_tree(saved)
    derived = Parts(tree)["data"].keys.derived
    assert {key: type(field).__name__ for key, field in derived.items()} == RUNS[name][2]


def test_the_command_that_began_a_run_goes_on_with_it(name: str, saved: Path, tmp_path: Path):
    experiment, more, _ = RUNS[name]
    own = [f"conditioner.clip_image.path={clip_image_folder()}"] if name == "clip" else []
    command = compose("config", tiny(experiment, tmp_path, "first_stage=runs/ae", *STEPS, *more, *own))
    check_unchanged(load_tree(saved), with_begun_fields(command, name), saved.parent)
    if name == "clip":  # a new run has to say what its style is
        assert not with_begun_fields(command, "another")["derived"]
