"""What every entry point says: its help, and one line for a user's mistake."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from ldm.config.help import answered
from ldm.data.errors import told
from ldm.errors import UserError
from ldm.installed import spoken
from ldm.redaction import hide_on_terminal


def helped(config_name: str, about: str, arguments: list[str]) -> bool:
    """Print what --help or --cfg ask for (see `answered`); returns whether one of them was given."""
    text = answered(config_name, about, arguments)
    if text is None:
        return False
    try:
        print(text, flush=True)
    except BrokenPipeError:  # of `--help | head`, which has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def shown(path: Path | None) -> int:
    """Say where to look for what a command has made; the exit status, 3 for None: a training was stopped and saved."""
    if path is None:
        return 3
    print(f"look at {path}")
    return 0


def guarded(main: Callable[[list[str]], int], leave: Callable[[int], NoReturn] = sys.exit) -> None:
    """Run an entry point; a user's mistake is one line on stderr and exit status 2, without a traceback.

    `leave` ends the process with the status.

    Other ValueErrors, such as torch's, are mistakes of the code, and are shown with the place that they come from.
    """
    hide_on_terminal()
    try:
        status = main(sys.argv[1:])
    except (UserError, OSError) as error:
        if os.environ.get("LDM_TRACEBACK"):
            raise
        print(f"error: {spoken(told(error))} (LDM_TRACEBACK=1 shows where)", file=sys.stderr)
        status = 2
    leave(status)
