"""What a GPU gets of this project, measured in at most ten minutes: one table, and the same as JSON.

    python scripts/dev/gpu_check.py
    python scripts/dev/gpu_check.py device=cpu size=tiny out=/tmp/check

gpu_check.sh beside it is the same without an environment that is activated.

device=auto    # a GPU; cpu tries the script itself, without what needs a GPU
size=sd2       # networks and latents: sd2, Stable Diffusion's, or tiny
out=gpu_check  # a folder for table.txt, results.json and a file for each measurement
only=          # one or several measurements by name, all by default
again=false    # true: measure anew what out= has already

Each measurement is a process of its own with a time limit of its own; one that fails or is late is named, and the
others go on. The same command again repeats only those, and finds what was compiled meanwhile. Goals are for an A100.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gpu_checks.table import Row, read, row_of, table
from options import parse

from ldm.config import guarded
from ldm.errors import UserError
from ldm.files import write_text

ROOT = Path(__file__).resolve().parents[2]
MINUTES = 10
# Seconds that each may take on a GPU, with the start of its process; together less than `MINUTES`.
LIMITS = {
    "train_256_eager": 35, "sample_eager": 25, "run": 35, "updates": 15, "memory": 25, "checkpoint": 25,
    "train_512_eager": 35, "train_256_blocks": 120, "sample_graphs": 65, "train_512_blocks": 100,
    "train_256_whole": 100,
}  # fmt: skip
PATIENCE = 20  # a CPU may take so many times as long: there the figures mean nothing
KEYS = {
    "device": "auto",
    "size": "sd2",
    "out": "gpu_check",
    "only": "",
    "again": False,
    "measure": "",
}  # the last: inner


def main(arguments: list[str]) -> int:
    """Measure, print the table and write it; 1 if a measurement failed."""
    if "--help" in arguments or "-h" in arguments:
        print(__doc__.strip() + "\n\nmeasurements: " + ", ".join(LIMITS))
        return 0
    options = parse(arguments, KEYS)
    names = _names(options)
    device = _device(options)
    out = Path(options["out"]).expanduser()
    out.mkdir(parents=True, exist_ok=True)
    if options["measure"]:
        _measure(options["measure"], device, options["size"], out)
        return 0
    began = time.monotonic()
    for name in names:
        known = read(out / f"{name}.json", device.type, options["size"])
        if known is None or options["again"]:
            write_text(out / f"{name}.json", json.dumps(_measured(name, device.type, options), indent=1) + "\n")
    results = {name: read(out / f"{name}.json", device.type, options["size"], failed=True) for name in names}
    facts = {**_machine(device), "size": options["size"], "seconds": round(time.monotonic() - began, 1)}
    text = table(facts, results)
    write_text(out / "results.json", json.dumps({**facts, "measurements": results}, indent=1) + "\n")
    write_text(out / "table.txt", text)
    print(text, end="")
    return int(any(found is None or "failed" in found for found in results.values()))


def _names(options: dict[str, Any]) -> list[str]:
    asked = [name for name in (options["measure"] or options["only"]).split(",") if name] or list(LIMITS)
    for name in asked:
        if name not in LIMITS:
            raise UserError(f"only={name}: there are {', '.join(LIMITS)}")
    if options["size"] not in ("sd2", "tiny"):
        raise UserError(f"size={options['size']}: there are sd2 and tiny")
    return asked


def _device(options: dict[str, Any]) -> Any:
    import torch

    from ldm.device import choose

    if options["device"] == "auto" and not torch.cuda.is_available():
        raise UserError("device=auto: no GPU here, nothing to measure; device=cpu size=tiny tries the script")
    device = choose(options["device"])
    if device.type == "cpu" and options["size"] != "tiny":
        raise UserError(f"size={options['size']}: takes a CPU hours; with device=cpu take size=tiny")
    return device


def _measured(name: str, device: str, options: dict[str, Any]) -> dict[str, Any]:
    """What the process of one measurement has found, or why it has not."""
    words = [f"measure={name}", *(f"{key}={options[key]}" for key in ("device", "size", "out"))]
    limit = LIMITS[name] * (PATIENCE if device == "cpu" else 1)
    kept = {"name": name, "device": device, "size": options["size"]}
    print(f"{name}: at most {limit} s", file=sys.stderr, flush=True)
    found = Path(options["out"]).expanduser() / f"{name}.rows"
    found.unlink(missing_ok=True)
    command = [sys.executable, str(Path(__file__)), *words]
    began = time.monotonic()
    status, stderr = _ended(command, limit)
    if status is None:
        return {**kept, "failed": f"took longer than {limit} s"}
    if status or not found.exists():
        said = [line for line in stderr.splitlines() if line.strip()] or [f"status {status}"]
        return {**kept, "failed": said[-1][:200], "said": stderr[-4000:]}
    rows = json.loads(found.read_text())
    found.unlink()
    return {**kept, "seconds": round(time.monotonic() - began, 1), "rows": rows}


def _ended(command: list[str], limit: float) -> tuple[int | None, str]:
    """The exit status of a process, None if it was killed after `limit` seconds, and what it said on stderr.

    It has a group of its own, which ends with it: workers of data or of a compiler would hold a GPU's memory, and a
    pipe to here open.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=said, start_new_session=True)
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        said.seek(0)
        return status, said.read()


def _measure(name: str, device: Any, size: str, out: Path) -> None:
    """In the measurement's own process: write its rows beside the file that they will be part of."""
    import importlib

    part, *rest = name.split("_")
    rows: list[Row] = importlib.import_module(f"gpu_checks.{part}").measure(device, size, out, *rest)
    write_text(out / f"{name}.rows", json.dumps([row_of(row) for row in rows]))


def _machine(device: Any) -> dict[str, Any]:
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    memory = torch.cuda.get_device_properties(device).total_memory / 2**30 if device.type == "cuda" else 0.0
    return {"device": name, "memory_gib": round(memory, 1), "torch": torch.__version__, "cuda": torch.version.cuda}


if __name__ == "__main__":
    guarded(main)
