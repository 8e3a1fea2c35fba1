"""A rank or a data worker is killed under ``torchrun --max-restarts``: it goes on from the last checkpoint, bit-equal.

Every other trial has two torchruns of one rank each, on loopback, that train as two nodes.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from toys import ROOT, differences

from chaoses.jobs import children, descendants, free_port, leftovers
from chaoses.outcome import Outcome
from chaoses.toy_runs import MAX_STEPS, ToyRuns

GOAL = "a rank or data worker killed under torchrun --max-restarts: exit 0, bit-equal; two nodes too"
RUNS = 6
VICTIMS = ("rank 0", "rank 1", "data worker")
# Else torchrun's c10d rendezvous serves all attempts from one store, where the next one finds the last one's addresses:
# "Gloo connectFullMesh failed ... Connection refused" (torch 2.14).
FRESH_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
SECONDS = 400  # imports, three times, on a busy machine


def run(runs: int, rng: random.Random, folder: Path) -> Outcome:
    """Victims in turn, on one node and on two."""
    outcome, toys = Outcome(), ToyRuns(folder)
    for number in range(runs):
        victim, nodes = VICTIMS[number % len(VICTIMS)], 1 + number // len(VICTIMS) % 2
        outcome.note(f"{victim} killed, {nodes} nodes", _trial(toys, f"run{number}", victim, nodes, rng))
    return outcome


def _trial(toys: ToyRuns, name: str, victim: str, nodes: int, rng: random.Random) -> list[str]:
    whole, _ = toys.whole("diffusion", 2)
    workers = 1 if victim == "data worker" else 0
    arguments = toys.arguments("diffusion", name, f"data.num_workers={workers}")
    arguments += [f"trainer.devices={2 // nodes}", f"trainer.num_nodes={nodes}", "trainer.strategy=ddp"]
    endpoint = f"127.0.0.1:{free_port()}"
    launch = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={nodes}", f"--nproc_per_node={2 // nodes}"]
    launch += ["--max-restarts=3", "--rdzv_backend=c10d", f"--rdzv_endpoint={endpoint}", "--rdzv_id=chaos"]
    outputs = [toys.folder / f"{name}-node{node}.txt" for node in range(nodes)]
    agents = [_start([*launch, "train.py", *arguments], output) for output in outputs]
    run, said = toys.folder / name, lambda: " ".join(output.read_text()[-600:] for output in outputs)
    try:
        deadline = time.monotonic() + SECONDS
        while not (pids := _victims(agents, victim)) or not list(run.glob("checkpoints/step_*.ckpt/manifest.json")):
            if time.monotonic() > deadline or any(agent.poll() is not None for agent in agents):
                return [f"it did not come to a checkpoint: {said()}"]
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.2))
        os.kill(pids[0], signal.SIGKILL)
        statuses = [agent.wait(max(deadline - time.monotonic(), 1)) for agent in agents]
    except ProcessLookupError:
        return ["it was done before the kill"]
    except subprocess.TimeoutExpired:
        return [f"still there after {SECONDS} s: {said()}"]
    finally:
        for agent in agents:
            _end(agent)
    if any(statuses):
        return [f"exit statuses {statuses}: {said()}"]
    return differences(whole, run, MAX_STEPS) + leftovers(run)


def _start(command: list[str], output: Path) -> subprocess.Popen:
    with output.open("w") as file:
        return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **FRESH_STORE}, stdout=file, stderr=file,
                                start_new_session=True)  # fmt: skip


def _end(agent: subprocess.Popen) -> None:
    for pid in [*descendants(agent.pid), agent.pid]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    agent.wait()


def _victims(agents: list[subprocess.Popen], victim: str) -> list[int]:
    """Processes that fit the description; a data worker is a child of a rank."""
    if victim == "data worker":
        ranks = [pid for agent in agents for pid in children(agent.pid)]
        return [worker for rank in ranks for worker in children(rank)]
    return [pid for agent in agents for pid in children(agent.pid) if _environment(pid).get("RANK") == victim[-1]]


def _environment(pid: int) -> dict[str, str]:
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return {}
    return dict(word.partition("=")[::2] for word in words)
