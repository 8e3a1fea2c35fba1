"""Two processes are one: same samples, same losses and, but for the order of sums, the same weights."""

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from toys import ROOT, Process, curve, losses, newest_step, state, tiny, train

from ldm.build import Parts
from ldm.config import compose
from ldm.run import Run
from ldm.training.diffusion import DiffusionTask
from ldm.training.distributed import LostRank, lost_ranks_named
from ldm.training.sharded import FullySharded

# Writes down the keys of every micro-batch, then does what train.py does.
WATCHED_TRAIN = """
import json, sys
sys.path.insert(0, {root!r})
from ldm.training.diffusion import DiffusionTask
import train

original = DiffusionTask.training_step

def training_step(task, batch, batch_index):
    with open(f"{folder}/keys{{task.global_rank}}.txt", "a") as file:
        file.write(json.dumps([task.step, batch["key"]]) + "\\n")
    return original(task, batch, batch_index)

DiffusionTask.training_step = training_step
sys.exit(train.main(sys.argv[1:]))
"""
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
TWO_RANKS = ("trainer.devices=2", "trainer.strategy=ddp")
# Adam's first steps are signs of the gradient with its usual eps, and blow up the last bit.
OPTIONS = (
    "data.filters.values=null",
    "optimizer.eps=0.1",
    "callback.validation.every_steps=1",
    "trainer.gradient_clip_val=0.1",
)


@pytest.fixture(scope="module")
def one(first_stage: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, list[str]]]:
    """A run of one process, and its keys by step."""
    keys: dict[int, list[str]] = {}
    original = DiffusionTask.training_step

    def watch(task: DiffusionTask, batch: dict, batch_index: int) -> torch.Tensor:
        keys[task.step] = sorted(batch["key"])
        return original(task, batch, batch_index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiffusionTask, "training_step", watch)
        folder = tmp_path_factory.mktemp("one")
        run = train("quickstart/diffusion", folder, f"first_stage={first_stage.folder}", *OPTIONS)
    return run.folder, keys


@pytest.fixture
def arguments(first_stage: Run, tmp_path: Path) -> list[str]:
    """The same run with two ranks, called "two"."""
    return tiny("quickstart/diffusion", tmp_path, f"first_stage={first_stage.folder}", *OPTIONS, *TWO_RANKS, "run=two")


def finish(command: list[str], tmp_path: Path) -> str:
    process = Process(command, tmp_path / "said.txt")
    assert process.wait() == 0, process.said
    return process.said


def assert_same_training(two: Path, one: Path) -> None:
    assert [row[:2] for row in losses(two)] == [row[:2] for row in losses(one)]
    for name in ("train/loss", "validation/loss"):
        assert curve(two, name) == pytest.approx(curve(one, name), abs=1e-6)
    torch.testing.assert_close(state(two, 2)["trained"], state(one, 2)["trained"], rtol=0, atol=1e-6)
    torch.testing.assert_close(state(two, 2)["ema"]["averages"], state(one, 2)["ema"]["averages"], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_two_ranks_under_torchrun_are_one_process(
    one: tuple[Path, dict[int, list[str]]], arguments: list[str], tmp_path: Path
):
    script = tmp_path / "watched_train.py"
    script.write_text(WATCHED_TRAIN.format(root=str(ROOT), folder=tmp_path))
    finish([*TORCHRUN, str(script), *arguments], tmp_path)
    assert_same_training(tmp_path / "two", one[0])

    lines = [line for rank in (0, 1) for line in (tmp_path / f"keys{rank}.txt").read_text().splitlines()]
    keys: dict[int, list[str]] = {}
    for step, names in map(json.loads, lines):
        keys[step] = sorted([*keys.get(step, []), *names])
    assert len(lines) == 4 and keys == one[1]


@pytest.mark.slow
def test_a_run_that_starts_its_own_second_rank_and_accumulates_is_one_process(
    one: tuple[Path, dict[int, list[str]]], arguments: list[str], tmp_path: Path
):
    said = finish(["train.py", *arguments, "accumulation=2"], tmp_path)
    assert_same_training(tmp_path / "two", one[0])
    assert [line[:8] for line in said.splitlines()] == ["two  2/2"], said


@pytest.mark.slow
def test_two_ranks_stop_together_and_one_goes_on(
    one: tuple[Path, dict[int, list[str]]], first_stage: Run, arguments: list[str], tmp_path: Path
):
    long = ("max_steps=1000", "callback.checkpoint.every_steps=2", "callback.signals.agree_every_steps=2")
    own = [word for word in arguments if word.partition("=")[0] not in [option.partition("=")[0] for option in long]]
    process = Process([*TORCHRUN, "train.py", *own, *long], tmp_path / "stopped.txt")
    process.wait_for_checkpoint(tmp_path / "two")
    os.kill(process.pid, signal.SIGTERM)  # torchrun passes it on
    process.wait()
    step = newest_step(tmp_path / "two")
    assert f"two: stopped and saved at step {step} of 1000" in process.said
    assert {at: loss for at, loss in curve(tmp_path / "two").items() if at <= 2} == pytest.approx(
        curve(one[0]), abs=1e-6
    )

    own = (f"first_stage={first_stage.folder}", *OPTIONS, *long, f"max_steps={step + 1}")
    run = train("quickstart/diffusion", tmp_path, *own, run="two")
    assert run.finished and state(run.folder, step + 1)["step"] == step + 1


@pytest.mark.slow
def test_an_expert_that_is_killed_goes_on_with_another_number_of_ranks(first_stage: Run, tmp_path: Path):
    own = (f"first_stage={first_stage.folder}", *OPTIONS)
    parent = train("quickstart/diffusion", tmp_path, *own, run="parent")
    own = (*own, f"branch={parent.folder}", "expert.node=[1,1]", "callback.checkpoint.every_steps=2")
    words = tiny("quickstart/diffusion", tmp_path, *own, "max_steps=1000", *TWO_RANKS, "run=killed")
    process = Process(["train.py", *words], tmp_path / "killed.txt")  # which starts its own second rank
    process.wait_for_checkpoint(tmp_path / "killed")
    os.killpg(process.pid, signal.SIGKILL)  # both of them
    process.wait()
    last = newest_step(tmp_path / "killed") + 2
    killed, once = (train("quickstart/diffusion", tmp_path, *own, f"max_steps={last}", run=name).folder
                    for name in ("killed", "once"))  # fmt: skip
    assert curve(killed) == pytest.approx(curve(once), abs=1e-6) and len(curve(once)) == last
    torch.testing.assert_close(state(killed, last)["trained"], state(once, last)["trained"], rtol=0, atol=1e-6)
    found = [json.loads((run / f"weights/step_{last:08d}.json").read_text())["intervals"] for run in (killed, once)]
    assert found[0] == found[1] != [[0.0, float("inf")]]


@pytest.mark.slow
@pytest.mark.parametrize("regularizer", ["kl", "vq"])
def test_two_ranks_measure_and_revive_what_one_process_does(regularizer: str, tmp_path: Path):
    callbacks = ["metrics", "gan_health", "validation", "panels", "checkpoint", "signals", "progress"]
    callbacks += ["code_revival"] * (regularizer == "vq")
    own = (
        f"regularizer={regularizer}",
        f"callback=[{','.join(callbacks)}]",
        "optimizer.eps=0.1",
        "reconstruction.start_step=100",  # batch norm would see half a batch on each rank
        *(("regularizer.num_codes=32", "callback.code_revival.every_steps=2") if regularizer == "vq" else ()),
    )
    one = train("quickstart/autoencoder", tmp_path, *own, run="one")
    arguments = tiny("quickstart/autoencoder", tmp_path, *own, *TWO_RANKS, "run=two")
    finish([*TORCHRUN, "train.py", *arguments], tmp_path)
    assert losses(tmp_path / "two")[:1] == losses(one.folder)[:1]
    latents = [
        json.loads((folder / "weights/step_00000002.json").read_text())["latent"]
        for folder in (tmp_path / "two", one.folder)
    ]
    assert latents[0]["count"] == latents[1]["count"] == 16 * 8 * 8
    for name in ("mean", "std"):
        assert latents[0][name] == pytest.approx(latents[1][name], abs=1e-4)
    if regularizer == "vq":
        assert curve(tmp_path / "two", "train/revived_codes") == curve(one.folder, "train/revived_codes")


# The second rank ends, the first waits for it.
LOSING = """
import torch
from ldm.config import guarded
from ldm.training.distributed import all_reduce_sum, process_group

def main(arguments):
    with process_group(torch.device("cpu")) as (rank, _):
        all_reduce_sum(torch.ones(1))
        if rank == 1:
            os._exit(9)
        all_reduce_sum(torch.ones(1))

guarded(main)
"""


def test_a_rank_that_lost_another_says_so_in_a_line(tmp_path: Path):
    script = tmp_path / "losing.py"
    script.write_text(f"import os, sys\nsys.path.insert(0, {str(ROOT)!r})\n{LOSING}")
    process = Process([*TORCHRUN, "--monitor-interval=3", str(script)], tmp_path / "said.txt")
    assert process.wait() == 1
    assert "error: rank 0: another rank ended while this one waited for it (" in process.said
    assert "rank0]" not in process.said, "a traceback"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("[/src/gloo/transport/tcp/pair.cc:561] Connection closed by peer [::1]:9. This is"), LostRank),
        (torch.distributed.DistBackendError("NCCL error in: a.cpp:1, ncclRemoteError: A call failed"), LostRank),
        (RuntimeError("[/src/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 1800000ms for"), RuntimeError),
        (RuntimeError("[enforce fail at /src/gloo/transport/tcp/device.cc:84] ifa != nullptr. Unable"), RuntimeError),
        (RuntimeError("[/src/gloo/transport/tcp/pair.cc:446] op.preamble.length <= op.nbytes. 8 vs 4"), RuntimeError),
        (RuntimeError("CUDA error: out of memory"), RuntimeError),
    ],
)
def test_only_a_lost_rank_is_named_as_one(error: Exception, kind: type):
    with pytest.raises(kind) as caught, lost_ranks_named():
        raise error
    assert caught.type is kind


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (ModelParallelStrategy, r"trainer\.strategy=ModelParallelStrategy: take ddp, or fsdp"),
        (FullySharded, r"trainer\.strategy=fsdp: a first stage is trained whole on each device; take ddp"),
    ],
)
def test_strategies_that_do_not_go_with_a_run_are_refused(strategy: type, message: str, tmp_path: Path):
    task = Parts(compose("config", tiny("quickstart/autoencoder", tmp_path)))["task"]
    task._trainer = SimpleNamespace(strategy=strategy(), precision="32-true")
    with pytest.raises(ValueError, match=message):
        task.setup("fit")
