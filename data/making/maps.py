"""Maps of classes beside images: found, held against their image and the number of classes, kept as class numbers.

A palette's colours are for people: what is stored are its indices. A map goes with its image, upright and of its size.
"""

import io
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
from PIL import Image

from ldm.data.decoding import read_picture
from ldm.data.errors import BadSample
from ldm.data.label_images import decode_labels
from ldm.data.making.files import MAX_IMAGE_BYTES, read_file
from ldm.data.making.inside import Folder
from ldm.data.making.settings import MAP
from ldm.data.making.sources import Source
from ldm.data.rasters import ORIENTATION, Picture


@dataclass(frozen=True)
class Maps:
    """Where the maps are: NAME.png of a folder for NAME.jpg, or, of '', x.segmentation.png beside x.jpg.

    Class numbers are 0 to `num_classes` - 1. Pixels of the number `unlabelled`, if it is not negative, get the number
    num_classes: a class of their own, the last.
    """

    folder: str
    num_classes: int
    unlabelled: int = -1

    def path(self, source: Source) -> Path:
        """The map of an image; BadSample where its name leads out of the folder."""
        if not self.folder:
            return source.path.with_name(f"{source.path.stem}.{MAP}")
        name = PurePath(source.name).with_suffix(".png")
        try:
            return Folder(Path(self.folder)).inside(str(name))
        except BadSample:
            raise BadSample("missing map", f"{name} leads out of maps=") from None

    def read(self, source: Source, image: bytes, size: tuple[int, int] | None) -> bytes:
        """The map as PNG: as its file is, or, where its image is written at a `size` (width, height), of that size.

        Raises BadSample, naming the file, if there is none, or if it has another shape, colours, or unknown numbers.
        """
        path = self.path(source)
        if not path.exists():
            raise BadSample("missing map", f"no {path.name} {'in maps=' if self.folder else 'beside it'}")
        try:
            return self._member(read_file(path, MAX_IMAGE_BYTES), image, size)
        except BadSample as error:
            raise BadSample(error.kind, f"{path.name}: {error}") from None

    def _member(self, content: bytes, image: bytes, size: tuple[int, int] | None) -> bytes:
        values, said = decode_labels(content)
        numbers = self._known(values)
        lies = read_picture(image, image_size=1)
        whole = Picture(lies.stored, lies.orientation, size or lies.upright)
        if whole.part is not None:
            raise BadSample(
                "too thin", f"an image of {lies.stored[0]}x{lies.stored[1]} is used in part; cut both before"
            )
        laid = whole.lay(numbers, said, "map")
        if size is not None:
            return _png(laid, None)
        if numbers is values and content.startswith(b"\x89PNG"):
            return content
        return _png(numbers, said)

    def _known(self, values: np.ndarray) -> np.ndarray:
        """The values, unlabelled ones as the last class. BadSample for a number that is none of a class."""
        void = values == self.unlabelled
        unknown = (values >= self.num_classes) & ~void
        if unknown.any():
            row, column = np.argwhere(unknown)[0]
            raise BadSample(
                "unknown class",
                f"the pixel {column} from the left, {row} from the top has the number {values[row, column]}; the "
                f"classes are 0 to {self.num_classes - 1} (num_classes={self.num_classes}), and unlabelled= names a "
                "number of none",
            )
        return np.where(void, self.num_classes, values).astype(values.dtype) if void.any() else values


def _png(values: np.ndarray, said: int | None) -> bytes:
    """Numbers as grey of 8 or 16 bits, with the orientation that their file had said."""
    exif = Image.Exif()
    if said is not None:
        exif[ORIENTATION] = said
    file = io.BytesIO()
    depth = np.uint8 if values.max(initial=0) < 256 else np.uint16
    Image.fromarray(values.astype(depth)).save(file, "PNG", **({"exif": exif} if said is not None else {}))
    return file.getvalue()
