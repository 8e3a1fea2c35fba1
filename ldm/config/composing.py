"""Command line -> tree: conf/ composed by Hydra under what was asked for."""

import re
from typing import Any, cast

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldm.config.additions import with_added
from ldm.config.keys import SWEPT, SWEPT_GROUPS, UNCHOSEN, bare, root_type
from ldm.config.overrides import parse
from ldm.config.plugins import CONF, needed, search_path
from ldm.config.refusals import explain, is_left_out, missing_at, unset
from ldm.config.registry import groups, keys_of, root, taken_by
from ldm.config.shapes import check_shape
from ldm.config.upgrades import with_moved_keys
from ldm.config.validation import check_root_key, nearest, validate
from ldm.config.words import check_once, meant, split_literal, take_plugins
from ldm.errors import UserError

NEEDED = ("trainer",)  # groups that no command can do without, where they are


def compose(config_name: str, arguments: list[str], complete: bool = True) -> dict[str, Any]:
    """The resolved and validated tree of ``conf/<config_name>.yaml`` under `arguments` (``key=value`` words).

    ``group=null`` leaves a part out, with whatever an experiment sets in it, and ``group=[a,b]`` all others of the
    group. ``plugins=[a,b]`` adds the parts of these packages in this process, until another command line is composed;
    `plugins` of the tree are those that it needs. Raises UserError with the offending key and the nearest valid one, or
    with a key that has to be given and is not (it stays ``???`` unless `complete`).
    """
    arguments = with_moved_keys(arguments)
    check_once(arguments)
    arguments = take_plugins(arguments, known="plugins" in root(config_name)[0])
    facts, arguments = _split_facts(config_name, arguments)
    named, arguments = _split_named(config_name, arguments)
    literal, overrides = split_literal(arguments)
    counts = [key for key in literal if isinstance(root(config_name)[0].get(key), int)]  # a file of another root
    overrides += [f"{key}={literal.pop(key)}" for key in counts]
    several = {key for key, default in root(config_name)[0].items() if isinstance(default, list)}
    texts = [meant(key, text, key in several) for key, text in literal.items()]
    held = {f"__literal_{place}__": text for place, text in enumerate(texts)}
    overrides += [f"{key}={name}" for key, name in zip(literal, held, strict=True)]
    parsed = with_added(parse(_unchosen_added(config_name, overrides)))
    for override in parsed:
        if override.is_delete() and override.key_or_group.startswith(tuple(f"{group}." for group in NEEDED)):
            raise UserError(f"{override.key_or_group}: cannot be left out; set it to what is meant")
    left_out = {o.key_or_group for o in parsed if o.key_or_group in groups() and (o.is_delete() or not o.value())}
    parsed = [override for override in parsed if override.key_or_group not in left_out]
    tree = _resolved(config_name, parsed, complete)
    tree = {**_restore(tree, held), **facts, **named, **dict.fromkeys(left_out - {"experiment"})}
    _forget_undecided(tree)
    _check_root(tree, config_name)
    swept = (*SWEPT.get(config_name, ()), *SWEPT_GROUPS.get(config_name, ()))
    validate(_given(tree), swept)
    _check_unchosen(tree, config_name, swept)
    for key in ("plugins", "callback_add"):
        if tree.get(key):
            raise UserError(f"{key}: is for the command line, and no experiment sets it")
    return {**tree, "plugins": needed(tree)} if "plugins" in tree else tree


def _unchosen_added(config_name: str, overrides: list[str]) -> list[str]:
    """The overrides, with ++ before those that change a part below a group of which no option is chosen."""
    chosen = {bare(word) for word in overrides}
    places = UNCHOSEN.get(config_name, {})
    below = tuple(f"{place}." for place in places if "." in place and place.split(".")[0] not in chosen)
    return [f"++{word}" if below and word.startswith(below) else word for word in overrides]


def _check_unchosen(tree: dict[str, Any], config_name: str, swept: tuple[str, ...]) -> None:
    """Check the keys of a group of which no option is chosen as those of what they change."""
    places = UNCHOSEN.get(config_name, {})
    for place, target in places.items():
        group, _, below = place.partition(".")
        node = tree.get(group)
        if below and isinstance(node, dict) and "_target_" not in node and isinstance(node.get(below), dict):
            whole = {"_target_": places[group], below: {"_target_": target, **node[below]}}
            validate({group: whole}, swept)


def _split_facts(config_name: str, arguments: list[str]) -> tuple[dict[str, str | None], list[str]]:
    """Separate text for root keys that bear the name of a group of another root (``ema``): to Hydra they are groups.

    None for null.
    """
    keys, choices = root(config_name)
    facts = (keys.keys() & groups().keys()) - choices.keys()
    named = {argument: argument.partition("=") for argument in arguments}
    ours = [word for word, (key, equals, _) in named.items() if key in facts and equals]
    texts = {named[word][0]: named[word][2] for word in ours}
    found = {key: None if text == "null" else text for key, text in texts.items()}
    return found, [word for word in arguments if word not in ours]


def _split_named(config_name: str, arguments: list[str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Separate ``given.NAME=FILE``: text under names that are not known yet, of root keys that are a mapping."""
    mappings = [key for key, default in root(config_name)[0].items() if default == {}]
    words = {word: [*word.partition("=")[0].partition("."), word.partition("=")[2]] for word in arguments}
    ours = {word: parts for word, parts in words.items() if parts[0] in mappings and parts[2]}
    found: dict[str, dict[str, str]] = {}
    for key, _, name, text in ours.values():
        found.setdefault(key, {})[name] = meant(f"{key}.{name}", text)
    return found, [word for word in arguments if word not in ours]


def _resolved(config_name: str, parsed: list[Override], complete: bool) -> dict[str, Any]:
    """Hydra's tree; an argument of a constructor that its leaf file leaves out is set like those that it has."""
    overrides = [override.input_line for override in parsed]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for last in (False, True):
            try:
                tree = cast(dict[str, Any], OmegaConf.to_container(_composed(config_name, overrides)))
                _forget_unchosen(tree, parsed, config_name)  # before other parts take over what a group has
                config = OmegaConf.create(tree)
                return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True, throw_on_missing=complete))
            except (HydraException, OmegaConfBaseException, ValueError, RecursionError) as error:
                added = None if last else _with_plus(config_name, parsed)
                if not added:
                    raise UserError(explain(error, config_name, parsed)) from error
                overrides = added
    raise AssertionError("composed or refused")


def _composed(config_name: str, overrides: list[str]) -> DictConfig:
    return hydra_compose(config_name, [*search_path(), *overrides])


def _with_plus(config_name: str, parsed: list[Override]) -> list[str] | None:
    """The overrides, with a + before each that sets a left-out argument of a constructor, or gives a part under a new
    name; None if none does.
    """
    tree = unset(config_name, parsed)
    if tree is None:
        return None
    texts = [override.input_line for override in parsed]
    for place, override in enumerate(parsed):
        key, path = override.key_or_group, override.key_or_group.split(".")
        value = override.value()
        whole = isinstance(value, dict) and "_target_" in value  # a part under a name of its own
        places = (key, path[0]) if len(path) == 2 and path[0] in groups() else (key,)
        left_out = missing_at(tree, path)[0] in places if whole else is_left_out(tree, path)
        if texts[place].startswith(key) and key not in groups() and left_out:
            texts[place] = f"+{texts[place]}"
    return texts if texts != [override.input_line for override in parsed] else None


def _forget_unchosen(tree: dict[str, Any], parsed: list[Override], config_name: str) -> None:
    """Drop what an experiment sets in options of a group for which others are chosen here; what is set here stays.

    Of a group that has one option these are keys that the chosen one does not have.
    """
    _, choices = root(config_name)
    set_here = [own.key_or_group for own in parsed]
    for override in parsed:
        group, chosen, node = override.key_or_group, override.value(), tree.get(override.key_or_group)
        if group not in choices or not isinstance(node, dict) or override.is_add():
            continue
        if isinstance(choices[group], list) and isinstance(chosen, list):
            unchosen = node.keys() - {key for option in chosen for key in keys_of(group, option)}
        elif isinstance(chosen, str) and "_target_" in node and "experiment" in set_here:
            known = {*taken_by(node["_target_"], group), *keys_of(group, chosen)}  # the file's own mistakes are told
            unchosen = {key for key in node if key not in known and not key.startswith("_")}
        else:
            continue
        for name in unchosen:
            if not any(f"{key}.".startswith(f"{group}.{name}.") for key in set_here):
                del node[name]


def _forget_undecided(tree: dict[str, Any]) -> None:
    """Drop null steps and scales: the command line leaves them open, and the run's own values apply."""
    for group, key in (("sigmas", "num_steps"), ("guidance", "scale")):
        node = tree.get(group)
        if not isinstance(node, dict) or node.get(key, 0) is not None:
            continue
        if "_target_" not in node or key in taken_by(node["_target_"], group):
            del node[key]


def _check_root(tree: dict[str, Any], config_name: str) -> None:
    """Check the root by ``conf/<config_name>.yaml``: its keys, their types, options in groups; one left out is None."""
    keys, choices = root(config_name)
    choices = {group: chosen for group, chosen in choices.items() if group != "experiment"}
    for key in tree:
        if key not in keys and key not in choices:
            raise UserError(f"{key}: no such key{nearest(key, [*keys, *choices])}")
    for key, default in keys.items():
        if key not in tree:
            raise UserError(f"{key}: cannot be left out")
        if tree[key] != "???":
            check_root_key(key, root_type(config_name, key, default), tree[key])
    for group, chosen in choices.items():
        node = tree.setdefault(group, None)
        if node is None and group in NEEDED:
            raise UserError(f"{group}: cannot be left out; {group} is one of {', '.join(groups()[group])}")
        check_shape(group, node, isinstance(chosen, list))
        several = isinstance(chosen, list) and isinstance(node, dict)  # each option nests under its own name
        for where, option in [(f"{group}.{k}", v) for k, v in node.items()] if several else [(group, node)]:
            chosen_or_empty = option is None or (isinstance(option, dict) and "_target_" in option)
            if not chosen_or_empty and group not in keys:
                raise UserError(
                    f"{where}: its keys are set but it is not chosen; {group} is one of {', '.join(groups()[group])}"
                )


def _given(node: Any) -> Any:
    """A tree without the keys that have yet to be given, ``???``."""
    if isinstance(node, list):
        return [_given(item) for item in node]
    return {k: _given(v) for k, v in node.items() if v != "???"} if isinstance(node, dict) else node


def _restore(node: Any, held: dict[str, Any]) -> Any:
    """Replace the placeholders in a tree that Hydra has resolved by the literal texts they stand for."""
    if isinstance(node, dict):
        return {key: _restore(value, held) for key, value in node.items()}
    if isinstance(node, list):
        return [_restore(item, held) for item in node]
    if not isinstance(node, str):
        return node
    return held[node] if node in held else re.sub(r"__literal_\d+__", lambda n: str(held.get(n[0], n[0])), node)
