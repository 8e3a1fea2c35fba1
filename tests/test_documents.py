"""README and docs/: links lead somewhere, messages are those of the code, and, slow, every command runs."""

import ast
import re
import sys
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import pytest
from documents import PAGES, REASONS, ROOT, anchors, blocks, commands, links, prose
from toy_commands import Workshop, check, documented, makes
from toys import EXPERIMENTS

from ldm.config import use_plugins

IDS = [str(page.relative_to(ROOT)) for page in PAGES]
PARTS = ("ldm", "data", "conf", "tests", "scripts", "docs")


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_pictures_anchors_and_files_are_there(page: Path):
    for target in links(page):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists() and path.is_relative_to(ROOT), f"{target}: not there"
        assert not anchor or anchor in anchors(path), f"{target}: {name or 'this page'} has no such heading"
    for name in re.findall(rf"`((?:{'|'.join(PARTS)})/[\w./-]+)`", prose(page)):
        assert is_there(name), f"`{name}`: not there"


def is_there(name: str) -> bool:
    """Whether `name` is a file, a folder or an experiment; NAME in it stands for anything."""
    pattern = name.replace("NAME", "*")
    return any(ROOT.glob(pattern)) or any(fnmatch(experiment, pattern) for experiment in EXPERIMENTS)


def test_every_picture_is_shown_and_every_page_is_found_from_the_readme():
    shown = {(page.parent / target.partition("#")[0]).resolve() for page in PAGES for target in links(page)}
    assert set((ROOT / "docs" / "images").iterdir()) <= shown
    assert set(PAGES) - {ROOT / "README.md"} <= shown


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150 and max(map(len, lines)) <= 100


def test_files_that_the_tree_names_are_there():
    names = {path.name for part in PARTS for path in ROOT.glob(f"{part}/**/*.py")} | {"train.py", "sample.py"}
    trees = [b.text for b in blocks(ROOT / "docs" / "architecture.md") if b.language == "text"]
    said = {Path(name).name for text in trees for name in re.findall(r"[\w/]+\.py", text)}
    assert len(said) > 80 and said <= names, said - names


@cache
def strings() -> str:
    """All text that is in the code, one line for each piece between what is put into it."""
    files = [path for part in ("ldm", "data", "scripts") for path in ROOT.glob(f"{part}/**/*.py")]
    nodes = (node for path in files for node in ast.walk(ast.parse(path.read_text())))
    return "\n".join(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))


def messages() -> list[str]:
    rows = (ROOT / "docs" / "troubleshooting.md").read_text().splitlines()
    return [row.split("`")[1] for row in rows if row.startswith("| `")]


@pytest.mark.parametrize("message", messages())
def test_messages_are_those_of_the_code(message: str):
    for piece in message.split("…"):
        assert piece.strip() in strings() or re.sub(r"\d+$", "", piece).strip() in strings(), piece


# Commands


def test_what_is_only_parsed_says_why_and_is_the_smaller_part():
    found = documented(PAGES)
    for command in found:
        assert not command.block.mark or command.block.note.startswith(REASONS), (
            f"{command.block}: {command.block.note}"
        )
    run = [command for command in found if command.runs]
    assert len(run) > 50 and len(found) - len(run) <= len(found) / 3


@pytest.mark.parametrize("command", [c for c in documented(PAGES) if not c.runs or c.script == "make"], ids=str)
def test_what_is_only_parsed_has_keys_that_there_are(command):
    check(command)


def test_a_run_has_one_name_on_all_pages():
    """Two commands that give a run of theirs one name are refused by the second, for readers as in the tests."""
    trained = [command for command in documented(PAGES) if command.runs and command.script == "train"]
    makers: dict[str, set[str]] = {}
    for command in trained:
        for made in makes(command):
            makers.setdefault(made, set()).add(
                " ".join(w for w in command.words if w.startswith(("experiment=", "branch=")))
            )
    assert {made: found for made, found in makers.items() if len(found) > 1} == {}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """One set of toy runs for the commands of all pages."""
    return Workshop(tmp_path_factory.mktemp("workshop"), documented(PAGES))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Frechet distance from")
@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_the_commands_of(page: Path, workshop: Workshop, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(workshop.folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    names: dict = {}
    try:
        for block in blocks(page):  # first: what a package holds is looked up once in a process
            if block.mark == "file":
                workshop.write(block)
        for block in blocks(page):
            if block.language == "python" and not block.mark:
                workshop.execute(block, names)
            for command in commands(block):
                if command.runs and command.script != "make":
                    workshop.run(command)
    finally:
        use_plugins([])
