"""Files of answers, as the page of a study saves them; they come from elsewhere, and are read as such."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.errors import UserError
from ldm.files import read_json
from ldm.study.names import KEY

SIDES = ("left", "right")
MAX_NAME = 200  # letters of a rater's name
MAX_SECONDS = 1e7  # for one pair


@dataclass(frozen=True)
class Answer:
    """What a rater chose of the pair `pair` of the key."""

    rater: str
    pair: Mapping[str, Any]
    side: str
    seconds: float | None

    @property
    def chosen(self) -> str:
        """The model, or real, whose picture was chosen."""
        return self.pair[self.side]["model"]

    @property
    def other(self) -> str:
        """The other one."""
        return self.pair[SIDES[1 - SIDES.index(self.side)]]["model"]


def read_key(folder: Path) -> dict[str, Any]:
    """The truth of a study. Raises UserError if there is none."""
    if not (folder / KEY).is_file():
        raise UserError(f"study={folder}: no {KEY} in it, which scripts/study_export.py wrote beside the page")
    key = read_json(folder / KEY)
    if not isinstance(key.get("pairs"), list) or not isinstance(key.get("study"), str):
        raise UserError(f"{folder / KEY}: not the key of a study")
    return key


def answer_files(given: str | Sequence[str]) -> list[Path]:
    """The files that answers= names; of a folder, all its .json files. Raises UserError, or FileNotFoundError."""
    found: list[Path] = []
    for text in [given] if isinstance(given, str) else given:
        path = Path(text).expanduser()
        if path.is_dir():
            inside = sorted(path.glob("*.json"))
            if not inside:
                raise UserError(f"answers={path}: no .json file in it")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise FileNotFoundError(f"answers={path}: no such file")
    if not found:
        raise UserError("answers=[]: at least one file of answers")
    return found


def read_answers(files: Sequence[Path], key: Mapping[str, Any]) -> list[Answer]:
    """All answers of all files. Raises UserError naming the first file that is not one of this study's, or damaged."""
    pairs = {pair["id"]: pair for pair in key["pairs"]}
    raters: dict[str, Path] = {}
    found: list[Answer] = []
    for file in files:
        content = read_json(file)
        if content.get("study") != key["study"]:
            raise UserError(
                f"{file}: answers to study {str(content.get('study'))[:40]!r}, and this is {key['study']!r}"
            )
        rater = content.get("rater")
        if not isinstance(rater, str) or not rater.strip() or len(rater) > MAX_NAME:
            raise UserError(f"{file}: 'rater' is not a name of at most {MAX_NAME} letters")
        if rater in raters:
            raise UserError(f"{file}: {rater[:40]!r} has answered in {raters[rater]} too; leave one of them out")
        raters[rater] = file
        found += _of_file(file, rater, content.get("answers"), pairs)
    return found


def _of_file(file: Path, rater: str, rows: Any, pairs: Mapping[str, Mapping[str, Any]]) -> list[Answer]:
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{file}: no answers in it")
    seen: set[str] = set()
    found = []
    for place, row in enumerate(rows, 1):
        name = row.get("id") if isinstance(row, dict) else None
        if not isinstance(name, str) or name not in pairs:
            raise UserError(f"{file}: answer {place} is to {str(name)[:40]!r}, which is no pair of this study")
        if name in seen:
            raise UserError(f"{file}: pair {name!r} is answered twice")
        seen.add(name)
        side, seconds = row.get("choice"), row.get("seconds")
        if side not in SIDES:
            raise UserError(f"{file}: pair {name!r} has the choice {str(side)[:40]!r}; it is left or right")
        timed = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        if seconds is not None and not (timed and 0 <= seconds <= MAX_SECONDS):
            raise UserError(f"{file}: pair {name!r} took {str(seconds)[:40]!r} seconds")
        found.append(Answer(rater, pairs[name], side, seconds))
    return found
