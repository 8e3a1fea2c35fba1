"""Captions: text of a json or of a text file."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ldm.data.errors import BadSample
from ldm.data.fields.field import Field
from ldm.data.members import entry, is_unicode, read_entries, read_text, says_something
from ldm.data.rasters import Picture
from ldm.data.transforms import View
from ldm.data.user_error import UserError

PLACE = re.compile(r"\{(\w+)\}")  # of an entry of the json, in a suffix


class Caption(Field):
    """Text, list[str]: a key of the .json member, or a whole text member (`extension=txt`, `key=null`).

    A list under the key counts as alternatives; one of them, one of `prefixes` and one of `suffixes` are drawn for each
    sample number, where nothing is drawn (validation) the first. In a suffix `{style}` is the json's entry "style".
    """

    yields = "list[str]"

    def __init__(
        self,
        key: str | None = "caption",
        extension: str = "json",
        prefixes: Sequence[str] = ("",),
        suffixes: Sequence[str] = ("",),
        max_chars: int = 2000,
    ):
        for name, texts in (("prefixes", prefixes), ("suffixes", suffixes)):
            if not texts:
                raise UserError(f"{name} must hold at least one text; '' means none")
        if key is None and any(PLACE.search(suffix) for suffix in suffixes):
            raise UserError("suffixes with {...} name entries of a json: captions that are whole members have none")
        if max_chars < 1:
            raise UserError(f"max_chars={max_chars}: would leave nothing of any caption")
        self.key = key
        self.extension = extension
        self.prefixes = tuple(prefixes)
        self.suffixes = tuple(suffixes)
        self.max_chars = max_chars

    def read(self, content: bytes, picture: Picture | None) -> tuple[str, ...]:
        """The alternatives, each without surrounding white space and cut at `max_chars`, with every suffix."""
        if self.key is None:
            return self._suffixed(self._texts(read_text(content), None), {})
        entries = read_entries(content)
        return self._suffixed(self._entry(entries, self.key), entries)

    def _suffixed(self, texts: Sequence[str], entries: Mapping[str, Any]) -> tuple[str, ...]:
        suffixes = [PLACE.sub(lambda place: self._entry(entries, place[1])[0], suffix) for suffix in self.suffixes]
        return tuple(text + suffix for text in texts for suffix in suffixes)

    def _entry(self, entries: Mapping[str, Any], key: str) -> tuple[str, ...]:
        return self._texts(entry(entries, key, "missing caption"), key)

    def _texts(self, value: Any, key: str | None) -> tuple[str, ...]:
        texts = value if isinstance(value, list) else [value]
        if not all(isinstance(text, str) for text in texts):
            other = next(text for text in texts if not isinstance(text, str))
            raise BadSample("missing caption", f"{key!r} is {str(other)[:40]}, which is not text; write it in quotes")
        if not all(is_unicode(text) for text in texts):
            raise BadSample("not utf-8", "the caption holds half a surrogate pair")
        if any("\0" in text for text in texts):
            raise BadSample("not utf-8", "the caption holds zero bytes")
        kept = tuple(text.strip()[: self.max_chars] for text in texts if says_something(text))
        if not kept:
            raise BadSample("missing caption", "the caption is empty")
        return kept

    def collate(self, values: Sequence[tuple[str, ...]], views: Sequence[View], image_size: int) -> list[str]:
        """One text for each sample."""
        texts = []
        for alternatives, view in zip(values, views, strict=True):
            which, prefix = divmod(view.choose(len(alternatives) * len(self.prefixes)), len(self.prefixes))
            texts.append(self.prefixes[prefix] + alternatives[which])
        return texts

    def num_choices(self, value: tuple[str, ...]) -> int:
        """Every alternative after every prefix."""
        return len(value) * len(self.prefixes)
