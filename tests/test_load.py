"""What a path holds, loaded by its kind, from wherever one stands."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from toys import train
from untrained import untrained_run

from ldm.build import kind_of
from ldm.diffusion.classifier import NoisyClassifier
from ldm.ensemble import write_manifest
from ldm.ensemble_model import Ensemble
from ldm.first_stage.first_stage import FirstStage
from ldm.loading import RUNS, load, load_drawer
from ldm.model import Model
from ldm.run import Run
from ldm.run import load as load_where_it_was


def test_each_kind_of_run_yields_its_own(first_stage: Run, diffusion: Run, classifier: Run, tmp_path: Path):
    kinds = [(first_stage, FirstStage), (diffusion, Model), (classifier, NoisyClassifier)]
    assert [kind_of(run.tree) for run, _ in kinds] == list(RUNS)
    for run, kind in kinds:
        file = max((run.folder / "weights").glob("*.safetensors"))
        assert isinstance(load(run.folder), kind) and isinstance(load(file), kind)
    stage, image = load(first_stage.folder), torch.zeros(1, 3, 32, 32)
    assert stage.decode(stage.encode(image)).shape == image.shape
    write_manifest(tmp_path / "e.yaml", [untrained_run(tmp_path / "whole")])
    assert isinstance(load(tmp_path / "e.yaml"), Ensemble) and load_where_it_was is load


def test_only_what_draws_is_taken_where_images_are_asked_for(first_stage: Run, diffusion: Run, classifier: Run):
    assert load_drawer(diffusion.folder).name == diffusion.name
    for run, key in ((first_stage, "first_stage"), (classifier, "classifier")):
        with pytest.raises(ValueError, match=f"{run.name}: a .*, not a diffusion model, which takes it as {key}="):
            load_drawer(run.folder)


def test_what_is_not_there_or_of_no_known_kind_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match=r"model=.*nowhere: no such run or manifest"):
        load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no weights found; it is not a run's folder"):
        load(tmp_path)
    run = untrained_run(tmp_path / "run")
    monkeypatch.setattr("ldm.training.diffusion.DiffusionTask.kind", "tokens")
    with pytest.raises(ValueError, match="run: a tokens, which nothing here loads; there are first_stage, "):
        load(run)


def test_a_run_finds_its_first_stage_from_any_folder(first_stage: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Started with relative paths, loaded by an absolute one from elsewhere; also without what the lineage notes."""
    runs = tmp_path / "work" / "runs"
    shutil.copytree(first_stage.folder, runs / "stage")
    monkeypatch.chdir(runs.parent)
    words = ["first_stage=runs/stage", "max_steps=1", "data.max_samples=8", "lr.warmup_steps=0"]
    data = Path(__file__).resolve().parent.parent / "data" / "quickstart"
    words += [f"data.train={data}/train-00000.tar", f"data.validation={data}/validation-00000.tar"]
    run = train("quickstart/diffusion", Path("runs"), *words, run="model")
    assert yaml.safe_load((runs / "model" / "config.yaml").read_text())["first_stage"] == "runs/stage"
    (tmp_path / "elsewhere" / "runs" / "stage").mkdir(parents=True)  # of that name, but not it
    monkeypatch.chdir(tmp_path / "elsewhere")
    fingerprint = load(runs / "stage").spec.fingerprint
    assert load(runs / run.name).first_stage.spec.fingerprint == fingerprint
    (runs / "model" / "lineage.json").unlink()
    assert load(runs / run.name).first_stage.spec.fingerprint == fingerprint
