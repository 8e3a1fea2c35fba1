"""The manifest of a cascade: its stages, models or ensembles, the hashes of their weights, and how each is sampled.

Hashes, names and sizes are sealed. The recipes are to be edited: a null is as the stage's own run says.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ldm.cascade.checks import check_stages, factor_of, tell_doubts
from ldm.cascade.model import Cascade
from ldm.cascade.recipe import KEYS, StageRecipe, check_values, read_recipe
from ldm.cascade.stage import Stage
from ldm.checkpoint import weights
from ldm.config import dump, load_plain
from ldm.data.seals import SEAL, check_seal, seal_of
from ldm.drawer import Drawer
from ldm.errors import UserError
from ldm.files import write_text
from ldm.places import found, relative

KIND = "cascade"
RESIDENT = ("all", "one")  # all stages stay in memory, or each is loaded when it draws
SEALED = ("name", "sha256", "factor", "image_size")
Load = Callable[[Path, str | None], Drawer]  # (path of a run or an ensemble's manifest, its first stage) -> it


class Entry(NamedTuple):
    """A stage in a manifest: what is loaded, sha256 of its weights, its size, px, and factor, how it is sampled."""

    name: str
    path: Path
    first_stage: str | None
    digests: list[str]
    image_size: int
    factor: int
    recipe: StageRecipe


def write_manifest(
    path: Path,
    models: Sequence[Path],
    asked: Mapping[str, Mapping[str, Any]],
    load: Load,
    resident: Literal["all", "one"] = "all",
) -> Cascade:
    """Write the manifest of the stages at `models`, each sampled as `asked` {name: keys of sample.py} says; returns it.

    Raises ValueError for stages that do not meet, and for recipes that do not fit. Stages are loaded one at a time.
    """
    if not models:
        raise UserError("stages: name at least one run or ensemble")
    if path.suffix != ".yaml" or path.is_dir():
        raise UserError(f"out={path}: a manifest is a file that ends in .yaml")
    if path.exists() and load_plain(path, "a cascade's manifest").get("kind") != KIND:
        raise UserError(f"out={path}: something else than a cascade's manifest is there; give another name")
    names, stages, entries = names_of(models), [], []
    for place, (name, model) in enumerate(zip(names, models, strict=True)):
        tree = asked.get(name, {})
        file, first_stage = _pinned(model), tree.get("first_stage")
        drawer = load(file, first_stage).hollow()
        stage = Stage(name, drawer, factor_of(name, drawer, not place), _recipe(name, drawer, tree))
        stages.append(stage)
        entries.append(
            {
                "name": name,
                "model": relative(file, path.parent),
                "first_stage": None if first_stage is None else relative(Path(first_stage), path.parent),
                "sha256": [own.digest for own in drawer.weights],
                "image_size": stage.size,
                "factor": stage.factor,
                **stage.recipe.plain,
            }
        )
    check_stages(stages)
    manifest: dict[str, Any] = {"kind": KIND, "resident": resident, "stages": entries}
    manifest[SEAL] = seal_of(_sealed_part(manifest))
    write_text(path, dump(manifest))
    tell_doubts(stages)
    return Cascade(path.stem, stages)


def names_of(models: Sequence[Path]) -> list[str]:
    """The names of stages: of their runs, or of their manifests. Raises ValueError for two of one name."""
    names = []
    for model in models:
        run = model.parent.parent if model.suffix in (".safetensors", ".ckpt") else model
        names.append(model.stem if model.suffix == ".yaml" else run.resolve().name)
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"stages: two are called {twice[0]}; each needs a name of its own")
    return names


def _pinned(model: Path) -> Path:
    """An ensemble's manifest, which names its weights, or the newest weights of a run."""
    return model if model.suffix == ".yaml" else weights.load(model).path


def _recipe(name: str, drawer: Drawer, tree: Mapping[str, Any]) -> StageRecipe:
    """The whole of how a stage is sampled, with what its run says where `tree` asks for nothing."""
    check_values(tree.get("use_conditions"), tree.get("batch_size"), tree.get("low_noise"), name)
    try:
        chosen = drawer.sampling(tree).chosen
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    parts = {group: chosen[group] for group in ("sampler", "sigmas", "guidance", "tiling")}
    use = tree.get("use_conditions")
    return StageRecipe(parts, None if use is None else tuple(use), tree.get("batch_size"), tree.get("low_noise"))


def _sealed_part(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What must not be edited: all but the paths and how it is sampled."""
    seal = {SEAL: manifest[SEAL]} if SEAL in manifest else {}
    stages = [{key: stage[key] for key in SEALED} for stage in manifest["stages"]]
    return {"kind": manifest["kind"], "stages": stages, **seal}


def read_manifest(path: Path) -> tuple[list[Entry], str]:
    """The stages that a manifest names, and which stay in memory. Raises ValueError if it is none, or damaged."""
    manifest = load_plain(path, "a cascade's manifest")
    where, folder = f"{path}: not a cascade's manifest (scripts/cascade.py writes one)", path.resolve().parent
    try:
        sealed_part = _sealed_part(manifest)
        stages = [
            (str(s["name"]), str(s["model"]), s.get("first_stage"), list(map(str, s["sha256"])), int(s["image_size"]),
             int(s["factor"]), s) for s in manifest["stages"]
        ]  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(where) from error
    check_seal(sealed_part, path)
    known = {"model", "first_stage", *SEALED, *KEYS}
    entries = []
    for name, model, first_stage, digests, size, factor, plain in stages:
        unknown = [key for key in plain if key not in known]
        if unknown:
            raise UserError(f"{path}: {name}.{str(unknown[0])[:80]}: no such key; there are {', '.join(KEYS)}")
        stage = None if first_stage is None else str(found(str(first_stage), folder))
        recipe = read_recipe(plain, f"{path}: {name}")
        entries.append(Entry(name, found(model, folder), stage, digests, size, factor, recipe))
    resident = manifest.get("resident", "all")
    if not entries or resident not in RESIDENT:
        raise UserError(f"{path}: resident={str(resident)[:80]}: is one of {', '.join(RESIDENT)}" if entries else where)
    return entries, resident


def load_cascade(path: Path, load: Load) -> Cascade:
    """The cascade of a manifest. Raises ValueError if a stage is not there, or not the one it was written for."""
    entries, resident = read_manifest(path)
    stages = [_stage(entry, path, load, resident, first=not place) for place, entry in enumerate(entries)]
    check_stages(stages)
    tell_doubts(stages)
    return Cascade(path.stem, stages)


def _stage(entry: Entry, path: Path, load: Load, resident: str, first: bool) -> Stage:
    def loaded() -> Drawer:
        if not entry.path.exists():
            raise UserError(f"{path}: its stage {entry.name} is not there: {entry.path}; write the manifest anew")
        drawer = load(entry.path, entry.first_stage)
        if [own.digest for own in drawer.weights] != entry.digests:
            raise UserError(
                f"{path}: the weights of {entry.name} are not those it was written for; write the manifest anew"
            )
        return drawer

    drawer = loaded()
    factor = factor_of(entry.name, drawer, first)
    stage = Stage(entry.name, drawer, factor, entry.recipe)
    if (stage.size, factor) != (entry.image_size, entry.factor):
        raise UserError(f"{path}: {entry.name} has other sizes than it was written for; write the manifest anew")
    if resident == "one":
        stage.drawer, stage.load = drawer.hollow(), loaded
    return stage
