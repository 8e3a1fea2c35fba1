"""Files that come from outside, spoilt in any way: what reads them ends in one line, soon, and in little memory.

A trial is drawn from the seed and its number alone, so that the one that failed comes again with the same seed.
"""

import os
import random
import shutil
from pathlib import Path
from unittest.mock import patch

from chaoses import file_kinds, http_answers, making_files, model_files, other_files, shard_files
from chaoses.isolation import CPU_SECONDS, GROWTH_MIB, Isolated
from chaoses.outcome import Outcome
from ldm.data.errors import told
from ldm.errors import UserError

GOAL = f"spoilt files of every kind: one line, {CPU_SECONDS} s and {GROWTH_MIB} MiB at most, no code, no wrong pair"
RUNS = 10_000
CANARY = "CANARY"
FAMILIES = (shard_files, http_answers, making_files, model_files, other_files)


def run(runs: int, rng: random.Random, folder: Path) -> Outcome:
    """The kinds in turn, each trial in the process that has read those before it."""
    outcome, seed = Outcome(), rng.random()
    kinds = {name: kind for family in FAMILIES for name, kind in family.KINDS.items()}
    names = list(kinds)
    ended: dict[str, int] = {}

    with patch.dict(os.environ, {"LDM_CACHE": str(folder / "cache")}):
        file_kinds.begin(folder / "once")
        for make in (make for family in FAMILIES for make in family.MADE_ONCE):
            make()  # before the process that uses it is forked

    def trial(number: int) -> list[str]:
        os.environ["LDM_CACHE"] = str(folder / "cache")
        return _trial(kinds[names[number % len(names)]], random.Random(f"{seed}/{number}"), folder / "trial")

    with Isolated(trial) as isolated:
        for number in range(runs):
            name = names[number % len(names)]
            problems = isolated(number)
            ended[name] = ended.get(name, 0) + 1
            outcome.note(f"{name}, trial {number}", problems)
    outcome.facts.append(f"{len(names)} kinds, {min(ended.values())} to {max(ended.values())} trials each")
    return outcome


def _trial(kind: file_kinds.Kind, rng: random.Random, folder: Path) -> list[str]:
    """What is wrong with how one corrupted file was read."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.chdir(folder)  # where a canary would be left
    how = rng.choice(kind.mutations)
    content = how(kind.whole(rng), rng)
    try:
        problems = kind.read(folder, content, how)
    except (UserError, OSError) as error:
        problems = _unclear(told(error))
    except Exception as error:
        problems = [f"{type(error).__name__}: {str(error)[:200]}"]
    if Path(CANARY).exists():
        problems.append("code ran")
    return [f"{how.__name__}: {problem}" for problem in problems]


def _unclear(message: str) -> list[str]:
    """What is wrong with the error line that a user gets."""
    if not message.strip():
        return ["an error without a word"]
    if not all(c.isprintable() or c == "\n" for c in message):
        return [f"control characters in {message[:300]!r}"]
    return [f"a memory address in {message[:300]!r}"] if " at 0x" in message else []
