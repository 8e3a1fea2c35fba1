"""URLs made safe to show: without the user and password before the @, and without their query.

The whole query is hidden: each provider names its signature differently, and any server may invent another name.
"""

import re
from collections.abc import Iterator
from urllib.parse import unquote

from ldm.data.user_error import UserError

HIDDEN = "***"
SHORTEST_PASSWORD, SHORTEST_VALUE = 6, 8  # characters; shorter ones may be words
# A password may hold a slash or an @ that should have been escaped: the last @ counts, but a port is no password.
_USER = re.compile(r"(?<=://)(?:[^/\s?#]{0,1000}@|[^/\s:@\[]{1,1000}:(?!:|\d*(?:[/?#\s]|$))[^\s?#]{0,1000}@)")
_QUERY = re.compile(r"(\w+)(://[^\s?]{0,2000}\?)(\S*[^\s:;,.)\]}'\"])")
_FRAGMENT = re.compile(r"(://[^\s#]{0,2000}#)(\S*=\S*[^\s:;,.)\]}'\"])")


def without_secrets(text: str) -> str:
    """A text that may hold URLs, with their credentials replaced by ``***``."""
    if "://" not in text:
        return text
    text = _FRAGMENT.sub(rf"\1{HIDDEN}", _QUERY.sub(_query, text))
    return _USER.sub(f"{HIDDEN}@", text)


def secrets_in(text: str) -> Iterator[str]:
    """Passwords and query values in the URLs of a text: an error may quote one of them without the rest of its URL.

    A value without a digit may be a word.
    """
    for user in _USER.findall(text):
        name, colon, password = user[:-1].partition(":")
        for part in (password if colon else name).split("/"):
            if len(part) >= SHORTEST_PASSWORD:
                yield from (part, unquote(part))
    for _, _, query in _QUERY.findall(text):
        for value in (pair.rpartition("=")[2] for pair in query.split("&")):
            if len(value) >= SHORTEST_VALUE and re.search(r"\d", value):
                yield from (value, unquote(value))


def check_complete(place: str, key: str) -> None:
    """Raises ValueError for a URL that was saved with its secrets hidden; `key` is the configuration key it is from.

    The full URL has to be given again when a run is resumed from a saved configuration.
    """
    if HIDDEN in place:
        raise UserError(
            f"{key}: {place} was written down without its password or signature (***): give the whole of it again, "
            f"as {key}=..."
        )


def _query(found: re.Match) -> str:
    scheme, before, query = found.groups()
    is_glob = not scheme.lower().startswith("http") and "=" not in query  # a question mark stands for any letter there
    return found[0] if is_glob else f"{scheme}{before}{HIDDEN}"
