"""How a stage of a cascade is sampled, as plain values in a manifest and as parts of a tree."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ldm.config import takes, validate
from ldm.config.plain import check_plain, part_from, plain_part
from ldm.errors import UserError
from ldm.model import CLASSIFIER_FREE, changed

GROUPS = ("sampler", "sigmas", "guidance", "tiling")
KEYS = (*GROUPS, "use_conditions", "batch_size", "low_noise")


@dataclass(frozen=True)
class StageRecipe:
    """The parts of `tree` {group: part} by which a stage is sampled, None being as its run says.

    `use_conditions`: those that it is given, None being all; `batch_size`: how many images it draws at once, None being
    all that are asked for; `low_noise`: how noisy its small pictures are made, None being as its run says.
    """

    tree: Mapping[str, Any]
    use_conditions: tuple[str, ...] | None = None
    batch_size: int | None = None
    low_noise: float | None = None

    def asked(self, tree: Mapping[str, Any]) -> dict[str, Any]:
        """`tree`, with the keys of conf/sample.yaml, with this in the place of what it does not ask for."""
        own, steps = self.tree["sigmas"], tree.get("num_steps")
        if own and not tree.get("sigmas") and steps and takes(own, "num_steps"):
            own = {**own, "num_steps": steps}
        steps = steps or (own or {}).get("num_steps")
        found = {"sampler": self.tree["sampler"], "sigmas": own, "guidance": None, "tiling": self.tree["tiling"]}
        found |= {group: tree[group] for group in GROUPS if tree.get(group)}
        return {**tree, **found, "num_steps": steps, "guidance": self._guidance(tree.get("guidance"))}

    def _guidance(self, asked: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """Keys of guidance without a class change this, or classifier-free guidance where it has no such keys."""
        own = self.tree["guidance"]
        if not asked or not own or "_target_" in asked:
            return asked or own
        return changed(own if all(takes(own, key) for key in asked) else CLASSIFIER_FREE, asked)

    def later(self, tree: Mapping[str, Any]) -> dict[str, Any]:
        """What of `tree` is for all stages, the windows of tiling and `one_call`, and for the rest this."""
        tiling, one_call = self.tree["tiling"] or tree.get("tiling"), tree.get("one_call", False)
        return {**self.tree, "tiling": tiling, "one_call": one_call}

    @property
    def plain(self) -> dict[str, Any]:
        """This as a manifest has it: each group as {option: keys}, without the names of code."""
        parts = {group: part and plain_part(group, part) for group, part in self.tree.items()}
        return {**parts, "use_conditions": self.use_conditions and list(self.use_conditions),
                "batch_size": self.batch_size, "low_noise": self.low_noise}  # fmt: skip


def read_recipe(plain: Mapping[str, Any], where: str) -> StageRecipe:
    """What an entry of a manifest says; it is data of anyone. Raises UserError, which `where` begins, for mistakes."""
    own = {key: plain.get(key) for key in KEYS}
    check_plain(own, where)
    parts = {
        group: None if own[group] is None else part_from(group, own[group], None, f"{where}: {group}")
        for group in GROUPS
    }
    use, count, level = own["use_conditions"], own["batch_size"], own["low_noise"]
    try:
        validate(parts)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    check_values(use, count, level, where)
    return StageRecipe(parts, None if use is None else tuple(use), count, level)


def check_values(use: Any, count: Any, level: Any, where: str) -> None:
    """Raises UserError, which `where` begins, for names, a size of batches and a level of noise that are none."""
    if use is not None and not (isinstance(use, list) and all(isinstance(name, str) for name in use)):
        raise UserError(f"{where}: use_conditions={str(use)[:80]}: expected a list of names, or null for all")
    if count is not None and (type(count) is not int or count < 1):
        raise UserError(f"{where}: batch_size={str(count)[:80]}: expected a number above 0, or null for all at once")
    if level is not None and not (type(level) in (int, float) and 0 <= level <= 1):
        raise UserError(f"{where}: low_noise={str(level)[:80]}: expected a number in [0, 1], or null for its run's")


def within(
    own: Collection[str] | None, asked: Collection[str] | None, known: Collection[str]
) -> tuple[str, ...] | None:
    """The conditions of a stage, of those it has, `known`, where all stages are `asked` for some; None is all."""
    if asked is None:
        return None if own is None else tuple(own)
    return tuple(name for name in asked if name in known and (own is None or name in own))
