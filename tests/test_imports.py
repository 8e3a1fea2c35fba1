"""Imports point downward only (design, section 2), read from the source with ast: nothing is imported here."""

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = ("ldm", "train", "sample")
LINKS = {"data": "ldm.data"}  # what stands at the checkout's top, and what it is imported as
TRAVELLING = sorted(ROOT.glob("ldm/convert/remote/latent_*.py"))  # copied beside exported weights, never imported here
FILES = [path for place in ("ldm", "data") for path in ROOT.glob(f"{place}/**/*.py") if not path.is_symlink()]
FILES = sorted(path for path in [*FILES, ROOT / "train.py", ROOT / "sample.py"] if path not in TRAVELLING)
SCRIPTS = sorted([*ROOT.glob("scripts/*.py"), *ROOT.glob("scripts/dev/*.py")])

# Module or package -> its layer; the longest prefix counts. A module imports its own layer or lower ones.
LAYERS = {
    "ldm": 5,  # the package itself: ldm.load imports what is below when it is called
    "ldm.errors": 0,
    "ldm.files": 0,
    "ldm.holder": 0,
    "ldm.holding": 0,
    "ldm.ranks": 0,
    "ldm.device": 0,
    "ldm.installed": 0,
    "ldm.images": 0,
    "ldm.charts": 0,
    "ldm.redaction": 0,
    "ldm.data_places": 0,
    "ldm.prompts": 0,
    "ldm.diffusion": 0,
    "ldm.networks": 0,
    "ldm.data": 0,
    "ldm.data.addresses": 0,
    "ldm.data.seals": 0,
    "ldm.data.user_error": 0,
    "ldm.conditioners": 1,
    "ldm.first_stage": 1,
    "ldm.metrics": 1,
    "ldm.checkpoint": 1,
    "ldm.painting": 2,
    "ldm.sampling": 2,
    "ldm.turns": 2,
    "ldm.editing": 2,
    "ldm.generate": 2,
    "ldm.training": 3,
    "ldm.measuring": 3,
    "ldm.spool": 3,
    "ldm.config": 4,
    "ldm.asked": 4,
    "ldm.build": 4,
    "ldm.checks": 4,
    "ldm.compatibility": 4,
    "ldm.drawer": 4,
    "ldm.model": 4,
    "ldm.residency": 4,
    "ldm.stored_model": 4,
    "ldm.ensemble_model": 4,
    "ldm.cascade": 4,
    "ldm.cascade.words": 5,
    "ldm.ensemble": 4,
    "ldm.expert_company": 4,
    "ldm.merging": 4,
    "ldm.loading": 4,
    "ldm.places": 4,
    "ldm.launching": 4,
    "ldm.sweep_agents": 0,
    "ldm.lineage": 4,
    "ldm.lineage_tree": 4,
    "ldm.overwriting": 4,
    "ldm.run": 4,
    "ldm.fine_tuning": 4,
    "ldm.fit": 4,
    "ldm.doctor": 4,
    "ldm.convert": 4,
    "ldm.evaluation": 5,
    "ldm.latent_cache": 5,
    "ldm.given": 5,
    "ldm.given_files": 5,
    "ldm.frames": 5,
    "ldm.condition_sheet": 5,
    "ldm.options": 5,
    "ldm.phrases": 5,
    "ldm.request": 5,
    "ldm.starting": 5,
    "ldm.pasting": 5,
    "ldm.provenance": 5,
    "ldm.results": 5,
    "ldm.api": 5,
    "ldm.ablation": 6,
    "ldm.demo": 6,
    "ldm.diagnostics": 6,
    "ldm.quickstart": 6,
    "ldm.sweep": 6,
    "ldm.tasks": 6,
    "ldm.trees": 6,
    "ldm.study": 6,
    "train": 7,
    "sample": 7,
}
# What each part may import from ours; parts that are not named may import all of their layer and below.
OWN = {
    "ldm.files": {"ldm.errors"},
    "ldm.holder": {"ldm.files", "ldm.ranks", "ldm.errors"},
    "ldm.holding": {"ldm.files", "ldm.holder", "ldm.ranks", "ldm.errors"},
    "ldm.ranks": {"ldm.errors"},
    "ldm.device": {"ldm.errors"},
    "ldm.installed": set(),
    "ldm.images": {"ldm.files", "ldm.errors"},
    "ldm.charts": {"ldm.files", "ldm.errors"},
    "ldm.redaction": {"ldm.data.addresses", "ldm.errors"},
    "ldm.diffusion": {"ldm.diffusion", "ldm.errors"},
    "ldm.networks": {"ldm.networks", "ldm.errors"},
    "ldm.data": {"ldm.data", "ldm.data.addresses", "ldm.data.seals", "ldm.data.user_error"},
    "ldm.data.addresses": {"ldm.data.user_error"},
    "ldm.data.seals": {"ldm.data.user_error"},
    "ldm.conditioners": {"ldm.conditioners", "ldm.diffusion", "ldm.files", "ldm.networks", "ldm.errors"},
    "ldm.first_stage": {"ldm.first_stage", "ldm.networks", "ldm.errors"},
    "ldm.metrics": {"ldm.metrics", "ldm.networks", "ldm.errors"},
    "ldm.checkpoint": {"ldm.checkpoint", "ldm.files", "ldm.data.seals", "ldm.errors"},
    "ldm.sampling": {"ldm.diffusion", "ldm.errors"},
    "ldm.painting": {"ldm.diffusion", "ldm.networks", "ldm.errors"},
    "ldm.turns": {"ldm.diffusion", "ldm.errors"},
    "ldm.editing": {"ldm.sampling", "ldm.errors"},
    "ldm.generate": {
        "ldm.conditioners",
        "ldm.diffusion",
        "ldm.editing",
        "ldm.first_stage",
        "ldm.sampling",
        "ldm.errors",
    },
    "ldm.errors": {"ldm.data.user_error"},
    "ldm.data.user_error": set(),
}


def module_name(path: Path) -> str:
    first, *rest = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([LINKS.get(first, first), *rest]).removesuffix(".__init__")


@cache
def imports(path: Path) -> frozenset[str]:
    """Modules a file imports anywhere, also inside functions; ``from ldm import files`` counts as ldm.files."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            is_package = (ROOT / Path(*node.module.split("."))).is_dir()
            found |= {f"{node.module}.{alias.name}" for alias in node.names} if is_package else {node.module}
    return frozenset(found)


def part(module: str) -> str:
    """The named part a module belongs to."""
    return max((name for name in LAYERS if f"{module}.".startswith(f"{name}.")), key=len)


def ours(path: Path) -> set[str]:
    return {name for name in imports(path) if name.split(".")[0] in OURS}


def others(path: Path) -> set[str]:
    roots = {name.split(".")[0] for name in imports(path)}
    return roots - set(OURS) - sys.stdlib_module_names


def files_of(package: str) -> list[Path]:
    return [path for path in FILES if f"{module_name(path)}.".startswith(f"{package}.")]


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_point_downward(path):
    own = part(module_name(path))
    for name in ours(path):
        target = part(name)
        assert LAYERS[target] <= LAYERS[own], f"{own} imports {name}, which is above it"
        if own in OWN:
            assert target in OWN[own], f"{own} may not import {name}"


def test_the_folder_data_is_imported_as_ldm_data():
    for path in [*FILES, *ROOT.glob("scripts/**/*.py"), *ROOT.glob("tests/*.py")]:
        assert "data" not in {name.split(".")[0] for name in imports(path)}, path


def test_entry_points_and_scripts_are_imported_by_nothing():
    for path in FILES:
        assert not {name.split(".")[0] for name in imports(path)} & {"train", "sample", "scripts"}, path


@pytest.mark.parametrize("path", [*FILES, *ROOT.glob("scripts/**/*.py")], ids=module_name)
def test_own_errors_are_user_errors(path):
    if path.name == "user_error.py":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        names = node.bases if isinstance(node, ast.ClassDef) else [node.func] if isinstance(node, ast.Call) else []
        assert "ValueError" not in {getattr(name, "id", None) for name in names}, f"{path}:{node.lineno}"


def test_diffusion_imports_torch_and_nothing_else():
    assert set().union(*map(others, files_of("ldm.diffusion"))) == {"torch"}


def test_files_imports_the_standard_library_only():
    assert others(ROOT / "ldm/files.py") == set()


def test_only_config_knows_hydra():
    users = {module_name(path) for path in [*FILES, *SCRIPTS] if others(path) & {"hydra", "omegaconf"}}
    assert {".".join(name.split(".")[:2]) for name in users} == {"ldm.config"}


def test_only_training_fit_and_the_data_module_know_lightning():
    users = {module_name(path) for path in [*FILES, *SCRIPTS] if others(path) & {"pytorch_lightning", "lightning"}}
    strangers = {name for name in users if not name.startswith("ldm.training.")} - {"ldm.fit", "ldm.data.module"}
    assert strangers == set()


def test_training_is_the_only_client_of_wandb():
    users = {module_name(path) for path in [*FILES, *SCRIPTS] if "wandb" in others(path)}
    assert {name.split(".")[1] for name in users} <= {"training"}


def test_nothing_needs_diffusers():
    assert not [path for path in FILES if "diffusers" in others(path)]


def test_code_that_travels_stands_alone():
    assert TRAVELLING
    for path in TRAVELLING:
        assert others(path) <= {"torch", "diffusers"} and not ours(path), path
    assert not [path for path in FILES if any(name.startswith("ldm.convert.remote") for name in ours(path))]


def test_no_module_is_called_helpers_or_utils():
    assert not {"utils", "util", "helpers", "common", "misc"} & {path.stem for path in [*FILES, *SCRIPTS]}


def test_there_is_no_cycle_within_a_layer():
    graph = {module_name(path): ours(path) for path in FILES}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, f"cycle: {' -> '.join([*above, module])}"
        if module in done or module not in graph:
            return
        for name in graph[module]:
            target = name if name in graph else name.rpartition(".")[0]
            if target != module:
                visit(target, (*above, module))
        done.add(module)

    for module in graph:
        visit(module, ())
