"""Untrusted files, read with limits: a pipe, a device or 20 GiB under an image's name must not stall the program."""

import os
import stat
from pathlib import Path

from ldm.data.decoding import MAX_PIXELS
from ldm.data.errors import BadSample
from ldm.data.image_names import IMAGE_EXTENSIONS

MAX_IMAGE_BYTES = 4 * MAX_PIXELS + (1 << 20)  # the largest picture that is decoded, stored without compression
MAX_TEXT_BYTES = 1 << 20  # of a caption, and of all that is known about one image

# Other names that pictures have. Whatever is in `IMAGE_EXTENSIONS` too is read.
PICTURE_EXTENSIONS = frozenset(
    {
        "ai",
        "apng",
        "arw",
        "avif",
        "avifs",
        "bmp",
        "bpg",
        "cdr",
        "cr2",
        "cr3",
        "crw",
        "cur",
        "dcm",
        "dcr",
        "dds",
        "dib",
        "djvu",
        "dng",
        "emf",
        "eps",
        "erf",
        "exr",
        "fits",
        "fpx",
        "gif",
        "hdr",
        "heic",
        "heics",
        "heif",
        "hif",
        "icns",
        "ico",
        "iff",
        "j2c",
        "j2k",
        "jfi",
        "jfif",
        "jif",
        "jng",
        "jp2",
        "jpc",
        "jpe",
        "jpeg",
        "jpf",
        "jpg",
        "jpm",
        "jpx",
        "jxl",
        "jxr",
        "kdc",
        "mng",
        "mpo",
        "mrw",
        "nef",
        "nrw",
        "orf",
        "pam",
        "pbm",
        "pcd",
        "pct",
        "pcx",
        "pef",
        "pfm",
        "pgm",
        "pic",
        "pict",
        "pjp",
        "pjpeg",
        "png",
        "pnm",
        "ppm",
        "ps",
        "psb",
        "psd",
        "qoi",
        "raf",
        "ras",
        "raw",
        "rgb",
        "rw2",
        "rwl",
        "sgi",
        "sr2",
        "srf",
        "srw",
        "svg",
        "svgz",
        "tga",
        "tif",
        "tiff",
        "wbmp",
        "wdp",
        "webp",
        "wmf",
        "x3f",
        "xbm",
        "xcf",
        "xpm",
    }
)
# How files begin, where the beginning can be nothing else.
BEGINNINGS = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"GIF87a", "GIF"),
    (0, b"GIF89a", "GIF"),
    (8, b"WEBP", "WebP"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"8BPS", "Photoshop"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftypheic", "HEIC"),
    (4, b"ftypheix", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
)


def read_file(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes; BadSample for anything else."""
    content = read_start(path, limit + 1)
    if len(content) > limit:
        size = os.stat(path).st_size
        raise BadSample("file too large", f"{size} bytes, {limit} are allowed")
    return content


def read_start(path: Path, count: int) -> bytes:
    """The first `count` bytes of a regular file, or all it has; BadSample if it is none or cannot be read."""
    try:
        refuse_special(os.stat(path))  # before it is opened: opening a pipe waits for its other end
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            refuse_special(os.fstat(file.fileno()))  # the name may refer to another file by now
            return file.read(count)
    except BadSample:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL, or what no file system can spell
        raise BadSample("unreadable file", reason_of(error)) from None


def refuse_special(state: os.stat_result) -> None:
    """BadSample where a path is no regular file."""
    if stat.S_ISREG(state.st_mode):
        return
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    raise BadSample("not a regular file", f"it is {kinds.get(stat.S_IFMT(state.st_mode), 'a device')}")


def look_at_image(path: Path) -> None:
    """BadSample where a path cannot be an image, before it is opened."""
    try:
        refuse_special(os.stat(path))
    except BadSample:
        raise
    except PermissionError as error:
        raise BadSample("unreadable file", reason_of(error)) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL, or what no file system can spell
        raise BadSample("image not found", reason_of(error)) from None
    if path.suffix.lower()[1:] not in IMAGE_EXTENSIONS:
        raise BadSample("unknown format", f"{path.suffix or 'a name without an ending'} is not read")


def reason_of(error: Exception) -> str:
    """An OSError's reason without the path: a manifest is the same wherever it is made."""
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def format_of(content: bytes) -> str | None:
    """The name of a picture's format by how the file begins; None where that says nothing."""
    found = (name for start, mark, name in BEGINNINGS if content[start : start + len(mark)] == mark)
    return next(found, None)
