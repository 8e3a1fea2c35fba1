"""What models cost: days along the lineage, images a second, and the paper's rows beside them."""

import csv
from pathlib import Path

import pytest
from untrained import untrained_run

from ldm.config import compose, overriding
from ldm.evaluation.costs import TABLE_18, costs
from ldm.evaluation.expert_cost import expert_cost
from ldm.files import read_json
from ldm.run import Run


def test_days_are_those_of_the_run_its_parents_and_its_first_stage(
    diffusion: Run, first_stage: Run, train_diffusion, tmp_path: Path
):
    branched = train_diffusion(f"branch={diffusion.folder}", run="branched")
    words = [f"models=[{diffusion.folder},{branched.folder}]", "v100s=2.2", "batch_size=2", "device=cpu"]
    rows, path = costs(compose("cost_table", [*words, f"out={tmp_path}/out"]))
    one, two, *paper = rows
    checkpoint = next((diffusion.folder / "checkpoints").glob("step_*.ckpt"))
    parents = read_json(checkpoint / "state.json")["device_hours"]
    assert one["device_days"] == pytest.approx(hours(diffusion, 2) / 24)
    assert two["device_days"] == pytest.approx((hours(branched, 2) + parents) / 24)
    assert two["v100_days"] == pytest.approx(2.2 * two["device_days"])
    assert two["first_stage_days"] == pytest.approx(hours(first_stage, 2) / 24)
    assert one["num_steps"] == diffusion.tree["num_steps"] and one["samples_per_second"] > 0
    assert [row["model"] for row in paper] == [f"table 18: {name}" for name in TABLE_18]
    with path.open() as file:
        assert [row["v100_days"] for row in csv.DictReader(file)][2:4] == ["18", "60"]


def hours(run: Run, step: int) -> float:
    """Those of all devices up to a step of a run."""
    return read_json(run.folder / "weights" / f"step_{step:08d}.json")["device_hours"]


def test_earlier_weights_cost_what_had_been_trained_by_then(train_diffusion, tmp_path: Path):
    run = train_diffusion("callback.checkpoint.every_steps=1")
    file = run.folder / "weights" / "step_00000001.ema.safetensors"
    words = [f"models=[{file},{run.folder}]", "batch_size=2", "device=cpu", "published=false", f"out={tmp_path}/out"]
    rows, _ = costs(compose("cost_table", words))
    assert [row["device_days"] for row in rows] == pytest.approx([hours(run, 1) / 24, hours(run, 2) / 24])
    assert hours(run, 1) < hours(run, 2) < run.lineage["device_hours"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [(["models=[]"], "at least one"), (["v100s=-1"], "v100s=-1"), (["batch_size=0"], "batch_size")],
)
def test_what_cannot_be_told_is_refused(words: list[str], problem: str, tmp_path: Path):
    run = untrained_run(tmp_path / "run")
    given = [] if words[0].startswith("models") else [f"models={run}"]
    with pytest.raises(ValueError, match=problem):
        costs(compose("cost_table", [*given, *words, f"out={tmp_path}/out"]))
    assert not (tmp_path / "out").exists()


def test_no_model_is_measured_before_the_data_of_all_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ldm.evaluation.costs.samples_per_second", None)
    good, bad = untrained_run(tmp_path / "good"), untrained_run(tmp_path / "bad", "data.train=nowhere.tar")
    with pytest.raises((ValueError, OSError), match=r"nowhere\.tar"):
        costs(compose("cost_table", [f"models=[{good},{bad}]", f"out={tmp_path}/out", "device=cpu"]))


def test_experts_cost_parameters_and_no_time_and_a_deeper_network_both(tmp_path: Path):
    run = untrained_run(tmp_path / "run", "network.channels=32", "network.norm_groups=8", "network.head_channels=16")
    words = [f"model={run}", "experts=[2,8]", "passes=9", "batch_size=2", "device=cpu", f"out={tmp_path}/out"]
    rows, folder = expert_cost(compose("expert_cost", [*words, "logger.mode=offline"]))
    assert [(row["system"], row["experts"]) for row in rows] == [
        (system, count) for system in ("experts", "one network, deeper") for count in (1, 2, 8)
    ]
    experts, deeper = rows[:3], rows[3:]
    for row, other in zip(experts, deeper, strict=True):
        assert row["parameters_m"] == pytest.approx(row["experts"] * rows[0]["parameters_m"], rel=0.01)
        assert other["parameters_m"] == pytest.approx(row["parameters_m"], rel=0.3), "as near as whole blocks come"
        assert row["num_blocks"] == 1 and other["num_blocks"] >= row["experts"] // 2
    assert experts[0]["ratio"] == 1 and all(0.5 < row["ratio"] < 2 for row in experts)
    assert deeper[2]["ratio"] > 2 * experts[2]["ratio"]
    assert {path.name for path in folder.iterdir()} >= {"expert_cost.csv", "expert_cost.png", "wandb"}


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["experts=[0]"], r"experts=\[0\]: a list of how many"),
        (["experts=[5000]"], r"experts=\[5000\]: .*up to 4096"),
        (["passes=0"], "passes=0: must be at least 1"),
        (["out={file}"], r"out=.*: .*config\.yaml is a file; name a folder"),
        (["deepen=head_channels"], r"network\.head_channels=5: does not divide 4 channels"),
        (["deepen="], "deepen=: the network of run has no such number"),
        (["deepen=height"], "deepen=height: the network of run has no such number"),
    ],
)
def test_a_cost_of_experts_that_cannot_be_measured_is_refused(words: list[str], problem: str, tmp_path: Path):
    run = untrained_run(tmp_path / "run")
    with pytest.raises(ValueError, match=problem):
        given = [word.format(file=run / "config.yaml") for word in words]
        expert_cost(compose("expert_cost", overriding([f"model={run}", "device=cpu", f"out={tmp_path}/out", *given])))
    assert not (tmp_path / "out").exists()
