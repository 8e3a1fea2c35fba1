"""Where metrics go: a CSV in the run's folder, always, and Weights & Biases (offline unless asked otherwise)."""

import csv
import io
import logging
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor

from ldm.errors import UserError
from ldm.files import refusals_named, sync, write_text
from ldm.redaction import hide_on_terminal, redacted
from ldm.training.offline_log import wait_for_end

log = logging.getLogger(__name__)


class CSVLog(Logger):
    """``metrics.csv`` with one row per step and name: step, name, value.

    Long form, so that names may come and go; rows after the step a run resumes from are dropped, so it never repeats.
    """

    HEADER = ("step", "name", "value")

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        self.name = "csv"
        self.version = ""
        self._kept: set[tuple[int, str]] = set()  # rows of the step resumed from, which may be logged once more

    name: str = ""
    version: str = ""

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Forget rows later than `step`; begin the file if there is none."""
        rows = read_metrics(self.path) if self.path.exists() else []
        self._kept = {(at, name) for at, name, _ in rows if at == step}
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(self.HEADER)
        writer.writerows((at, name, repr(value)) for at, name, value in rows if at <= step)
        write_text(self.path, text.getvalue())

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        rows = [(step, name, repr(float(value))) for name, value in metrics.items() if (step, name) not in self._kept]
        with refusals_named(self.path), self.path.open("a", newline="") as file:
            csv.writer(file).writerows(rows)

    @rank_zero_only
    def save(self) -> None:
        """Flush to the disk, so that no checkpoint outlives the numbers of the steps before it."""
        if self.path.exists():  # asked for at the end of every fit, also of one that failed at its start
            sync(self.path)

    @rank_zero_only
    def log_hyperparams(self, *arguments: Any, **named: Any) -> None:
        """The run's config.yaml holds them."""


def read_metrics(path: Path) -> list[tuple[int, str, float]]:
    """Rows (step, name, value) of a metrics.csv; a last line cut by a crash is left out."""
    rows = []
    with path.open(newline="", errors="replace") as file:
        for row in csv.reader(line for line in file if line.endswith("\n")):
            if len(row) == 3 and row[0].isdigit():
                try:
                    rows.append((int(row[0]), row[1], float(row[2])))
                except ValueError:
                    continue
    return rows


def curves(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Curves name -> (steps, values) of a metrics.csv."""
    result: dict[str, tuple[list[int], list[float]]] = {}
    for step, name, value in read_metrics(path):
        steps, values = result.setdefault(name, ([], []))
        steps.append(step)
        values.append(value)
    return result


class WandB(Logger):
    """A Weights & Biases run under the run's own id, whose step is the training's, so that it never goes back.

    What `told` says was logged before (the last step, and the names logged at it) is not logged again when a resumed
    run repeats steps: it would be the same numbers.
    """

    def __init__(self, settings: dict[str, Any], told: tuple[int, frozenset[str]]):
        super().__init__()
        self._settings = settings
        self._told_step, self._told_names = told
        self._run: Any = None
        self._axes: dict[str, str] = {}
        self.config: dict[str, Any] = {}  # what the client's run shows as its configuration

    name: str = "wandb"
    version: str = ""

    @property
    def experiment(self) -> Any:
        """The client's run, begun when it is first needed."""
        if self._run is None:
            self._run = _begun(**self._settings, config=self.config, allow_val_change=True)
            self._run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        return self._run

    @property
    def begun(self) -> bool:
        """Whether the client's run has been started."""
        return self._run is not None

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        if step > self._told_step:
            new = metrics
        else:
            new = {n: v for n, v in metrics.items() if step == self._told_step and n not in self._told_names}
        if new:
            self.experiment.log({**new, "trainer/global_step": step}, step=step)

    @rank_zero_only
    def log_hyperparams(self, *arguments: Any, **named: Any) -> None:
        """The run's config.yaml holds them."""

    @rank_zero_only
    def drawn_over(self, axis: str, names: Iterable[str]) -> None:
        """Let the curves of these names be drawn over what is logged as `axis`, unless they are already."""
        for name in names:
            if self._axes.get(name) != axis:
                self._axes[name] = axis
                self.experiment.define_metric(name, step_metric=axis)

    @rank_zero_only
    def summarise(self, values: dict[str, float]) -> None:
        """Set values of the run's summary."""
        self.experiment.summary.update(values)

    def forget(self) -> None:
        """Discard what was logged before: it is of another run, which is about to be deleted."""
        self._told_step, self._told_names = -1, frozenset()

    def finish(self) -> None:
        """Send what is pending and end the client's run."""
        if self._run is not None:
            _end(self._run)
            self._run = None


def _client() -> Any:
    """The W&B client. Raises ValueError where it cannot be imported."""
    try:
        import wandb as client
    except ImportError as error:
        raise UserError(f"logger: W&B cannot be imported ({error}); pip install wandb, or logger=null") from error
    return client


def _begun(**settings: Any) -> Any:
    """The client's run. It stores the command line, git's remote and what is printed: none has passwords in it."""
    client = _client()
    own, sys.argv = sys.argv, redacted(sys.argv)
    try:
        run = client.init(**settings, settings=client.Settings(**_checkout()))
    except client.Error as error:
        said = redacted(" ".join(str(error).split())[:300])
        raise UserError(
            f"logger: W&B refuses ({said}); `wandb login` or set WANDB_API_KEY, or go on with logger.mode=offline and "
            "`wandb sync` later"
        ) from error
    finally:
        sys.argv = own
    hide_on_terminal()
    return run


def _end(run: Any) -> None:
    """End the client's run; offline, not before all of it is in its file, which it can be read or sent from."""
    file = Path(run.settings.sync_file) if run.settings.mode == "offline" else None
    run.finish()
    if file and not wait_for_end(file):
        log.warning("%s: the W&B client has not written all of it yet", file)


def _checkout() -> dict[str, str]:
    """Remote and commit of the folder's git checkout for the client; nothing where there is no remote."""
    try:
        remote, commit = (
            subprocess.run(["git", *words], capture_output=True, text=True, check=True, timeout=10).stdout.strip()
            for words in (("config", "--get", "remote.origin.url"), ("rev-parse", "HEAD"))
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"git_remote_url": redacted(remote), "git_commit": commit}


def wandb(
    folder: Path,
    run_id: str,
    run_name: str,
    project: str = "ldm",
    mode: Literal["offline", "online", "disabled"] = "offline",
    group: str | None = None,
    root_run: str | None = None,
) -> WandB:
    """Weights & Biases under the run's own id, so that a resumed run continues the same curves.

    Runs are shown together by `group`, else by what the environment's WANDB_RUN_GROUP says (a sweep's name), else by
    `root_run`, the run that a tree of branches began with. `mode`: offline (files in the run's folder, sent later with
    ``wandb sync``), online or disabled.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    _client()  # report a missing client now, not at the first logged value
    settings = {
        "name": run_name, "id": run_id, "project": project, "dir": str(folder), "resume": "allow", "mode": mode,
        "group": group or os.environ.get("WANDB_RUN_GROUP") or root_run,
    }  # fmt: skip
    csv_file = folder / "metrics.csv"
    rows = read_metrics(csv_file) if csv_file.exists() else []
    last = max((step for step, *_ in rows), default=-1)
    return WandB(settings, (last, frozenset(name for step, name, _ in rows if step == last)))


def log_picture(loggers: list[Logger], name: str, path: Path, step: int, caption: str | None = None) -> None:
    """Show a PNG file under `name` in W&B, where there is one, with what is to be said of it."""
    for logger in loggers:
        if isinstance(logger, WandB):
            import wandb as client

            logger.log_metrics({name: client.Image(str(path), caption=caption)}, step)


def log_histogram(loggers: list[Logger], name: str, values: Tensor, step: int, num_bins: int = 64) -> None:
    """Show in W&B, where there is one, in `num_bins` <= 512 the histogram of the finite `values`, of any shape."""
    finite = values.detach().double().flatten()
    finite = finite[finite.isfinite()].cpu()
    for logger in loggers:
        if isinstance(logger, WandB) and len(finite):
            import wandb as client

            histogram = client.Histogram(np_histogram=np.histogram(finite.numpy(), bins=num_bins))
            logger.log_metrics({name: histogram}, step)


def summarise(loggers: list[Logger], values: dict[str, float]) -> None:
    """Show values in the summary of the W&B run, where there is one, beside the last of each curve."""
    for logger in loggers:
        if isinstance(logger, WandB):
            logger.summarise(values)


def forget(loggers: list[Logger]) -> None:
    """Let W&B log everything from step zero on: the log in the folder is of a run that is to be deleted."""
    for logger in loggers:
        if isinstance(logger, WandB):
            logger.forget()


def close(loggers: list[Logger]) -> None:
    """Send what is pending and end the W&B run, so that the next run of this process is its own."""
    for logger in loggers:
        if isinstance(logger, WandB):
            logger.finish()


def log_summary(
    folder: Path,
    name: str,
    project: str,
    mode: str,
    metrics: dict[str, float],
    tables: dict[str, list[dict[str, float]]],
    pictures: dict[str, Path],
) -> None:
    """A W&B run of its own for what is measured after training: single values, tables of points, pictures."""
    import wandb as client

    os.environ.setdefault("WANDB_SILENT", "true")
    run = _begun(project=project, name=name, id=name, dir=str(folder), mode=mode, resume="allow")
    for table, rows in tables.items():
        for row in rows:
            run.log({f"{table}/{column}": value for column, value in row.items()})
        columns = list(rows[0])
        run.log({f"{table}/points": client.Table(columns, [[row[column] for column in columns] for row in rows])})
    run.log({**metrics, **{f"pictures/{title}": client.Image(str(path)) for title, path in pictures.items()}})
    _end(run)
