"""The outcome of one goal of chaos.py."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Self


@dataclass
class Outcome:
    """How many trials were made and held; `failures` say what did not, `facts` are further figures to print.

    Trials that this machine does not allow are `skipped`, and not tried. `watch` is called after each trial.
    """

    watch: ClassVar[Callable[[Self], None]] = lambda outcome: None

    tried: int = 0
    skipped: int = 0
    failures: list[str] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)

    @property
    def held(self) -> int:
        return self.tried - len(self.failures)

    def skip(self, reason: str) -> None:
        """Leave one trial out; each reason is a fact."""
        self.skipped += 1
        if f"SKIPPED: {reason}" not in self.facts:
            self.facts.append(f"SKIPPED: {reason}")

    def note(self, trial: str, problems: Sequence[str]) -> None:
        """Count one trial and, if there were any, its problems."""
        self.tried += 1
        if problems:
            self.failures.append(f"{trial}: {'; '.join(problems)}")
        self.watch()
