"""The benchmark's findings: rows and their goals, and several suites as one table that goes on where it was."""

import json
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "dev"))
    from benchmarks import findings, together

    yield findings, together
    findings.rows.clear()
    findings.curves.clear()


def test_a_goal_is_reached_from_its_side_and_missed_by_a_part_of_it(benchmarks):
    row = benchmarks[0].Row
    assert row("a", 1.1, 1.1).met and row("a", 1.2, 1.1).missed_by == 0
    assert row("a", 0.55, 1.1).missed_by == pytest.approx(0.5)
    assert row("a", 60, 64, at_most=True).met and row("a", 96, 64, at_most=True).missed_by == pytest.approx(0.5)


def test_what_is_judged_is_kept_and_read_back(benchmarks, tmp_path):
    findings, _ = benchmarks
    said = findings.judged(findings.Row("q", 1.5, 1.1, spread=0.1))
    assert said == "ratio 1.50x, goal >= 1.10x: met"
    findings.judged(findings.Row("m", 70.0, 64.0, at_most=True, unit="bytes"))
    findings.curves.append(findings.Curve("c", "x", "y", {"one": ([1, 2], [3.0, 4.0])}))
    findings.write(tmp_path / "found.json")
    rows, curves = findings.read(json.loads((tmp_path / "found.json").read_text()))
    assert rows == findings.rows and [row.met for row in rows] == [True, False]
    assert curves[0].lines == {"one": [[1, 2], [3.0, 4.0]]}


def test_suites_that_were_measured_are_not_again_and_one_that_fails_is_next_time(
    benchmarks, tmp_path, monkeypatch, capsys
):
    _, together = benchmarks
    options = {
        "repeats": 1,
        "batch_size": 0,
        "image_size": 0,
        "precision": "both",
        "compile": False,
        "out": str(tmp_path),
    }
    asked: list[str] = []
    fails = {"b"}

    def measured(suite: str, _: dict) -> dict | None:
        asked.append(suite)
        row = {
            "quantity": f"of {suite}",
            "figure": 2.2,
            "goal": 1.1,
            "at_most": suite == "b",
            "unit": "x",
            "spread": 0.5,
        }
        return None if suite in fails else {"seconds": 1.0, "rows": [row], "curves": []}

    monkeypatch.setattr(together, "_measured", measured)
    assert together.run(["a", "b"], options) == 1
    fails.clear()
    assert together.run(["a", "b"], options) == 0
    assert asked == ["a", "b", "b"]
    table = capsys.readouterr().out
    assert "of a" in table and "missed by 100 %" in table and "1 of 2 goals met" in table
    assert set(json.loads((tmp_path / "benchmarks.json").read_text())["suites"]) == {"a", "b"}
    assert (tmp_path / "benchmarks.png").stat().st_size > 1000
    with pytest.raises(Exception, match="other options"):
        together.run(["a"], {**options, "repeats": 2})


def test_many_shards_are_a_data_set_that_takes_no_room(benchmarks):
    from benchmarks.many_shards import data_of, many_shards

    before = os.environ.get("LDM_CACHE")
    with many_shards(3000) as shards:
        data = data_of(shards, batch_size=100)
        assert data.num_train == 3000
        batch = next(iter(data.train_loader()))
        files = [path.stat() for path in Path(shards).parent.glob("*.tar")]
    assert batch["label"].tolist() == [7] * 100 and len(set(batch["index"].tolist())) == 100
    assert len(files) == 4 and sum(file.st_blocks * 512 / file.st_nlink for file in files) < 8e6
    assert os.environ.get("LDM_CACHE") == before and not Path(shards).parent.exists()
