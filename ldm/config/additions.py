"""``callback_add=[...]``: callbacks in addition to an experiment's own, which need not be repeated."""

from hydra.core.override_parser.types import Override

from ldm.config.overrides import parse
from ldm.config.plugins import of_a_package
from ldm.config.registry import groups
from ldm.config.validation import nearest
from ldm.errors import UserError


def with_added(parsed: list[Override]) -> list[Override]:
    """The overrides with ``callback_add=[...]`` translated for Hydra. Raises UserError for an unknown callback."""
    words = {override.key_or_group: override for override in parsed if not override.is_delete()}
    word, own = words.get("callback_add"), words.get("callback")
    if word is None or "callback" not in groups():
        return parsed
    names = word.value() or []
    options = groups()["callback"]
    if not isinstance(names, list) or not all(name in options for name in names):
        wrong = next((n for n in names if n not in options), names) if isinstance(names, list) else names
        unknown = nearest(wrong, options) or of_a_package()
        hint = unknown if isinstance(names, list) else f"; several are callback_add=[{names},...]"
        raise UserError(f"callback_add={wrong}: no such option{hint} (there are: {', '.join(options)})")
    chosen = own.value() if own is not None else None
    chosen = chosen if isinstance(chosen, list) else [chosen] if chosen else []
    both = [name for name in names if name in chosen]
    if both:
        raise UserError(f"callback_add={both[0]}: is in callback=[...] already")
    text = f"callback=[{','.join([*chosen, *names])}]"
    rest = [override for override in parsed if override not in (word, own)]
    return [*rest, *parse([text if own is not None else f"+{text}"])] if names else rest
