"""What the W&B client wrote of a run offline, read back: curves, tables, pictures, summary. It asks no server.

A ``.wandb`` file is a LevelDB log (blocks of 32 KiB, chunks of checksum, length and kind) of the client's own records.
"""

import json
import struct
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldm.errors import UserError

HEADER, BLOCK, CHUNK = 7, 32768, 7  # bytes: of the file, of a block, of a chunk's own header
WHOLE, LAST = 1, 4  # kinds of chunks that end a record

Row = dict[str, Any]


@dataclass
class OfflineLog:
    """All parts of one run in their order, one for each time it was started."""

    run_id: str = ""
    name: str = ""
    group: str = ""
    rows: list[Row] = field(default_factory=list)  # what was logged, name -> value, one a step
    summary: Row = field(default_factory=dict)
    axes: dict[str, str] = field(default_factory=dict)  # name or pattern -> what it is drawn over
    charts: dict[str, Any] = field(default_factory=dict)  # of tables: name -> what the client tells the page
    folders: list[Path] = field(default_factory=list)  # of media, one for each part

    def curve(self, name: str, over: str = "_step") -> tuple[list[float], list[float]]:
        """(x, y) of the rows that have both."""
        pairs = [(row[over], row[name]) for row in self.rows if over in row and isinstance(row.get(name), int | float)]
        return [x for x, _ in pairs], [y for _, y in pairs]

    @property
    def names(self) -> list[str]:
        """Of the curves, in the order in which they began."""
        found = dict.fromkeys(name for row in self.rows for name, v in row.items() if isinstance(v, int | float))
        media = {name.rpartition(".")[0] for row in self.rows for name in row if name.endswith("._type")}
        return [name for name in found if not name.startswith("_") and name.rpartition(".")[0] not in media]

    def media(self, name: str) -> list[tuple[int, Path]]:
        """(step, file) of the pictures or tables of a name."""
        return [
            (row["_step"], file)
            for row in self.rows
            if (path := row.get(f"{name}.path"))
            for file in [next((folder / path for folder in self.folders if (folder / path).exists()), None)]
            if file is not None
        ]

    def table(self, name: str) -> tuple[list[str], list[list[Any]]]:
        """Columns and rows of the last table of a name. Raises UserError if there is none."""
        found = self.media(name)
        if not found:
            raise UserError(f"{self.name}: no table {name!r} was logged")
        content = json.loads(found[-1][1].read_text())
        return content["columns"], content["data"]


def read_offline(folder: Path) -> OfflineLog:
    """What lies in ``wandb/`` of a run's folder. Raises UserError if there is nothing, or not a log."""
    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    if not files:
        raise UserError(f"{folder}: the W&B client has written nothing offline there (logger.mode=offline)")
    log = OfflineLog()
    for file in files:
        log.folders.append(file.parent / "files")
        for record in records(file):
            _take(log, record)
    return log


def _take(log: OfflineLog, record: Any) -> None:
    kind = record.WhichOneof("record_type")
    if kind == "run":
        log.run_id, log.name, log.group = record.run.run_id, record.run.display_name, record.run.run_group
    if kind == "history":
        log.rows.append(_named(record.history.item))
    if kind == "summary":
        log.summary |= _named(record.summary.update)
    if kind == "metric" and record.metric.step_metric:
        log.axes[record.metric.name or record.metric.glob_name] = record.metric.step_metric
    if kind == "config":
        for item in record.config.update:
            if list(item.nested_key[:2]) == ["_wandb", "visualize"]:
                log.charts[item.nested_key[2]] = json.loads(item.value_json)


def _named(items: Any) -> Row:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def records(file: Path) -> Iterator[Any]:
    """The client's records in a ``.wandb`` file; what a crash has cut off at its end is left out."""
    from wandb.proto.wandb_internal_pb2 import Record

    return (Record.FromString(content) for content in _contents(file))


def wait_for_end(file: Path, seconds: float = 30.0) -> bool:
    """Wait until the last record of a ``.wandb`` file says that the run ended; False if none did within `seconds`.

    The client writes on in a process of its own after its `finish` has returned.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    until = time.monotonic() + seconds
    while not (whole := _last_is_exit(file, Record)) and time.monotonic() < until:
        time.sleep(0.02)
    return whole


def _last_is_exit(file: Path, record: Any) -> bool:
    if not file.exists() or file.stat().st_size < HEADER:
        return False
    last = deque(_contents(file), maxlen=1)
    return bool(last) and record.FromString(last[0]).WhichOneof("record_type") == "exit"


def _contents(file: Path) -> Iterator[bytes]:
    """The records as they are stored."""
    content = file.read_bytes()
    if content[:4] != b":W&B":
        raise UserError(f"{file}: not a log of the W&B client")
    place, record = HEADER, b""
    while place + CHUNK <= len(content):
        left = BLOCK - place % BLOCK
        if left < CHUNK:  # too short for a header: padding
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + CHUNK])
        place += CHUNK + length
        if place > len(content):
            return  # the chunk itself is cut
        record += content[place - length : place]
        if kind in (WHOLE, LAST):
            yield record
            record = b""
