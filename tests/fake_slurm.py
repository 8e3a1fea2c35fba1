"""A SLURM of one machine for the tests: ``fake_slurm.py sbatch|srun|scontrol|sacct ...``; its state is in $FAKE_SLURM.

sbatch runs an array's jobs one after the other, in the background; with a file `hold` there it only keeps the script.
srun starts all tasks, and sends them the signal of the end of the time once, when the log that the file `signal_when`
names has come to the step that it names.
"""

import os
import re
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

FOLDER = Path(os.environ["FAKE_SLURM"])


def option(script: str, name: str, default: str) -> str:
    found = re.search(rf"^#SBATCH --{name}=(.*)$", script, re.MULTILINE)
    return found[1] if found else default


def sbatch(path: str) -> None:
    script = Path(path).read_text()
    (FOLDER / "submitted").mkdir(exist_ok=True)
    number = str(1000 + len(list((FOLDER / "submitted").iterdir())))
    (FOLDER / "submitted" / number).write_text(script)
    print(f"Submitted batch job {number}")
    if not (FOLDER / "hold").exists():
        log = (FOLDER / f"log_{number}").open("w")
        subprocess.Popen([sys.executable, __file__, "run", number], stdout=log, stderr=log, start_new_session=True)


def run(number: str) -> None:
    script = (FOLDER / "submitted" / number).read_text()
    last = option(script, "array", "").partition("%")[0].rpartition("-")[2]
    nodes, tasks = option(script, "nodes", "1"), option(script, "ntasks-per-node", "1")
    for place in range(int(last) + 1) if last else [None]:
        name = number if place is None else f"{number}_{place}"
        array = {} if place is None else {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": str(place)}
        own = {
            "SLURM_JOB_ID": str(int(number) + (place or 0)), "SLURM_JOB_NAME": option(script, "job-name", "job"),
            "SLURM_JOB_NUM_NODES": nodes, "SLURM_NTASKS": str(int(nodes) * int(tasks)),
            "SLURM_NTASKS_PER_NODE": tasks, "SLURM_NODELIST": "localhost", "SLURM_JOB_NODELIST": "localhost", **array,
        }  # fmt: skip
        while True:
            before = requeued()
            subprocess.run(["bash", str(FOLDER / "submitted" / number)], env={**os.environ, **own})
            if requeued() == before:
                break
        (FOLDER / f"done_{name}").touch()


def requeued() -> list[str]:
    file = FOLDER / "requeued"
    return file.read_text().split() if file.exists() else []


def srun(*words: str) -> None:
    names = {}
    rest = list(words)
    while rest[0].startswith("--"):
        word = rest.pop(0)
        if word in ("--output", "--error"):
            names[word] = rest.pop(0)
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
    before, tasks = requeued(), []
    for rank in range(int(os.environ["SLURM_NTASKS"])):
        own = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0"}
        paths = [name.replace("%A_%a", job).replace("%j", job).replace("%t", str(rank)) for name in names.values()]
        with Path(paths[0]).open("a") as out, Path(paths[1]).open("a") as err:
            env = {**os.environ, **own}
            tasks.append(subprocess.Popen(rest, env=env, stdout=out, stderr=err, start_new_session=True))
    while any(task.poll() is None for task in tasks):
        time.sleep(0.05)
        if not before and job.endswith("_0") and time_is_up():
            (FOLDER / "signal_when").unlink()
            for task in tasks:
                os.killpg(task.pid, signal.SIGUSR2)  # as SLURM does, to all processes of a task


def time_is_up() -> bool:
    file = FOLDER / "signal_when"
    if not file.exists():
        return False
    path, step = file.read_text().split()
    rows = Path(path).read_text().splitlines()[1:] if Path(path).exists() else []
    return any(int(row.partition(",")[0]) >= int(step) for row in rows if row[:1].isdigit())


def scontrol(action: str, job: str) -> None:
    assert action == "requeue"
    with (FOLDER / "requeued").open("a") as file:
        file.write(f"{job}\n")


def sacct(*words: str) -> None:
    print("JobID|State|NodeList")
    for asked in (word for before, word in pairwise(words) if before == "-j"):
        for script in (FOLDER / "submitted").glob(asked):
            last = option(script.read_text(), "array", "").partition("%")[0].rpartition("-")[2]
            for name in [f"{asked}_{place}" for place in range(int(last) + 1)] if last else [asked]:
                print(f"{name}|{'COMPLETED' if (FOLDER / f'done_{name}').exists() else 'RUNNING'}|localhost")


if __name__ == "__main__":
    {"sbatch": sbatch, "run": run, "srun": srun, "scontrol": scontrol, "sacct": sacct}[sys.argv[1]](*sys.argv[2:])
