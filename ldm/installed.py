"""Where this code lies: in a checkout, or installed from a wheel.

A checkout's conf/, data/, scripts/, train.py and sample.py stand at its top, and as links in ldm/; a wheel has them in
ldm/ alone. So ``ldm.data``, ``ldm.train`` and ``ldm/conf`` are the same names for the same things in both.
"""

import os
import re
import runpy
import sys
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
CONF = (PACKAGE / "conf").resolve()
DISTRIBUTION = "ldm-trainer"  # `ldm` is another project on the package index
IN_CHECKOUT = (PACKAGE / "train.py").is_symlink()
COMMAND = re.compile(r"(torchrun (?:--\S+ )*)?(?:python )?(?<![\w/.])(?:scripts/)?(\w+)\.py\b")


def run() -> None:
    """A console command: ldm-train is ``python train.py``, ldm-make-shards ``python scripts/make_shards.py``."""
    name = Path(sys.argv[0]).stem.removeprefix("ldm-").replace("-", "_")
    runpy.run_module(_module(name), run_name="__main__")


def train_command() -> tuple[list[str], dict[str, str]]:
    """The command that starts train.py in a process of its own, and the process's environment."""
    if IN_CHECKOUT:
        return [sys.executable, str((PACKAGE / "train.py").resolve())], dict(os.environ)
    return [sys.executable, "-m", "ldm.train"], {**os.environ, "PYTHONSAFEPATH": "1"}  # not the ldm/ of a user's folder


def script_command(name: str) -> list[str]:
    """The command that starts a file of scripts/ in a process of its own, in the environment of `train_command`."""
    if IN_CHECKOUT:
        return [sys.executable, str((PACKAGE / "scripts").resolve() / f"{name}.py")]
    return [sys.executable, "-m", _module(name)]


def version() -> str:
    """Of the installed distribution, such as ``ldm-trainer 0.1.0``."""
    try:
        return f"{DISTRIBUTION} {version_of(DISTRIBUTION)}"
    except PackageNotFoundError:  # unpacked by hand
        return "unknown"


def spoken(text: str) -> str:
    """A text with its commands renamed for this installation: a wheel has ldm-train and no train.py."""
    return text if IN_CHECKOUT else COMMAND.sub(_called, text)


def _called(found: re.Match) -> str:
    launcher, name = found.groups()
    if not (PACKAGE / f"{_module(name).removeprefix('ldm.').replace('.', '/')}.py").exists():
        return found[0]
    return f"{launcher}-m {_module(name)}" if launcher else f"ldm-{name.replace('_', '-')}"


def _module(name: str) -> str:
    return f"ldm.{name}" if name in ("train", "sample") else f"ldm.scripts.{name}"
