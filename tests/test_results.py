"""Commands that go on from rows: what has finished is found, what is left told, and other settings are refused."""

import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

from ldm.config import compose
from ldm.errors import UserError
from ldm.files import write_json
from ldm.launching.sequences import stage_job
from ldm.launching.slurm import Nodes, nodes_of
from ldm.results.measured import is_measured, read_measured, write_measured
from ldm.results.measured_under import SHARDS
from ldm.results.results import CellResults, Results
from ldm.sweep.results import results_at as swept
from ldm.tasks.report import tasks_report
from ldm.tasks.results import results_at as judged
from ldm.trees.report import experts_report

ROOT = Path(__file__).resolve().parent.parent
STAGES = {"ablation": "ablation", "sweep_f": "sweep"}  # where each script's steps are


@dataclass(frozen=True)
class Part:
    kind: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.kind}-seed{self.seed}"


def settings_of(part: Part) -> str:
    return json.dumps({"kind": part.kind})


def anything(row: dict, place: str) -> None:
    """A check that refuses no row."""


@pytest.mark.parametrize("script", ["ablation", "sweep_f"])
def test_a_step_of_a_cell_has_the_words_that_its_script_takes(script: str, tmp_path: Path, monkeypatch):
    tree = compose(script, [])
    write_json(tmp_path / "tree.json", tree)
    done: list[tuple] = []
    monkeypatch.setattr(f"ldm.{STAGES[script]}.stage.run_stage", lambda *given: done.append(given))
    job = stage_job("measure", "one", tmp_path / "tree.json", "cpu", script)
    assert import_module(f"scripts.{job.script}").main(list(job.words)) == 0
    assert done == [("measure", "one", tree)]


STEPS = {
    "ablation": {"stage": "measure", "cell": "muon-seed0"},
    "sweep_f": {"stage": "measure", "cell": "kl-f4-seed0"},
    "tasks_report": {"stage": "judge", "task": "layout", "seed": "0"},
    "experts_report": {"stage": "fig7_emoji", "seed": "0"},
}


@pytest.mark.parametrize("script", STEPS)
def test_a_step_of_a_wrong_file_or_of_nothing_in_it_is_refused(script: str, tmp_path: Path):
    main, path = import_module(f"scripts.{script}").main, tmp_path / "tree.json"

    def refused(message: str, **changed: str) -> None:
        words = {**STEPS[script], "tree": str(path), "device": "cpu", **changed}
        with pytest.raises(UserError, match=message):
            main([f"{key}={value}" for key, value in words.items()])

    refused(f"tree={path}: no such file")
    write_json(path, {"a": 1})
    refused(f"tree={path}: has no '.*'; not what scripts/{script}.py writes")
    write_json(path, compose(script, []))
    for key in STEPS[script]:
        refused(r"^\w+=.*77.*: the file of tree= has none of that name; there are ", **{key: "77"})


def test_a_peer_of_another_file_or_of_no_peers_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT / "scripts" / "dev")
    main, path = import_module("diffusers_loop").main, tmp_path / "tree.json"
    with pytest.raises(UserError, match=f"tree={path}: no such file"):
        main(["cell=diffusers-seed0", f"tree={path}"])
    write_json(path, compose("ablation", []))
    for cell in ("diffusers", "muon-seed0"):  # without a seed, and a row of ours
        with pytest.raises(UserError, match=r"cell=.*none of that name"):
            main([f"cell={cell}", f"tree={path}"])


@pytest.mark.parametrize("script", ["tasks_report", "experts_report"])
def test_a_judgement_asks_a_cluster_for_a_gpu_only_where_it_needs_one(script: str, tmp_path: Path, monkeypatch):
    report, package = {"tasks_report": (tasks_report, "tasks"), "experts_report": (experts_report, "trees")}[script]
    begun: list = []
    monkeypatch.setattr(f"ldm.{package}.report.finish", lambda chain, *more: begun.append(chain))
    for device, gpus in {"cpu": 0, "auto": 1}.items():
        one = {"tasks_report": "tasks=[layout]", "experts_report": "schedules=[fig7_emoji]"}[script]
        report(compose(script, [one, "seeds=[0]", f"device={device}", f"runs_dir={tmp_path}"]))
        judgement = begun[-1].waiting[-1].job
        assert judgement.script == script and nodes_of(judgement) == Nodes(1, 1, gpus)


def test_what_is_left_are_the_parts_without_rows(tmp_path: Path):
    results: Results[Part] = Results(tmp_path / "rows.csv", anything)
    asked = [Part("a", 0), Part("a", 1), Part("b", 0)]
    assert results.left(asked, "parts", settings_of, True) == asked
    with pytest.raises(UserError, match=r"train=false: none of the 3 parts is in .*rows\.csv"):
        results.left(asked, "parts", settings_of, False)
    results.add(asked[1], [{"value": value, "settings": settings_of(asked[1])} for value in (1, 2)])
    for each in (results, Results(results.path, anything)):
        assert each.left(asked, "parts", settings_of, True) == [asked[0], asked[2]]
        assert each.left(asked, "parts", settings_of, False) == [] and each.count(asked) == 1
        assert [row["value"] for row in each.find(asked[1])] == [1, 2]
        assert each.said(asked, "parts") == f"3 parts, 1 of them in {results.path}"
        with pytest.raises(UserError, match="its rows a-seed1 were measured with"):
            each.left(asked, "parts", lambda part: "{}", True)
        each.left(asked, "parts", lambda part: json.dumps({"kind": "a", SHARDS: "told since"}), True)


def test_a_part_that_finishes_again_has_its_last_rows_alone(tmp_path: Path):
    results: CellResults[Part] = CellResults(tmp_path / "rows.csv", anything, anything)
    one, other = Part("a", 0), Part("b", 0)
    results.add(other, {"value": 9}, [{"step": 9}])
    for value in (1, 2):
        results.add(one, {"value": value}, [{"step": step} for step in range(value)])
    again: CellResults[Part] = CellResults(tmp_path / "rows.csv", anything, anything)
    assert [row["value"] for row in again.cells.rows] == [9, 2]
    assert [row["step"] for row in again.points.find(one)] == [0, 1] and len(again.points.rows) == 3


def test_what_a_process_has_measured_is_of_its_settings(tmp_path: Path):
    assert not is_measured(tmp_path, "{}")
    write_measured(tmp_path, '{"a": 1}', {"value": 0.1 + 0.2}, [{"step": 1}])
    assert is_measured(tmp_path, '{"a": 1}') and not is_measured(tmp_path, '{"a": 2}')
    assert read_measured(tmp_path) == ({"value": 0.1 + 0.2}, [{"step": 1}])


def test_rows_that_are_kept_with_the_code_are_read():
    kept = [path for path in (ROOT / "docs" / "results").glob("sweep_f*.csv") if not path.stem.endswith("_points")]
    assert kept
    for path in kept:
        results = swept(path)
        assert results.cells.rows and results.points.rows
    assert judged(ROOT / "docs" / "results" / "tasks.csv").rows
