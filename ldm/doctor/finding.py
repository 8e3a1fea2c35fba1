"""What a check found, and the table of all findings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ldm.redaction import redacted

PASS, WARN, FAIL = "pass", "warn", "FAIL"
COLOURS = {PASS: "green", WARN: "yellow", FAIL: "bold red"}


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    check: str
    status: str
    said: str


def attempt(findings: list[Finding], check: str, look: Callable[..., Any], *arguments: Any) -> Any:
    """What `look(*arguments)` returns; None if it raises, which is added as a failed check."""
    try:
        return look(*arguments)
    except (ValueError, OSError, RuntimeError) as error:
        findings.append(Finding(check, FAIL, str(error) or type(error).__name__))
        return None


def show(findings: Sequence[Finding]) -> None:
    """Print them as one table."""
    table = Table("check", "", "what was found", show_lines=False)
    for finding in findings:
        table.add_row(finding.check, Text(finding.status, COLOURS[finding.status]), Text(redacted(finding.said)))
    Console().print(table)


def size(num_bytes: float) -> str:
    """Bytes for people."""
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**28 else f"{num_bytes / 2**20:.1f} MiB"
