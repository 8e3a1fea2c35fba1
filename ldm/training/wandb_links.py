"""What a W&B run shows besides curves: its configuration, its parent, the path of its weights, how it ended."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from ldm.files import read_json
from ldm.redaction import redacted
from ldm.training.loggers import WandB


def introduce(loggers: Sequence[Logger], tree: Mapping[str, Any], parent: Mapping[str, Any] | None) -> None:
    """Let the run's configuration show the tree's keys, and the run and checkpoint that this one branched from."""
    for logger in loggers:
        if isinstance(logger, WandB):
            logger.config = {**tree, "parent": dict(parent) if parent else None}


@rank_zero_only
def refer_to_weights(loggers: Sequence[Logger], folder: Path, run_name: str) -> None:
    """Log the newest weights in `folder` as an artifact that refers to the files and says their SHA-256."""
    described = sorted(folder.glob("step_*.json"))
    runs = _runs(loggers)
    if not described or not runs:
        return
    import wandb as client

    facts = read_json(described[-1])
    metadata = {"step": facts["step"], "sha256": facts["sha256"]}
    artifact = client.Artifact(f"{run_name}-weights", type="model", metadata=metadata)
    for kind in facts["sha256"]:
        file = folder / f"{described[-1].stem}.{kind}.safetensors"
        artifact.add_reference(file.absolute().as_uri(), name=file.name, checksum=False)
    for run in runs:
        run.log_artifact(artifact)


@contextmanager
def failure_told(loggers: Sequence[Logger], run_name: str) -> Iterator[None]:
    """Send an alert for an error within the block, then re-raise it."""
    try:
        yield
    except Exception as error:
        alert(loggers, f"{run_name} failed", f"{type(error).__name__}: {error}"[:1000])
        raise


@rank_zero_only
def alert(loggers: Sequence[Logger], title: str, text: str) -> None:
    """Let W&B send an alert, if the user has enabled alerts there; runs that have logged nothing send none."""
    for run in _runs(loggers):
        run.alert(title=title, text=redacted(text))


def _runs(loggers: Sequence[Logger]) -> list[Any]:
    return [logger.experiment for logger in loggers if isinstance(logger, WandB) and logger.begun]
