"""Trees of experts: schedules and what is wrong with them, runs counted once, where to cut, what several seeds say."""

import csv
import json
import math
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import toys
from toys import Process, tiny
from untrained import untrained_run

from ldm.config import CONF, compose, load_plain, overriding
from ldm.diffusion.experts import Expert
from ldm.diffusion.noise import DiscreteNoise, LogNormal, Restricted
from ldm.diffusion.schedule import scaled_linear
from ldm.diffusion.sigmas import ddim_sigmas, karras
from ldm.ensemble import write_manifest
from ldm.errors import UserError
from ldm.evaluation.interval_loss import held_out, interval_loss
from ldm.evaluation.loss_over_sigma import WHOLE, over_sigma
from ldm.fit import fit
from ldm.generate import Ask, NotFinite
from ldm.lineage_tree import lineage_of, lines, total
from ldm.trees import report
from ldm.trees.expert_loss import expert_loss
from ldm.trees.findings import difference, verdict
from ldm.trees.growing import grow, steps, tell
from ldm.trees.judge import BINS, LEVELS, Bench, bins
from ldm.trees.results import Part, results_at
from ldm.trees.schedule import read_schedule
from ldm.trees.shares import propose, rows_of, shares, spines, with_gain
from ldm.trees.split import propose_split
from ldm.trees.trainings import Growth

NAMES = sorted(path.stem for path in CONF.glob("tree/*.yaml"))


# Schedules


@pytest.mark.parametrize("name", NAMES)
def test_every_schedule_of_conf_is_one_and_begins_with_its_command(name: str):
    schedule = read_schedule(name)
    assert schedule.name == name and schedule.ensembles and schedule.rows[0].origin is None
    assert f"={name}" in (CONF / "tree" / f"{name}.yaml").read_text().splitlines()[0].replace("[", "")


def test_the_rows_are_those_of_the_papers_and_ours():
    stand_in = read_schedule("stand_in")
    assert [row.steps for row in stand_in.line("H9")] == [500_000, *[40_000] * 8, 190_000]
    assert stand_in.row("H9").node == [9, 511] and stand_in.row("MM").exclude == [[3, 0], [9, 511]]
    fig7 = read_schedule("fig7")
    assert fig7.total(fig7.ensembles["four"]) == fig7.total(["control"]) == 800_000  # 500 + 2 * 50 + 4 * 50
    laptop = fig7.scaled(20_000)
    assert [row.steps for row in laptop.rows[:2]] == [20_000, 2_000] and laptop.total(["control"]) == 32_000
    assert read_schedule("config_d").quoted["config_d"] == {
        "parameters": "9.1B", "fid_text": 7.04, "fid_table_1": 6.95
    }  # fmt: skip
    assert [row.name for row in read_schedule("config_c").rows][-2:] == ["H9", "MC"]  # without the left spine
    with pytest.raises(UserError, match=r"root_steps=25: row 'n10' would have 2.5 steps.*multiples of 10"):
        fig7.scaled(25)


BROKEN = {
    "rows: [{name: a, steps: 2, from: b}]": "row 'a' comes from 'b', and there is no such row",
    "rows: [{name: a, steps: 2, from: b}, {name: b, steps: 2, from: a}]": "rows come from each other: a from b from a",
    "rows: [{name: a, steps: 2}, {name: a, steps: 2}]": "two rows are called 'a'",
    "rows: [{name: a, step: 2}]": r"rows\[0\]: step: no such key; a row has name, steps, from",
    "rows: [{name: a, steps: 2, origin: b}]": "origin: no such key",
    "rows: [{name: a, steps: many}]": "steps is 'many'; expected a whole number",
    "rows: [{name: a, steps: 0}]": "steps is 0",
    "rows: [{name: a, steps: 2, node: 3}]": "node is 3; expected a list",
    "rows: [a]": "'a' is no row",
    "rows: []": "names no training",
    "{}": "rows or rows_of",
    "rows: [{name: a, steps: 2}]\nensembles: {e: [b]}": "ensembles.e has 'b', and there is no such row",
    "rows: [{name: a, steps: 2}]\nensembles: {e: a}": "ensembles.e is 'a'; expected a list of rows",
    "rows: [{name: a, steps: 2}]\nensemble: {}": "ensemble: no such key",
    "rows: [{name: a, steps: 2}]\ncontrol: b": "control is 'b'",
    "rows: [{name: a, steps: 2}]\nquoted: {e: {}}": "quoted.e is of no ensemble",
    "rows: [{name: a, steps: 2}]\nquoted: {e: 1}\nensembles: {e: [a]}": "quoted.e is 1; expected a mapping",
    "rows: [{name: a, steps: 2}]\nensembles: {2: [a]}": "ensembles has 2 for a name",
    "rows: [{name: a, steps: 2}]\nexperiment: 3": "experiment is 3; expected text",
    "rows: [{name: a, steps: 2, overrides: lr=constant overwrite=true}]": "row 'a': overwrite= is not for a file",
    "rows: [{name: a, steps: 2}]\noverrides: plugins=[theirs]": "overrides: plugins= is not for a file",
    "rows: [{name: a, steps: 2}]\nbranch_overrides: +run=mine": "branch_overrides: run= is not for a file",
    "rows: 5": "rows is 5; expected a list",
    "rows_of: 5": "rows_of is 5; expected text",
    "- 1": "not a tree's schedule",
}


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_schedule_is_one_line_that_names_the_row(tmp_path: Path, text: str):
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(UserError, match=BROKEN[text]):
        read_schedule(str(tmp_path / "own.yaml"))


def test_rows_that_schedules_take_of_each_other_are_nobodys(tmp_path: Path):
    for name, other in (("a", "b"), ("b", "c"), ("c", "b"), ("self", "self")):
        (tmp_path / f"{name}.yaml").write_text(f"rows_of: {tmp_path}/{other}.yaml")
    for name, last in (("a", "b"), ("b", "b"), ("self", "self")):
        with pytest.raises(UserError, match=rf"rows_of: leads back to .*{last}\.yaml"):
            read_schedule(str(tmp_path / f"{name}.yaml"))


def test_a_schedule_that_is_not_there_names_those_that_are():
    with pytest.raises(UserError, match=r"schedule=~nobody-of-that-name/x\.yaml: neither a file"):
        read_schedule("~nobody-of-that-name/x.yaml")
    with pytest.raises(UserError, match=r"schedule=fig8: neither a file.*fig7"):
        read_schedule("fig8")


# A tree of toys


def tree(folder: Path, schedule: str, *more: str) -> dict:
    words = [f"schedule={folder / schedule}", f"runs_dir={folder}", "name=tree", "logger.mode=disabled"]
    return compose("grow_tree", [*words, "experiment=quickstart/diffusion", f"first_stage={folder / 'ae'}", *more])


def short(words: list[str]) -> str:
    """What makes a training tiny, as a text for overrides=."""
    own = ("experiment", "runs_dir", "max_steps", "first_stage", "~logger")
    return " ".join([*(word for word in words if not word.startswith(own)), "callback.quality.every_steps=null"])


def toy(folder: Path) -> str:
    return short(tiny("quickstart/diffusion", folder))


ROWS = """
rows:
  - {name: base, steps: 2}
  - {name: low, from: base, node: [1, 0], steps: 1, within: log_uniform}
  - {name: rest, from: base, exclude: [[1, 0]], steps: 1}
  - {name: control, from: base, steps: 2}
ensembles: {base: [base], both: [low, rest], control: [control]}
quoted: {both: {fid: 7}}
"""


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Growth:
    """A grown tree, its trainings in this process."""
    folder = tmp_path_factory.mktemp("tree")
    (folder / "own.yaml").write_text(ROWS)
    toys.train("quickstart/autoencoder", folder, run="ae")
    growth = Growth(tree(folder, "own.yaml", f"overrides={toy(folder)}"), read_schedule(str(folder / "own.yaml")))
    assert growth.check() == []
    for step in steps(growth, []):
        fit(compose("config", list(step.job.words)), step.job.name)
    return growth


def test_rows_become_runs_and_ensembles_manifests(grown: Growth, capsys: pytest.CaptureFixture[str]):
    assert [step.needs for step in steps(grown, [])] == [(), *[("tree-base",)] * 3]
    assert sorted(grown.check()) == ["base", "control", "low", "rest"] and steps(grown, grown.check()) == []
    manifests = tell(grown)
    assert set(manifests) == {"base", "both", "control"} and all(path.exists() for path in manifests.values())
    said = capsys.readouterr().out
    assert "4 runs" in said and 'papers report {"fid": 7}' in said
    with (grown.folder / "systems.csv").open() as file:
        rows = {row["system"]: row for row in csv.DictReader(file)}
    assert rows["both"]["steps"] == rows["control"]["steps"] == "4" and rows["both"]["quoted_fid"] == "7"
    assert int(rows["both"]["parameters"]) == 2 * int(rows["both"]["parameters_at_once"])
    assert total(lineage_of([manifests["both"], manifests["control"]])) == (2 + 1 + 1 + 2, 4 * 6)
    assert load_plain(manifests["both"], "a manifest")["members"][0]["run"] == "../tree-low"


def test_a_tree_of_more_steps_is_another_tree(grown: Growth, tmp_path: Path):
    shutil.copytree(grown.runs, tmp_path / "runs")
    own = tree(tmp_path / "runs", "own.yaml", f"overrides={toy(tmp_path / 'runs')}")
    longer = Growth({**own, "root_steps": 4}, grown.schedule)
    with pytest.raises(UserError, match=r"tree-low: began from step 2 of 'base', .* step 4; choose"):
        longer.check()
    assert not longer.is_finished("base") and not longer.is_finished("low"), "their runs have half of the steps"
    base = {**own, "base": str(tmp_path / "runs/tree-base")}
    assert sorted(Growth(base, grown.schedule).check()) == ["control", "low", "rest"]
    words = [*grown.words(grown.schedule.rows[0]), f"runs_dir={tmp_path / 'runs'}", "max_steps=3"]
    fit(compose("config", overriding(words)), "tree-base")
    assert len(Growth(base, grown.schedule).check()) == 3, "nothing is left to begin from another step"
    shutil.rmtree(tmp_path / "runs/tree-rest")
    with pytest.raises(UserError, match=r"tree-low: began from step 2 of 'base', .* step 3; choose"):
        Growth(base, grown.schedule).check()


def test_what_could_not_train_is_refused_before_anything_does(grown: Growth, tmp_path: Path):
    folder = grown.runs

    def refused(said: str, rows: str, *more: str) -> None:
        (tmp_path / "own.yaml").write_text(rows)
        words = [f"overrides={toy(folder)}", *more]
        with pytest.raises(UserError, match=said):
            grow({**tree(folder, "own.yaml", *words), "schedule": str(tmp_path / "own.yaml")})

    base = f"base={folder / 'tree-base'}"
    cut = "rows: [{name: base, steps: 2}, {name: new, from: base, node: %s, steps: 1, overrides: '%s'}]"
    refused(r"row 'new': expert: sigma in .* near-empty", cut % ("[40, 0]", ""), base)
    refused("row 'new': expert.node, expert.exclude: a node is", cut % ("[1, 5]", ""), base)
    refused("row 'new': .*noise.mean is", cut % ("[1, 0]", "noise.mean=3"), base)
    refused("row 'new': .*did you mean 'noise.mean'", cut % ("[1, 0]", "noise.men=3"), base)
    refused("ensembles.e of .*gap", cut % ("[1, 0]", "") + "\nensembles: {e: [new]}", base)
    refused("has 2 steps, and row 'base' asks for 1", "rows: [{name: base, steps: 1}]")
    refused("seed is 1, but the run in", "rows: [{name: base, steps: 2}]", "seed=1")
    refused("base=.*comes from another", "rows: [{name: a, from: b, steps: 1}, {name: b, steps: 1}]", base)
    for words, said in {
        ("jobs=0",): "jobs=0", ("launcher=submitit",): "launcher.wait", ("schedule=null",): "schedule: has to be given",
        ("experiment=null",): "experiment: schedule fig7 names none", ("name=a/b",): "'a/b': names of runs",
        ("root_steps=7",): "root_steps=7",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=said):
            grow(compose("grow_tree", overriding(["schedule=fig7", f"runs_dir={tmp_path}", *words])))
    assert not (tmp_path / "fig7").exists()


def test_a_split_is_proposed_and_grown(grown: Growth, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = [f"model={grown.run('base')}", f"continued={grown.run('control')}", f"out={tmp_path}", "num_samples=4"]
    words += ["bins=2", "levels=3", "num_steps=4", "device=cpu", "least_share=0.2", "budget=4", "logger.mode=disabled"]
    asked = compose("propose_split", words)
    assert propose_split(asked) == tmp_path
    with (tmp_path / "split.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["level"], row["index"]) for row in rows][:3] == [("0", "0"), ("1", "0"), ("1", "1")]
    assert float(rows[0]["training_share"]) == float(rows[0]["sampling_share"]) == 1.0 and rows[0]["gain"]
    with (tmp_path / "loss_over_sigma.csv").open() as file:
        curve = list(csv.DictReader(file))
    assert len(curve) == 2 and float(curve[0]["sigma"]) < float(curve[1]["sigma"])
    assert (tmp_path / "split.png").exists() and (tmp_path / "loss_over_sigma.png").exists()
    without = {**asked, "continued": None, "least_share": 0.0}
    assert propose_split(without) == tmp_path
    proposed = read_schedule(str(tmp_path / "proposed.yaml"))
    assert proposed.rows[0].steps == 2 and proposed.ensembles["proposed"] == [row.name for row in proposed.rows[1:]]
    own = tree(grown.runs, "own.yaml", f"base={grown.run('base')}", f"overrides={toy(grown.runs)}")
    growth = Growth({**own, "name": "proposed"}, proposed)
    assert growth.check() == []
    for step in steps(growth, []):
        fit(compose("config", list(step.job.words)), step.job.name)
    manifest = load_plain(tell(growth)["proposed"], "a manifest")
    assert [member["run"] for member in manifest["members"]] == [f"../proposed-{row.name}" for row in proposed.rows[1:]]
    assert "% of the training" in capsys.readouterr().out
    for key in ("model", "continued"):
        with pytest.raises(UserError, match=f"{key}=.*trained on all of the noise"):
            propose_split({**asked, key: str(grown.run("low"))})
    (tmp_path / "file").touch()
    for given, said in (
        ({"steps": 2}, "experiment: says what trains the model on"),
        ({"steps": 0, "experiment": "quickstart/control"}, "steps=0: must be at least 1"),
        ({"experiment": "quickstart/control"}, "experiment: is of a short training, which steps= asks for"),
        ({"overrides": "lr=constant"}, "overrides: is of a short training, which steps= asks for"),
        ({"steps": 2, "continued": str(grown.run("control"))}, "steps: is of a short training, in whose place"),
        ({"continued": str(tmp_path / "none")}, "continued=.*none: no such run"),
        ({"steps": 2, "experiment": "quickstart/control", "logger": None}, "logger=null: the short training needs one"),
        ({"steps": 2, "experiment": "quickstart/control", "overrides": "run=x"}, "overrides: run= says where"),
        (
            {"steps": 2, "experiment": "quickstart/autoencoder"},
            "experiment=quickstart/autoencoder: trains no diffusion",
        ),
        ({"steps": 2, "experiment": "quickstart/control", "overrides": "nosuch=3"}, "overrides: nosuch: no such key"),
        ({"out": str(tmp_path / "file")}, "out=.*: .*file is a file; name a folder"),
        ({"seed": -1}, "seed=-1: must be at least 0"),
    ):
        with pytest.raises(UserError, match=said):
            propose_split({**without, **given})


def test_experts_are_held_against_what_they_were_branched_from(
    grown: Growth, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    few = ["num_samples=6", "bins=3", "device=cpu", "logger.mode=disabled", f"out={tmp_path}"]
    low, rest = grown.run("low"), grown.run("rest")
    rows, folder = expert_loss(compose("expert_loss", [f"models=[{low},{rest}]", *few]))
    assert [(row["model"], row["parent"]) for row in rows] == [("tree-low", "tree-base"), ("tree-rest", "tree-base")]
    assert rows[0]["sigma_lo"] == 0 < rows[0]["sigma_hi"] == rows[1]["sigma_lo"] < rows[1]["sigma_hi"] == math.inf
    with (folder / "loss_over_sigma.csv").open() as file:
        curve = list(csv.DictReader(file))
    for row in rows:
        own = [each for each in curve if each["model"] == row["model"]]
        assert len(own) == 3 and all(row["sigma_lo"] <= float(each["sigma"]) < row["sigma_hi"] for each in own)
        for each in (row, *own):
            assert float(each["gain"]) == pytest.approx(float(each["parent_loss"]) - float(each["loss"]), abs=1e-6)
        assert (folder / f"{row['model']}.png").exists()
    same, _ = expert_loss(compose("expert_loss", [f"models={low}", f"parent={low}", *few]))
    assert same[0]["gain"] == 0 and same[0]["loss"] == same[0]["parent_loss"] == rows[0]["loss"]
    capsys.readouterr()
    worse = {"parent_loss": 1.0, "loss": 2.0, "gain": -1.0, "half_interval": 0.5}
    monkeypatch.setattr("ldm.trees.expert_loss.measure", lambda *_: lambda *_: worse)
    expert_loss(compose("expert_loss", [f"models={low}", *few]))
    assert capsys.readouterr().out.count("warning: tree-low is worse than tree-base at sigma") == 3
    for words, problem in {
        ("models=[]",): "at least one", (f"models={grown.run('base')}",): "was branched from nothing; parent=",
        (f"models=[{low},{low}]",): "two are called the same", (f"models={low}", "bins=0"): "bins=0",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=problem):
            expert_loss(compose("expert_loss", overriding([*few, *words])))


def test_bins_tile_an_experts_own_noise_and_empty_ones_are_left_out():
    asked: list = []

    def measured(intervals, num_levels):
        asked.append(list(intervals))
        return {"gain": 0.0}

    noise = LogNormal(-1.2, 1.2)
    own = [(0.0, 0.1), (1.0, 5.0)]
    rows = over_sigma(measured, noise, own, 5)
    assert len(rows) == 5 == len(asked) and [row["sigma"] for row in rows] == sorted(row["sigma"] for row in rows)
    assert all(inside[0][0] <= row["sigma"] < inside[-1][1] for row, inside in zip(rows, asked, strict=True))
    ends = {end for intervals in asked for interval in intervals for end in interval}
    assert {0.0, 0.1, 1.0, 5.0} <= ends and not any(0.1 < end < 1.0 for end in ends)
    assert [Restricted(noise, inside).mass for inside in asked] == pytest.approx([Restricted(noise, own).mass / 5] * 5)
    chain = DiscreteNoise(scaled_linear(0.00085, 0.012))
    assert 1 < len(over_sigma(measured, chain, Expert(node=(8, 0)).intervals(chain), 16)) < 16, "four steps of a chain"


def test_bins_of_a_chain_hold_equally_many_of_its_steps():
    asked: list = []
    chain = DiscreteNoise(scaled_linear(0.00085, 0.012, num_timesteps=8))
    rows = over_sigma(lambda intervals, _: asked.append(intervals) or {}, chain, WHOLE, 4)
    held = [[atom for atom in chain.atoms.tolist() if low <= atom < high] for [(low, high)] in asked]
    assert [len(atoms) for atoms in held] == [2] * 4
    assert all(row["sigma"] in atoms for row, atoms in zip(rows, held, strict=True))
    sixteen = DiscreteNoise(scaled_linear(0.00085, 0.012, num_timesteps=2 * BINS))
    ends = bins(sixteen)
    assert [sum(low <= atom < high for atom in sixteen.atoms.tolist()) for low, high in ends] == [2] * BINS


# Lineage


def fake_run(folder: Path, name: str, parent: str | None, steps: int, batch: int = 8) -> Path:
    """A folder with what tells where a run came from."""
    run = folder / name
    (run / "weights").mkdir(parents=True)
    lineage = {"run": name, "wandb_id": f"{name}-id", "parent": None, "finished_step": steps}
    if parent is not None:
        own = json.loads((folder / parent / "lineage.json").read_text())
        before = (own["parent"] or {}).get("samples_seen_total", 0)
        seen = json.loads(next((folder / parent / "weights").glob("*.json")).read_text())
        checkpoint = f"../{parent}/checkpoints/step_{seen['step']:08d}.ckpt"
        lineage["parent"] = {"run": parent, "wandb_id": own["wandb_id"], "checkpoint": checkpoint,
                             "samples_seen_total": before + seen["samples_seen"]}  # fmt: skip
    (run / "lineage.json").write_text(json.dumps(lineage))
    facts = {"step": steps, "samples_seen": steps * batch}
    (run / "weights" / f"step_{steps:08d}.json").write_text(json.dumps(facts))
    return run


def test_runs_are_counted_once_and_the_tree_of_figure_7_is_of_800(tmp_path: Path):
    fig7 = read_schedule("fig7").scaled(500)
    runs = {row.name: fake_run(tmp_path, row.name, row.origin, row.steps) for row in fig7.rows}
    four = [runs[name] for name in fig7.ensembles["four"]]
    found = lineage_of(four)
    assert total(found) == (800, 6400) == total(lineage_of([runs["control"]])) and len(found) == 7
    assert lines(found)[-1].split() == ["7", "runs", "800", "steps", "6,400", "samples"]
    assert [line.split()[0] for line in lines(found)][:3] == ["base", "+", "+"] and "+ n20" in lines(found)[2]
    longer = json.loads((runs["base"] / "weights" / "step_00000500.json").read_text())
    (runs["base"] / "weights" / "step_00000900.json").write_text(json.dumps({**longer, "step": 900}))
    assert total(lineage_of(four)) == (800, 6400)  # what the base was trained on later is no part of them
    shutil.rmtree(runs["base"])
    found = lineage_of(four)
    assert total(found) == (800, 6400) and "base (not there; with all before it)" in lines(found)[0]


# Where to cut


def test_the_deepest_node_has_little_of_the_training_and_much_of_the_sampling():
    found = {s.node: s for s in shares(LogNormal(-1.2, 1.2), karras(25, 0.002, 80.0, rho=6.0), spines(9))}
    assert found[9, 511].training == pytest.approx(1 / 512) and found[9, 511].sampling == pytest.approx(9 / 25)
    assert found[3, 0].training == pytest.approx(1 / 8) and found[3, 0].sampling == pytest.approx(5 / 25)
    low, high = propose(list(found.values()), least_share=0.05)
    assert high.node == (9, 511) and low.node[1] == 0
    rows = rows_of([low, high], 500, 100)
    assert [row["name"] for row in rows] == ["base", "low", "high", "rest"]
    assert rows[2] == {"name": "high", "from": "base", "node": [9, 511], "steps": 36}
    assert rows[3]["exclude"] == [list(low.node), [9, 511]]


def test_a_node_without_a_sure_gain_is_not_proposed_and_an_empty_one_is_left_out():
    found = shares(LogNormal(-1.2, 1.2), karras(25, 0.002, 80.0, rho=6.0), spines(9))
    lost = [with_gain(share, -0.1 if share.node[1] else 0.1, 0.01) for share in found]
    assert [share.node[1] for share in propose(lost, 0.05)] == [0]
    unsure = [with_gain(share, 0.1, 0.2) for share in found]
    assert propose(unsure, 0.05) == []
    schedule = scaled_linear(0.00085, 0.012)
    chain = shares(DiscreteNoise(schedule), ddim_sigmas(20, schedule), spines(12))
    assert (9, 511) in {share.node for share in chain} and (12, 0) not in {share.node for share in chain}


def test_two_halves_leave_nothing():
    halves = [replace(share, sampling=0.5) for share in shares(LogNormal(0, 1), karras(9, 0.1, 9.0), [(1, 0), (1, 1)])]
    assert [row["name"] for row in rows_of(halves, 10, 4)] == ["base", "low", "high"]


# What several seeds say


def rows_with(values: dict[str, list[float]], quantity: str = "kid/x") -> list[dict]:
    return [
        {"seed": seed, "system": system, "quantity": quantity, "scale": scale, "sampling_seed": s, "value": own + s}
        for system, every in values.items()
        for seed, own in enumerate(every)
        for scale in (1.0, 2.0)
        for s in (0, 1)
    ]


def test_a_difference_is_paired_by_training_seed_and_a_verdict_wants_an_interval_beside_0():
    apart = rows_with({"four": [1.0, 2.0, 3.0], "control": [1.5, 2.6, 3.4]})
    found = difference(apart, "four", "control", "kid/x")
    assert (
        found.mean == pytest.approx(-0.5) and found.half == pytest.approx(4.302653 * 0.1 / 3**0.5) and found.seeds == 3
    )
    assert "kid/x: four is better than control, -0.5 ±" in verdict(apart, [0, 1, 2])[0]
    assert "worse than" in verdict(rows_with({"four": [1.5, 2.6, 3.4], "control": [1.0, 2.0, 3.0]}), [0, 1, 2])[0]
    assert "not told apart" in verdict(rows_with({"four": [1.0, 2.0, 3.0], "control": [3.0, 1.0, 2.0]}), [0, 1, 2])[0]
    more = rows_with({"four": [0.8, 0.9, 0.8], "control": [0.5, 0.5, 0.6]}, "accuracy")
    assert "accuracy: four is better" in verdict(more, [0, 1, 2])[0]
    assert "one seed: no interval" in str(difference(apart[:4] + apart[12:16], "four", "control", "kid/x"))
    assert verdict(apart, [0, 1, 2, 3]) == ["Not yet judged: training seeds 3 are missing."]


def test_rows_of_trees_are_kept_as_they_were(tmp_path: Path):
    row = {"system": "four", "quantity": "loss", "value": 0.1 + 0.2, "settings": "{}"}
    results, other = results_at(tmp_path / "rows.csv"), results_at(tmp_path / "rows.csv")
    results.add(Part("fig7", 0), [row])
    other.add(Part("fig7", 1), [{**row, "value": 1.5, "scale": 2.0}])
    again = results_at(tmp_path / "rows.csv")
    assert again.find(Part("fig7", 0))[0]["value"] == 0.1 + 0.2 and len(again.rows) == 2
    with pytest.raises(UserError, match="its rows fig7-seed0 were measured with"):
        again.check(Part("fig7", 0), "other")
    results.add(Part("2024", 0), [{**row, "system": "4"}])
    text = (tmp_path / "rows.csv").read_text()
    (tmp_path / "rows.csv").write_text(f"\ufeff{text}", encoding="utf-8")  # as a spreadsheet saves it
    assert results_at(tmp_path / "rows.csv").find(Part("2024", 0))[0]["system"] == "4"
    (tmp_path / "rows.csv").write_text("schedule,seed,system,quantity,value,settings\nfig7,0,four,loss,much,{}\n")
    with pytest.raises(UserError, match="line 2: value is 'much'"):
        results_at(tmp_path / "rows.csv")


def test_settings_of_a_tree_say_which_shards_it_is_of(tmp_path: Path):
    for name, skip in (("a", 0), ("b", 1)):
        (tmp_path / name).mkdir()
        for split in ("train", "validation"):
            shutil.copyfile(toys.annotated_shard(skip), tmp_path / name / f"{split}-00000.tar")
    found = {}
    for schedule in ("fig7_fashion", "fig7_emoji"):
        asked = [compose("experts_report", [f"shards={tmp_path / name}"]) for name in "ab"]
        found[schedule] = [report.settings_of(tree, read_schedule(schedule)) for tree in asked]
    assert found["fig7_fashion"][0] != found["fig7_fashion"][1], "that is trained on them"
    assert found["fig7_emoji"][0] == found["fig7_emoji"][1]
    results = results_at(tmp_path / "rows.csv")
    part, row = Part("fig7_fashion", 0), {"system": "four", "quantity": "loss", "value": 1.0}
    results.add(part, [{**row, "settings": found["fig7_fashion"][0]}])
    with pytest.raises(UserError, match="its rows fig7_fashion-seed0 were measured with"):
        results.check(part, found["fig7_fashion"][1])
    schedule = read_schedule("fig7_fashion")
    without = report.settings_of(compose("experts_report", []), schedule)
    results.check(part, without)  # a page of rows alone
    other = [replace(row, node=[2, 3]) if row.name == "n20" else row for row in schedule.rows]
    assert (
        replace(schedule, hypothesis="none", quoted={}).recipe
        == schedule.recipe
        != replace(schedule, rows=other).recipe
    )
    with pytest.raises(UserError, match="its rows fig7_fashion-seed0 were measured with"):
        results.check(part, report.settings_of(compose("experts_report", []), replace(schedule, rows=other)))


def test_a_report_that_could_not_be_made_is_refused_before_anything_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(report.Chain, "run", None)
    (tmp_path / "fig7_emoji.yaml").write_text("rows_of: fig7_emoji")
    for words, said in {
        ("seeds=[]",): "seeds=", ("seeds=[0,0]",): "different numbers", ("scales=[1,nan]",): r"scales=\[1, nan\]",
        ("scales=[]",): "scales=", ("jobs=0",): "jobs=0", ("results=here",): "ends in .csv",
        ("schedules=[]",): "schedules=",
        ("train=false",): "none of the 3 trees", ("num_samples=2",): "num_samples=2: must be at least 10",
        ("schedules=[fig7_fashion]",): "shards: experiment=experts/fashion names no data",
        ("schedules=[fig7_fashion]", f"shards={tmp_path}"): "has no train-", ("schedules=[x]",): "schedule=x",
        (f"schedules=[fig7_emoji,{tmp_path}/fig7_emoji.yaml]",): "two are called the same",
        ("schedules=[stand_in]",): "no ensemble 'base'", ("launcher=submitit",): "launcher.wait",
    }.items():  # fmt: skip
        own = [] if words[0].startswith("schedules") else ["schedules=[fig7_emoji]"]
        with pytest.raises(UserError, match=said):
            report.experts_report(compose("experts_report", [f"runs_dir={tmp_path / 'runs'}", *own, *words]))
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A judge of untrained experts: the noise below, and all that is left of it, in two parts."""
    (tmp_path / "own.yaml").write_text(
        "rows:\n- {name: base, steps: 2}\n- {name: middle, from: base, node: [2, 1], steps: 1}\n"
        "- {name: rest, from: base, exclude: [[2, 1]], steps: 1}\n- {name: control, from: base, steps: 2}\n"
        "ensembles: {base: [base], control: [control], four: [middle, rest]}\n"
    )
    parts = {"base": [], "control": [], "middle": ["expert.node=[2,1]"], "rest": ["expert.exclude=[[2,1]]"]}
    runs = tmp_path / "runs"
    for seed, (name, part) in enumerate(parts.items()):
        untrained_run(
            runs / f"tree-{name}", "~data.fields.caption", "conditioner.label.num_classes=9", *part, seed=seed
        )
    schedule = read_schedule(str(tmp_path / "own.yaml"))
    growth = Growth(compose("grow_tree", [f"schedule={tmp_path}/own.yaml", f"runs_dir={runs}", "name=tree"]), schedule)
    manifests = {name: growth.manifest(name) for name in schedule.ensembles}
    for name, members in schedule.ensembles.items():
        write_manifest(manifests[name], [growth.run(member) for member in members])
    words = ["num_samples=10", "num_reference=12", "num_held_out=4", "seeds=[0]", "device=cpu", "metric.size=32"]
    return Bench(compose("experts_report", words), growth, manifests, tmp_path, "{}")


def test_a_picture_that_is_not_finite_is_left_out_and_said(bench: Bench, caplog: pytest.LogCaptureFixture):
    whole = bench._measured(bench.systems["four"], 1.0, 0)
    drawer, lost, seen = bench.systems["four"], {0, 7}, {}

    class Spoiled:
        name, sampling = drawer.name, drawer.sampling

        def begun(self, asks: list[Ask]) -> list[Callable[[], torch.Tensor]]:
            return [partial(self.spoiled, ask) for ask in asks]

        def spoiled(self, ask: Ask) -> torch.Tensor:
            images = drawer.generate(*ask)
            finite = torch.tensor([number not in lost for number in ask.numbers.tolist()])
            if finite.all():
                return images
            raise NotFinite("samples 0, 7 are not finite", images.where(finite[:, None, None, None], torch.nan), finite)

    bench.probe = lambda features: seen.setdefault("classes", bench.labels[:10][[1, 2, 3, 4, 5, 6, 8, 9]])
    row = bench._measured(Spoiled(), 1.0, 0)
    assert "2 of 10 samples are not in the metrics; samples 0, 7" in caplog.text
    assert row["accuracy"] == 1.0, "each is held against its own class"
    assert row.keys() == whole.keys() and all(math.isfinite(value) for value in row.values())
    lost.update(range(8))
    with pytest.raises(UserError, match=r"^four, guidance 1: samples 0, 7 are not finite"):
        bench._measured(Spoiled(), 1.0, 0)


def test_losses_are_of_an_expert_for_two_parts_of_the_noise_too(bench: Bench):
    rows = {(row["system"], row["quantity"]): row["value"] for row in bench.losses()}
    noise = bench.base.parts["noise"]
    below, above = bench._origin("rest").parts["expert"].intervals(noise)
    seen = held_out(bench.base, bench.data, 0, 4)
    own = interval_loss(bench._origin("rest"), seen, Restricted(noise, [below, above]), 0, LEVELS)
    assert rows["child", "loss inside rest"] == pytest.approx(own.double().mean().item())


# Whole processes


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_tree_that_is_killed_twice_makes_the_same_runs(grown: Growth, tmp_path: Path):
    (tmp_path / "own.yaml").write_text(ROWS.replace("steps: 2", "steps: 40"))
    shutil.copytree(grown.runs / "ae", tmp_path / "ae")
    often = f"{toy(tmp_path)} callback.checkpoint.every_steps=5".replace("callback.checkpoint.every_steps=1000 ", "")
    words = [f"schedule={tmp_path / 'own.yaml'}", "experiment=quickstart/diffusion", f"first_stage={tmp_path / 'ae'}"]
    words += [f"overrides={often}", "logger.mode=disabled", "name=tree"]
    command = ["scripts/grow_tree.py", *words]
    once = Process([*command, f"runs_dir={tmp_path / 'once'}"], tmp_path / "once.txt")
    assert once.wait() == 0, once.said
    runs = tmp_path / "again"
    for killed in ("base", "control"):
        process = Process([*command, f"runs_dir={runs}"], tmp_path / "killed.txt")
        process.wait_for_checkpoint(runs / f"tree-{killed}")
        toys.os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    last = Process([*command, f"runs_dir={runs}"], tmp_path / "last.txt")
    assert last.wait() == 0, last.said
    assert "2 of them finished" in last.said or "3 of them finished" in last.said
    for row, step in {"base": 40, "low": 1, "rest": 1, "control": 40}.items():
        toys.assert_equal_runs(tmp_path / "once" / f"tree-{row}", runs / f"tree-{row}", step)
    assert (runs / "tree" / "both.yaml").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)  # processes that each import torch
def test_the_report_is_whole_and_goes_on_from_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "own.yaml").write_text(
        "experiment: experts/emoji\nfirst_stage: tasks/emoji_autoencoder\nhypothesis: better\n"
        "branch_overrides: branch_optimizer=keep lr.warmup_steps=0\n"
        "rows:\n- {name: base, steps: 2}\n- {name: n10, from: base, node: [1, 0], steps: 1}\n"
        "- {name: n11, from: base, node: [1, 1], steps: 1}\n- {name: control, from: base, steps: 2}\n"
        "ensembles: {base: [base], control: [control], four: [n10, n11]}\n"
    )
    kept = tmp_path / "kept.csv"
    words = [f"schedules=[{tmp_path / 'own.yaml'}]", "seeds=[0]", "sampling_seeds=[0]", "scales=[1.0,2.0]",
             "num_samples=10", "num_reference=20", "num_held_out=4", "device=cpu", "metric.size=32", "jobs=1",
             "logger.mode=disabled", f"runs_dir={tmp_path / 'runs'}", f"results={kept}"]  # fmt: skip
    stage = short(tiny("tasks/emoji_autoencoder", tmp_path))
    own = {**compose("experts_report", words), "overrides": short(tiny("experts/emoji", tmp_path))}
    own["first_stage_overrides"] = f"{stage} max_steps=2".replace("callback.quality.every_steps=null", "")
    page = report.experts_report(own)
    text = page.read_text()
    assert "Expected, written before the first run: better" in text and "n10 by base" in text
    with kept.open() as file:
        rows = list(csv.DictReader(file))
    names = {(row["system"], row["quantity"]) for row in rows}
    assert ("four, n11 by base", "kid/efficientnet_lite0@32") in names and ("child", "loss inside n10") in names
    assert ("four - control", "loss, difference") in names
    assert {(row["scale"], row["sampling_seed"]) for row in rows if row["system"] == "control"} >= {
        ("1.0", "0"), ("2.0", "0"),
    }  # fmt: skip
    shutil.rmtree(tmp_path / "runs")  # another checkout, which has the rows alone
    monkeypatch.setattr(report.Chain, "_do", None)  # nothing is run
    assert "four is" in report.experts_report(own).read_text()
    with pytest.raises(UserError, match="its rows own-seed0 were measured with"):
        report.experts_report({**own, "num_samples": 11})
