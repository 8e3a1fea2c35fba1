"""Configuration: compose the Hydra tree, bind every key to its constructor, instantiate allow-listed targets.

From here on a tree is a plain resolved ``dict``: nothing below this package knows YAML, Hydra or OmegaConf.
What may be instantiated is exactly what the leaf files in ``conf/`` name, where they name it, and only if it is ours,
an optimizer, a scheduler or Lightning's Trainer, or in a package that this command line names as ``plugins=``; nothing
else, whatever a checkpoint's tree says.
"""

from ldm.config.building import completed, instantiate, listed, takes
from ldm.config.composing import compose
from ldm.config.entry import guarded, helped, shown
from ldm.config.help import answered, help_text
from ldm.config.keys import SWEPT, UNCHOSEN, is_literal
from ldm.config.plugins import CONF, use_plugins, versions
from ldm.config.recipes import recipe_of
from ldm.config.registry import groups, registry, resolve_target
from ldm.config.saved import dump, load_plain, load_tree, named_file
from ldm.config.steps import named_in_step, tree_of_step, words_of_step
from ldm.config.upgrades import with_begun_fields, with_moved_keys
from ldm.config.validation import accepts, check_range, validate
from ldm.config.words import (
    added_words,
    check_once,
    check_words_of_file,
    expand_sweep,
    meant,
    overriding,
    run_name,
    split_literal,
    take_plugins,
)

__all__ = [
    "CONF", "SWEPT", "UNCHOSEN", "accepts", "added_words", "answered", "check_once", "check_range",
    "check_words_of_file", "completed", "compose", "dump", "expand_sweep", "groups", "guarded", "help_text",
    "helped", "instantiate", "is_literal", "listed", "load_plain", "load_tree", "meant", "named_file",
    "named_in_step", "overriding", "recipe_of", "registry", "resolve_target", "run_name", "shown", "split_literal",
    "take_plugins", "takes", "tree_of_step", "use_plugins", "validate", "versions", "with_begun_fields",
    "with_moved_keys", "words_of_step",
]  # fmt: skip
