"""Passwords and tokens taken out of what is written down: a run's files, what it prints, what it sends to W&B.

A secret is what stands before the @ of a URL, a signature or token in its query, a token of a known form, the value of
a key that is called so, and the value of any environment variable that is called so.
"""

import os
import re
from typing import Any

HIDDEN = "***"
SHORTEST = 8  # characters of an environment variable's value that is looked for; a shorter one may be a word
SECRET_NAME = re.compile(
    r"(^|[_.-])(api_?key|access_?key|key_?id|secret|token|password|passwd|credentials?)(?![a-z])", re.I
)
FORMS = tuple(
    re.compile(form)
    for form in (
        r"(?<=://)[^/\s@]+(?=@)",  # user:password of a URL
        r"(?i)(?<=[?&])((?:x-amz-|x-goog-)?(?:signature|credential|security-token)|sig|token|access_token|api_?key|"
        r"awsaccesskeyid|password)=[^&\s]+",
        r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",  # AWS
        r"\bhf_[A-Za-z0-9]{20,}",  # Hugging Face
        r"\b(?:gh[pousr]|github_pat)_[A-Za-z0-9_]{20,}",  # GitHub
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


def _redacted_text(text: str) -> str:
    for name, secret in os.environ.items():
        if len(secret) >= SHORTEST and SECRET_NAME.search(name):
            text = text.replace(secret, HIDDEN)
    key, equals, _ = text.partition("=")
    if equals and re.fullmatch(r"[\w.+~-]+", key) and SECRET_NAME.search(key.rsplit(".", 1)[-1]):
        return f"{key}={HIDDEN}"  # an argument of the command line
    for form in FORMS:
        text = form.sub(lambda found: f"{found[1]}={HIDDEN}" if found.re.groups else HIDDEN, text)
    return text
