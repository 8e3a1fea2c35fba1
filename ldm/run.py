"""The run contract: one stable folder per run, its configuration, its lineage, resume or branch.

The same command again resumes; a changed key that would change the result is refused by name.
"""

import secrets
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldm import places
from ldm.checkpoint import identity, resume
from ldm.compatibility import check_branch
from ldm.config import completed, dump, load_tree
from ldm.config.keys import MEASURES
from ldm.data.seals import sealed
from ldm.data_places import with_saved_places
from ldm.device import mixed_precision
from ldm.errors import UserError
from ldm.files import sweep, write_json, write_text
from ldm.installed import IN_CHECKOUT, version
from ldm.lineage import (
    RUN_NAME,
    branch_point,
    branched_run,
    original,
    parent_kept,
    parent_of,
    read_lineage,
    same_first_stage,
    same_parent,
)
from ldm.loading import load as load  # where it was, for one release
from ldm.overwriting import check_overwrite, clear, is_run
from ldm.redaction import agrees, redacted
from ldm.sweep_agents import agents_id

# Keys (and everything below them) that a resumed run may change: they alter where and how fast it runs, not what.
FREE = (
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "logger",
    "callback",
    "metric",
    "alignment",
    "max_steps",
    "overwrite",
    "runs_dir",
    "data.num_workers",
    "data.timeout_seconds",
    "data.memo_samples",
    "data.max_bad_fraction",
    "data.cache_dir",
    "data.cache_dir_gb",
    "task.keep_latents",
    "task.compile",
    "task.offload_activations",
    "network.checkpoint_activations",
    "autoencoder.checkpoint_activations",
    "num_steps",
    "sampler",
    "sigmas",
    "guidance",
    "run",
    "plugins",
    "callback_add",
)
# What of these alters the weights all the same.
BOUND = ("callback.code_revival",)


@dataclass
class Run:
    """A run's folder and what is known about it. `lineage` is the content of lineage.json; `anew`: `begin` deletes what
    the folder has of a run, because that is asked for, or because it has no step yet and the command is another.
    """

    folder: Path
    tree: dict[str, Any]
    lineage: dict[str, Any] = field(default_factory=dict)
    anew: bool = False

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def finished(self) -> bool:
        """Whether the run has done the steps its tree asks for."""
        return self.lineage.get("finished_step", -1) >= self.tree["max_steps"]

    @property
    def way_on(self) -> str:
        """How a finished run can be continued, in words."""
        ends = (key for key, value in _flat(self.tree).items() if value == self.tree["max_steps"])
        key = next((key for key in ends if key.endswith(".max_steps")), None)
        if key is None:
            return "a larger max_steps goes on from there"
        return f"{key} says that it ends there; branch={self.folder} run=NAME goes on from there"

    def begin(self) -> None:
        """Make the folder and write what is to be fitted; deletes an old run. Rank zero only, holding the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.tree["overwrite"]:
            check_overwrite(self.folder, self.tree)
        sweep(self.folder)
        left = clear(self.folder) if self.anew or self.tree["overwrite"] else []
        if self.anew and not self.tree["overwrite"]:
            print(f"{self.name}: it had no step yet, and starts anew as the command is now")
        if left:
            print(f"{self.name}: left as they are, not written by a run: {', '.join(left)}")
        saved = {**self.tree, **dict.fromkeys(MEASURES & self.tree.keys()), "overwrite": False}
        config = dump(redacted(saved))
        identity.note_config(self.lineage, config)  # first: a config.yaml that the lineage lacks is an edited one
        self.record()
        write_text(self.folder / "config.yaml", config)

    def record(self, **facts: Any) -> None:
        """Add facts to the lineage, durably."""
        self.lineage.update(facts)
        content = sealed(redacted(self.lineage))
        write_json(self.folder / "lineage.json", content)
        self.lineage["seal"] = content["seal"]


def open_run(tree: dict[str, Any], name: str) -> Run:
    """The run `name` as its folder stands, or a new one; nothing is written before `begin`.

    Raises ValueError naming the first key that differs from the run in the folder in a way that changes the result, or
    what overwrite=true would delete that it must not.
    """
    if not RUN_NAME.fullmatch(name):
        raise UserError(f"run={name}: a run's name is made of letters, digits, '-', '_' and '.'")
    folder = Path(tree["runs_dir"]).expanduser() / name
    _check_place(folder)
    wandb_id = agents_id() or f"{name}-{secrets.token_hex(4)}"
    anew, own_id, saved = tree["overwrite"], identity.new_id(), None
    if anew:
        check_overwrite(folder, tree)
    else:
        own_id = resume.run_id(folder / "checkpoints") or own_id  # of a run whose lineage.json is gone
        known = read_lineage(folder, wandb_id) if (folder / "lineage.json").exists() else None
        try:
            identity.check_config(folder)
            if (folder / "config.yaml").exists():
                saved = load_tree(folder / "config.yaml")
                respelled = _respelled(tree, saved, known, folder)
                check_unchanged(saved, with_saved_places(respelled, saved, known or {}), folder)
        except ValueError:
            if not _without_a_step(folder, known):
                raise
            anew = True  # the command was corrected before the first checkpoint
        if saved is not None and known is not None and not anew:
            return Run(folder, tree, _own(known, folder, saved, tree, wandb_id))
    parent = None
    if tree["branch"]:
        checkpoint = branch_point(tree["branch"])
        check_branch(tree, _tree_of(checkpoint, tree["branch"]), tree["branch"])
        parent = parent_of(checkpoint, folder)
    facts = {"run": name, "wandb_id": wandb_id, "parent": parent, "code_version": code_version()}
    return Run(folder, tree, {"id": own_id, **facts}, anew)


def _tree_of(checkpoint: Path, branch: str) -> dict[str, Any]:
    """The tree that a checkpoint was trained with. Raises ValueError if it has no config.yaml."""
    config = checkpoint.parent.parent / "config.yaml"
    if not config.exists():
        raise UserError(f"branch={branch}: no config.yaml beside its checkpoints, so nothing tells what they are")
    return load_tree(config)


def _check_place(folder: Path) -> None:
    """Raises ValueError for a broken link, or a file where a folder should be."""
    for place in (folder, *folder.parents, folder / "checkpoints", folder / "weights"):
        if place.is_symlink() and not place.exists():
            raise UserError(f"{place}: a link that leads nowhere, to {place.readlink()} (a disk that is not mounted?)")
        if place.exists() and not place.is_dir():
            raise UserError(f"{place}: a file, where a run needs a folder; choose another run= or runs_dir=")


def _respelled(
    tree: dict[str, Any], saved: dict[str, Any], lineage: dict[str, Any] | None, folder: Path
) -> dict[str, Any]:
    """The tree with the saved paths of `first_stage` and `branch`, where today's paths name the same weights."""
    own = dict(tree)
    if lineage is not None and same_parent(tree["branch"], lineage):
        own["branch"] = saved["branch"]
    if same_first_stage(tree["first_stage"], folder):
        own["first_stage"] = saved["first_stage"]
    return own


def _without_a_step(folder: Path, lineage: dict[str, Any] | None) -> bool:
    """Whether the run in a folder has no checkpoint or weights yet, so that it can be neither resumed nor used."""
    made = ("checkpoints/step_*", "weights/step_*", "snapshots/step_*")
    return is_run(folder) and "finished_step" not in (lineage or {}) and not any(any(folder.glob(m)) for m in made)


def _own(
    lineage: dict[str, Any], folder: Path, saved: dict[str, Any], tree: dict[str, Any], wandb_id: str
) -> dict[str, Any]:
    """The lineage of the run in `folder`, which may have been renamed, or be a copy: then it is another W&B run.

    The copy keeps its steps. One without a step whose parent's checkpoint is gone, or another one by now, begins from
    what ``branch=`` is now.
    """
    copied = original(lineage, folder, saved["runs_dir"])
    if copied is not None:
        facts = {"run": copied.name, "wandb_id": lineage["wandb_id"]}
        lineage = {**lineage, "wandb_id": wandb_id, "copied_from": facts}
    replaced = lineage["parent"] and tree["branch"] and not parent_kept(lineage, folder)
    if replaced and _without_a_step(folder, lineage):
        with suppress(ValueError):  # without a replacement, reading it reports what is missing
            lineage = {**lineage, "parent": parent_of(branch_point(tree["branch"]), folder)}
    return {**lineage, "run": folder.name}


def check_unchanged(saved: dict[str, Any], tree: dict[str, Any], folder: Path) -> None:
    """Raises ValueError if `tree` differs from the `saved` one in a key that changes the mathematics."""
    before, now = (_flat(completed(redacted(each))) for each in (saved, tree))
    for key in sorted(before.keys() | now.keys()):
        is_free = _under(key, FREE) and not _under(key, BOUND)
        if not is_free and not agrees(before.get(key), now.get(key)):
            length = f"{key}={before.get(key)} keeps the schedule, " if key.endswith(".max_steps") else ""
            raise UserError(
                f"{key} is {now.get(key)!r}, but the run in {folder} was started with {before.get(key)!r}: {length}"
                "give the new one its own folder with run=NAME, start from this one with branch=, or overwrite=true"
            )


def _under(key: str, names: Sequence[str]) -> bool:
    """Whether a key is one of these, or below one."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def inherit(tree: dict[str, Any], name: str) -> dict[str, Any]:
    """A branch takes its parent's first stage unless the tree names one; resumed, what it took when it began."""
    if tree["first_stage"] or not tree["branch"]:
        return tree
    own = Path(tree["runs_dir"]).expanduser() / name
    resumed = (own / "config.yaml").exists() and not tree["overwrite"]
    known = own if resumed else branched_run(tree["branch"])
    if not (known / "config.yaml").exists():  # opening the run reports what is missing
        return tree
    return {**tree, "first_stage": places.first_stage_of(known)}


def settle_precision(tree: dict[str, Any], name: str) -> dict[str, Any]:
    """``trainer.precision=auto`` is the mixed precision that the machine computes in; resumed, what it began with."""
    if not tree["trainer"] or tree["trainer"]["precision"] != "auto":
        return tree
    own = Path(tree["runs_dir"]).expanduser() / name / "config.yaml"
    begun = own.exists() and not tree["overwrite"]
    precision = load_tree(own)["trainer"]["precision"] if begun else "auto"
    if precision == "auto":  # new, or imported
        precision = mixed_precision(tree["trainer"]["accelerator"])
    return {**tree, "trainer": {**tree["trainer"], "precision": precision}}


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, dict) and tree:
        return {k: v for key, value in tree.items() for k, v in _flat(value, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): tree}


def code_version() -> str:
    """A checkout's commit, with a plus when the working tree differs; of a wheel its version; 'unknown' without."""
    if not IN_CHECKOUT:  # the repository around it, if any, is the user's
        return version()
    try:
        here = Path(__file__).resolve().parent
        describe = ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
        return subprocess.run(describe, cwd=here, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
