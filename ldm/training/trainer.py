"""Lightning's trainer from the keys of a tree, built once as a check before a run's folder is made."""

from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from ldm.errors import UserError
from ldm.training.sharded import FullySharded

# Values of trainer.strategy that are not Lightning's.
STRATEGIES = {FullySharded.strategy_name: FullySharded}
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
# These strategies pass the run to their processes as a pickle, or only work in a notebook.
OWN_PROCESSES = ("ddp_spawn", "ddp_fork", "ddp_notebook", "ddp_spawn_find_unused_parameters_true",
                 "ddp_spawn_find_unused_parameters_false", "ddp_fork_find_unused_parameters_true",
                 "ddp_fork_find_unused_parameters_false", "ddp_notebook_find_unused_parameters_true",
                 "ddp_notebook_find_unused_parameters_false")  # fmt: skip
REFUSALS = (
    MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError, LookupError, AttributeError,
    AssertionError, NotImplementedError, OSError,
)  # fmt: skip


def make_trainer(node: Mapping[str, Any], make: Callable[..., pl.Trainer], **given: Any) -> pl.Trainer:
    """The trainer that `make` builds from the keys of `node`, with further arguments `given`.

    Raises a one-line ValueError for whatever Lightning refuses: devices, names or combinations that it does not have.
    """
    devices = node["devices"]
    if devices == [] or devices == 0 or (isinstance(devices, int) and devices < -1):
        raise UserError(f"trainer.devices={devices}: must be 1 or more, a list of numbers, -1 for all, or auto")
    if isinstance(devices, list) and (len(set(devices)) < len(devices) or min(devices) < 0):
        raise UserError(f"trainer.devices={devices}: the numbers of different devices, from 0")
    if node["num_nodes"] < 1:
        raise UserError(f"trainer.num_nodes={node['num_nodes']}: must be at least 1")
    if (node["gradient_clip_val"] or 0) < 0:
        raise UserError(f"trainer.gradient_clip_val={node['gradient_clip_val']}: must be at least 0")
    if node.get("gradient_clip_algorithm") == "value":
        raise UserError("trainer.gradient_clip_algorithm=value: gradients are clipped by their norm; leave it out")
    if node["strategy"] in OWN_PROCESSES:
        raise UserError(f"trainer.strategy={node['strategy']}: begins processes that a run cannot go on in; take ddp")
    own = STRATEGIES.get(node["strategy"])
    try:
        trainer = make(**({"strategy": own()} if own else {}), **given)
    except REFUSALS as error:
        said = " ".join(str(error).split())[:400] or type(error).__name__
        asked = ", ".join(f"{key}={node[key]}" for key in ("accelerator", "devices", "strategy", "precision"))
        raise UserError(f"trainer: {said} (asked for with {asked})") from error
    if trainer.precision not in PRECISIONS:  # the losses, averages and latents are in fp32
        raise UserError(f"trainer.precision={node['precision']}: a run's weights are in fp32; {', '.join(PRECISIONS)}")
    return trainer


def check_trainer(node: Mapping[str, Any], make: Callable[..., pl.Trainer]) -> None:
    """Raises ValueError for a trainer that cannot be made here."""
    make_trainer(node, make, logger=False)
