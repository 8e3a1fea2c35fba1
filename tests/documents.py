"""README, CONTRIBUTING and the pages of docs/, taken apart: fenced blocks, the commands in them, links, headings.

A comment before a block, which a reader does not see, says what else is to be known of it:

    <!-- parsed only: REASON -->   its commands are not run, but their keys are checked; REASONS has the reasons
    <!-- not run: REASON -->       programs of others
    <!-- file: NAME -->            the block is this file, for the commands that follow
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELL = ("sh", "bash", "shell", "console", "")  # of blocks; one without a language counts if it begins with a command
# What a command is not run for: it begins with one of these.
REASONS = (
    "a cluster",
    "hours",
    "installs",
    "minutes",
    "published weights",
    "several GPUs",
    "several machines",
    "the network",
)
OWN = re.compile(r"(?:\S*/)??((?:scripts/(?:dev/)?)?[a-z_]+)\.py$")
FENCE = re.compile(r"^\s*```(\w*)\s*$")
MARK = re.compile(r"^<!-- (parsed only|not run|file): (.+) -->$")


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, the line it begins at, and what the comment before it says."""

    page: Path
    line: int
    language: str
    text: str
    mark: str = ""  # parsed only, not run, file
    note: str = ""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Command:
    """One command of ours: ``python scripts/convert.py export ...`` is script convert, words export, ..."""

    block: Block
    text: str
    script: str  # train, sample, scripts/evaluate, make, ...
    words: tuple[str, ...]

    @property
    def runs(self) -> bool:
        """Whether it is run at toy length."""
        return not self.block.mark

    def __str__(self) -> str:
        return f"{self.block}: {self.text}"


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    found, lines, last, begun = [], page.read_text().splitlines(), "", None
    for number, line in enumerate(lines):
        fence = FENCE.match(line)
        if begun is not None and fence:
            mark = MARK.match(last)
            said = (mark[1], mark[2]) if mark else ("", "")
            language = FENCE.match(lines[begun])[1]
            found.append(Block(page, begun + 1, language, "\n".join(lines[begun + 1 : number]) + "\n", *said))
            begun, last = None, ""
        elif fence:
            begun = number
        elif begun is None and line.strip():
            last = line.strip()
    assert begun is None, f"{page}: a block that does not end"
    return found


def prose(page: Path) -> str:
    """A page without its blocks."""
    kept, inside = [], False
    for line in page.read_text().splitlines():
        if FENCE.match(line):
            inside = not inside
        elif not inside:
            kept.append(line)
    return "\n".join(kept)


def commands(block: Block) -> list[Command]:
    """The commands of a block. AssertionError for a line that is none of ours in a block that does not say why."""
    if block.language not in SHELL or block.mark in ("not run", "file"):
        return []
    found = []
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # variables of the environment
            words = words[1:]
        own = ours(words)
        if own is None and words and not block.language:
            return []  # a drawing, a listing
        if own is None and words and not block.text.startswith("#!"):
            raise AssertionError(
                f"{block}: {words[0]} is no command of ours; <!-- not run: REASON --> before the block"
            )
        if own:
            found.append(Command(block, " ".join(words), *own))
    return found


def ours(words: list[str]) -> tuple[str, tuple[str, ...]] | None:
    """(script, words after it) of a command, however it is launched; None for a program of others."""
    if not words or (words[0] not in ("python", "torchrun", "srun", "make") and not words[0].startswith("ldm-")):
        return None
    if words[0] == "make":
        return "make", tuple(words[1:])
    if words[0].startswith("ldm-"):
        name = words[0].removeprefix("ldm-").replace("-", "_")
        return name if name in ("train", "sample") else f"scripts/{name}", tuple(words[1:])
    for place, word in enumerate(words):
        script = OWN.match(word)
        if script:
            return script[1], tuple(words[place + 1 :])
    return None


def slug(heading: str) -> str:
    """The anchor that a heading gets."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    return {slug(line.lstrip("#")) for line in prose(page).splitlines() if re.match(r"#{1,6} ", line)}


def links(page: Path) -> list[str]:
    """Where the links and pictures of a page lead."""
    return re.findall(r"!?\[[^\]]*\]\(([^)\s]+)\)", prose(page))
