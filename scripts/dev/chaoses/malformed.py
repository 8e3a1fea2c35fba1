"""Overrides made wrong from valid ones: each is one line that names the key and the way out, and none is accepted."""

import math
import random
from pathlib import Path
from typing import Any

from chaoses.outcome import Outcome
from ldm.config import compose, groups, is_literal
from ldm.errors import UserError

GOAL = "malformed overrides: the key and a hint in one line, no wrong type accepted"
RUNS = 5000
EXPERIMENTS = ("quickstart/autoencoder", "quickstart/diffusion", "quickstart/expert", "ldm/cin256_v2", "ldm/sd_v1")
HINTS = (
    "expected", "did you mean", "no such", "there are", "must", "write", "cannot", "one of", "takes", "needs",
    "has to be given", "not allowed", "choose", "several values",
)  # fmt: skip
ALPHABET = "abcdefghijklmnopqrstuvwxyz_"


def run(runs: int, rng: random.Random, folder: Path) -> Outcome:
    """Kinds of mistakes in turn, on keys of whole experiments."""
    outcome, counts = Outcome(), dict.fromkeys(MISTAKES, 0)
    leaves = {name: list(_leaves(compose("config", [f"experiment={name}"], complete=False))) for name in EXPERIMENTS}
    kinds = list(MISTAKES)
    while outcome.tried < runs:
        kind, experiment = kinds[outcome.tried % len(kinds)], rng.choice(EXPERIMENTS)
        key, value = rng.choice(leaves[experiment])
        word = MISTAKES[kind](key, value, rng)
        if word is None:  # this kind of mistake does not apply to this key
            continue
        counts[kind] += 1
        outcome.note(f"{kind} {word!r} of {experiment}", _problems(experiment, key, word))
    outcome.facts.append(", ".join(f"{count} {kind}" for kind, count in counts.items()))
    return outcome


def _problems(experiment: str, key: str, word: str) -> list[str]:
    before = [] if word.startswith("experiment=") else [f"experiment={experiment}"]  # which may be given once
    try:
        tree = compose("config", [*before, word], complete=False)
    except UserError as error:
        message = str(error)
    except Exception as error:
        return [f"{type(error).__name__}: {error}"]
    else:
        node: Any = tree
        for part in key.split("."):
            node = node.get(part) if isinstance(node, dict) else None
        return [f"accepted, as {node!r}"]
    named = word.lstrip("+~").partition("=")[0] or word
    problems = [] if named in message or word[:80] in message else [f"the key is not named: {message}"]
    if not any(hint in message for hint in HINTS):
        problems.append(f"no hint: {message}")
    if "\n" in message:
        problems.append(f"not one line: {message!r}")
    return problems


def _leaves(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted key, value) of everything that is not a part itself."""
    found = []
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            found += _leaves(value, f"{prefix}{key}.")
        elif not key.startswith("_") and f"{prefix}{key}" not in groups() and value != {}:
            found.append((f"{prefix}{key}", value))
    return found


def wrong_type(key: str, value: Any, rng: random.Random) -> str | None:
    """A value that is no number, no truth value, no text, no list."""
    wrong = {
        bool: ["3", "maybe", "[true]", "{a:1}", "1.5"],
        int: ["abc", "1.5", "true", "[1,2]", "{a:1}", "'3'", "1e3", "0x10"],
        float: ["abc", "true", "['x']", "{a:1}", "'0.5'", "1..5"],
        list: ["{a:1}", "true"],
    }
    return f"{key}={rng.choice(wrong[type(value)])}" if type(value) in wrong else None


def misspelt(key: str, value: Any, rng: random.Random) -> str:
    """A letter too many, too few, another one, or two exchanged, anywhere in the key."""
    place = rng.randrange(len(key))
    letter = rng.choice(ALPHABET)
    before, at, after = key[:place], key[place], key[place + 1 :]
    changed = rng.choice((before + letter + at + after, before + after, before + letter + after,
                          before + after[:1] + at + after[1:]))  # fmt: skip
    return f"{changed if changed != key and changed else key + 'x'}={_text(value)}"


def out_of_range(key: str, value: Any, rng: random.Random) -> str | None:
    """Not a number, infinite, negative where nothing can be negative, more than certain."""
    if isinstance(value, float) and not math.isinf(value):
        return f"{key}={rng.choice(('nan', '.nan'))}"
    if key.endswith(("_prob", "_fraction")):
        return f"{key}={rng.choice((-0.1, 1.5))}"
    if isinstance(value, int) and not isinstance(value, bool) and value > 0 and not key.startswith("trainer."):
        return f"{key}={rng.choice((-1, -7))}"
    return None


def broken_syntax(key: str, value: Any, rng: random.Random) -> str | None:
    """What Hydra's grammar cannot read; after some keys any text is literal."""
    if is_literal(key):
        return None
    return rng.choice(
        (f"{key}", f"{key}=[1,2", f"{key}={{a:", f"={key}", f"{key}='abc", f"{key}==[", f"{key}=a,b", f"{key}:3",
         f"{key}=${{", f"{key}=[[1]", f"{key} = 3 4 [", f"--{key}=3", f"{key}=(", f"{key}.=3", f".{key}=3")
    )  # fmt: skip


def unknown_option(key: str, value: Any, rng: random.Random) -> str | None:
    """A group's option that does not exist."""
    group = rng.choice(sorted(groups()))
    option = rng.choice(groups()[group]) + rng.choice(ALPHABET)
    return None if option in groups()[group] else f"{group}={option}"


def added(key: str, value: Any, rng: random.Random) -> str:
    """A key that is new."""
    return f"+{key.rpartition('.')[0]}.{''.join(rng.choices(ALPHABET, k=6))}={_text(value)}".replace("+.", "+")


MISTAKES = {
    "wrong type": wrong_type,
    "misspelt": misspelt,
    "out of range": out_of_range,
    "broken syntax": broken_syntax,
    "unknown option": unknown_option,
    "added": added,
}


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool | int | float) else "3"
