"""metrics.csv survives crashes and rewinds; what the real W&B client wrote offline is read back from its own file."""

import json
import math
import time
from pathlib import Path
from threading import Timer
from types import SimpleNamespace

import pytest
import torch
from toys import tiny

from ldm.config import compose, load_tree
from ldm.files import read_json
from ldm.fit import fit
from ldm.training.loggers import CSVLog, close, curves, forget, log_histogram, read_metrics, wandb
from ldm.training.offline_log import records as wandb_records
from ldm.training.offline_log import wait_for_end


def log_of(path: Path, *steps: int) -> CSVLog:
    log = CSVLog(path)
    log.rewind(0)
    for step in steps:
        log.log_metrics({"loss": step / 3, "psnr": -step}, step)
    return log


# metrics.csv


def test_numbers_are_read_back_exactly(tmp_path):
    log = log_of(tmp_path / "metrics.csv")
    values = {"a": 0.1 + 0.2, "b, c": 1e-300, 'd"e': float("inf"), "f": 3}
    log.log_metrics(values, 7)
    assert read_metrics(log.path) == [(7, name, value) for name, value in values.items()]
    assert log.path.read_text().splitlines()[0] == "step,name,value"
    log.log_metrics({"g": math.nan}, 8)
    assert math.isnan(read_metrics(log.path)[-1][2])


def test_curves_gather_each_name(tmp_path):
    log = log_of(tmp_path / "metrics.csv", 1, 2, 5)
    assert curves(log.path) == {"loss": ([1, 2, 5], [1 / 3, 2 / 3, 5 / 3]), "psnr": ([1, 2, 5], [-1, -2, -5])}


def test_rewinding_forgets_what_is_done_again(tmp_path):
    log = log_of(tmp_path / "metrics.csv", 1, 2, 3, 4)
    CSVLog(log.path).rewind(2)
    assert [step for step, *_ in read_metrics(log.path)] == [1, 1, 2, 2]
    straight = log_of(tmp_path / "straight.csv", 1, 2, 3)
    log.log_metrics({"loss": 3 / 3, "psnr": -3}, 3)
    assert log.path.read_text() == straight.path.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.csv", "straight.csv"]


def test_rewinding_begins_a_file_where_there_is_none(tmp_path):
    log = log_of(tmp_path / "metrics.csv")
    assert log.path.read_text().splitlines() == ["step,name,value"]


def test_a_last_line_cut_anywhere_is_left_out(tmp_path):
    whole = log_of(tmp_path / "metrics.csv", 1, 2).path.read_bytes()
    rows = read_metrics(tmp_path / "metrics.csv")
    last = len(whole.rstrip(b"\r\n").rpartition(b"\n")[0]) + 1  # where the last line begins
    cut = tmp_path / "cut.csv"
    for end in range(last, len(whole)):
        cut.write_bytes(whole[:end])
        assert read_metrics(cut) == rows[:-1], whole[last:end]
    CSVLog(cut).rewind(2)
    CSVLog(cut).log_metrics({"psnr": -2}, 2)
    assert cut.read_bytes() == whole


def test_garbage_in_the_file_is_no_hindrance(tmp_path):
    path = log_of(tmp_path / "metrics.csv", 1).path
    with path.open("ab") as file:
        file.write(b"\x00\xff\xfe,loss\r\n1,2,3,4\r\nx,loss,1\r\n2,loss,x\r\n\r\n3,loss,0.5\r\n")
    assert read_metrics(path)[2:] == [(3, "loss", 0.5)]


# W&B


VALUES = torch.tensor([[-1.0, 0.0, 0.5, 2.0], [2.5, 3.0, math.inf, math.nan]], requires_grad=True)


def history(path: Path) -> list[dict]:
    """Rows that were logged, name -> value."""
    rows = [record.history.item for record in wandb_records(path) if record.WhichOneof("record_type") == "history"]
    return [{item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in row} for row in rows]


def test_wandb_offline_holds_the_metrics_under_the_runs_own_id(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")  # whatever happens, nothing is sent
    for steps in ((1, 2), (3,)):  # a run and its resumption, each a process's worth
        logger = wandb(tmp_path, run_id="toy-0123abcd", run_name="toy", project="tests")
        for step in steps:
            logger.log_metrics({"train/loss": step / 4, "train/lr": 1e-4}, step)
            log_histogram([logger, CSVLog(tmp_path / "none.csv")], "weights", step * VALUES, step, num_bins=4)
            log_histogram([logger], "nothing", torch.tensor([math.nan]), step)
        close([logger])
        time.sleep(1.1)  # the client names its folder by the second
    files = sorted(tmp_path.glob("wandb/offline-run-*-toy-0123abcd*/*.wandb"))
    assert files, "offline files lie in the run's folder"
    rows = [row for file in files for row in history(file)]
    assert [(row["trainer/global_step"], row["train/loss"]) for row in rows] == [(1, 0.25), (2, 0.5), (3, 0.75)]
    assert all(row["train/lr"] == 1e-4 for row in rows)
    assert not any("nothing" in name for row in rows for name in row)
    for step, row in enumerate(rows, 1):
        assert row["weights.values"] == [1, 2, 0, 3], "what is not finite is left out"
        assert row["weights.bins"] == [step * edge for edge in (-1.0, 0.0, 1.0, 2.0, 3.0)]
    runs = [record.run for record in wandb_records(files[0]) if record.WhichOneof("record_type") == "run"]
    assert {(run.run_id, run.display_name, run.project) for run in runs} == {("toy-0123abcd", "toy", "tests")}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An offline log of several blocks, as the client left it."""
    folder = tmp_path_factory.mktemp("written")
    logger = wandb(folder, run_id="toy-0123abcd", run_name="toy", project="tests")
    logger.config["words"] = "x" * 70_000
    for step in range(3):
        logger.log_metrics({"train/loss": step / 4}, step)
    close([logger])
    return next(folder.glob("wandb/offline-run-*/*.wandb"))


def test_a_log_of_the_client_cut_anywhere_holds_the_records_before(written, tmp_path):
    whole, cut = list(wandb_records(written)), tmp_path / "cut.wandb"
    content = written.read_bytes()
    for end in (*range(7, len(content), 997), *range(len(content) - 60, len(content))):
        cut.write_bytes(content[:end])
        found = list(wandb_records(cut))
        assert found == whole[: len(found)] and len(found) < len(whole)
        assert not wait_for_end(cut, seconds=0)
    assert wait_for_end(written, seconds=0) and len(content) > 2 * 32768


def test_a_run_has_ended_when_all_of_its_log_is_in_the_file(written, tmp_path, caplog):
    file, content = tmp_path / "late.wandb", written.read_bytes()

    def late() -> None:  # as the client, which writes in a process of its own
        for end in (0, 40_000, len(content)):
            Timer(end / 200_000, file.write_bytes, [content[:end]]).start()

    logger = wandb(tmp_path, run_id="toy-0123abcd", run_name="toy", project="tests")
    logger._run = SimpleNamespace(settings=SimpleNamespace(mode="offline", sync_file=str(file)), finish=late)
    close([logger])
    assert file.read_bytes() == content and not caplog.records


@pytest.mark.parametrize("root", ["config", "composed_suite", "ediffi_report", "tasks_report"])
def test_another_mode_of_wandb_is_refused_before_anything_is_built(root):
    given = {"config": ["experiment=quickstart/autoencoder"], "composed_suite": ["models=x"]}.get(root, [])
    with pytest.raises(
        ValueError, match=r"logger\.mode='on-line': expected Literal\['offline', 'online', 'disabled'\]"
    ):
        compose(root, [*given, "logger.mode=on-line"])


def test_steps_done_again_after_a_kill_are_not_told_twice(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    csv = log_of(tmp_path / "metrics.csv")
    for resumed_at, steps in ((0, (1, 2, 3)), (1, (2, 3, 4)), (4, (4, 5))):
        logger = wandb(tmp_path, run_id="toy-0123abcd", run_name="toy", project="tests")
        csv = CSVLog(csv.path)
        csv.rewind(resumed_at)
        for step in steps:
            logger.log_metrics({"train/loss": step / 4}, step)
            csv.log_metrics({"train/loss": step / 4}, step)
            if (resumed_at, step) != (0, 3):  # the kill came between the two
                logger.log_metrics({"validation/loss": step / 2}, step)
                csv.log_metrics({"validation/loss": step / 2}, step)
        close([logger])
        time.sleep(1.1)
    rows = [row for file in sorted(tmp_path.glob("wandb/offline-run-*/*.wandb")) for row in history(file)]
    steps = [row["_step"] for row in rows]
    assert steps == [row["trainer/global_step"] for row in rows] == sorted(steps) == [1, 2, 3, 3, 4, 5]
    for name, scale in (("train/loss", 4), ("validation/loss", 2)):
        found = [(row["_step"], row[name]) for row in rows if name in row]
        assert found == [(step, step / scale) for step in (1, 2, 3, 4, 5)]


def test_a_resumed_run_goes_on_in_wandb(first_stage, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    own = ("callback.speed.every_steps=1", "callback.panels.every_steps=2")
    own += (f"first_stage={first_stage.folder}",)
    for steps in (2, 4):
        words = tiny("quickstart/diffusion", tmp_path, *own, f"max_steps={steps}")
        run = fit(compose("config", [word for word in words if word != "~logger"]), "a")
        time.sleep(1.1)
    words = tiny("quickstart/diffusion", tmp_path, *own[-1:], f"branch={run.folder}", "max_steps=1")
    child = fit(compose("config", [word for word in words if word != "~logger"]), "b")
    files = sorted(run.folder.glob(f"wandb/offline-run-*-{run.lineage['wandb_id']}*/*.wandb"))
    rows = [row for file in files for row in history(file)]
    steps = [row["_step"] for row in rows if "train/loss" in row]
    assert len(files) == 2 and steps == [1, 2, 3, 4]
    assert [row["_step"] for row in rows] == sorted(row["_step"] for row in rows)
    assert all(row["_step"] == row["trainer/global_step"] and row["speed/forward_ms"] > 0 for row in rows)
    assert [row["_step"] for row in rows if any(name.startswith("panels/") for name in row)] == [2, 4]
    assert_is_linked(files[-1], "a", "a", None, run.folder)
    [file] = child.folder.glob("wandb/offline-run-*/*.wandb")
    assert_is_linked(file, "b", "a", run.lineage["wandb_id"], child.folder)


def assert_is_linked(file: Path, name: str, group: str, parent: str | None, folder: Path) -> None:
    """The client's log of a run says its configuration and parent, that it ended, and where its weights are."""
    records = {kind: [getattr(r, kind) for r in wandb_records(file) if r.WhichOneof("record_type") == kind]
               for kind in ("run", "alert", "request", "artifact")}  # fmt: skip
    [run] = records["run"][:1]
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert run.run_group == group and config["max_steps"] == load_tree(folder / "config.yaml")["max_steps"]
    assert (config["parent"] or {}).get("wandb_id") == parent
    assert [alert.title for alert in records["alert"]] == [f"{name} finished"]
    [artifact] = records["artifact"] or [r.log_artifact.artifact for r in records["request"]]
    newest = max((folder / "weights").glob("*.json"))
    entries = {entry.path: entry.ref for entry in artifact.manifest.contents}
    assert artifact.name == f"{name}-weights" and json.loads(artifact.metadata)["sha256"] == read_json(newest)["sha256"]
    assert entries[f"{newest.stem}.ema.safetensors"] == newest.with_suffix(".ema.safetensors").absolute().as_uri()


def test_a_run_that_starts_anew_is_told_from_its_first_step(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,name,value\n5,a,1.0\n")
    logger, told = wandb(tmp_path, "x-1", "x", mode="disabled"), []
    logger._run = SimpleNamespace(log=lambda values, step: told.append(step))
    logger.log_metrics({"a": 1.0}, 3)
    forget([logger])
    logger.log_metrics({"a": 1.0}, 3)
    assert told == [3]
