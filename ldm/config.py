"""Configuration: compose the Hydra tree, bind every key to its constructor, instantiate allow-listed targets.

From here on a tree is a plain resolved ``dict``: nothing below this module has heard of YAML, Hydra or OmegaConf.
What may be instantiated is exactly what the leaf files in ``conf/`` name, and only if it is ours, an optimizer,
a scheduler or Lightning's Trainer; nothing else, whatever a command line or a checkpoint's tree says.
"""

import contextlib
import difflib
import importlib
import inspect
import itertools
import math
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from ldm.files import read_text

CONF = Path(__file__).resolve().parent.parent / "conf"
MAX_TREE_DEPTH = 50
MAX_TREE_BYTES = 100_000  # of a saved tree; they have a few thousand
ROOTS = ("ldm.", "data.", "torch.optim.", "pytorch_lightning.")  # where a target's object must be defined

# Taken from the command line as text, character by character, before Hydra's grammar sees it.
LITERAL = frozenset(
    "prompt negative_prompt prompts first_stage branch model weak_model classifier target image mask map run runs_dir "
    "out source checkpoint overrides autoencoder_overrides diffusion_overrides validation data.train data.validation "
    "data.cache data.filters.exclude".split()
)

# Types of root keys that their defaults do not tell, and those that must be at least 1.
ROOT_TYPES = {
    "image_size": int,
    "height": int,
    "width": int,
    "label": int | str,
    "tile": int,
    "members": list[str],
    "runs": list[str],
    "samplers": list[str],
    "steps": list[int],
    "prompts": str | list[str],
    "branch_optimizer": Literal["fresh", "keep"],
    "branch_changes": list[str],
    "flips": bool,
    "precision": Literal["fp16", "fp32"],
}
POSITIVE = frozenset(
    "image_size height width accumulation max_steps num_steps num_images num_samples batch_size enlarge".split()
)
# Types of Lightning's keys, whose own say less than it takes in the end.
TRAINER_TYPES = {
    "trainer.devices": int | list[int] | Literal["auto"],
    "trainer.limit_val_batches": int,
    "trainer.gradient_clip_val": float | None,
}
# Keys that hold several of what their constructor takes one of, to be done one after the other.
SWEPT = {"evaluate": ("guidance.scale",)}


# ---------------------------------------------------------------------------------------------------------------
# Command line -> tree


def compose(config_name: str, arguments: list[str], complete: bool = True) -> dict[str, Any]:
    """The resolved and validated tree of ``conf/<config_name>.yaml`` under `arguments` (``key=value`` words).

    ``group=null`` leaves a part out, with whatever an experiment sets in it, and ``group=[a,b]`` all others of the
    group. Raises ValueError with the offending key and the nearest valid one, or with a key that has to be given and is
    not (it stays ``???`` unless `complete`).
    """
    facts, arguments = _split_facts(config_name, arguments)
    literal, overrides = split_literal(arguments)
    held = {f"__literal_{place}__": text for place, text in enumerate(literal.values())}
    overrides += [f"{key}={name}" for key, name in zip(literal, held, strict=True)]
    parsed = _parse(overrides)
    left_out = {o.key_or_group for o in parsed if o.key_or_group in groups() and (o.is_delete() or not o.value())}
    parsed = [override for override in parsed if override.key_or_group not in left_out]
    overrides = [override.input_line for override in parsed]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            config = hydra_compose(config_name, overrides)
            tree = OmegaConf.to_container(config, resolve=True, throw_on_missing=complete)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise ValueError(_explain(error, config_name, parsed)) from error
    tree = {**_restore(tree, held), **facts, **dict.fromkeys(left_out - {"experiment"})}
    _forget_unchosen(tree, parsed, config_name)
    _check_root(tree, config_name)
    validate(tree, SWEPT.get(config_name, ()))
    return tree


def _split_facts(config_name: str, arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """Separate text for root keys that bear the name of a group of another root (``ema``): to Hydra they are groups."""
    root, choices = _root(config_name)
    facts = (root.keys() & groups().keys()) - choices.keys()
    named = {argument: argument.partition("=") for argument in arguments}
    ours = [word for word, (key, equals, _) in named.items() if key in facts and equals]
    return {named[word][0]: named[word][2] for word in ours}, [word for word in arguments if word not in ours]


def _parse(overrides: list[str]) -> list[Override]:
    """Hydra's reading of each override. Raises ValueError naming the one that cannot be read."""
    parser = OverridesParser.create()
    parsed = []
    for text in overrides:
        shown = text if len(text) <= 80 else f"{text[:80]}..."
        try:
            override = parser.parse_override(text)
        except (HydraException, RecursionError) as error:
            raise ValueError(
                f"cannot read {shown!r} on the command line: write key=value, and quote special characters, "
                "as in 'key=\"a b\"'"
            ) from error
        if override.key_or_group.split(".")[0].split("/")[0] == "hydra":
            raise ValueError(f"{override.key_or_group}: no such key; a run's folder is runs_dir/run")
        if not override.key_or_group or override.package is not None:
            raise ValueError(f"{shown!r}: no such key; write key=value or group=option")
        parsed.append(override)
    return parsed


def _forget_unchosen(tree: dict[str, Any], parsed: list[Override], config_name: str) -> None:
    """Drop what an experiment sets in options of a group for which others are chosen here; what is set here stays."""
    _, choices = _root(config_name)
    for override in parsed:
        group, chosen = override.key_or_group, override.value()
        several = isinstance(choices.get(group), list) and isinstance(chosen, list)
        if not several or not isinstance(tree.get(group), dict):
            continue
        set_here = [own.key_or_group for own in parsed]
        for name in tree[group].keys() - set(chosen):
            if not any(f"{key}.".startswith(f"{group}.{name}.") for key in set_here):
                del tree[group][name]


@cache
def _root(config_name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keys of ``conf/<config_name>.yaml`` with their defaults; its groups with theirs, a list where several may be."""
    root = yaml.safe_load((CONF / f"{config_name}.yaml").read_text())
    entries = [entry for entry in root.pop("defaults") if isinstance(entry, dict)]
    return root, {group: chosen for entry in entries for group, chosen in entry.items()}


def _check_root(tree: dict[str, Any], config_name: str) -> None:
    """Hold the root to ``conf/<config_name>.yaml``: its keys, their types, options in groups; one left out is None."""
    root, choices = _root(config_name)
    choices = {group: chosen for group, chosen in choices.items() if group != "experiment"}
    for key in tree:
        if key not in root and key not in choices:
            raise ValueError(f"{key}: no such key{_nearest(key, [*root, *choices])}")
    for key, default in root.items():
        if key not in tree:
            raise ValueError(f"{key}: cannot be left out")
        annotation = ROOT_TYPES.get(key, str if default in (None, "???") else type(default))
        annotation = annotation | None if default is None else annotation
        if not accepts(annotation, tree[key]):
            raise ValueError(f"{key}={tree[key]!r}: expected {_readable(annotation)}")
        if key in POSITIVE and tree[key] is not None and tree[key] < 1:
            raise ValueError(f"{key}={tree[key]}: must be at least 1")
    for group, chosen in choices.items():
        node = tree.setdefault(group, None)
        several = isinstance(chosen, list) and isinstance(node, dict)  # each option nests under its own name
        for where, option in [(f"{group}.{k}", v) for k, v in node.items()] if several else [(group, node)]:
            chosen_or_empty = option is None or (isinstance(option, dict) and "_target_" in option)
            if not chosen_or_empty and group not in root:
                raise ValueError(
                    f"{where}: its keys are set but it is not chosen; {group} is one of {', '.join(groups()[group])}"
                )


def _restore(node: Any, held: dict[str, str]) -> Any:
    """Put the literal texts in the place of the names that stood for them while Hydra resolved the tree."""
    if isinstance(node, dict):
        return {key: _restore(value, held) for key, value in node.items()}
    if isinstance(node, list):
        return [_restore(item, held) for item in node]
    return re.sub(r"__literal_\d+__", lambda name: held.get(name[0], name[0]), node) if isinstance(node, str) else node


def split_literal(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """Separate ``prompt=...`` and path keys, whose text is literal, from the overrides Hydra parses."""
    literal, overrides = {}, []
    for argument in arguments:
        key, separator, text = argument.partition("=")
        if key in LITERAL and separator and text != "null":
            literal[key] = text
        else:
            overrides.append(argument)
    return literal, overrides


def expand_sweep(arguments: list[str]) -> list[tuple[list[str], list[str]]]:
    """Jobs of a multirun: the product over comma-separated values, each as (its arguments, its swept overrides)."""
    literal, overrides = split_literal(arguments)
    fixed = [f"{key}={text}" for key, text in literal.items()]
    choices = []
    for text, override in zip(overrides, _parse(overrides), strict=True):
        if override.is_sweep_override():
            name = override.get_key_element()
            choices.append([f"{name}={value}" for value in override.sweep_string_iterator()])
        else:
            fixed.append(text)
    return [([*fixed, *swept], list(swept)) for swept in itertools.product(*choices)]


def run_name(arguments: list[str], swept: list[str] = ()) -> str:
    """Default run name: the experiment, the expert's node, the sweep's overrides; one name per job of a sweep.

    >>> run_name(["experiment=quickstart/expert", "expert.node=[1,1]"])
    'quickstart-expert-1-1'
    """
    values = dict(argument.partition("=")[::2] for argument in arguments)
    name = values.get("experiment", "run")
    node = re.findall(r"\d+", values.get("expert.node", ""))
    hole = re.findall(r"\d+", values.get("expert.exclude", ""))
    words = [name, *node, *(["not", *hole] if hole else [])]
    for override in swept:
        key, _, value = override.partition("=")
        if key in ("experiment", "expert.node", "expert.exclude"):  # in the name already
            continue
        group_choice = (CONF / key).is_dir()
        words.append(value if group_choice else f"{key.rsplit('.', 1)[-1]}_{value}")
    return re.sub(r"[^A-Za-z0-9_.]+", "-", "-".join(words)).strip("-")


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]


def _nearest(name: str, names: typing.Iterable[str]) -> str:
    match = difflib.get_close_matches(str(name), list(names), n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""


def _leaves(tree: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            if not str(key).startswith("_"):
                yield f"{prefix}{key}"
                yield from _leaves(value, f"{prefix}{key}.")


@cache
def groups() -> dict[str, list[str]]:
    """Config groups and their options, from the folders of ``conf/``."""
    options: dict[str, list[str]] = {}
    for path in sorted(CONF.rglob("*.yaml")):
        group, *rest = path.relative_to(CONF).with_suffix("").parts
        if rest:
            options.setdefault(group, []).append("/".join(rest))
    return options


def _explain(error: Exception, config_name: str, parsed: list[Override]) -> str:
    """One line that names the wrong key and the way out, for whatever Hydra raised."""
    known_groups = groups()
    for override in parsed:
        key, value = override.key_or_group, override.value()
        if override.is_sweep_override():
            return f"{key}: several values; write a list as {key}=[a,b], or start a sweep with -m"
        if override.is_add() and key == "experiment":
            return "write experiment=NAME without the +: the key exists already"
        if key not in known_groups or override.is_delete():
            continue
        options = known_groups[key]
        for option in value if isinstance(value, list) else [value]:
            if option not in options:
                return f"{key}={option}: no such option{_nearest(option, options)} (there are: {', '.join(options)})"
    selections = [override.input_line for override in parsed if override.key_or_group in known_groups]
    with contextlib.suppress(HydraException, OmegaConfBaseException):
        names = list(_leaves(OmegaConf.to_container(hydra_compose(config_name, selections))))
        for override in parsed:
            key = override.key_or_group
            if not override.is_add() and key not in known_groups and key not in names:
                return f"{key}: no such key{_nearest(key, [*names, *known_groups])}"
    if str(error).startswith("Error merging override "):
        return f"{_first_line(error)[len('Error merging override ') :]}: cannot take the place of what is there"
    where = re.search(r"full_key: (\S+)", str(error))
    if isinstance(error, MissingMandatoryValue):
        missing = where[1] if where else str(error).split()[-1]
        return f"{missing}: has to be given, {missing}=..."
    return f"{where[1]}: {_first_line(error)}" if where else _first_line(error)


# ---------------------------------------------------------------------------------------------------------------
# Tree -> validation


@cache
def registry() -> frozenset[str]:
    """Every target that may be instantiated: exactly those the leaf files of ``conf/`` name."""
    texts = (path.read_text() for path in CONF.rglob("*.yaml"))
    return frozenset(name for text in texts for name in re.findall(r"^\s*_target_:\s*([\w.]+)\s*$", text, re.MULTILINE))


def resolve_target(name: str, where: str) -> Callable:
    """The class or function a ``_target_`` names. Raises ValueError unless it is in the registry and ours."""
    if not isinstance(name, str) or name not in registry():
        raise ValueError(f"{where}._target_={name}: not allowed; only targets named in conf/ can be built")
    module, _, attribute = name.rpartition(".")
    target = getattr(importlib.import_module(module), attribute, None)
    if target is None or not f"{target.__module__}.".startswith(ROOTS):
        raise ValueError(f"{where}._target_={name}: names nothing that may be built")
    return target


def validate(tree: dict[str, Any], swept: Collection[str] = ()) -> None:
    """Bind every key of every ``_target_`` to its constructor and check its type, before anything is built.

    Each item of a list under one of the `swept` keys is checked.
    """
    _validate(tree, "", swept)


def _validate(node: Any, where: str, swept: Collection[str]) -> None:
    if isinstance(node, list):
        for position, item in enumerate(node):
            _validate(item, f"{where}[{position}]", swept)
    if not isinstance(node, dict):
        return
    if "_target_" in node:
        parameters = _parameters(resolve_target(node["_target_"], where))
        for key, value in node.items():
            if key in ("_target_", "_partial_"):
                continue
            if key not in parameters:
                raise ValueError(
                    f"{where}.{key}: no such key{_nearest(key, parameters)} (takes {', '.join(parameters)})"
                )
            annotation = TRAINER_TYPES.get(f"{where}.{key}", parameters[key].annotation)
            values = value if f"{where}.{key}" in swept and isinstance(value, list) else [value]
            if not all(accepts(annotation, item) for item in values):
                raise ValueError(f"{where}.{key}={value!r}: expected {_readable(annotation)}")
            for item in values:
                check_range(f"{where}.{key}", annotation, item)
                _check_entries(f"{where}.{key}", annotation, item)
    for key, value in node.items():
        _validate(value, f"{where}.{key}".lstrip("."), swept)


def check_range(where: str, annotation: Any, value: Any) -> None:
    """Raises ValueError for a number that means nothing under a key of this name, whoever takes it.

    A whole number counts something here, but for seeds and Lightning's own keys, where -1 means all.
    """
    key = where.rpartition(".")[2]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if math.isnan(value):
        raise ValueError(f"{where}={value}: must be a number")
    if where.startswith("trainer."):
        return
    if key.endswith(("_prob", "_fraction")) and not 0 <= value <= 1:
        raise ValueError(f"{where}={value}: must be between 0 and 1")
    whole = annotation is int or int in typing.get_args(annotation)
    if whole and (key in POSITIVE or key.endswith("every_steps")) and value < 1:
        raise ValueError(f"{where}={value}: must be at least 1")
    if whole and value < 0 and key != "seed":
        raise ValueError(f"{where}={value}: must be at least 0")


def _check_entries(where: str, annotation: Any, value: Any) -> None:
    """Hold a mapping to the TypedDict that its annotation names for it or for its values."""
    options = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    for option in options if isinstance(value, dict) else ():
        if typing.is_typeddict(option):
            kinds = typing.get_type_hints(option)
            for name, item in value.items():
                if name not in kinds:
                    raise ValueError(f"{where}.{name}: no such key{_nearest(name, kinds)} (takes {', '.join(kinds)})")
                if not accepts(kinds[name], item):
                    raise ValueError(f"{where}.{name}={item!r}: expected {_readable(kinds[name])}")
                check_range(f"{where}.{name}", kinds[name], item)
        elif typing.get_origin(option) is Mapping and "_target_" not in value:
            for name, item in value.items():
                _check_entries(f"{where}.{name}", typing.get_args(option)[1], item)


def _parameters(target: Callable) -> dict[str, inspect.Parameter]:
    signature = inspect.signature(target, eval_str=True)
    plain = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {name: p for name, p in signature.parameters.items() if p.kind not in plain}


def accepts(annotation: Any, value: Any) -> bool:
    """Whether a YAML value fits an annotation; whole numbers fit float, and a nested ``_target_`` is not judged."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is inspect.Parameter.empty or annotation is Any or (isinstance(value, dict) and "_target_" in value):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(accepts(argument, value) for argument in arguments)
    if origin is typing.Literal:
        return value in arguments
    if annotation is None or annotation is type(None):
        return value is None
    if annotation is bool:
        return isinstance(value, bool)
    if annotation in (int, float):
        allowed = int if annotation is int else (int, float)
        return isinstance(value, allowed) and not isinstance(value, bool)
    if annotation in (str, Path):
        return isinstance(value, str)
    container = origin or annotation
    if isinstance(container, type) and issubclass(container, Mapping):
        return isinstance(value, dict) and all(accepts(arguments[1] if arguments else Any, v) for v in value.values())
    if isinstance(container, type) and issubclass(container, (list, tuple, typing.Sequence)):
        return isinstance(value, list) and all(accepts(arguments[0] if arguments else Any, item) for item in value)
    return False  # an object: given by a nested _target_ or injected, never by a bare value


def _readable(annotation: Any) -> str:
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation.__name__
    return re.sub(r"\b(typing|collections\.abc)\.", "", str(annotation))


# ---------------------------------------------------------------------------------------------------------------
# Tree -> objects


def instantiate(node: Any, provide: Callable[[str], Any], where: str) -> Any:
    """Build `node`: nested targets first, then its own; a parameter the tree leaves out is asked of `provide` by name.

    `provide(name)` returns the part or fact of that name, or raises KeyError if there is none (the default is used).
    Raises ValueError for a required parameter that neither the tree nor `provide` gives.
    """
    if isinstance(node, list):
        return [instantiate(item, provide, f"{where}[{position}]") for position, item in enumerate(node)]
    if not isinstance(node, dict):
        return node
    built = {k: instantiate(v, provide, f"{where}.{k}") for k, v in node.items() if k not in ("_target_", "_partial_")}
    if "_target_" not in node:
        return built
    target = resolve_target(node["_target_"], where)
    for name, parameter in _parameters(target).items():
        if name in built or node.get("_partial_"):
            continue
        with contextlib.suppress(KeyError):
            built[name] = provide(name)
        given = name in built and (built[name] is not None or accepts(parameter.annotation, None))
        if not given and parameter.default is inspect.Parameter.empty:
            hint = f"choose one with {name}=..." if name in groups() else f"set {where}.{name}"
            raise ValueError(f"{where} ({target.__name__}) needs {name}: {hint}")
    return partial(target, **built) if node.get("_partial_") else target(**built)


def takes(node: dict[str, Any], name: str) -> bool:
    """Whether the constructor of a node has the argument `name`."""
    return name in _parameters(resolve_target(node["_target_"], name))


def dump(tree: dict[str, Any]) -> str:
    """The tree as YAML text, as saved in a run's folder."""
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases, which can grow exponentially, and without depths or numbers that take their time."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> yaml.Node:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has aliases")
        self.depth += 1
        if self.depth > MAX_TREE_DEPTH:
            raise yaml.YAMLError("it is nested too deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        if isinstance(node, yaml.ScalarNode) and node.tag != "tag:yaml.org,2002:str" and len(node.value) > 100:
            raise yaml.YAMLError("it has an endless number")
        return node


def load_plain(path: Path, what: str) -> dict[str, Any]:
    """A YAML mapping that may come from anyone, read as data. Raises ValueError saying that it is not `what`."""
    try:
        tree = yaml.load(read_text(path, MAX_TREE_BYTES), _PlainLoader)
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: not {what} ({_first_line(error)})") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: not {what}")
    return tree


def load_tree(path: Path) -> dict[str, Any]:
    """Read a tree that came with a checkpoint: data without aliases or interpolation, held to the same registry."""
    tree = load_plain(path, "a run's configuration")
    validate(tree)
    return tree


def help_text(config_name: str, usage: str, examples: str) -> str:
    """What --help prints: usage, examples, the root's shared facts, the groups and their options."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        root = OmegaConf.to_container(hydra_compose(config_name))
    defaults = yaml.safe_load((CONF / f"{config_name}.yaml").read_text())["defaults"]
    named = {key for entry in defaults if isinstance(entry, dict) for key in entry}
    facts = [f"  {key}={value}" for key, value in root.items() if not isinstance(value, dict) and key not in named]
    used = {key: options for key, options in groups().items() if key in named}
    table = [f"  {group + '=':<16}{', '.join(options)}" for group, options in used.items()]
    return "\n".join([f"usage: {usage}", "", examples, "", "keys", *facts, "", "groups", *table])


def guarded(main: Callable[[list[str]], int]) -> None:
    """Run an entry point; a user's mistake is one line on stderr and exit status 2, without a traceback."""
    try:
        status = main(sys.argv[1:])
    except (ValueError, OSError) as error:
        if os.environ.get("LDM_TRACEBACK"):
            raise
        print(f"error: {error}\n(LDM_TRACEBACK=1 shows where)", file=sys.stderr)
        status = 2
    sys.exit(status)
