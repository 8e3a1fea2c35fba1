"""Files of a run belong to it: exchanged, renamed, edited or removed they are refused; copies and old runs are not."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch

from ldm.checkpoint import resume, weights
from ldm.config import compose
from ldm.data.seals import SEAL, check_seal, sealed
from ldm.run import Run, open_run

WORDS = ["experiment=quickstart/autoencoder", "~logger"]


@pytest.fixture(scope="module")
def base() -> dict:
    return compose("config", WORDS)


@pytest.fixture
def begun(base, tmp_path):
    """Makes a run with two checkpoints and sets of weights."""

    def make(name: str, **changes) -> Run:
        run = open_run({**base, "runs_dir": str(tmp_path), **changes}, name)
        run.begin()
        for step in (1, 2):
            weights.save(
                run.folder / "weights", step, {"ema": {"a": torch.ones(step)}, "raw": {"a": torch.zeros(1)}}, {}
            )
            state = {"step": step, "trained": {"a": torch.zeros(2)}}
            resume.save(run.folder / "checkpoints", step, state, {"step": step, "samples_seen": 8 * step})
        return run

    return make


def again(run: Run, **changes) -> Run:
    return open_run({**run.tree, **changes}, run.name)


def unsealed(path: Path, *keys: str) -> None:
    """A JSON file as it was written before there were seals and ids."""
    content = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in content.items() if k not in (SEAL, *keys)}, indent=2) + "\n")


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}, indent=2) + "\n")


def test_a_seal_is_of_what_is_said_and_not_of_how(tmp_path):
    content = {"b": [1, 2.5, float("inf"), None], "a": {"2": True, "10": "x"}}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(sealed({**content, "c": {10: (1,), 9: 2}}), indent=7))
    check_seal(json.loads(path.read_text()), path)
    check_seal(sealed(sealed(content)), path)
    check_seal(content, path)
    for changed in ({"b": [1, 2.5, float("inf"), 0]}, {"d": None}, {SEAL: None}):
        with pytest.raises(ValueError, match=r"a\.json: edited or damaged"):
            check_seal({**sealed(content), **changed}, path)


def test_a_checkpoint_of_another_run_is_not_gone_on_from_and_not_deleted(begun, tmp_path):
    a, b = begun("a"), begun("b")
    copied = a.folder / "checkpoints" / "step_00000003.ckpt"
    resume.save(b.folder / "checkpoints", 3, {"step": 3}, {"step": 3})
    shutil.copytree(b.folder / "checkpoints" / "step_00000003.ckpt", copied)
    with pytest.raises(ValueError, match=r"step_00000003\.ckpt: it is of another run than .*a, .*branch="):
        resume.newest(a.folder / "checkpoints")
    with pytest.raises(ValueError, match="of another run"):
        resume.load(copied)
    assert copied.exists()
    shutil.rmtree(copied)
    assert resume.newest(a.folder / "checkpoints").name == "step_00000002.ckpt"


def test_weights_of_another_run_or_another_step_are_passed_over_by_name(begun, caplog):
    a, b = begun("a"), begun("b")
    place = a.folder / "weights"
    for file in (b.folder / "weights").glob("step_00000002.*"):
        shutil.copy(file, place / file.name)
    with caplog.at_level(logging.WARNING):
        assert weights.load(a.folder).metadata["step"] == 1
    assert "step_00000002.json: it is of another run" in caplog.text
    for file in place.glob("step_00000001.*"):
        shutil.copy(file, place / file.name.replace("1.", "9.", 1))
    with pytest.raises(ValueError, match=r"step_00000009\.json: renamed, it says that it is of step 1"):
        weights.load(place / "step_00000009.ema.safetensors")
    (place / "step_00000001.raw.safetensors").replace(place / "step_00000001.ema.safetensors")
    with pytest.raises(ValueError, match=r"step_00000001\.ema\.safetensors: damaged"):
        weights.load(place / "step_00000001.ema.safetensors")


def test_an_edited_description_is_refused_and_not_blessed(begun):
    place = begun("a").folder / "weights"
    weights.amend(place, {"latent": {"mean": [0.5]}})
    assert weights.load(place.parent).metadata["latent"] == {"mean": [0.5]}
    edit(place / "step_00000002.json", latent={"mean": [0.0]})
    for call in (lambda: weights.read(place / "step_00000002.ema.safetensors"), lambda: weights.amend(place, {})):
        with pytest.raises(ValueError, match=r"step_00000002\.json: edited or damaged"):
            call()


def test_an_edited_lineage_is_refused(begun):
    run = begun("a")
    edit(run.folder / "lineage.json", finished_step=10**9)
    with pytest.raises(ValueError, match=r"lineage\.json: edited or damaged"):
        again(run)


def test_a_configuration_that_is_gone_or_edited_is_not_gone_on_from(begun, base):
    run = begun("a")
    config = run.folder / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace("seed: 0", "seed: 1"))
    with pytest.raises(ValueError, match=r"config\.yaml was edited since the run wrote it.*branch="):
        again(run, seed=1)
    config.unlink()
    with pytest.raises(ValueError, match=r"config\.yaml is missing.*put it back.*overwrite=true"):
        again(run, seed=1)
    config.write_text(text)
    longer = again(run, max_steps=10**9)
    longer.begin()
    assert longer.lineage["id"] == run.lineage["id"] and len(longer.lineage["configs"]) == 2
    config.write_text(text)  # killed between the two files
    assert again(run).lineage["id"] == run.lineage["id"]


def test_a_copied_and_renamed_folder_is_a_run_as_before(begun, tmp_path):
    run = begun("a")
    shutil.copytree(run.folder, tmp_path / "elsewhere" / "b")
    copy = open_run({**run.tree, "runs_dir": str(tmp_path / "elsewhere")}, "b")
    assert copy.lineage["id"] == run.lineage["id"]
    assert resume.newest(copy.folder / "checkpoints") and weights.load(copy.folder)
    shutil.copytree(run.folder / "weights", tmp_path / "alone" / "weights")  # without a lineage
    weights.load(tmp_path / "alone")


def test_a_run_whose_lineage_is_gone_keeps_its_id(begun):
    run = begun("a")
    (run.folder / "lineage.json").unlink()
    found = again(run)
    found.begin()
    assert found.lineage["id"] == run.lineage["id"] and resume.newest(run.folder / "checkpoints")


def test_a_run_from_before_there_were_ids_goes_on_and_gets_one(begun):
    run = begun("a")
    unsealed(run.folder / "lineage.json", "id", "configs")
    for file in run.folder.glob("weights/*.json"):
        unsealed(file, "run", "config")
    for file in run.folder.glob("checkpoints/*/manifest.json"):
        unsealed(file, "run", "config")
    found = again(run)
    assert resume.newest(run.folder / "checkpoints") and weights.load(run.folder)
    found.begin()
    assert len(found.lineage["id"]) == 32 and resume.newest(run.folder / "checkpoints") and weights.load(run.folder)
    saved = resume.save(run.folder / "checkpoints", 3, {}, {})
    assert json.loads((saved / "manifest.json").read_text())["run"] == found.lineage["id"]


def test_a_lineage_that_is_lost_while_a_run_trains_costs_no_checkpoint(begun):
    run = begun("a")
    (run.folder / "lineage.json").write_text("{")
    assert resume.damage(resume.save(run.folder / "checkpoints", 3, {}, {})) is None
