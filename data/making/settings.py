"""The settings of scripts/make_shards.py, validated."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from ldm.data.image_names import IMAGE_EXTENSIONS
from ldm.data.user_error import UserError

MAP = "segmentation.png"  # the ending of a map of classes
MOST_CLASSES = 65535


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def place(key: str, text: str) -> Path:
    """The path that a text names, `~` expanded; ValueError names the key."""
    try:
        return Path(text).expanduser() if text.startswith("~") else Path(text)  # which makes ~ of ./~
    except RuntimeError as error:  # no such user, or no home
        raise UserError(f"{key}={text}: {error}") from None


@dataclass(frozen=True)
class Settings:
    """One field per key of the command line. `images` and `annotations` may be left out as ''."""

    source: Path  # a folder of images, or a table
    out: Path  # a folder for the shards, which is made
    images: str = ""  # where a table's images lie; '' is beside it
    image_column: str = "image"  # of a table
    caption_column: str = "caption"  # '' for none
    annotations: str = ""  # COCO's json files or OpenImages' csv files of boxes, with commas between them
    descriptions: str = ""  # of OpenImages, the csv file of its classes' names
    classes: str = ""  # of OpenImages: N for the N commonest and COCO's, or a manifest.json with some; '' for all
    min_area: float = 0.0  # share of the image that a box has at least
    min_objects: int = 0  # of an image with boxes
    max_objects: int = 0  # of an image with boxes; 0 for any number
    members: str = ""  # endings of further files beside each image, with commas: depth.png is x.depth.png of x.jpg
    maps: str = ""  # a folder of maps, x.png for x.jpg; '' is x.segmentation.png beside x.jpg
    num_classes: int = 0  # of the maps, whose pixels are numbers from 0 on; 0 for images without maps
    unlabelled: int = -1  # the number of pixels of no class, as 255: stored as num_classes, one class more
    size: int = 0  # px of the shortest side, where it is longer; 0 keeps the files as they are
    validation: float = 0.05  # share of the images that are held out
    shard_samples: int = 1000  # images of each shard
    quality: int = 95  # of WebP, 1 to 100
    workers: int = field(default_factory=_cores)  # processes; all cores

    def __post_init__(self) -> None:
        if not 0 <= self.validation < 1:
            raise UserError(f"validation={self.validation} must be at least 0 and below 1")
        if self.size < 0 or self.shard_samples < 1 or not 1 <= self.quality <= 100 or self.workers < 1:
            raise UserError(
                "size= must be at least 0, shard_samples= and workers= at least 1, quality= between 1 and 100"
            )
        for member in self.member_names:
            taken = member in ("json", *IMAGE_EXTENSIONS) or member != member.lower()
            if taken or not all(member.split(".")) or "/" in member:
                raise UserError(
                    f"members={self.members}: {member!r} is no ending of its own; write depth.png for the file "
                    "x.depth.png beside x.jpg, in small letters, with commas between several"
                )
        if not 0 <= self.min_area < 1 or min(self.min_objects, self.max_objects) < 0:
            raise UserError(
                f"min_area={self.min_area:g} must be at least 0 and below 1, and min_objects=, max_objects= 0"
            )
        if 0 < self.max_objects < self.min_objects:
            raise UserError(f"min_objects={self.min_objects} is more than max_objects={self.max_objects}")
        self._check_openimages()
        if (self.maps or self.unlabelled >= 0) and self.num_classes < 1:
            raise UserError("num_classes= is missing: how many classes the maps have, whose numbers begin at 0")
        if not 0 <= self.num_classes <= MOST_CLASSES or 0 <= self.unlabelled < self.num_classes:
            raise UserError(
                f"num_classes={self.num_classes}, unlabelled={self.unlabelled}: at most {MOST_CLASSES} classes, and a "
                "number above theirs"
            )
        if self.num_classes and MAP in self.member_names:
            raise UserError(f"members={self.members}: with num_classes= {MAP} is read as a map already; leave it out")
        if self.annotations and self.source.is_file():
            raise UserError(f"annotations= belongs to a folder of images, and source={self.source} is a file")
        if self.images and self.source.is_dir():
            raise UserError(f"images= belongs to a table, and source={self.source} is a folder")
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"out={self.out} is a file; name a folder for the shards")

    def _check_openimages(self) -> None:
        if not self.annotations:
            for key in ("descriptions", "classes", "min_area", "min_objects", "max_objects"):
                if getattr(self, key):
                    raise UserError(f"{key}= belongs to annotations=, which is missing")
            return
        kinds = {file.suffix.lower() == ".csv" for file in self.annotation_files}
        if len(kinds) > 1:
            raise UserError(f"annotations={self.annotations}: csv files of OpenImages, or json files of COCO, not both")
        if kinds == {True} and not self.descriptions:
            raise UserError("descriptions= is missing: OpenImages' csv file of its classes' names")
        if kinds == {False} and (self.descriptions or self.classes):
            raise UserError("descriptions= and classes= belong to annotations= of OpenImages, csv files")

    @property
    def openimages(self) -> bool:
        """Whether the annotations are OpenImages'."""
        return bool(self.annotations) and self.annotation_files[0].suffix.lower() == ".csv"

    @property
    def member_names(self) -> tuple[str, ...]:
        """The endings of `members`."""
        return tuple(self.members.split(",")) if self.members else ()

    @property
    def beside(self) -> tuple[str, ...]:
        """The endings of all files beside an image that are no images of their own."""
        return (*self.member_names, MAP) if self.num_classes and not self.maps else self.member_names

    @property
    def annotation_files(self) -> list[Path]:
        """The files of `annotations`; one whose own name has commas is taken as it is."""
        whole = place("annotations", self.annotations)
        if whole.exists():
            return [whole]
        return [place("annotations", name) for name in self.annotations.split(",")]
