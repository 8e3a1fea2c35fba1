"""What --help and --cfg print of an entry point with a tree: its keys, what a group holds, a tree of given words."""

import shutil
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from ldm.config.additions import with_added
from ldm.config.comments import Path, comments, header, with_comments
from ldm.config.composing import compose
from ldm.config.keys import bare
from ldm.config.overrides import parse
from ldm.config.plugins import CONF, folders, search_path
from ldm.config.registry import OVERRIDES, groups, root
from ldm.config.saved import dump
from ldm.config.validation import nearest
from ldm.config.words import expand_sweep, run_name, split_literal, take_plugins
from ldm.errors import UserError
from ldm.installed import spoken
from ldm.redaction import redacted

SWEEP = ("-m", "--multirun")
OF_GROUP = "--help=GROUP            what there is in a group, and the keys of each"
OF_WORDS = """\
KEY=VALUE ... --help    the tree of these words, with what its keys mean
KEY=VALUE ... --cfg     the same tree as it is saved with a run; nothing is run or written"""
WIDTH = 120  # columns at most, where the terminal has them
LEFT = 26  # columns of keys


def answered(config_name: str, about: str, arguments: list[str]) -> str | None:
    """The text to print instead of a run if the words have --help or --cfg; None if they have neither.

    `about` is the entry point's docstring. Raises UserError for words that give no valid tree, and an unknown group.
    """
    asked = [word for word in arguments if word in ("-h", "--help") or word.startswith("--help=")]
    if asked:
        rest = [word for word in arguments if word not in (*asked, *SWEEP)]
        group = next((word.partition("=")[2] for word in asked if "=" in word), "")
        if not group and any(bare(word) != "plugins" for word in rest):
            return resolved(config_name, rest)
        take_plugins(rest, known="plugins" in root(config_name)[0])
        return group_text(config_name, group) if group else spoken(help_text(config_name, about))
    words = _without_cfg(arguments)
    if words == arguments:
        return None
    if not set(SWEEP) & set(words):
        return _file(config_name, words)
    jobs = expand_sweep([word for word in words if word not in SWEEP])
    return "\n---\n".join(f"# {run_name(*job)}\n{_file(config_name, job[0])}" for job in jobs)


def help_text(config_name: str, about: str) -> str:
    """What an entry point is, with its examples; its keys, its groups and their options, with their comments."""
    keys, choices = root(config_name)
    found = comments((CONF / f"{config_name}.yaml").read_text())
    lines = [about.strip(), "", "keys"]
    lines += _lines(keys, found)
    if choices:
        lines += ["", "groups"]
    for group, default in choices.items():
        said = found.get(("defaults", group))
        shown = f"{', '.join(groups()[group])}{f'  # {said}' if said else ''}"
        if len(_shown(default)) > LEFT:
            shown, default = f"{shown}; without it {_shown(default)}", None
        lines.append(_entry(f"{group}={'' if default is None else _shown(default)}", shown))
    return "\n".join([*lines, "", *([OF_GROUP] if choices else []), OF_WORDS])


def group_text(config_name: str, group: str) -> str:
    """The options of a group, what each is, and its keys with their comments; of experiments what they are."""
    choices = root(config_name)[1]
    if group not in choices:
        raise UserError(f"--help={group}: no such group{nearest(group, choices)} (there are: {', '.join(choices)})")
    shown = []
    for option in groups()[group]:
        text = _leaf(group, option)
        named = f"[{option}]" if isinstance(choices[group], list) else option
        lines = [f"{group}={named}", *(f"  {line}" for line in header(text))]
        if group not in OVERRIDES:
            lines += _lines(yaml.safe_load(text), comments(text), (group,))
        shown.append("\n".join(lines))
    return "\n\n".join(shown)


def resolved(config_name: str, words: list[str]) -> str:
    """The tree of these words, with the comments of the files that its keys come from."""
    for word in words:
        if word in root(config_name)[1]:
            raise UserError(f"{word}: what there is in a group is told by --help={word}")
    tree = redacted(compose(config_name, words, complete=False))
    text = (CONF / f"{config_name}.yaml").read_text()
    found = {path[1:] if path[0] == "defaults" else path: said for path, said in comments(text).items()}
    chosen = _chosen(config_name, words)
    experiments = [text for option in [chosen.pop("experiment", None)] if option for text in _with_bases(option)]
    for group, option in chosen.items():
        found |= _said_of((group,), _leaf(group, option))
    for group in (group for group, default in root(config_name)[1].items() if isinstance(default, list)):
        for text in (_leaf(group, option) for option in groups()[group]):
            for name, part in yaml.safe_load(text).items():  # the parts of an option, under their names
                if name != "defaults" and part["_target_"] == ((tree[group] or {}).get(name) or {}).get("_target_"):
                    found |= _said_of((group, name), text, (name,))
    for text in experiments:
        found |= comments(text)
    shown = with_comments(tree, {path: said for path, said in found.items() if said}, _width())
    about = [f"# {line}" for text in experiments[-1:] for line in header(text)]
    return "\n".join([*about, "", shown] if about else [shown])


def _file(config_name: str, words: list[str]) -> str:
    return dump(redacted(compose(config_name, words, complete=False))).rstrip("\n")


def _said_of(place: Path, text: str, inside: Path = ()) -> dict[Path, str]:
    """The comments of a leaf file for a part that stands at `place` of a tree, and `inside` the file."""
    within = {path[len(inside) :]: said for path, said in comments(text).items() if path[: len(inside)] == inside}
    return {**{(*place, *path): said for path, said in within.items()}, place: " ".join(header(text))}


def _chosen(config_name: str, words: list[str]) -> dict[str, str]:
    """The option that these words choose of each group that has one, as Hydra has it."""
    _, rest = split_literal([word for word in words if bare(word) != "plugins"])
    known = root(config_name)[1]
    parsed = [each for each in with_added(parse(rest)) if each.key_or_group in known]
    given = [each.input_line for each in parsed if not each.is_delete() and each.value()]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra_compose(config_name, [*search_path(), *given], return_hydra_config=True)
    choices: Any = OmegaConf.to_container(config.hydra.runtime.choices)
    return {group: choices[group] for group in known if choices.get(group)}


def _with_bases(name: str) -> list[str]:
    """The text of an experiment after those of the experiments that it begins with."""
    text = _leaf("experiment", name)
    entries = [entry for entry in yaml.safe_load(text).get("defaults", []) if isinstance(entry, str)]
    bases = [entry.removeprefix("/experiment/") for entry in entries if entry.startswith("/experiment/")]
    return [*(base for each in bases for base in _with_bases(each)), text]


def _leaf(group: str, option: str) -> str:
    paths = (conf / group / f"{option}.yaml" for conf in folders())
    return next(path for path in paths if path.exists()).read_text(encoding="utf-8")


def _leaves(node: dict[str, Any], found: Mapping[Path, str], above: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The keys that hold values, and those of mappings that have a comment."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            if (*above, key) in found:
                yield (*above, key, "*"), ...
            yield from _leaves(value, found, (*above, key))
        elif key not in ("_target_", "_partial_", "defaults"):
            yield (*above, key), value


def _lines(node: dict[str, Any], found: Mapping[Path, str], above: Path = ()) -> Iterator[str]:
    for path, value in _leaves(node, found):
        said = found.get(path[:-1] if value is ... else path)
        shown = "" if value is ... else f"={_shown(value)}"
        yield _entry(f"{'.'.join((*above, *path))}{shown}", f"# {said}" if said else "")


def _entry(left: str, right: str) -> str:
    start = f"  {left:<{LEFT}}" if len(left) < LEFT else f"  {left}  "
    filled = textwrap.fill(right, _width(), initial_indent=start, subsequent_indent=" " * (LEFT + 4))
    return filled if right else start.rstrip()


def _shown(value: Any) -> str:
    """A value as it is written on the command line."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True).splitlines()[0]


def _width() -> int:
    return min(WIDTH, max(80, shutil.get_terminal_size((WIDTH, 24)).columns))


def _without_cfg(arguments: list[str]) -> list[str]:
    """The words without --cfg, and what Hydra's users write after it."""
    rest: list[str] = []
    for place, word in enumerate(arguments):
        option, _, kind = word.partition("=")
        if option in ("--cfg", "-c"):
            kind = kind or next(iter(arguments[place + 1 :]), "")
            if kind in ("hydra", "all"):
                raise UserError(f"--cfg {kind}: there is the run's own tree alone; write --cfg")
        elif word not in ("job", "--resolve") or not {"--cfg", "-c"} & set(arguments[:place]):
            rest.append(word)
    return rest
