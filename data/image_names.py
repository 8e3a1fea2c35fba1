"""Which files are images, by their names: the extensions of the formats that can be decoded here."""

from importlib.util import find_spec

HAS_AVIF, HAS_HEIF = (find_spec(name) is not None for name in ("PIL.AvifImagePlugin", "pillow_heif"))
# an allow-list of what is worth its risk; where a sample has several images the first in this order is its image, so
# that a new format never displaces an old one
IMAGE_EXTENSIONS: tuple[str, ...] = ("jpg", "jpeg", "png", "webp", "jfif", "jpe", "tif", "tiff", "bmp", "gif")
IMAGE_EXTENSIONS += (*(["avif"] if HAS_AVIF else []), *(["heic", "heif"] if HAS_HEIF else []))
