"""The table of samplers: whole at toy size, nothing measured twice, evaluations counted."""

import csv
from pathlib import Path

import pytest
from toys import train
from untrained import untrained_run

from ldm.config import compose, groups, overriding
from ldm.ensemble import write_manifest
from ldm.errors import UserError
from ldm.evaluation import reference_file
from ldm.evaluation.sampler_table import evaluations, sampler_table
from ldm.loading import load_drawer
from ldm.metrics.precision_recall import radii_of
from ldm.run import Run

CHAIN = ["schedule=scaled_linear", "precond=eps", "noise=discrete", "sigmas=ddim"]


def tree(model: Path, *words: str) -> dict:
    small = ["num_samples=4", "batch_size=4", "metric.size=32", "device=cpu", "steps=[2,1]"]
    return compose("sampler_table", overriding([f"model={model}", *small, *words]))


@pytest.mark.filterwarnings("ignore:Frechet distance from")
def test_a_table_is_whole_and_restartable(diffusion: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    words, looked = (f"out={tmp_path}", "samplers=[heun,ddpm]"), []
    monkeypatch.setattr(reference_file, "radii_of", lambda x, **given: looked.append(x) or radii_of(x, **given))
    rows, folder = sampler_table(tree(diffusion.folder, *words))
    assert len(looked) == 1, "of the training images, whose number makes it slow, once for all cells"
    assert [(row["sampler"], row["steps"], row["evaluations"]) for row in rows] == [
        ("heun", 1, 1), ("heun", 2, 3), ("ddpm", 1, 1), ("ddpm", 2, 2),
    ]  # fmt: skip
    with (folder / "table.csv").open() as file:
        kids = [float(row["kid/efficientnet_lite0@32"]) for row in csv.DictReader(file)]
    assert kids == [row["kid/efficientnet_lite0@32"] for row in rows] and len(set(kids)) > 2
    assert (folder / "quality_over_evaluations.png").exists()
    monkeypatch.setattr("ldm.evaluation.evaluate._measure", None)  # nothing is measured again
    assert sampler_table(tree(diffusion.folder, *words))[0] == rows


def test_evaluations_are_counted_for_every_sampler(tmp_path: Path):
    several = {"heun": 19, "kutta3": 28, "plms": 11, "dpmpp_2s": 19, "dpmpp_sde": 19}
    once = ["euler", "euler_ancestral", "ddim", "ddpm", "deis", "dpmpp_2m", "consistency"]
    known = {**several, **dict.fromkeys(once, 10)}
    model = load_drawer(untrained_run(tmp_path / "run"))
    for name in groups()["sampler"]:
        found = evaluations(model, compose("evaluate", ["model=x", f"sampler={name}", "num_steps=10"]))
        assert found == known.get(name, found) >= 10, name


def test_on_levels_that_end_above_zero_the_last_step_is_counted_as_it_is(tmp_path: Path):
    runs = [untrained_run(tmp_path / f"{n}", *CHAIN, f"expert.node=[1,{n}]", "conditioner=[]") for n in (0, 1)]
    write_manifest(tmp_path / "both.yaml", runs)
    asked = compose("evaluate", ["model=x", "sampler=heun", "num_steps=10"])
    for path in (untrained_run(tmp_path / "whole", *CHAIN), tmp_path / "both.yaml"):
        assert evaluations(load_drawer(path).hollow(), asked) == 20
    ends_in_0 = compose("evaluate", ["model=x", "sampler=heun", "sigmas=trailing", "num_steps=10"])
    assert evaluations(load_drawer(tmp_path / "whole"), ends_in_0) == 19


@pytest.mark.filterwarnings("ignore:Frechet distance from")
def test_other_runs_stand_beside_it_by_their_own_samplers(diffusion: Run, tmp_path: Path):
    student = train("distill/quickstart", tmp_path, f"branch={diffusion.folder}", "max_steps=1", run="student").folder
    out = f"out={tmp_path / 'table'}"
    rows, _ = sampler_table(tree(diffusion.folder, out, "samplers=[heun]", f"models=[{student}]"))
    assert [(row["sampler"], row["steps"], row["evaluations"]) for row in rows] == [
        ("heun", 1, 1), ("heun", 2, 3), ("student", 1, 1), ("student", 2, 2),
    ]  # fmt: skip
    alone, _ = sampler_table(tree(student, f"out={tmp_path / 'alone'}", "samplers=[consistency]"))
    assert [{**row, "sampler": "student"} for row in alone] == rows[2:]
    taken = student.rename(tmp_path / "heun")
    for path, problem in ((taken, "another row is called heun"), (tmp_path / "none", "has no config.yaml")):
        with pytest.raises(ValueError, match=f"models={path}: {problem}"):
            sampler_table(tree(diffusion.folder, out, f"models=[{path}]"))


def test_samplers_and_steps_that_do_not_exist_are_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"samplers: no sampler huen; there are .*heun"):
        sampler_table(tree(tmp_path, "samplers=[huen]"))
    for steps in ("[]", "[0,5]", "[2,2]", "[100000000]"):
        with pytest.raises(ValueError, match=r"steps=.*different numbers of steps"):
            sampler_table(tree(tmp_path, f"steps={steps}"))
    for samplers in ("[]", "[heun,heun]"):
        with pytest.raises(ValueError, match=r"samplers=.*different ones of .*heun"):
            sampler_table(tree(tmp_path, f"samplers={samplers}"))


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["metric=null"], "metric=null: .*leave it out"),
        (["alignment=null"], "alignment=null: .*leave it out"),
        (["num_samples=3"], "num_samples=3: must be at least 4"),
        (["seed=-1"], "seed=-1: must be at least 0"),
        (["scale=nan"], "scale=nan"),
        (["out={file}"], r"out=.*: .*file is a file; name a folder"),
        (["model=[{label},{label}]"], r"model=\[.*\]: is one; models= has others"),
        (["model={first_stage}"], r"^model=.*: a first stage, which draws no images"),
        (["models=[{first_stage}]"], r"^models=.*: a first stage, which draws no images"),
    ],
)
def test_a_table_that_cannot_be_measured_is_refused_before_anything_is_loaded(
    words: list[str], problem: str, first_stage: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ldm.evaluation.sampler_table.yardsticks_of", None)
    (tmp_path / "file").touch()
    label = untrained_run(tmp_path / "label")
    places = {"file": tmp_path / "file", "label": label, "first_stage": first_stage.folder}
    given = [f"out={tmp_path}/out", *(word.format(**places) for word in words)]
    with pytest.raises(UserError, match=problem):
        sampler_table(tree(label, *given))
    assert not (tmp_path / "out").exists()
