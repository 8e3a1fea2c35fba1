"""Everything read again: each file that is not as it was written is named, and nothing else."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from toys import ROOT
from untrained import untrained_run

from ldm.checkpoint import resume, weights
from ldm.config import compose
from ldm.doctor.verify import report, verify
from ldm.ensemble import write_manifest
from ldm.run import open_run

sys.path.insert(0, str(ROOT / "scripts"))
from doctor import main


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two checkpoints, their weights and a snapshot. Not to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    run = open_run(compose("config", ["experiment=quickstart/autoencoder", "~logger", f"runs_dir={folder}"]), "a")
    run.begin()
    for step in (1, 2):
        for place in ("weights", "snapshots"):
            tensors = {kind: {"a": torch.full((4,), float(step))} for kind in ("ema", "raw")}
            weights.save(run.folder / place, step, tensors, {"latent": {"mean": [0.5]}})
        resume.save(run.folder / "checkpoints", step, {"trained": {"a": torch.ones(3)}}, {"step": step})
    run.record(finished_step=2)
    return run.folder


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy under another name, for one who changes it."""
    return Path(shutil.copytree(whole, tmp_path / "b"))


def problems(place: Path) -> dict[str, str]:
    return {Path(verdict.path).name: verdict.problem for verdict in verify(str(place)) if verdict.problem}


def test_a_run_as_it_was_written_is_good_and_so_is_its_copy(whole: Path, run: Path, capsys: pytest.CaptureFixture):
    verdicts = list(verify(str(whole)))
    assert len(verdicts) == 1 + 1 + 2 + 2 * (2 + 4) and not any(v.problem or v.note for v in verdicts)
    assert main([f"verify={run}"]) == 0
    said = capsys.readouterr().out
    assert said.count("ok  ") == len(verdicts) and "16 files read again, 0 of them not as they were written" in said


def test_a_parent_that_is_another_checkpoint_by_now_is_named(whole: Path, run: Path):
    parent, child = run, run.parent / "child"
    begun = open_run(compose("config", ["experiment=quickstart/autoencoder", "~logger", f"runs_dir={run.parent}"]), "c")
    begun.lineage["parent"] = {"checkpoint": "../b/checkpoints/step_00000002.ckpt", "sha256": "0", "run": "b"}
    begun.folder = child
    begun.begin()
    assert "is another checkpoint now" in problems(child)["lineage.json"]
    shutil.rmtree(parent / "checkpoints")
    assert problems(child) == {}, "it may be gone"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


def change_finished(run: Path) -> str:
    path = run / "lineage.json"
    path.write_text(path.read_text().replace('"finished_step": 2', '"finished_step": 3'))
    return path.name


def change_statistics(run: Path) -> str:
    path = run / "weights" / "step_00000001.json"
    path.write_text(path.read_text().replace("0.5", "0.0"))
    return path.name


def change_config(run: Path) -> str:
    (run / "config.yaml").write_text((run / "config.yaml").read_text() + "\n")
    return "config.yaml"


def flip_state(run: Path) -> str:
    flip(run / "checkpoints" / "step_00000001.ckpt" / "state.pt")
    return "step_00000001.ckpt"


def flip_weights(run: Path) -> str:
    flip(run / "snapshots" / "step_00000001.raw.safetensors")
    return "step_00000001.raw.safetensors"


def add_to_checkpoint(run: Path) -> str:
    (run / "checkpoints" / "step_00000002.ckpt" / "rows_00000.pt").write_bytes(b"")
    return "step_00000002.ckpt"


def lose_weights(run: Path) -> str:
    (run / "weights" / "step_00000002.raw.safetensors").unlink()
    return "step_00000002.json"


def lose_lineage(run: Path) -> str:
    (run / "lineage.json").unlink()
    return "lineage.json"


@pytest.mark.parametrize(
    "harm",
    [change_finished, change_statistics, change_config, flip_state, flip_weights, add_to_checkpoint, lose_weights,
     lose_lineage],
)  # fmt: skip
def test_what_was_changed_is_named(harm: Callable[[Path], str], run: Path, capsys: pytest.CaptureFixture):
    name = harm(run)
    assert name in problems(run)
    assert report(str(run)) == 1
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL ")]
    assert said and all(len(line) < 400 for line in said) and any(name in line for line in said)


def test_a_run_from_before_is_good_with_a_word(run: Path):
    for path in run.rglob("*.json"):
        content = json.loads(path.read_text())
        left = {key: value for key, value in content.items() if key not in ("id", "configs", "run", "config", "seal")}
        path.write_text(json.dumps(left, indent=2) + "\n")
    verdicts = list(verify(str(run)))
    assert not any(verdict.problem for verdict in verdicts)
    assert {verdict.note for verdict in verdicts} >= {"from before there were seals", "from before runs had ids"}


def test_an_ensemble_is_held_to_its_members(tmp_path: Path):
    members = [untrained_run(tmp_path / str(node), f"expert.node=[1,{node}]") for node in (0, 1)]
    write_manifest(tmp_path / "e.yaml", members)
    assert problems(tmp_path / "e.yaml") == {}
    flip(members[1] / "weights" / "step_00000001.ema.safetensors")
    assert "damaged" in problems(tmp_path / "e.yaml")["step_00000001.ema.safetensors"]
    (tmp_path / "e.yaml").write_text((tmp_path / "e.yaml").read_text().replace("step: 1", "step: 2"))
    assert "edited or damaged" in problems(tmp_path / "e.yaml")["e.yaml"]


def test_what_is_nothing_of_this_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="verify: no shard"):
        report(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="takes one folder"):
        main(["verify=a", "b=c"])
