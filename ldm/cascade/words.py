"""``NAME.KEY=VALUE`` of scripts/cascade.py: how the stage called NAME is sampled, by keys of sample.py."""

from collections.abc import Sequence
from typing import Any

from ldm.cascade.recipe import KEYS
from ldm.config import compose
from ldm.config.keys import bare
from ldm.config.registry import root
from ldm.errors import UserError
from ldm.request import asked_guidance

OF_STAGE = (*KEYS, "num_steps", "first_stage")


def asked_of(names: Sequence[str], words: Sequence[str]) -> dict[str, dict[str, Any]]:
    """{name of a stage: what its words ask for, by the keys of conf/sample.yaml}.

    Raises ValueError for a word of no stage, and for one that says nothing of how it is sampled.
    """
    found: dict[str, list[str]] = {name: [] for name in names}
    for word in words:
        name = max((name for name in names if bare(word).startswith(f"{name}.")), key=len, default=None)
        if name is None:
            ours = ", ".join(root("cascade")[0])
            raise UserError(
                f"{bare(word)}: no such key; there are {ours}, and NAME.KEY of a stage, NAME being {' or '.join(names)}"
            )
        own = word.replace(f"{name}.", "", 1)
        if bare(own).partition(".")[0] not in OF_STAGE:
            raise UserError(f"{bare(word)}: is not of a stage, which has {', '.join(OF_STAGE)}")
        found[name].append(own)
    return {name: _tree(name, own) for name, own in found.items()}


def _tree(name: str, words: Sequence[str]) -> dict[str, Any]:
    try:
        tree = compose("sample", [*words, "model=_"])
    except UserError as error:
        raise UserError(f"{name}.{error}" if words else str(error)) from error
    tree = {key: tree[key] for key in OF_STAGE} | {"guidance": asked_guidance(words, tree["guidance"])}
    return tree if "batch_size" in map(bare, words) else {**tree, "batch_size": None}
