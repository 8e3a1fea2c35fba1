"""Jobs on a cluster, with a SLURM of its own: arrays, tasks, signals before the end of the time, requeueing."""

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from toys import ROOT, curve, tiny

import train
from ldm.errors import UserError
from ldm.launching import STOPPED, SUBMITTED, Job, local, slurm
from ldm.launching.choice import take_launcher
from ldm.launching.slurm import Nodes, Submitit, nodes_of

PROGRAMS = Path(__file__).parent / "fake_slurm.py"


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """sbatch, srun, scontrol and sacct of a machine that runs an array's jobs one after the other, at once."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name in ("sbatch", "srun", "scontrol", "sacct"):
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {PROGRAMS} {name} "$@"\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(folder))
    return folder


def job(name: str, *words: str) -> Job:
    return Job(name, (*words, f"run={name}"))


# -- what a command line asks for ------------------------------------------------------------------------------------


def test_words_of_the_launcher_are_not_the_jobs() -> None:
    words = [
        "launcher=submitit",
        "launcher.partition=gpu",
        "launcher.more={exclude: node7}",
        "seed=0,1",
        "experiment=a",
    ]
    launch, rest = take_launcher(words)
    assert isinstance(launch, Submitit) and launch.options["slurm_partition"] == "gpu"
    assert launch.options["slurm_additional_parameters"] == {"exclude": "node7"} and rest == [
        "seed=0,1",
        "experiment=a",
    ]
    assert take_launcher(rest)[0].func is local.launch


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["launcher=pbs"], r"launcher=pbs"),
        (["launcher=submitit", "launcher.partitoin=gpu"], r"launcher\.partitoin.*partition"),
        (["launcher=submitit", "launcher.timeout_min=0"], r"launcher\.timeout_min=0"),
        (["launcher=submitit", "launcher.timeout_min=3"], r"stop_seconds=180: .*timeout_min=3 would be told to stop"),
    ],
)
def test_a_mistake_is_named(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        take_launcher(words)


def test_a_launcher_goes_with_m() -> None:
    with pytest.raises(UserError, match="-m launcher=submitit"):
        train.main(["experiment=quickstart/autoencoder", "launcher=submitit"])


def test_a_job_gets_what_its_own_words_ask_for() -> None:
    words = ("experiment=quickstart/autoencoder", "trainer.devices=4", "trainer.num_nodes=2")
    assert nodes_of(job("a", *words)) == Nodes(2, 4, 4)
    assert nodes_of(Job("a", ("stage=measure", "device=auto"), script="sweep_f")) == Nodes(1, 1, 1)
    assert nodes_of(Job("a", ("stage=measure", "device=cpu"), script="sweep_f")) == Nodes(1, 1, 0)
    assert nodes_of(job("a", *words, "trainer.accelerator=cpu")) == Nodes(2, 4, 0)
    with pytest.raises(UserError, match=r"trainer\.devices=auto"):
        nodes_of(job("a", words[0], "trainer.devices=auto"))


def test_without_a_cluster_the_programs_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="there is no sbatch here"):
        Submitit()([])


def test_a_mistake_in_one_job_submits_none(cluster: Path, tmp_path: Path) -> None:
    jobs = [job("a", "experiment=quickstart/autoencoder"), job("b", "experiment=quickstart/autoencoder", "sede=1")]
    with pytest.raises(UserError, match="sede"):
        Submitit(str(tmp_path / "jobs"))(jobs)
    assert not (cluster / "submitted").exists()


def test_jobs_that_ask_for_the_same_nodes_are_one_array(cluster: Path, tmp_path: Path) -> None:
    (cluster / "hold").touch()  # nothing is run
    words = ("experiment=quickstart/autoencoder", "trainer.accelerator=gpu")
    jobs = [job("a", *words), job("b", *words, "trainer.devices=2"), job("c", *words)]
    assert Submitit(str(tmp_path / "jobs"), partition="gpu", at_once=1)(jobs) == [SUBMITTED] * 3
    scripts = [path.read_text() for path in sorted((cluster / "submitted").iterdir())]
    assert len(scripts) == 2 and "#SBATCH --array=0-1%1" in scripts[0] and "#SBATCH --array" not in scripts[1]
    assert all("#SBATCH --partition=gpu" in script and "#SBATCH --signal=USR2@180" in script for script in scripts)
    assert "#SBATCH --gpus-per-node=1" in scripts[0] and "#SBATCH --ntasks-per-node=2" in scripts[1]


# A job that begins, is told to stop, and takes its time to save.
SAVES = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.2), (folder / "saved").touch(), sys.exit(3)))
(folder / "began").touch()
time.sleep(60)
"""


def in_threads(commands: list[list[str]]) -> None:
    with local.passing_on(), ThreadPoolExecutor() as pool:
        for status in pool.map(local.run, commands):
            assert status == 3


@pytest.mark.parametrize(
    "run", [lambda commands: local.run(commands[0]), in_threads], ids=["one at a time", "several at once"]
)
def test_a_sweep_that_is_told_to_stop_tells_its_jobs_and_waits_for_them(
    run: Callable[[list[list[str]]], object], tmp_path: Path
) -> None:
    folders = [tmp_path / name for name in (("a", "b") if run is in_threads else ("a",))]
    for folder in folders:
        folder.mkdir()
    pid = os.fork()
    if pid == 0:
        try:
            run([[sys.executable, "-c", SAVES, str(folder)] for folder in folders])
        except SystemExit as end:
            os._exit(end.code if all((folder / "saved").exists() for folder in folders) else 1)
        os._exit(0)
    while not all((folder / "began").exists() for folder in folders):
        time.sleep(0.02)
    os.kill(pid, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + signal.SIGTERM
    before = signal.getsignal(signal.SIGTERM)
    assert local.run([sys.executable, "-c", "raise SystemExit(3)"]) == 3
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_sweep_that_is_told_to_stop_leaves_the_jobs_of_a_cluster(
    cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (cluster / "hold").touch()
    monkeypatch.setattr(slurm, "POLL_SECONDS", 0.02)
    launch = Submitit(folder=str(tmp_path / "jobs"), wait=True)
    jobs = [Job("a: measure", ("device=cpu",), script="sweep_f")]
    with local.passing_on(), ThreadPoolExecutor(1) as pool:
        waits = pool.submit(launch, jobs)
        while not (cluster / "submitted").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)
        assert waits.result(20) == [STOPPED] and launch(jobs) == [STOPPED]
    assert "these jobs go on: a: measure; squeue" in capsys.readouterr().out
    assert len(list((cluster / "submitted").iterdir())) == 1 and not local.is_stopping()


# -- whole jobs ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_job_whose_time_is_up_is_saved_requeued_and_finishes(cluster: Path, tmp_path: Path) -> None:
    """Two ranks are told to stop in the middle; the requeued job goes on where they were, to the same weights."""
    log = tmp_path / "runs" / "quickstart-autoencoder-seed_0" / "metrics.csv"
    (cluster / "signal_when").write_text(f"{log} 3")
    words = tiny("quickstart/autoencoder", tmp_path / "runs", "max_steps=200", "trainer.accelerator=cpu")
    own = [f"launcher.folder={tmp_path / 'jobs'}", "launcher.wait=true", "launcher.timeout_min=60"]
    done = subprocess.run(
        [sys.executable, "train.py", "-m", "launcher=submitit", *own, *words, "trainer.devices=2", "seed=0,1"],
        cwd=ROOT, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for seed in (0, 1):
        assert max(curve(tmp_path / "runs" / f"quickstart-autoencoder-seed_{seed}")) == 200
    assert (cluster / "requeued").read_text().split() == ["1000_0"]
