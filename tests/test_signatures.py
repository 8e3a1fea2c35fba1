"""Signatures read from the source: the same as `inspect` says, of ours, of Lightning's and of a stranger's code."""

import inspect
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from ldm.config import registry, signatures

ROOT = Path(__file__).resolve().parents[1]


def same(annotation: object) -> list[str]:
    """The words of an annotation; torch calls one class by another module, and typing's cache turns unions round."""
    return sorted(re.findall(r"[^][|, ]+", str(annotation).replace("torch._tensor.Tensor", "torch.Tensor")))


def names_of(target: object) -> set[str]:
    kind = target if inspect.isclass(target) else typing.get_type_hints(target).get("return")
    return {signatures.full_name(base) for base in inspect.getmro(kind)} if inspect.isclass(kind) else set()


@pytest.mark.parametrize("name", sorted(registry()))
def test_the_source_says_what_inspect_says(name):
    taken, real = signatures.arguments(name), signatures.parameters(signatures.imported(name))
    assert list(taken) == list(real)
    for key, parameter in real.items():
        assert not isinstance(taken[key], inspect.Parameter), "read from the source, not imported"
        assert same(taken[key].annotation) == same(parameter.annotation)
        assert (taken[key].default is None) == (parameter.default is inspect.Parameter.empty)
    made, real_made = signatures.made(name), names_of(signatures.imported(name))
    assert made ^ real_made in (set(), {"torch._tensor.Tensor", "torch.Tensor"})
    assert signatures.defined_in(name).split(".")[0] == name.split(".")[0]


STRANGE = """
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import NamedTuple, TypedDict
import typing as t

Names = Sequence[str]
if t.TYPE_CHECKING or True:
    Kind = t.Literal["a", "b"]


class Entry(TypedDict):
    size: int


class Base:
    def __init__(self, width: int, *rest, names: Names = (), kind: Kind = "a", entry: Entry | None = None, **more):
        pass


class Derived(Base):
    pass


@dataclass
class Record:
    width: int
    parent: Base | None = None


@dataclass
class Longer(Record):
    depth: float = 1.0


@dataclass
class WithField:
    names: list[str] = field(default_factory=list)


class Pair(NamedTuple):
    left: int
    right: str = ""


class New:
    def __new__(cls, width: int): ...


def other(function):
    @wraps(function)
    def inner(*words, **keys): ...

    return inner


def replaced(function):
    return lambda depth: function


class Meta(type): ...


class Made(metaclass=Meta):
    def __init__(self, width: int): ...


@other
def wrapped(width: int = 3) -> Derived: ...


@replaced
def lost(width: int): ...


def plain(first, /, second: Mapping[str, Base], *, third: t.Optional[int] = None) -> Derived: ...


renamed = Derived
"""


@pytest.mark.parametrize(
    "name",
    ["Base", "Derived", "Record", "Longer", "WithField", "Pair", "New", "Made", "wrapped", "lost", "plain", "renamed"],
)
def test_what_is_written_in_another_way_is_read_or_imported(tmp_path, monkeypatch, name):
    module = f"stranger_{name.lower()}"
    (tmp_path / f"{module}.py").write_text(STRANGE)
    monkeypatch.syspath_prepend(tmp_path)
    target = f"{module}.{name}"
    taken, read = signatures.arguments(target), module not in sys.modules
    assert read == (name in ["Base", "Derived", "Record", "Longer", "plain", "renamed"])
    real = signatures.parameters(signatures.imported(target))
    assert {k: same(argument.annotation) for k, argument in taken.items()} == {
        k: same(parameter.annotation) for k, parameter in real.items()
    }
    real_made = names_of(signatures.imported(target)) - {"builtins.tuple"}  # a NamedTuple's, as no annotation asks for
    assert signatures.made(target) == real_made


@pytest.mark.parametrize("text", ["def part(: ...", "from math import nothing as part", "part = 3", ""])
def test_what_is_no_part_is_said_by_python(tmp_path, monkeypatch, text):
    (tmp_path / "no_part.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(signatures, "folders", lambda: (tmp_path,))
    with pytest.raises((SyntaxError, ImportError, TypeError)):
        signatures.arguments("no_part.part")
    sys.modules.pop("no_part", None)


REFUSED = {
    "train.py": ["experiment=quickstart/diffusion", "network.width=abc"],
    "sample.py": ["model=x", "sampler=heun", "sampler.foo=3"],
    "scripts/ablation.py": ["metric=inception"],
    "scripts/attention_shares.py": ["model=nowhere"],
    "scripts/composed_suite.py": ["models=[nowhere]"],
    "scripts/condition_curves.py": ["model=nowhere"],
    "scripts/convert.py": ["layout", "experiment=ldm/first_stage/kl_f8", "autoencoder.foo=3"],
    "scripts/cluster_plan.py": ["mfu=2"],
    "scripts/cost_table.py": ["models=[nowhere]"],
    "scripts/doctor.py": ["experiment=quickstart/autoencoder", "trainer.precisionn=32"],
    "scripts/encode.py": ["out=x", "conditioner=[text]", "conditioner.text.foo=3"],
    "scripts/ensemble.py": ["out=x", "members=[nowhere]"],
    "scripts/evaluate.py": ["model=nowhere"],
    "scripts/expert_cost.py": ["model=nowhere"],
    "scripts/expert_loss.py": ["models=[nowhere]"],
    "scripts/fetch_pretrained.py": ["nothing"],
    "scripts/likelihood.py": ["model=nowhere"],
    "scripts/make_shards.py": ["sorce=x"],
    "scripts/map_classes.py": ["from=x"],
    "scripts/merge_experts.py": ["model=nowhere", "out=x"],
    "scripts/nearest.py": ["model=nowhere"],
    "scripts/prompt_suite.py": ["models=[nowhere]"],
    "scripts/prompt_switch.py": ["model=nowhere"],
    "scripts/quickstart.py": ["logger.foo=3"],
    "scripts/reference.py": ["out=x.safetensors"],
    "scripts/sampler_table.py": ["model=x", "metric.foo=3"],
    "scripts/score_shards.py": ["shards=nowhere", "out=x"],
    "scripts/study_export.py": ["suite=nowhere"],
    "scripts/study_import.py": ["study=nowhere", "answers=x"],
    "scripts/style_sheet.py": ["model=nowhere"],
    "scripts/sweep_f.py": ["metric=inception"],
    "scripts/sweep_report.py": ["runs=[nowhere]"],
    "scripts/tasks_report.py": ["metric=inception"],
    "scripts/dev/chaos.py": ["case=nothing"],
    "scripts/dev/benchmark.py": ["suite=nothing"],
}
ONE_PROCESS = """
import contextlib, io, runpy, sys
for path, *words in {commands}:
    sys.argv, out, sys.path[0] = [path, *words], io.StringIO(), path.rpartition("/")[0]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            runpy.run_path(path, run_name="__main__")
    except SystemExit as left:
        status = left.code
    told = out.getvalue() + (status if isinstance(status, str) else "")
    assert bool(status) == {refused} and len(told.splitlines()) {lines}, (path, status, told)
    late = [name for name in ("torch", "pytorch_lightning", "transformers", "webdataset") if name in sys.modules]
    assert not late, (path, late)
"""


def run_all(commands: list[list[str]], refused: bool, lines: str) -> None:
    code = ONE_PROCESS.format(commands=commands, refused=refused, lines=lines)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert not done.returncode, done.stderr


def test_a_mistake_is_told_before_torch_is_imported():
    more = [
        ["train.py"],
        ["train.py", "experiment=quickstart/diffusion", "first_stage=nowhere", "runs_dir=nowhere"],
        ["sample.py", "model=nowhere"],
    ]
    run_all([*more, *([path, *words] for path, words in REFUSED.items())], refused=True, lines="== 1")
