"""Which launcher a command line asks for."""

from ldm.config import compose, instantiate
from ldm.config.keys import bare
from ldm.launching import Launcher

GROUP = "launcher"


def take_launcher(words: list[str]) -> tuple[Launcher, list[str]]:
    """The launcher of ``launcher=`` and ``launcher.KEY=``, by default one job after the other; and the other words."""
    own = [word for word in words if is_of_launcher(word)]
    launch = instantiate(compose("launch", own)[GROUP], {}, GROUP)
    return launch, [word for word in words if word not in own]


def is_of_launcher(word: str) -> bool:
    """Whether a word of a command line is meant for the launcher."""
    return bare(word).split(".")[0] == GROUP
