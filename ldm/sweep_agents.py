"""A run that an agent of ``wandb sweep`` starts: its id is the agent's, and part of its name."""

import os
import re


def agents_id() -> str | None:
    """The id that an agent of ``wandb sweep`` gave to the run of this process, None outside of a sweep."""
    given = os.environ.get("WANDB_RUN_ID", "")
    return given if os.environ.get("WANDB_SWEEP_ID") and re.fullmatch(r"[\w.-]+", given) else None
