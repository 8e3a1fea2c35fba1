"""What every entry point says: its help, and one line for a user's mistake."""

import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from ldm.config.plugins import CONF, search_path
from ldm.config.registry import groups
from ldm.data.errors import told
from ldm.errors import UserError
from ldm.installed import spoken
from ldm.redaction import hide_on_terminal


def help_text(config_name: str, usage: str, examples: str) -> str:
    """What --help prints: usage, examples, the root's shared facts, the groups and their options."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        root: Any = OmegaConf.to_container(hydra_compose(config_name, search_path()))
    defaults = yaml.safe_load((CONF / f"{config_name}.yaml").read_text())["defaults"]
    named = {key for entry in defaults if isinstance(entry, dict) for key in entry}
    facts = [f"  {key}={value}" for key, value in root.items() if not isinstance(value, dict) and key not in named]
    used = {key: options for key, options in groups().items() if key in named}
    table = [f"  {group + '=':<16}{', '.join(options)}" for group, options in used.items()]
    return spoken("\n".join([f"usage: {usage}", "", examples, "", "keys", *facts, "", "groups", *table]))


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
