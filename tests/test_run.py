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
from ldm.fit import fit
from ldm.run import Run, branch_point, check_unchanged, inherit, is_rank_zero, load, open_run

DIFFUSION = ["experiment=quickstart/diffusion"]


@pytest.fixture(scope="module")
def base() -> dict:
    """The quickstart's tree. Not to be changed."""
    return compose("config", DIFFUSION)


def begun(tree: dict, folder: Path, name: str = "a", **changes) -> Run:
    run = open_run({**tree, "runs_dir": str(folder), **changes}, name)
    run.begin()
    return run


def checkpoint(run: Run, step: int, samples_seen: int) -> Path:
    state = {"step": step, "trained": {"a": torch.zeros(2)}}
    return resume.save(run.folder / "checkpoints", step, state, {"step": step, "samples_seen": samples_seen})


# The folder


def test_opening_a_run_writes_nothing_and_beginning_it_makes_the_folder(base, tmp_path):
    run = open_run({**base, "runs_dir": str(tmp_path)}, "a")
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


@pytest.mark.parametrize("name", ["..", ".", "", "/", "/tmp/x", "a/b", "../x", ".hidden", "-x", "a b", "a\n"])
def test_a_name_is_one_plain_folder(base, tmp_path, name):
    with pytest.raises(ValueError, match="run="):
        open_run({**base, "runs_dir": str(tmp_path)}, name)


def test_only_rank_zero_writes(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "NODE_RANK"):
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
    begun(base, tmp_path)
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
    open_run(compose("config", [*DIFFUSION, *free, f"runs_dir={tmp_path}"]), "constant")


def test_more_steps_are_refused_if_the_schedule_depends_on_them(base, tmp_path):
    begun(base, tmp_path)
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
    assert found["checkpoint"] == str(at) and len(found["sha256"]) == 64


def test_resuming_a_branch_keeps_the_lineage_it_began_with(base, tmp_path):
    parent = begun(base, tmp_path, "parent")
    at = checkpoint(parent, 5, 320)
    child = begun(base, tmp_path, "child", branch=str(parent.folder))
    checkpoint(parent, 6, 384)
    again = open_run({**base, "runs_dir": str(tmp_path), "branch": str(parent.folder)}, "child")
    assert again.lineage == child.lineage
    assert again.lineage["parent"]["checkpoint"] == str(at)


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
        (["network.num_heads=12"], r"network\.num_heads is 12 and in the parent 6"),
        ([*EXPERT, "noise.mean=0.1"], r"noise\.mean is 0\.1 and in the parent 0\.6.*branch_changes=\[noise\]"),
        ([*EXPERT, "noise=logit_normal"], r"noise is 'logit_normal' and in the parent 'LogNormal'"),
        ([*EXPERT, "image_size=64"], r"image_size is 64 and in the parent 32, .* take the parent's$"),
        ([*EXPERT, "conditioner=[text]"], r"conditioner\.text_vector is None and in the parent 'text_vector'"),
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
        ["conditioner=[text,text_vector,label]"],
        ["conditioner=[text]"],
        ["conditioner=[]"],
        ["image_size=64", "data=shards", "data.train=x.tar"],
        [*EXPERT, "optimizer.lr=1e-5", "conditioner.text.drop_prob=0", "guidance.scale=1"],
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
