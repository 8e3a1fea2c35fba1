"""File names in tables and annotations: untrusted input, which must not lead to a file outside the images' folder."""

import os
import unicodedata
from functools import lru_cache
from pathlib import Path

from ldm.data.errors import BadSample
from ldm.data.making.files import look_at_image


class Folder:
    """A folder of images whose files are named elsewhere."""

    def __init__(self, path: Path):
        self.path = path
        root = os.path.realpath(path)
        self._root = root if root.endswith(os.sep) else root + os.sep
        self._real_folder = lru_cache(maxsize=1 << 16)(os.path.realpath)  # a folder holds thousands of images

    def find(self, name: str) -> Path:
        """Where the image of that name lies; BadSample if it lies outside, is not there, or cannot be an image."""
        found = self.inside(name)
        look_at_image(found)
        return found

    def inside(self, name: str) -> Path:
        """The path of that name, whether or not anything is there; BadSample if it leads out of the folder."""
        try:
            path = self._spelled(name)
            inside = self._real(path).startswith(self._root)
        except ValueError as error:  # a NUL, or what no file system can spell
            raise BadSample("image not found", str(error)) from None
        except OSError:  # links in a circle
            raise BadSample("image not found") from None
        if not inside:
            raise BadSample("outside images=", "the name leads out of the folder of images; images= has to hold it")
        return Path(path)

    def _spelled(self, name: str) -> str:
        """The path under the name as it is, or under a name of the same letters, taken apart or not (NFD, NFC)."""
        path = os.path.join(self.path, name)
        if name.isascii() or os.path.lexists(path):
            return path
        others = [os.path.join(self.path, unicodedata.normalize(form, name)) for form in ("NFC", "NFD")]
        return next((other for other in others if os.path.lexists(other)), path)

    def _real(self, path: str) -> str:
        folder, name = os.path.split(path)
        real = os.path.join(self._real_folder(folder), name)
        return os.path.realpath(real) if os.path.islink(real) or name in ("", ".", "..") else real
