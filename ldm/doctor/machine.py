"""The machine a run is to be started on: versions, devices, room on the disk, Weights & Biases."""

import os
import shutil
import urllib.error
import urllib.request
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ldm.device import computes_bf16
from ldm.doctor.finding import FAIL, PASS, WARN, Finding, size
from ldm.redaction import redacted

PACKAGES = ("torch", "pytorch-lightning", "hydra-core", "webdataset", "transformers", "wandb")
WANDB_URL = "https://api.wandb.ai"


def versions() -> Finding:
    """The versions that results depend on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    said = ", ".join(f"{package} {number}" for package, number in found.items())
    status = FAIL if "missing" in found.values() else PASS
    return Finding("versions", status, f"{said}, CUDA {torch.version.cuda or 'none'}")


def devices(tree: dict[str, Any]) -> Finding:
    """Whether there are as many devices as asked for, and the precision they compute in."""
    trainer = tree["trainer"]
    num_gpus, precision, wanted = torch.cuda.device_count(), str(trainer["precision"]), trainer["devices"]
    said = f"{num_gpus} x {torch.cuda.get_device_name()}" if num_gpus else "no GPU"
    said = f"{said}; trainer.precision={precision}"
    if num_gpus and isinstance(wanted, int) and wanted > num_gpus:
        way_out = f"trainer.devices={wanted} asks for more: lower it, or look on the machine it is for"
        return Finding("device", FAIL, f"{said}; {way_out}")
    if not num_gpus and trainer["accelerator"] == "gpu":
        return Finding("device", FAIL, f"{said}; trainer.accelerator=gpu asks for one")
    if not num_gpus and "16" in precision and "bf16" not in precision:
        return Finding("device", FAIL, f"{said}: not on a CPU; bf16-mixed or 32-true")
    if "bf16" in precision and not computes_bf16(trainer["accelerator"]):
        return Finding("device", WARN, f"{said}: bf16 is only emulated here, 32-true is many times faster")
    if not num_gpus and trainer["accelerator"] != "cpu":
        return Finding("device", WARN, f"{said}: it would train on the CPU")
    return Finding("device", PASS, said)


def wandb(tree: dict[str, Any]) -> Finding:
    """Whether the server of an online W&B run answers, and there is a key for it."""
    logger = tree["logger"]
    if not logger:
        return Finding("W&B", PASS, "off (logger=null)")
    if logger["mode"] != "online":
        return Finding("W&B", PASS, f"{logger['mode']}: nothing is sent now")
    url = os.environ.get("WANDB_BASE_URL", WANDB_URL)
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except urllib.error.HTTPError:
        pass  # it answers
    except (OSError, ValueError) as error:
        return Finding("W&B", FAIL, f"{redacted(url)} does not answer ({error}); logger.mode=offline, and sync later")
    host, netrc = url.partition("://")[2].partition("/")[0], Path("~/.netrc").expanduser()
    if not os.environ.get("WANDB_API_KEY") and not (netrc.exists() and host in netrc.read_text()):
        return Finding("W&B", FAIL, "no key: `wandb login`, or set WANDB_API_KEY, or logger.mode=offline")
    return Finding("W&B", PASS, f"online, {redacted(url)} answers")


def memory(sizes: dict[str, int]) -> Finding:
    """Whether what a step needs fits, by the bytes of its parts."""
    needed = sum(sizes.values())
    if torch.cuda.is_available():
        there = torch.cuda.get_device_properties(0).total_memory
    else:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    shown = ", ".join(f"{name} {size(num_bytes)}" for name, num_bytes in sizes.items())
    said = f"{size(needed)} of {size(there)}: {shown}"
    if needed > 0.9 * there:
        way_out = "raise accumulation, or set checkpoint_activations=true"
        return Finding("memory", FAIL if needed > there else WARN, f"{said}; {way_out}")
    return Finding("memory", PASS, said)


def disk(tree: dict[str, Any], checkpoint: int, weights: int, snapshot: int) -> Finding:
    """Whether checkpoints, sets of weights and snapshots of these bytes fit, one of each more than are kept."""
    callback = (tree["callback"] or {}).get("checkpoint")
    if not callback:
        return Finding("disk", WARN, "the callback list has no checkpoint: nothing of this run would be kept")
    needed = (max(callback["keep"], 2) + 1) * checkpoint + (callback["keep_weights"] + 1) * weights
    every = (tree["ema"] or {}).get("snapshot_every_steps")
    needed += (tree["max_steps"] // every) * snapshot if every else 0
    folder = Path(tree["runs_dir"]).absolute()
    free = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free
    said = f"{size(needed)} for checkpoints and weights, {size(free)} free at {folder}"
    if free < needed:
        return Finding("disk", FAIL, f"{said}: free space, move runs_dir, or lower callback.checkpoint.keep")
    return Finding("disk", WARN if free < 2 * needed else PASS, said)
