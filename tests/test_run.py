"""The run contract: a stable folder, resume by the same command, branches with their lineage."""

import copy
import functools
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from toys import QUICKSTART, train

from ldm.checkpoint import resume
from ldm.config import compose, load_tree
from ldm.data.seals import sealed
from ldm.fit import fit
from ldm.lineage import begun_from, branch_point
from ldm.overwriting import clear
from ldm.places import first_stage_of, paths_of
from ldm.ranks import SLURM, check_ranks, is_rank_zero
from ldm.ranks import TORCHRUN as BY_TORCHRUN
from ldm.run import Run, check_unchanged, inherit, load, open_run

DIFFUSION = ["experiment=quickstart/diffusion"]
RANKS = (*BY_TORCHRUN, *SLURM)


@pytest.fixture(scope="module")
def base() -> dict:
    """The quickstart's tree. Not to be changed."""
    return compose("config", DIFFUSION)


def begun(tree: dict, folder: Path, name: str = "a", **changes) -> Run:
    run = open_run({**tree, "runs_dir": str(folder), **changes}, name)
    run.begin()
    return run


def _write(path: Path, text: str = "x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def checkpoint(run: Run, step: int, samples_seen: int) -> Path:
    state = {"step": step, "trained": {"a": torch.zeros(2)}}
    return resume.save(run.folder / "checkpoints", step, state, {"step": step, "samples_seen": samples_seen})


# The folder


def test_opening_a_run_writes_nothing_and_beginning_it_makes_the_folder(base, tmp_path):
    measures = {"_target_": "ldm.metrics.alignment_score.alignment_score", "path": None}  # asked for at each start
    run = open_run({**base, "runs_dir": str(tmp_path), "alignment": measures}, "a")
    assert list(tmp_path.iterdir()) == []
    run.begin()
    assert run.folder == tmp_path / "a" and run.name == "a"
    assert load_tree(run.folder / "config.yaml") == {**base, "runs_dir": str(tmp_path)}
    lineage = json.loads((run.folder / "lineage.json").read_text())
    assert lineage["run"] == "a" and lineage["parent"] is None
    assert lineage["wandb_id"].startswith("a-") and len(lineage["wandb_id"]) == len("a-") + 8
    assert lineage["code_version"]


def test_the_same_command_finds_the_same_run(base, tmp_path):
    first = begun(base, tmp_path)
    first.record(finished_step=3)
    again = open_run({**base, "runs_dir": str(tmp_path)}, "a")
    assert again.lineage == first.lineage
    again.begin()
    assert json.loads((again.folder / "lineage.json").read_text()) == first.lineage


def test_a_run_is_finished_at_the_steps_its_tree_asks_for(base, tmp_path):
    run = begun({**base, "max_steps": 10}, tmp_path)
    assert not run.finished
    assert Run(run.folder, base).way_on.startswith(f"lr.max_steps says that it ends there; branch={run.folder} ")
    run.record(finished_step=10)
    assert run.finished
    longer = open_run({**base, "runs_dir": str(tmp_path), "max_steps": 20}, "a")
    assert not longer.finished and longer.lineage["finished_step"] == 10


def test_a_crash_before_the_lineage_was_written_is_no_hindrance(base, tmp_path):
    run = begun(base, tmp_path)
    (run.folder / "lineage.json").unlink()
    assert open_run({**base, "runs_dir": str(tmp_path)}, "a").lineage["run"] == "a"


def test_overwriting_starts_anew(base, tmp_path):
    run = begun(base, tmp_path)
    (run.folder / "metrics.csv").write_text("old")
    new = begun(base, tmp_path, seed=5, overwrite=True)
    assert sorted(path.name for path in new.folder.iterdir()) == ["config.yaml", "lineage.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert new.lineage["wandb_id"] != run.lineage["wandb_id"]
    open_run({**base, "runs_dir": str(tmp_path), "seed": 5, "overwrite": False}, "a")


def test_overwriting_deletes_no_folder_that_is_not_a_run(base, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_text("meow")
    with pytest.raises(ValueError, match="photos is not a run's folder"):
        begun(base, tmp_path, "photos", overwrite=True)
    assert (tmp_path / "photos" / "cat.png").read_text() == "meow"


def test_a_run_that_was_killed_early_or_is_damaged_may_be_overwritten(base, tmp_path):
    for damage in (lambda run: (run.folder / "lineage.json").unlink(), lambda run: _write(run.folder / "lineage.json")):
        run = begun(base, tmp_path)
        damage(run)
        assert json.loads((begun(base, tmp_path, overwrite=True).folder / "lineage.json").read_text())["run"] == "a"


@pytest.mark.parametrize("tree", ["title: my thesis", "task: {}", "- a", "\x00", "run's tree"])
def test_a_configuration_of_something_else_makes_no_run(base, tmp_path, tree):
    run = begun(base, tmp_path)
    (run.folder / "lineage.json").unlink()
    if tree != "run's tree":
        (run.folder / "config.yaml").write_text(tree)
    _write(run.folder / "chapter1.txt")
    before = sorted(run.folder.iterdir())
    with pytest.raises(ValueError, match="a is not a run's folder"):
        begun(base, tmp_path, overwrite=True)
    assert sorted(run.folder.iterdir()) == before


def test_overwriting_leaves_what_a_run_does_not_write(base, tmp_path, capsys):
    run = begun(base, tmp_path)
    for name in ("slurm-7.out", "photos/cat.png", "evaluation/curve.csv", "wandb/x", "ranks/0", ".writing-1-x/y"):
        _write(run.folder / name)
    begun(base, tmp_path, overwrite=True)
    left = ["config.yaml", "lineage.json", "photos", "slurm-7.out"]
    assert sorted(path.name for path in run.folder.iterdir()) == left
    assert "left as they are, not written by a run: photos, slurm-7.out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("branch", "{run}"),
        ("branch", "{run}/"),
        ("branch", "{run}/../a/checkpoints/step_00000001.ckpt"),
        ("branch", "{link}"),
        ("branch", "{link}/checkpoints/step_00000001.ckpt"),
        ("first_stage", "{run}"),
        ("first_stage", "{link}/weights/step_00000001.ema.safetensors"),
        ("first_stage", "{other}"),  # its weights are links into the run
        ("data.cache", "{run}/cache"),
        ("data.train", ["elsewhere.tar", "{run}/shards/*.tar"]),
        ("data.validation", "{link}/shards/{{a,b}}.tar"),
        ("network.path", "{manifest}"),
    ],
)
def test_overwriting_deletes_nothing_that_the_command_needs(base, tmp_path, key, place):
    run = begun(base, tmp_path)
    checkpoint(run, 1, 64)
    for name in ("weights/step_00000001.ema.safetensors", "cache/x", "shards/a.tar", "shards/b.tar"):
        _write(run.folder / name)
    link, other, manifest = tmp_path / "link", tmp_path / "other", tmp_path / "e.yaml"
    link.symlink_to(run.folder)
    other.mkdir()
    (other / "weights").symlink_to(run.folder / "weights")
    manifest.write_text("members: [{run: a}]")
    where = {"run": run.folder, "link": link, "other": other, "manifest": manifest}
    text = [t.format(**where) for t in place] if isinstance(place, list) else place.format(**where)
    if isinstance(text, list):
        text = text[1:]
    changed = copy.deepcopy({**base, "runs_dir": str(tmp_path), "overwrite": True})
    *parents, last = key.split(".")
    functools.reduce(dict.__getitem__, parents, changed)[last] = text
    with pytest.raises(ValueError, match=rf"^{key}=.* is in .*, which overwrite=true would delete"):
        open_run(changed, "a")
    assert branch_point(str(run.folder))


def test_a_link_to_another_disk_stays_one(base, tmp_path):
    (tmp_path / "disk" / "r").mkdir(parents=True)
    (tmp_path / "r").symlink_to(tmp_path / "disk" / "r")
    begun(base, tmp_path, "r")
    _write(tmp_path / "r" / "metrics.csv")
    begun(base, tmp_path, "r", overwrite=True)
    assert (tmp_path / "r").is_symlink() and len(list(tmp_path.iterdir())) == 2
    assert sorted(path.name for path in (tmp_path / "disk" / "r").iterdir()) == ["config.yaml", "lineage.json"]


@pytest.mark.parametrize("where", ["runs/r", "runs", "runs/r/checkpoints"])
def test_a_link_that_leads_nowhere_is_named(base, tmp_path, where):
    (tmp_path / where).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / where).symlink_to(tmp_path / "gone")
    with pytest.raises(
        ValueError, match=rf"{where}: a link that leads nowhere, to .*gone \(a disk that is not mounted"
    ):
        open_run({**base, "runs_dir": str(tmp_path / "runs")}, "r")


def test_a_file_in_the_place_of_a_run_is_named(base, tmp_path):
    _write(tmp_path / "a")
    with pytest.raises(ValueError, match="a: a file, where a run needs a folder"):
        open_run({**base, "runs_dir": str(tmp_path)}, "a")


def test_a_deletion_that_was_cut_off_leaves_no_part_of_the_old_run(base, tmp_path, monkeypatch):
    run = begun(base, tmp_path)
    checkpoint(run, 1, 64)
    run.record(finished_step=100_000_000)
    original, moved = Path.replace, []

    def cut_off(path: Path, target: Path) -> Path:
        moved.append(path.name)
        if len(moved) > 2:
            raise KeyboardInterrupt
        return original(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", cut_off)
        with pytest.raises(KeyboardInterrupt):
            clear(run.folder)
    assert moved[:2] == ["checkpoints", "lineage.json"]
    again = begun(base, tmp_path)
    assert not again.finished and sorted(p.name for p in run.folder.iterdir()) == ["config.yaml", "lineage.json"]


# A run without a step


def test_a_corrected_command_starts_a_run_that_has_no_step_anew(base, tmp_path, capsys):
    first = begun(base, tmp_path)
    _write(first.folder / "metrics.csv")
    _write(first.folder / "notes.txt")
    run = begun(base, tmp_path, seed=5)
    assert load_tree(run.folder / "config.yaml")["seed"] == 5 and run.lineage["wandb_id"] != first.lineage["wandb_id"]
    assert sorted(path.name for path in run.folder.iterdir()) == ["config.yaml", "lineage.json", "notes.txt"]
    assert "a: it had no step yet, and starts anew" in capsys.readouterr().out


@pytest.mark.parametrize(
    "made", ["checkpoints/step_00000001.ckpt/x", "weights/step_00000001.json", "snapshots/step_1.json"]
)
def test_what_has_come_of_a_run_keeps_it(base, tmp_path, made):
    _write(begun(base, tmp_path).folder / made)
    with pytest.raises(ValueError, match=r"^seed is 5"):
        begun(base, tmp_path, seed=5)


def test_a_changed_command_takes_no_folder_of_something_else(base, tmp_path):
    _write(tmp_path / "a" / "config.yaml", "title: my thesis")
    with pytest.raises(ValueError, match="but the run in"):
        open_run({**base, "runs_dir": str(tmp_path)}, "a")


# Copies, and other places


def test_a_copied_run_is_another_w_and_b_run(base, tmp_path):
    first = begun(base, tmp_path)
    checkpoint(first, 1, 64)
    shutil.copytree(first.folder, tmp_path / "b")
    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(first.folder, tmp_path / "elsewhere" / "a")
    for run in (begun(base, tmp_path, "b"), begun(base, tmp_path / "elsewhere", "a")):
        assert run.lineage["wandb_id"] != first.lineage["wandb_id"] and run.lineage["run"] == run.name
        assert run.lineage["copied_from"] == {"run": "a", "wandb_id": first.lineage["wandb_id"]}
        assert open_run({**base, "runs_dir": str(run.folder.parent)}, run.name).lineage == run.lineage
    assert begun(base, tmp_path).lineage == first.lineage


def test_a_renamed_or_moved_run_is_the_same_one(base, tmp_path):
    first = begun(base, tmp_path / "runs")
    checkpoint(first, 1, 64)
    first.folder.rename(tmp_path / "runs" / "b")
    renamed = begun(base, tmp_path / "runs", "b")
    assert renamed.lineage == sealed({**first.lineage, "run": "b"})
    (tmp_path / "runs").rename(tmp_path / "moved")
    moved = begun(base, tmp_path / "moved", "b").lineage
    assert {**moved, "configs": moved["configs"][:1], "seal": None} == {**renamed.lineage, "seal": None}  # and runs_dir


def test_a_branch_is_the_same_however_its_parent_is_spelled(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parent = begun(base, Path("runs"), "parent")
    at = checkpoint(parent, 5, 320)
    child = begun(base, Path("runs"), "child", branch="runs/parent")
    checkpoint(child, 1, 64)
    checkpoint(parent, 6, 384)  # it has gone on since
    for spelled in ("runs/parent/", "./runs/../runs/parent", str(parent.folder.absolute()), str(at)):
        again = open_run({**base, "runs_dir": str(tmp_path / "runs"), "branch": spelled}, "child")
        assert again.lineage == child.lineage, spelled
    Path("runs").rename("moved")
    Path("moved/parent").rename("moved/base")
    moved = {**base, "runs_dir": "moved"}
    assert open_run({**moved, "branch": "moved/base"}, "child").lineage == child.lineage
    another = begun(base, Path("moved"), "another", seed=7)
    checkpoint(another, 5, 320)
    (another.folder / "checkpoints/step_00000005.ckpt/manifest.json").write_text("{}")
    for other in ("moved/another", "moved/nowhere"):
        with pytest.raises(ValueError, match=r"^branch is "):
            open_run({**moved, "branch": other}, "child")


def test_a_branch_point_is_found_from_elsewhere_and_after_a_move(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    at = checkpoint(begun(base, Path("runs"), "parent"), 5, 320)
    child = begun(base, Path("runs"), "child", branch="runs/parent")
    monkeypatch.chdir("/")
    (tmp_path / "runs").rename(tmp_path / "moved")
    assert begun_from(
        child.lineage, tmp_path / "moved" / "child"
    ) == tmp_path / "moved" / "child" / ".." / at.relative_to("runs")
    old = {"parent": {"checkpoint": str(tmp_path / "moved/parent/checkpoints/step_00000005.ckpt")}}
    assert begun_from(old, tmp_path).exists()


def weights_of(folder: Path, digest: str) -> None:
    """What a run says of its weights."""
    _write(folder / "weights" / "step_00000001.json", json.dumps({"sha256": {"ema": digest, "raw": "r"}}))
    _write(folder / "weights" / "step_00000001.ema.safetensors")


def test_a_first_stage_is_the_same_wherever_it_is(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, digest in (("ae", "1"), ("other", "2")):
        weights_of(begun(base, Path("runs"), name).folder, digest)
    run = begun(base, Path("runs"), "d", first_stage="runs/ae")
    run.record(first_stage="1", first_stage_path="../ae")
    checkpoint(run, 1, 64)
    file = "runs/ae/weights/step_00000001.ema.safetensors"
    for spelled in ("./runs/ae/", str(tmp_path / "runs/ae"), file):
        open_run({**base, "runs_dir": "runs", "first_stage": spelled}, "d")
    for spelled in ("runs/other", "runs/nowhere", None):
        with pytest.raises(ValueError, match=r"^first_stage is "):
            open_run({**base, "runs_dir": "runs", "first_stage": spelled}, "d")
    monkeypatch.chdir("/")
    assert Path(first_stage_of(tmp_path / "runs/d")).samefile(tmp_path / "runs/ae")
    (tmp_path / "runs").rename(tmp_path / "moved")
    assert Path(first_stage_of(tmp_path / "moved/d")).samefile(tmp_path / "moved/ae")
    (tmp_path / "moved/ae").rename(tmp_path / "moved/renamed")
    assert first_stage_of(tmp_path / "moved/d") == "runs/ae"  # nowhere: as it is spelled
    open_run({**base, "runs_dir": str(tmp_path / "moved"), "first_stage": str(tmp_path / "moved/renamed")}, "d")


def test_an_older_run_s_first_stage_is_found_beside_it_by_its_weights(base, tmp_path, monkeypatch):
    run = begun(base, tmp_path / "runs", "d", first_stage="runs/ae")  # before it was noted where that is
    run.record(first_stage="1")
    weights_of(begun(base, tmp_path / "runs", "ae").folder, "1")
    decoy = tmp_path / "here" / "runs" / "ae"
    weights_of(decoy, "2")
    monkeypatch.chdir(tmp_path / "here")  # another of the same spelling
    assert Path(first_stage_of(run.folder)).samefile(tmp_path / "runs" / "ae")


def test_an_imported_model_s_encoder_moves_with_it(base, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    _write(tmp_path / "moved" / "text_encoder" / "config.json")
    part = {"clip_text": {"path": "runs/sd/text_encoder", "width": 8}, "t5": {"path": "google/t5"}, "text": None}
    found = paths_of(part, tmp_path / "moved")
    assert found == {**part, "clip_text": {"path": str(tmp_path / "moved" / "text_encoder"), "width": 8}}


# Ranks

TORCHRUN = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "x"}
SRUN = {"SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}


@pytest.fixture
def alone(monkeypatch):
    """The environment without a launch."""
    for name in (
        *RANKS,
        "WORLD_SIZE",
        "SLURM_NTASKS",
        "SLURM_NTASKS_PER_NODE",
        "SLURM_JOB_NAME",
        "TORCHELASTIC_RUN_ID",
    ):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("environment", "devices", "nodes", "said"),
    [
        ({"RANK": "1"}, 1, 1, r"^RANK=1 in the environment: there is no such rank; .*env -u RANK python"),
        ({"RANK": "1", "LOCAL_RANK": "1"}, 1, 1, r"env -u RANK -u LOCAL_RANK python"),
        ({"RANK": "1"}, 2, 1, r"^RANK=1"),
        ({"LOCAL_RANK": "1"}, "auto", 1, r"^LOCAL_RANK=1"),
        ({"NODE_RANK": "1"}, 1, 1, r"^NODE_RANK=1"),
        ({"GROUP_RANK": "1"}, 1, 1, r"^GROUP_RANK=1"),
        ({"SLURM_PROCID": "1"}, 1, 1, r"^SLURM_PROCID=1 .*env -u SLURM_PROCID python"),
        ({"SLURM_NODEID": "1"}, 1, 1, r"^SLURM_NODEID=1"),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_JOB_NAME": "bash"}, 1, 1, r"^SLURM_PROCID=1"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, 2, 1, r"^RANK=2"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, 1, 1, r"^RANK=1 .*trainer\.devices=1 trains in one process"),
        ({"RANK": "x"}, 1, 1, r"^RANK=x in the environment: not a number; env -u RANK"),
        (TORCHRUN, 1, 1, r"^RANK=1"),
        ({**TORCHRUN, "RANK": "0", "LOCAL_RANK": "0"}, 1, 1, r"torchrun started 2 processes"),
        (TORCHRUN, 4, 1, r"torchrun started 2 processes"),
        (SRUN, 1, 1, r"SLURM started 2 tasks; let --ntasks-per-node=1"),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, 1, 1, r"start them with --ntasks-per-node=N"),
        ({"SLURM_NTASKS": "1"}, 4, 1, r"SLURM started 1 tasks; let --ntasks-per-node=4"),
    ],
)
def test_variables_of_another_launch_are_named(alone, environment, devices, nodes, said):
    for name, value in environment.items():
        alone.setenv(name, value)
    with pytest.raises(ValueError, match=said):
        check_ranks({"devices": devices, "num_nodes": nodes})


@pytest.mark.parametrize(
    ("environment", "devices", "nodes"),
    [
        ({}, 1, 1),
        ({}, 8, 4),
        ({"RANK": "0", "LOCAL_RANK": "0"}, 1, 1),
        (TORCHRUN, 2, 1),
        (TORCHRUN, [0, 1], 1),
        (TORCHRUN, 1, 2),
        (TORCHRUN, "auto", 1),
        ({"LOCAL_RANK": "1", "NODE_RANK": "0", "WORLD_SIZE": "2"}, 2, 1),  # as Lightning starts the others
        ({"NODE_RANK": "1"}, 4, 2),  # nodes that are started by hand
        (SRUN, 2, 1),
        (SRUN, 1, 2),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, 1, 1),
        ({"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "bash", "SLURM_PROCID": "0"}, 1, 1),
        ({**TORCHRUN, "SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_NODEID": "1"}, 2, 1),  # torchrun in each task
    ],
)
def test_ranks_that_fit_are_none_of_that(alone, environment, devices, nodes):
    for name, value in environment.items():
        alone.setenv(name, value)
    check_ranks({"devices": devices, "num_nodes": nodes})


@pytest.mark.parametrize("name", ["..", ".", "", "/", "/tmp/x", "a/b", "../x", ".hidden", "-x", "a b", "a\n"])
def test_a_name_is_one_plain_folder(base, tmp_path, name):
    with pytest.raises(ValueError, match="run="):
        open_run({**base, "runs_dir": str(tmp_path)}, name)


def test_only_rank_zero_writes(monkeypatch):
    for name in RANKS:
        monkeypatch.delenv(name, raising=False)
    assert is_rank_zero()
    monkeypatch.setenv("RANK", "0")
    assert is_rank_zero()
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert not is_rank_zero()


# What a resumed run may change


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 1),
        ("image_size", 64),
        ("optimizer.lr", 0.5),
        ("network.depth", 3),
        ("data.batch_size", 8),
        ("data.decoder", "fast"),
        ("trainer.precision", "32-true"),
        ("noise.mean", 3),
        ("expert.node", [1, 1]),
        ("first_stage", "elsewhere"),
        ("branch", "elsewhere"),
        ("lr._target_", "ldm.training.optim.constant"),
        ("ema.decay", 0.5),
    ],
)
def test_a_change_of_the_mathematics_is_refused_by_name(base, tmp_path, key, value):
    checkpoint(begun(base, tmp_path), 1, 64)
    changed = copy.deepcopy({**base, "runs_dir": str(tmp_path)})
    *parents, last = key.split(".")
    functools.reduce(dict.__getitem__, parents, changed)[last] = value
    with pytest.raises(ValueError) as caught:
        open_run(changed, "a")
    assert str(caught.value).startswith(f"{key} is ")
    for way_out in ("run=NAME", "branch=", "overwrite=true"):
        assert way_out in str(caught.value)


def test_other_versions_of_the_decoder_are_said(first_stage, tmp_path, capsys):
    # the same key, but rounded pixels: not refused, since no one can choose what another machine has
    written = json.loads((first_stage.folder / "lineage.json").read_text())
    assert re.fullmatch(r"Pillow [\d.]+, libjpeg [\d.]+, libwebp [\d.]+", written["decoder"])
    shutil.copytree(first_stage.folder, tmp_path / "a")
    run = Run(tmp_path / "a", {**first_stage.tree, "max_steps": first_stage.tree["max_steps"] + 1}, dict(written))
    run.record(decoder="Pillow 1.0")
    fit({**run.tree, "runs_dir": str(tmp_path)}, "a")
    assert f"a: images were decoded by Pillow 1.0, now by {written['decoder']}" in capsys.readouterr().out
    assert json.loads((tmp_path / "a" / "lineage.json").read_text())["decoder"] == written["decoder"]


def test_shards_that_hold_other_samples_are_refused(first_stage: Run, tmp_path: Path):
    shard = tmp_path / "train.tar"
    shutil.copy(QUICKSTART / "train-00000.tar", shard)
    own = (f"first_stage={first_stage.folder}", f"data.train={shard}")
    train("quickstart/diffusion", tmp_path, *own)
    shutil.copy(QUICKSTART / "validation-00000.tar", shard)
    with pytest.raises(ValueError, match=r"data\.train: the shards' members have other names.*branch="):
        train("quickstart/diffusion", tmp_path, *own, "max_steps=3")
    shutil.copy(QUICKSTART / "train-00000.tar", shard)
    assert train("quickstart/diffusion", tmp_path, *own, "max_steps=3").finished


def test_where_and_how_fast_it_runs_may_change(base, tmp_path):
    begun(base, tmp_path)
    free = ["trainer.devices=4", "trainer.num_nodes=2", "trainer.strategy=ddp", "data.num_workers=3", "~logger",
            "callback.panels.every_steps=7", "sampler=heun", "sigmas.rho=3", "guidance.scale=1", "num_steps=5",
            "lr=constant", "max_steps=100000"]  # fmt: skip
    constant = compose("config", [*DIFFUSION, "lr=constant"])
    begun(constant, tmp_path, "constant")
    run = open_run(compose("config", [*DIFFUSION, *free, f"runs_dir={tmp_path}"]), "constant")
    assert run.way_on == "a larger max_steps goes on from there"


def test_more_steps_are_refused_if_the_schedule_depends_on_them(base, tmp_path):
    checkpoint(begun(base, tmp_path), 1, 64)
    longer = compose("config", [*DIFFUSION, "max_steps=99999", f"runs_dir={tmp_path}"])
    with pytest.raises(ValueError, match=r"^lr\.max_steps is 99999"):
        open_run(longer, "a")


def test_a_free_name_frees_no_other_that_begins_like_it():
    saved = {"run": "a", "runner": 1, "data": {"num_workers": 0, "num_workers_x": 0}, "max_steps": 1}
    check_unchanged(saved, {**saved, "run": "b", "max_steps": 2}, Path("x"))
    with pytest.raises(ValueError, match=r"^runner is 2"):
        check_unchanged(saved, {**saved, "runner": 2}, Path("x"))
    with pytest.raises(ValueError, match=r"^data\.num_workers_x is 1"):
        check_unchanged(saved, {**saved, "data": {"num_workers": 9, "num_workers_x": 1}}, Path("x"))


def test_callbacks_are_free_but_for_one_that_alters_the_weights():
    saved = {"callback": {"progress": {"every_steps": 1}, "code_revival": {"every_steps": 500}}}
    check_unchanged(saved, {"callback": {"code_revival": {"every_steps": 500}}}, Path("x"))
    for revival in ({"code_revival": {"every_steps": 100}}, {}):
        with pytest.raises(ValueError, match=r"^callback\.code_revival\.every_steps is .* with 500"):
            check_unchanged(saved, {"callback": {"progress": {"every_steps": 2}, **revival}}, Path("x"))


def test_a_part_left_out_or_added_is_a_change():
    with pytest.raises(ValueError, match=r"^ema\.decay is None"):
        check_unchanged({"ema": {"decay": 0.5}}, {"ema": None}, Path("x"))
    check_unchanged({"a": 1}, {"a": 1, "new": None}, Path("x"))


# Branches


def test_a_branch_point_is_the_newest_whole_checkpoint_or_the_one_named(base, tmp_path):
    run = begun(base, tmp_path)
    older, newer = checkpoint(run, 1, 64), checkpoint(run, 2, 128)
    assert branch_point(None) is None
    assert branch_point(str(run.folder)) == newer
    assert branch_point(str(older)) == older
    (newer / "state.pt").write_bytes(b"")
    assert branch_point(str(run.folder)) == older
    with pytest.raises(ValueError, match=r"branch=.*step_00000002\.ckpt: state\.pt is damaged"):
        branch_point(str(newer))


def test_a_branch_from_nothing_is_refused(base, tmp_path):
    run = begun(base, tmp_path)
    for branch in (run.folder, tmp_path / "nowhere", run.folder / "config.yaml"):
        with pytest.raises(ValueError, match=r"branch=.*no checkpoint there"):
            branch_point(str(branch))
    with pytest.raises(ValueError, match=r"branch=.*incomplete: manifest\.json is missing"):
        branch_point(str(run.folder / "checkpoints" / "step_00000001.ckpt"))


def test_samples_seen_add_up_along_the_lineage(base, tmp_path):
    grandparent = begun(base, tmp_path, "grandparent")
    checkpoint(grandparent, 10, 640)
    parent = begun(base, tmp_path, "parent", branch=str(grandparent.folder))
    assert parent.lineage["parent"]["samples_seen_total"] == 640
    at = checkpoint(parent, 5, 320)
    checkpoint(parent, 7, 448)
    child = begun(base, tmp_path, "child", branch=str(at))
    found = child.lineage["parent"]
    assert (found["run"], found["samples_seen_total"]) == ("parent", 960)
    assert found["checkpoint"] == f"../parent/checkpoints/{at.name}" and len(found["sha256"]) == 64


def test_resuming_a_branch_keeps_the_lineage_it_began_with(base, tmp_path):
    parent = begun(base, tmp_path, "parent")
    at = checkpoint(parent, 5, 320)
    child = begun(base, tmp_path, "child", branch=str(parent.folder))
    checkpoint(parent, 6, 384)
    again = open_run({**base, "runs_dir": str(tmp_path), "branch": str(parent.folder)}, "child")
    assert again.lineage == child.lineage
    assert begun_from(again.lineage, again.folder).samefile(at)


def test_a_branch_inherits_its_parents_first_stage_unless_it_names_one(base, tmp_path):
    parent = begun(base, tmp_path, "parent", first_stage="runs/f4")
    checkpoint(parent, 1, 64)
    branch = {**base, "branch": str(parent.folder)}
    assert inherit(branch, "child")["first_stage"] == "runs/f4"
    assert inherit({**branch, "first_stage": "runs/f8"}, "child")["first_stage"] == "runs/f8"
    assert inherit(base, "child") is base


def test_a_resumed_branch_does_not_need_its_parent(base, tmp_path):
    parent = begun(base, tmp_path, "parent", first_stage="runs/f4")
    checkpoint(parent, 1, 64)
    branch = {**base, "runs_dir": str(tmp_path), "branch": str(parent.folder)}
    open_run(inherit(branch, "child"), "child").begin()
    shutil.rmtree(parent.folder)
    assert inherit(branch, "child")["first_stage"] == "runs/f4"
    assert open_run(inherit(branch, "child"), "child").lineage["parent"]["run"] == "parent"


def test_loading_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no such run or manifest"):
        load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="not a run's folder"):
        load(tmp_path)


def test_a_key_that_was_added_since_does_not_keep_a_run_from_being_resumed(tmp_path):
    now = compose("config", ["experiment=ldm/celebahq", "optimizer.decay_vectors=false"], complete=False)
    before = {**now, "optimizer": {key: now["optimizer"][key] for key in ("_target_", "lr", "betas")}}
    before = {key: value for key, value in before.items() if key != "loss"}
    check_unchanged(before, now, tmp_path)
    check_unchanged(now, before, tmp_path)
    changed = {**now, "optimizer": {**now["optimizer"], "decay_vectors": True}}
    with pytest.raises(ValueError, match=r"optimizer\.decay_vectors is True, but the run .* was started with False"):
        check_unchanged(before, changed, tmp_path)


# Branches that do not fit


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory) -> Run:
    """A run with a checkpoint to branch from. Not to be changed."""
    run = begun(base, tmp_path_factory.mktemp("trained"), "parent")
    checkpoint(run, 5, 320)
    return run


def branched(trained: Run, folder: Path, *words: str) -> Run:
    return open_run(compose("config", [*DIFFUSION, f"branch={trained.folder}", f"runs_dir={folder}", *words]), "child")


EXPERT = ["expert.node=[1,1]"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["precond=v"], r"precond is 'V' and in the parent 'EDM'.*branch_changes=\[precond\]"),
        (["precond.sigma_data=0.5"], r"precond\.sigma_data is 0\.5 and in the parent 1\.0"),
        (["schedule.c_noise_scale=1000.0"], r"schedule\.c_noise_scale is 1000\.0 and in the parent 250\.0"),
        (["conditioner.text.max_tokens=32"], r"conditioner\.text\.max_tokens is 32 and in the parent 16"),
        (["conditioner.text.path=runs/bert"], r"conditioner\.text\.path is 'a folder' and in the parent 'its own'"),
        (["network.num_heads=12"], r"network\.num_heads is 12 and in the parent 4"),
        ([*EXPERT, "noise.mean=0.1"], r"noise\.mean is 0\.1 and in the parent 0\.6.*branch_changes=\[noise\]"),
        ([*EXPERT, "noise=logit_normal"], r"noise is 'logit_normal' and in the parent 'LogNormal'"),
        ([*EXPERT, "image_size=64"], r"image_size is 64 and in the parent 32, .* take the parent's$"),
        ([*EXPERT, "conditioner=[text,label]"], r"conditioner\.label is 'Label' and in the parent None"),
        (["conditioner.text.slots=[tokens]"], r"text\.slots is \['tokens'\] and .* \['tokens', 'vector'\]"),
        (["expert.exclude=[[1,0]]", "noise.std=2"], r"noise\.std is 2 and in the parent 1\.2"),
        (["branch_changes=[colour]"], r"branch_changes=colour: there are precond, schedule, conditioner, network"),
    ],
)
def test_a_branch_in_which_weights_would_mean_something_else_is_refused(trained, tmp_path, words, problem):
    with pytest.raises(ValueError, match=problem):
        branched(trained, tmp_path, *words)


@pytest.mark.parametrize(
    "words",
    [
        [],
        EXPERT,
        ["expert.exclude=[[1,0]]"],
        ["precond=v", "branch_changes=[precond]"],
        ["precond=v", "schedule.c_noise_scale=1.0", "branch_changes=[precond,schedule]"],
        ["optimizer.lr=1e-5", "weighting=native", "noise.mean=0.1", "lr=constant", "seed=7", "ema.decay=0.9"],
        ["conditioner.text.drop_prob=0.5", "conditioner.text.memo_captions=0", "network.dropout=0.1"],
        ["conditioner=[text,label]"],
        ["conditioner=[]"],
        ["image_size=64", "data=shards", "data.train=x.tar"],
        [*EXPERT, "optimizer.lr=1e-5", "conditioner.text.drop_prob=0", "guidance.scale=1"],
        ["expert=log_uniform", *EXPERT],
    ],
)
def test_a_branch_may_train_otherwise(trained, tmp_path, words):
    assert branched(trained, tmp_path, *words).lineage["parent"]["run"] == "parent"


def test_a_branch_is_held_to_what_keys_meant_when_its_parent_was_saved(base, trained, tmp_path):
    saved = trained.folder / "config.yaml"
    lines = saved.read_text()
    older = shutil.copytree(trained.folder, tmp_path / "older")
    (older / "config.yaml").write_text(lines.replace("  mlp_ratio: 4.0\n", "").replace("branch_changes: null\n", ""))
    assert "mlp_ratio" in lines and "mlp_ratio" not in (older / "config.yaml").read_text()
    branch = [*DIFFUSION, f"branch={older}", f"runs_dir={tmp_path}"]
    open_run(compose("config", branch), "child")
    with pytest.raises(ValueError, match=r"network\.mlp_ratio is 2 and in the parent 4\.0"):
        open_run(compose("config", [*branch, "network.mlp_ratio=2"]), "child")


def test_a_branch_of_another_kind_of_run_is_refused(trained, tmp_path):
    tree = compose("config", ["experiment=quickstart/autoencoder", f"branch={trained.folder}", f"runs_dir={tmp_path}"])
    with pytest.raises(ValueError, match="another kind of run, DiffusionTask where this one is AutoencoderTask"):
        open_run(tree, "child")
    (trained.folder / "config.yaml").rename(tmp_path / "aside")
    with pytest.raises(ValueError, match=r"no config\.yaml beside its checkpoints"):
        branched(trained, tmp_path)
    (tmp_path / "aside").rename(trained.folder / "config.yaml")


def test_a_run_without_a_step_whose_parent_is_another_by_now_begins_from_that(base, tmp_path):
    parent = begun(base, tmp_path, "parent")
    checkpoint(parent, 3, 48)
    tree = {**base, "branch": str(parent.folder)}
    before = begun(tree, tmp_path, "child").lineage["parent"]
    checkpoint(parent, 3, 64)
    after = open_run({**tree, "runs_dir": str(tmp_path)}, "child").lineage["parent"]
    assert after["sha256"] != before["sha256"] and after["samples_seen_total"] == 64
    assert after == open_run({**tree, "runs_dir": str(tmp_path), "overwrite": True}, "child").lineage["parent"]
