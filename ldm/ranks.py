"""This process's rank by the environment, before there is a process group, and whether it is plausible: variables
left over from an earlier launch would let one process train half of a run.
"""

import logging
import os
from typing import Any

from ldm.errors import UserError

log = logging.getLogger(__name__)

# Variable with the rank -> variable with the world size.
TORCHRUN = {"RANK": "WORLD_SIZE", "LOCAL_RANK": "WORLD_SIZE", "GROUP_RANK": "WORLD_SIZE", "NODE_RANK": "WORLD_SIZE"}
SLURM = {"SLURM_PROCID": "SLURM_NTASKS", "SLURM_LOCALID": "SLURM_NTASKS", "SLURM_NODEID": "SLURM_NTASKS"}
ZERO = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "NODE_RANK")
INTERACTIVE = ("bash", "interactive")  # names of SLURM jobs that Lightning does not take for the launch of ranks
# Variables that identify a launch of several ranks: they are the same on each rank.
LAUNCH = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "SLURM_JOB_ID", "SLURM_STEP_ID")


def is_rank_zero() -> bool:
    """Whether this process is the one that writes, before a process group exists."""
    return all(os.environ.get(name, "0") == "0" for name in ZERO)


def launch() -> list[str]:
    """The environment variables that identify the launch of this process and the other ranks."""
    return [f"{name}={os.environ[name]}" for name in LAUNCH if name in os.environ]


def check_ranks(trainer: dict[str, Any]) -> None:
    """Raises ValueError if the environment makes this a rank of a world that the `trainer`'s keys do not ask for."""
    numbers = {name: _number(name) for name in (*TORCHRUN, *SLURM, "WORLD_SIZE", "SLURM_NTASKS") if name in os.environ}
    devices, nodes = trainer["devices"], trainer["num_nodes"]
    devices = len(devices) if isinstance(devices, list) else devices if isinstance(devices, int) else None
    asked = devices * nodes if devices is not None and devices > 0 else None  # None: as many as there are GPUs
    under_slurm = "SLURM_NTASKS" in numbers and os.environ.get("SLURM_JOB_NAME") not in INTERACTIVE
    by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    if under_slurm and not by_torchrun:
        _check_slurm(numbers, devices, nodes, asked)
    for name, value in numbers.items():
        if name in ("WORLD_SIZE", "SLURM_NTASKS") or value == 0:
            continue
        world = numbers.get((TORCHRUN | SLURM)[name], 1)
        if name in SLURM and not under_slurm:
            world = 1
        if name in ("NODE_RANK", "GROUP_RANK") and "WORLD_SIZE" not in numbers:
            world = nodes  # nodes that are started by hand
        if name in SLURM and by_torchrun:  # one task of each node starts torchrun, which counts for itself
            continue
        if value >= world:
            raise UserError(f"{name}={value} in the environment: there is no such rank; {way_out(name)}")
        if asked == 1:
            raise UserError(
                f"{name}={value} in the environment, but trainer.devices=1 trains in one process: "
                f"{way_out(name)}, or set trainer.devices= and trainer.num_nodes= to what was launched"
            )
    world = numbers.get("WORLD_SIZE")
    if by_torchrun and world and asked and world != asked:
        raise UserError(
            f"trainer.devices={devices}, trainer.num_nodes={nodes}: torchrun started {world} processes, so that they "
            f"have to be {world} together"
        )


def _check_slurm(numbers: dict[str, int], devices: int | None, nodes: int, asked: int | None) -> None:
    tasks = numbers["SLURM_NTASKS"]
    if tasks > 1 and "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise UserError(
            f"SLURM started {tasks} tasks (--ntasks={tasks}): start them with --ntasks-per-node=N, and set "
            "trainer.devices=N to as many, trainer.num_nodes= to the nodes"
        )
    if asked and tasks != asked:
        raise UserError(
            f"trainer.devices={devices}, trainer.num_nodes={nodes}: SLURM started {tasks} tasks; let "
            f"--ntasks-per-node={devices} --nodes={nodes} and these agree"
        )


def way_out(first: str | None = None) -> str:
    """How to start without the variables that make this process another rank, in words."""
    names = [name for name in (*TORCHRUN, *SLURM) if name != first and os.environ.get(name, "0") != "0"]
    unset = " ".join(f"-u {name}" for name in ([first, *names] if first else names))
    return f"left over from another launch? start with env {unset} python ..."


def _number(name: str) -> int:
    try:
        return int(os.environ[name])
    except ValueError:
        raise UserError(f"{name}={os.environ[name]} in the environment: not a number; env -u {name}") from None


def warn_of_shared_store() -> None:
    """Warn of the variable that torchrun's restarts need: all attempts share one store, where the next attempt finds
    the addresses of the last (pytorch #135712).
    """
    restarts = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
    if restarts and os.environ.get("TORCH_DISABLE_SHARE_RDZV_TCP_STORE") != "1" and is_rank_zero():
        log.warning("torchrun --max-restarts: a restart connects only with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 set")
