"""scripts/dev/gpu_check.sh: measurements that run on a CPU at toy size; neither failures nor hangs stop others."""

import importlib
import json
import subprocess
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
MEASURED = ("train_256_eager", "train_512_eager", "sample_eager", "updates", "memory", "checkpoint", "run")
ON_A_GPU = ("train_256_blocks", "train_512_blocks", "train_256_whole", "sample_graphs")


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "dev"))
    return importlib.import_module("gpu_check")


def rows(name: str, out: Path) -> list:
    part, *rest = name.split("_")
    return importlib.import_module(f"gpu_checks.{part}").measure(CPU, "tiny", out, *rest)


def test_all_together_take_less_than_was_promised(check: ModuleType):
    assert sum(check.LIMITS.values()) <= 60 * check.MINUTES - 20
    assert sorted(check.LIMITS) == sorted((*MEASURED, *ON_A_GPU))


@pytest.mark.parametrize("name", MEASURED)
def test_a_measurement_gives_figures_on_a_cpu(check: ModuleType, name: str, tmp_path: Path):
    found = rows(name, tmp_path)
    assert found and all(row.value is None or row.value >= 0 for row in found)
    assert any(row.value for row in found)
    assert {row.note for row in found if row.value is None} <= {"needs a GPU"}
    assert not any(row.goal for row in found if row.unit in ("images/s", "steps/s"))  # of an A100


@pytest.mark.parametrize("name", ON_A_GPU)
def test_what_needs_a_gpu_says_so(check: ModuleType, name: str, tmp_path: Path):
    [row] = rows(name, tmp_path)
    assert row.value is None and row.note == "needs a GPU"


def test_memory_is_less_where_activations_are_made_again_or_moved(check: ModuleType, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("ldm.networks.offloading.MIN_BYTES", 0)
    peaks = {row.what.split()[1]: row.value for row in rows("memory", tmp_path) if row.unit == "GiB"}
    assert peaks["computed"] < peaks["kept"]


def test_a_failure_or_a_hang_is_named_and_the_rest_goes_on(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    begun: list[str] = []

    def pretended(command: list[str], limit: float) -> tuple[int | None, str]:
        name = next(word.removeprefix("measure=") for word in command if word.startswith("measure="))
        begun.append(name)
        if name == "updates" and begun.count(name) == 1:
            return None, ""
        if name == "memory" and begun.count(name) == 1:
            return 1, "Traceback\n  ...\nRuntimeError: no memory\n"
        row = {"what": f"the {name}", "value": 3.0, "unit": "ms", "goal": 2.0, "at_most": True, "note": ""}
        (tmp_path / f"{name}.rows").write_text(json.dumps([row]))
        return 0, ""

    monkeypatch.setattr(check, "_ended", pretended)
    words = ["device=cpu", "size=tiny", f"out={tmp_path}"]
    assert check.main(words) == 1
    said = capsys.readouterr().out
    assert "updates            failed: took longer than" in said and "failed: RuntimeError: no memory" in said
    assert "<= 2: missed" in said and begun == list(check.LIMITS)
    assert (tmp_path / "table.txt").read_text() == said

    begun.remove("sample_eager")
    assert check.main(words) == 0  # only what failed is done again
    assert begun[len(check.LIMITS) - 1 :] == ["updates", "memory"]
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["measurements"]) == set(check.LIMITS) and results["device"] == "CPU"
    assert check.main([*words, "only=updates", "again=true"]) == 0 and begun[-1] == "updates"


def test_a_process_that_hangs_ends_with_those_it_has_started(check: ModuleType, tmp_path: Path):
    script = f"sleep 60 & echo $! > {tmp_path}/child; echo waits >&2; wait"
    began = time.monotonic()
    assert check._ended(["sh", "-c", script], 2.0) == (None, "waits\n")
    assert time.monotonic() - began < 30, "not until its child has closed its streams"
    state = Path("/proc", (tmp_path / "child").read_text().strip(), "stat")
    deadline = time.monotonic() + 10
    while state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not state.exists() or " Z " in state.read_text()
    assert check._ended(["sh", "-c", "echo no >&2; exit 3"], 60.0) == (3, "no\n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a GPU")
def test_without_a_gpu_one_line_says_so(check: ModuleType, tmp_path: Path):
    with pytest.raises(ValueError, match=r"no GPU here, .*device=cpu size=tiny") as error:
        check.main([f"out={tmp_path}"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "named"),
    [(["only=train"], "only=train"), (["size=xl"], "size=xl"), (["device=cpu"], "size=sd2: takes a CPU hours"),
     (["outs=x"], "outs: no such key")],
)  # fmt: skip
def test_a_wrong_word_is_named(check: ModuleType, words: list[str], named: str, tmp_path: Path):
    with pytest.raises(ValueError, match=named):
        check.main([f"out={tmp_path}", *words])


@pytest.mark.slow
def test_the_script_measures_in_processes_of_its_own(tmp_path: Path):
    command = ["scripts/dev/gpu_check.sh", "device=cpu", "size=tiny", f"out={tmp_path}", "only=updates,sample_graphs"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "the average's update" in found.stdout and "needs a GPU" in found.stdout
