"""Two processes are one: same samples, same losses and, but for the order of sums, the same weights."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from toys import ROOT, curve, losses, state, tiny

from ldm.run import Run

# Writes down the keys of every micro-batch, then does what train.py does.
WATCHED_TRAIN = """
import json, os, sys
sys.path.insert(0, {root!r})
from ldm.training.diffusion import DiffusionTask
import train

original = DiffusionTask.training_step

def training_step(task, batch, batch_index):
    with open(os.path.join({folder!r}, f"keys{{task.global_rank}}.txt"), "a") as file:
        file.write(json.dumps([task.step, batch["key"]]) + "\\n")
    return original(task, batch, batch_index)

DiffusionTask.training_step = training_step
sys.exit(train.main(sys.argv[1:]))
"""
TWO_RANKS = ("trainer.devices=2", "trainer.strategy=ddp")
SMOOTH = ("optimizer.eps=0.1", "callback.validation.every_steps=1", "trainer.gradient_clip_val=0.1")


def launch(command: list[str]) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def keys(folder: Path, num_ranks: int) -> dict[int, list[str]]:
    """step -> sorted keys of the samples that the ranks trained on."""
    found: dict[int, list[str]] = {}
    for rank in range(num_ranks):
        for line in (folder / f"keys{rank}.txt").read_text().splitlines():
            step, names = json.loads(line)
            found[step] = sorted([*found.get(step, []), *names])
    return found


def assert_same_training(two: Path, one: Path) -> None:
    assert [row[:2] for row in losses(two)] == [row[:2] for row in losses(one)]
    for name in ("train/loss", "validation/loss"):
        assert curve(two, name) == pytest.approx(curve(one, name), abs=1e-6)
    torch.testing.assert_close(state(two, 2)["trained"], state(one, 2)["trained"], rtol=0, atol=1e-6)
    torch.testing.assert_close(state(two, 2)["ema"]["averages"], state(one, 2)["ema"]["averages"], rtol=0, atol=1e-6)


@pytest.fixture
def command(first_stage: Run, tmp_path: Path) -> Callable[..., list[str]]:
    return lambda *more: tiny("quickstart/diffusion", tmp_path, f"first_stage={first_stage.folder}", *SMOOTH, *more)


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
def test_two_ranks_under_torchrun_are_one_process(accumulation: int, command: Callable[..., list[str]], tmp_path: Path):
    seen = {}
    for run, num_ranks, launcher in (
        ("one", 1, [sys.executable]),
        ("two", 2, [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]),
    ):
        folder = tmp_path / f"seen_{run}"
        folder.mkdir()
        script = folder / "watched_train.py"
        script.write_text(WATCHED_TRAIN.format(root=str(ROOT), folder=str(folder)))
        more = (f"run={run}", f"accumulation={accumulation}", *(TWO_RANKS if num_ranks == 2 else ()))
        launch([*launcher, str(script), *command(*more)])
        seen[run] = keys(folder, num_ranks)
    assert seen["one"] == seen["two"] and [len(names) for names in seen["one"].values()] == [4, 4]
    assert_same_training(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_the_run_starts_its_own_second_rank(command: Callable[..., list[str]], tmp_path: Path):
    said = launch([sys.executable, "train.py", *command("run=two", *TWO_RANKS)])
    launch([sys.executable, "train.py", *command("run=one")])
    assert_same_training(tmp_path / "two", tmp_path / "one")
    assert len([line for line in said.splitlines() if line.startswith("two  2/2")]) == 1, said


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_ranks(command: Callable[..., list[str]], tmp_path: Path):
    launch([sys.executable, "train.py", *command("run=whole", "max_steps=2")])
    launch([sys.executable, "train.py", *command("run=parts", "max_steps=1", *TWO_RANKS)])
    launch([sys.executable, "train.py", *command("run=parts", "max_steps=2")])
    assert_same_training(tmp_path / "parts", tmp_path / "whole")
