"""What an ablation trains: rows of words of train.py, and peers that diffusers' own loop trains.

A file of conf/ablation or of a user's own. It is data: nothing here builds anything.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ldm.config import check_words_of_file, load_plain, named_file, overriding
from ldm.config.keys import bare
from ldm.config.numbers import check_above_zero
from ldm.errors import UserError
from ldm.lineage import RUN_NAME

# What the ablation says to every row itself, over what a file would say.
OWN = ("seed", "first_stage", "max_steps", "data.cache", "callback_add", "task.keep_latents",
       "callback.quality.every_steps")  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One training: the `overrides` of the row `origin` (``from`` in a file), and then its own; `says` what it tells.

    `experiment` takes the place of the ablation's own, where it is another one.
    """

    name: str
    overrides: str = ""
    origin: str | None = None
    experiment: str | None = None
    says: str = ""


@dataclass(frozen=True)
class Peer:
    """A model of diffusers' text-to-image loop, with the loop's defaults: a UNet2DConditionModel of `network`'s keys.

    It has the data, the latents and the text features of the row `data_of`. `bf16` is its mixed precision.
    """

    name: str
    data_of: str
    network: Mapping[str, Any]
    lr: float = 1e-4
    batch_size: int = 16
    bf16: bool = False
    snr_gamma: float | None = None
    says: str = ""


@dataclass(frozen=True)
class Plan:
    """An ablation: `experiment` trains its rows on the latents of `autoencoder`; `overrides` are for all of them.

    `control` is the row or peer that the others are held against: one holds whose KID is at most `target` of its own.
    `hypothesis` is what was expected before the first run.
    """

    name: str
    experiment: str
    autoencoder: str
    control: str
    target: float
    hypothesis: str
    rows: list[Row]
    peers: list[Peer] = field(default_factory=list)
    overrides: str = ""

    @property
    def every(self) -> list[Row | Peer]:
        """Peers and rows, in their order."""
        return [*self.peers, *self.rows]

    @property
    def names(self) -> list[str]:
        """Of peers and rows, in their order."""
        return [each.name for each in self.every]

    def row(self, name: str) -> Row:
        """The row of that name."""
        return next(row for row in self.rows if row.name == name)

    def says(self, name: str) -> str:
        """What a row or peer is there for."""
        return next(each.says for each in self.every if each.name == name)

    def words_of(self, name: str) -> list[str]:
        """Of a row: those of the ablation, of what it comes from and its own, a later one over an earlier.

        Where a row chooses another option of a group, what was set in the former goes: schedule=edm and schedule.beta.
        """
        line = self._line(name)
        experiment = next((row.experiment for row in reversed(line) if row.experiment), self.experiment)
        found = [f"experiment={experiment}"]
        for text in (self.overrides, *(row.overrides for row in line)):
            chosen = tuple(f"{word.partition('=')[0]}." for word in text.split())
            found = [word for word in found if not word.startswith(chosen)] + text.split()
        return overriding(found)

    def _line(self, name: str) -> list[Row]:
        row = self.row(name)
        return [*(self._line(row.origin) if row.origin else []), row]


def read_plan(given: str) -> Plan:
    """The ablation of a file, or of a name in conf/ablation. Raises UserError naming file and row for what is none."""
    path = named_file("plan", given, "ablation")
    content = dict(load_plain(path, "an ablation"))
    for key, own in {"rows": Row, "peers": Peer}.items():
        listed = content.get(key, [])
        if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
            raise UserError(f"{path}: {key}: a list of mappings, such as {{name: muon, overrides: optimizer=muon}}")
        content[key] = [_made(own, each, f"{path}: {key}[{place}]") for place, each in enumerate(listed)]
    plan = _made(Plan, {"name": path.stem, **content}, str(path))
    _check(plan, path)
    return plan


# What the values of a file may be, by the type of the field that they are for.
KINDS: Mapping[Any, tuple[type, ...]] = {
    str: (str,), str | None: (str, type(None)), float: (int, float), float | None: (int, float, type(None)),
    int: (int,), bool: (bool,), Mapping[str, Any]: (dict,), list[Row]: (list,), list[Peer]: (list,),
}  # fmt: skip


def _made(kind: Any, given: dict[str, Any], place: str) -> Any:
    """The mapping as a `kind`. Raises UserError naming the `place` for keys and values that it does not take."""
    own = {"origin" if key == "from" else key: value for key, value in given.items()}
    known = {each.name: each.type for each in fields(kind)}
    for key, value in own.items():
        if key not in known:
            names = ", ".join("from" if name == "origin" else name for name in known)
            raise UserError(f"{place}: {key}: no such key; there are {names}")
        if not isinstance(value, KINDS[known[key]]) or (isinstance(value, bool) and known[key] is not bool):
            raise UserError(f"{place}: {key} is {value!r}, which it cannot be")
    needed = [name for name, each in inspect.signature(kind).parameters.items() if each.default is each.empty]
    for key in needed:
        if key not in own:
            raise UserError(f"{place}: {key}: has to be given")
    return kind(**own)


def _check(plan: Plan, path: Path) -> None:
    """Raises UserError for names that cannot be those of runs, are there twice, or are of nothing before them."""
    seen: list[str] = []
    if not plan.rows:
        raise UserError(f"{path}: rows: at least one says what is trained")
    for row in plan.rows:
        if row.origin is not None and row.origin not in seen:
            raise UserError(f"{path}: row {row.name!r}: from {row.origin!r}, which is no row before it")
        seen.append(row.name)
    for peer in plan.peers:
        if peer.data_of not in seen:
            raise UserError(f"{path}: peer {peer.name!r}: data_of {peer.data_of!r}, which is no row")
    for name in plan.names:
        if not RUN_NAME.fullmatch(name) or plan.names.count(name) > 1:
            raise UserError(f"{path}: {name!r}: names differ, and are made of letters, digits, '-', '_' and '.'")
    places = {f"{path}: overrides": plan.overrides, **{f"{path}: row {row.name!r}": row.overrides for row in plan.rows}}
    for place, text in places.items():
        check_words_of_file(text, place)
        for word in text.split():
            if bare(word) in OWN:
                raise UserError(
                    f"{place}: {bare(word)}= is the same for all rows, and not a file's to say; leave it out"
                )
    for peer in plan.peers:
        given = {key: value for key in ("lr", "batch_size", "snr_gamma") if (value := getattr(peer, key)) is not None}
        try:
            check_above_zero(given, *given)
        except UserError as error:
            raise UserError(f"{path}: peer {peer.name!r}: {error}") from None
    if plan.control not in plan.names:
        raise UserError(f"{path}: control: {plan.control!r} is neither a row nor a peer")
    if not 0 < plan.target <= 1:
        raise UserError(f"{path}: target={plan.target}: a share of the control's KID, above 0 and at most 1")
