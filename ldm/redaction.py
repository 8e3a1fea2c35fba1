"""Passwords and tokens taken out of what is written down: a run's files, what it prints, what it sends to W&B.

A secret is what opens an address (data/addresses.py), a token of a known form, the value of a key that is called so,
the value of any environment variable that is called so, and on the terminal every part of them too.
"""

import json
import os
import re
import sys
from collections.abc import Iterable
from functools import cache
from typing import Any
from urllib.parse import quote

from ldm.data.addresses import HIDDEN, secrets_in, without_secrets

SHORTEST = 8  # characters of an environment variable's value that is looked for; a shorter one may be a word
SECRET_NAME = re.compile(
    r"(^|[_.-])(api_?key|access_?key|account_?key|private_?key|storage_?key|key_?id|secret|token|passwd|passphrase|"
    r"credentials?|connection_?string|sas)(?![a-z])|password(?![a-z])",
    re.I,
)
VARIABLE_NAME = re.compile(rf"{SECRET_NAME.pattern}|_KEY$", re.I)
FORMS = tuple(
    re.compile(form)
    for form in (
        r"(?i)(?<=[?&])((?:x-amz-|x-goog-)?(?:signature|credential|security-token)|sig|token|access_token|api_?key|"
        r"awsaccesskeyid|password)=[^&\s]+",
        r"(?i)\b(AccountKey|SharedAccessSignature)=[^;\s]+",  # Azure's connection strings
        r"(?i)(?<=\bbearer )[\w.~+/=-]{8,}",
        r"(?i)(?<=\bauthorization: basic )[\w+/=-]+",
        r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",  # AWS
        r"\bAIza[A-Za-z0-9_-]{35}",  # Google
        r"\bhf_[A-Za-z0-9]{20,}",  # Hugging Face
        r"\b(?:gh[pousr]|github_pat)_[A-Za-z0-9_]{20,}",  # GitHub
        r"\bglpat-[A-Za-z0-9_-]{20,}",  # GitLab
        r"\bwandb_v\d_[A-Za-z0-9_]{20,}",  # Weights & Biases
        r"\bsk-[A-Za-z0-9_-]{20,}",
        r"\bxox[abprs]-[A-Za-z0-9-]{10,}",  # Slack
    )
)


def redacted(value: Any) -> Any:
    """The same nested lists, dicts and texts, secrets replaced by ``***``."""
    if isinstance(value, dict):
        return {
            key: HIDDEN if isinstance(item, str) and item and SECRET_NAME.search(str(key)) else redacted(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return type(value)(redacted(item) for item in value)
    return _redacted_text(value) if isinstance(value, str) else value


def agrees(saved: Any, value: Any) -> bool:
    """Whether a `value` matches the one that was `saved`; what was hidden in that matches anything."""
    saved, value = redacted(saved), redacted(value)
    if isinstance(saved, list) and isinstance(value, list) and len(saved) == len(value):
        return all(map(agrees, saved, value))
    if not isinstance(saved, str) or not isinstance(value, str) or HIDDEN not in saved:
        return saved == value
    pieces = map(re.escape, saved.split(HIDDEN))
    return re.fullmatch(".*".join(pieces), value, re.DOTALL) is not None


def hide_on_terminal() -> None:
    """From here on, whatever this process writes to stdout and stderr is redacted, tracebacks and warnings too.

    Called again, it also covers streams that have been wrapped since, such as by a logger that copies the output.
    """
    parts = tuple(secrets_in(" ".join(sys.argv)))
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not hasattr(stream.write, "hides_secrets"):
            _hide_in(stream, parts)


def _hide_in(stream: Any, parts: Iterable[str]) -> None:
    inner = stream.write

    def write(text: str) -> int:
        inner(_without(_redacted_text(text), parts))
        return len(text)

    write.hides_secrets = True  # type: ignore[attr-defined]  # a mark on the function itself
    stream.write = write


def _redacted_text(text: str) -> str:
    text = _without(text, _of_environment())
    key, equals, _ = text.partition("=")
    if equals and re.fullmatch(r"[\w.+~-]+", key) and SECRET_NAME.search(key.rsplit(".", 1)[-1]):
        return f"{key}={HIDDEN}"  # an argument of the command line
    text = without_secrets(text)
    for form in FORMS:
        text = form.sub(lambda found: f"{found[1]}={HIDDEN}" if found.re.groups else HIDDEN, text)
    return text


def _without(text: str, secrets: Iterable[str]) -> str:
    for secret in secrets:
        if secret in text:
            text = text.replace(secret, HIDDEN)
    return text


def _of_environment() -> list[str]:
    """Secrets in the environment, as they are and percent-encoded as in URLs, the longest first."""
    found = set()
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and _is_secret(name):
            found |= {value, quote(value, safe="")}
        if value.startswith("{"):
            found |= {secret for secret in _of_json(value) if len(secret) >= SHORTEST}
        elif "://" in value and re.fullmatch(r"\w+://\S+", value):
            found |= set(secrets_in(value))
    return sorted(found, key=len, reverse=True)


@cache
def _is_secret(name: str) -> bool:
    return VARIABLE_NAME.search(name) is not None


@cache
def _of_json(text: str) -> frozenset[str]:
    """Values of keys that are called secret, in a mapping such as FSSPEC_S3."""
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        return frozenset()
    named = VARIABLE_NAME, re.compile("^key$", re.I)
    items = tree.items() if isinstance(tree, dict) else ()
    return frozenset(v for k, v in items if isinstance(v, str) and any(name.search(k) for name in named))
