"""train.py as users meet it: exit status and one line for a mistake; names and folders of a sweep's jobs."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from untrained import OVERRIDES

import train
from ldm.config import compose
from ldm.fit import fit
from ldm.launching import local
from ldm.run import open_run

ROOT = Path(train.__file__).parent


def run(script: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, script, *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["experiment=quickstart/diffusion", "network.dept=3"], "network.dept: no such key; did you mean"),
        pytest.param(
            ["experiment=quickstart/diffusion", "first_stage=/no, where=?"],
            "/no, where=?: no weights found",
            marks=pytest.mark.slow,
        ),
        pytest.param([], "task: nothing is chosen; experiment= chooses it", marks=pytest.mark.slow),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(tmp_path, arguments, message):
    done = run("train.py", *arguments, f"runs_dir={tmp_path}")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr + done.stdout
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ") and message in line
    assert line.endswith(" (LDM_TRACEBACK=1 shows where)")
    assert list(tmp_path.iterdir()) == [], "nothing was begun"


def test_a_trainer_that_lightning_refuses_is_a_value_error(tmp_path):
    tree = compose("config", [*OVERRIDES, "trainer.devices=0", f"runs_dir={tmp_path}"])
    with pytest.raises(ValueError, match=r"trainer\.devices=0: must be 1 or more"):
        fit(tree, "toy")


def test_what_may_differ_from_a_parent_needs_one(tmp_path):
    tree = compose("config", [*OVERRIDES, "branch_changes=[precond]", f"runs_dir={tmp_path}"])
    with pytest.raises(ValueError, match=r"branch_changes: .* no branch="):
        fit(tree, "toy")
    assert not list(tmp_path.iterdir())


def test_help_shows_the_groups(capsys):
    assert train.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "python train.py experiment=quickstart/autoencoder" in shown and "optimizer=" in shown


def test_a_sweep_starts_a_process_per_job_and_counts_failures(monkeypatch, capsys):
    started = []

    def start(command):
        started.append(command[2:])
        return int("autoencoder=f8" in command)

    monkeypatch.setattr(local, "run", start)
    status = train.main(["-m", "experiment=sweep/autoencoder", "autoencoder=f4,f8", "seed=0,1", "data.train=a,b"])
    assert status == 1
    names = [f"sweep-autoencoder-{f}-seed_{seed}" for f in ("f4", "f8") for seed in (0, 1)]
    assert [words[-1] for words in started] == [f"run={name}" for name in names]
    assert all("data.train=a,b" in words and "experiment=sweep/autoencoder" in words for words in started)
    assert f"2 of 4 jobs did not finish: {names[2]}, {names[3]}" in capsys.readouterr().err


def test_a_sweep_whose_jobs_would_share_a_folder_is_refused(monkeypatch):
    monkeypatch.setattr(local, "run", lambda *_: pytest.fail("started"))
    with pytest.raises(ValueError, match="would share the folder"):
        train.main(["-m", "experiment=sweep/autoencoder", "optimizer.betas=[0.9,0.99],[-0.9,0.99]"])


def test_the_name_of_a_sweep_begins_those_of_its_jobs_and_first_stages_are_swept(monkeypatch):
    started = []
    monkeypatch.setattr(local, "run", lambda command: started.append(command[2:]) or 0)
    assert train.main(["-m", "experiment=a", "run=mine", "first_stage=runs/x,runs/y", "data.train=a,b"]) == 0
    assert [words[-1] for words in started] == ["run=mine-first_stage_x", "run=mine-first_stage_y"]
    for words, name in zip(started, "xy", strict=True):
        assert f"first_stage=runs/{name}" in words and [word.partition("=")[0] for word in words].count("run") == 1


def test_each_run_of_an_agents_sweep_has_its_folder_and_its_id(monkeypatch, tmp_path):
    """What ``wandb sweep`` starts says the swept keys as key=value words, and in the environment which run this is."""
    started = []
    monkeypatch.setattr("ldm.fit.fit", lambda tree, name: started.append(name) or SimpleNamespace(finished=True))
    monkeypatch.setenv("WANDB_RUN_ID", "ab12cd34")
    words = ["experiment=quickstart/autoencoder", f"runs_dir={tmp_path}", "optimizer.lr=1e-4"]
    assert train.main(words) == train.main([*words, "run=mine"]) == 0
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    assert train.main(words) == 0
    assert started == ["quickstart-autoencoder", "mine", "quickstart-autoencoder-ab12cd34"]
    assert open_run(compose("config", words), "a").lineage["wandb_id"] == "ab12cd34"
