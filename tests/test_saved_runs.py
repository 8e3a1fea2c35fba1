"""Runs that earlier code wrote load, sample, are resumed by their commands, and are branched from.

tests/saved/runs/README.md says what they are. Processors round differently, so that `CLOSE` is asked for here, of
numbers of about 1: 1e-4 of what the weights say; of losses after further steps, as the golden curves do, 1e-3.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toys import ROOT, curve

from ldm.checkpoint import resume, weights
from ldm.config import compose, overriding
from ldm.fit import fit
from scripts.dev.make_saved_runs import RUNS, SAVED, answers

CLOSE, CLOSE_LOSS = 1e-4, 1e-3
LATER = json.loads((SAVED / "later.json").read_text())  # run -> train/loss of the steps 3 and 4


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of them in ``runs``, in the working directory, as their commands name them."""
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(SAVED, tmp_path / "runs"))


@pytest.mark.parametrize("name", RUNS)
def test_a_saved_run_says_what_it_said(name: str, saved: Path):
    expected = load_file(SAVED / name / "answers.safetensors")
    torch.testing.assert_close(answers(saved / name), expected, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("name", RUNS)
def test_a_saved_run_is_resumed_by_its_command(name: str, saved: Path):
    words = [*RUNS[name], "runs_dir=runs"]
    assert fit(compose("config", [*words, "max_steps=2"]), name).finished, "nothing to do"
    before = resume.load(saved / name / "checkpoints" / "step_00000002.ckpt")
    run = fit(compose("config", [*words, "max_steps=4"]), name)
    after = resume.load(run.folder / "checkpoints" / "step_00000004.ckpt")
    assert before["trained"].keys() == after["trained"].keys() and run.lineage["samples_seen"] == 16
    losses = curve(run.folder)
    assert sorted(losses) == [1, 2, 3, 4]
    assert [losses[step] for step in (3, 4)] == pytest.approx(LATER[name], rel=CLOSE_LOSS)


def test_a_saved_run_is_branched_from(saved: Path):
    words = overriding([*RUNS["expert"], "expert.node=[1,0]", "runs_dir=runs", "max_steps=1"])
    run = fit(compose("config", words), "branch")
    parent = weights.load(saved / "diffusion")
    assert run.lineage["parent"]["run"] == "diffusion" and run.finished
    assert weights.load(run.folder).state.keys() == parent.state.keys()
