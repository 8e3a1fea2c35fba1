"""Data made to harm: whatever a shard, a member or a name holds, no code of its runs, and there is a clear error or a
named skip within two seconds.
"""

import io
import json
import os
import pickle
import struct
import tarfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from markupsafe import escape
from PIL import Image

from ldm.data import bounded_json
from ldm.data.bounded_json import load_json
from ldm.data.errors import ShardError, TooManyBadSamples
from ldm.data.fields import Caption, Embeddings, Field, Label, Layout
from ldm.data.module import ShardData
from ldm.data.paths import expand

SECONDS = 2.0


@pytest.fixture(autouse=True)
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What hostile code would leave behind, and the time it may take to be refused."""
    path = tmp_path / "canary"
    monkeypatch.setenv("CANARY", str(path))
    began = time.monotonic()
    yield path
    assert not path.exists(), "code out of the data ran"
    assert time.monotonic() - began < SECONDS


class Payload:
    """Pickled, it is a shell command."""

    def __reduce__(self) -> tuple:
        return os.system, ('touch "$CANARY"',)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


GOOD = encoded(Image.new("RGB", (8, 8), "red"))


def tar_of(path: Path, members: list[tuple[str | tarfile.TarInfo, bytes]], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            if info.isreg():
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def epoch(path: Path | list[str], **fields: Field) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """All batches of one pass, and what it skipped."""
    shards = [str(path)] if isinstance(path, Path) else path
    data = ShardData(shards, image_size=8, batch_size=4, fields=fields, max_bad_fraction=1.0)
    return list(data.statistics_loader()), data.skipped


def skipped_kinds(tmp_path: Path, members: dict[str, bytes], **fields: Field) -> list[str]:
    """How a hostile sample between two good ones is skipped; both good ones must be kept."""
    good = {
        "png": GOOD,
        "json": b'{"caption": "c", "label": 1, "objects": []}',
        "npy": npy(np.zeros((1, 2), np.float32)),
    }
    names = [(f"{key}.{kind}", content) for key in ("a", "c") for kind, content in good.items()]
    half = len(good)
    hostile = [(f"b.{kind}", content) for kind, content in {**good, **members}.items()]
    batches, skipped = epoch(tar_of(tmp_path / "x.tar", [*names[:half], *hostile, *names[half:]]), **fields)
    kept = sorted(key for batch in batches for key in batch["key"])
    assert kept == sorted({"a", "b", "c"} - {row["key"] for row in skipped})
    assert all(row["key"] == "b" and row["shard"] == "x.tar" and len(row["reason"]) <= 200 for row in skipped)
    return [row["kind"] for row in skipped]


def npy(array: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def npy_with(header: str, body: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


# -- code ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extension", ["pkl", "pyd", "pth", "pt", "pickle", "py", "sh"])
def test_members_that_others_would_run_are_not_even_read(tmp_path: Path, extension: str) -> None:
    content = pickle.dumps(Payload()) if extension.startswith("p") else b'touch "$CANARY"'
    assert skipped_kinds(tmp_path, {extension: content}, caption=Caption()) == []


@pytest.mark.parametrize("extension", ["json", "npy", "png", "cls"])
def test_a_pickle_under_another_name_is_broken_data(tmp_path: Path, extension: str) -> None:
    fields = {"caption": Caption(), "embeddings": Embeddings(2)}
    if extension == "cls":
        fields = {"label": Label(key=None, extension="cls")}
        members = [("a.png", GOOD), ("a.cls", b"1"), ("b.png", GOOD), ("b.cls", pickle.dumps(Payload()))]
        _, skipped = epoch(tar_of(tmp_path / "x.tar", members), **fields)
        assert [(row["key"], row["kind"]) for row in skipped] == [("b", "not utf-8")]
    else:
        kinds = {"json": "not utf-8", "npy": "broken array", "png": "broken image"}
        assert skipped_kinds(tmp_path, {extension: pickle.dumps(Payload())}, **fields) == [kinds[extension]]


@pytest.mark.parametrize(
    "shards",
    [
        'pipe:touch "$CANARY"',
        ["/dev/null", 'pipe:touch "$CANARY"'],
        '{pipe:touch "$CANARY",pipe:true}',
        'PIPE:touch "$CANARY"',
        '|touch "$CANARY"',
        'ext::touch "$CANARY"',
        "$(touch $CANARY).tar",
        "`touch $CANARY`.tar",
        "gopher://localhost/x.tar",
        "${oc.env:HOME}/x.tar",
    ],
)
def test_names_of_shards_are_never_commands(shards: str | list[str]) -> None:
    with pytest.raises(ShardError, match=r"data\.train"):
        expand(shards, "data.train")


@pytest.mark.parametrize(
    "content",
    [
        npy(np.array([Payload()], dtype=object), allow_pickle=True),
        npy_with("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 8), }"),
        npy_with("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -2), }", bytes(8)),
        npy_with("{'descr': '<f4', 'fortran_order': False, 'shape': (10**10, 2), }"),
        npy_with("__import__('os').system('touch $CANARY')"),
        npy_with("{'descr': [('a', 'O')], 'fortran_order': False, 'shape': (1, 2), }", bytes(16)),
        npy_with("(" * 9000),
        b"\x93NUMPY\x03\x00" + b"\xff" * 100,
        b"\x93NUMPY\x02\x00" + b"\xff" * 100,
        b"PK\x03\x04" + bytes(100),
        b"",
    ],
    ids=["objects", "a huge shape", "negative", "arithmetic", "a call", "fields", "nested", "v3", "long", "zip",
         "none"],
)  # fmt: skip
def test_arrays_are_floats_of_the_size_they_claim(tmp_path: Path, content: bytes) -> None:
    assert skipped_kinds(tmp_path, {"npy": content}, embeddings=Embeddings(2)) == ["broken array"]


# -- images --------------------------------------------------------------------------------------------------------


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, *chunks: bytes, depth: int = 8) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + body


def webp(width: int, height: int) -> bytes:
    """An extended WebP that claims a canvas and holds a small picture."""
    inner = encoded(Image.new("RGB", (8, 8)), "WEBP", lossless=True)[12:]
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBP" + b"VP8X" + struct.pack("<I", 10) + bytes(4) + canvas + inner
    return b"RIFF" + struct.pack("<I", len(body)) + body


def jpeg(width: int, height: int) -> bytes:
    content = bytearray(encoded(Image.new("RGB", (8, 8)), "JPEG"))
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(content)


# Before Pillow 13 libwebp itself refuses a canvas that its picture does not fill, before it takes memory for it.
WEBP_REFUSED = "too many pixels" if int(PIL.__version__.partition(".")[0]) >= 13 else "broken image"


@pytest.mark.parametrize("decoder", ["pil", "fast"])
@pytest.mark.parametrize(
    ("content", "kinds"),
    [
        (png(60000, 60000), ["too many pixels"]),
        (png(2**31 - 1, 1), ["too many pixels"]),
        (png(8, 8, chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1 << 24)))), ["broken image"]),
        (png(8, 8, chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(1 << 24)))), ["broken image"]),
        (webp(16384, 16384), [WEBP_REFUSED]),
        (jpeg(65500, 65500), ["too many pixels"]),
        (jpeg(8000, 8000), []),  # it ends as it should: libjpeg makes grey of what is not there
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(touch $CANARY) run\n", ["broken image"]),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>", ["broken image"]),
        (encoded(Image.new("RGB", (8, 8)), "PPM"), ["broken image"]),
    ],
    ids=["png", "wide png", "text", "profile", "webp", "jpeg", "short jpeg", "postscript", "svg", "ppm"],
)  # fmt: skip
def test_images_are_refused_before_they_grow(tmp_path: Path, content: bytes, kinds: list[str], decoder: str) -> None:
    members = [("a.png", GOOD), ("b.png", content)]
    data = ShardData(
        str(tar_of(tmp_path / "x.tar", members)), image_size=8, batch_size=4, max_bad_fraction=1.0, decoder=decoder
    )
    list(data.statistics_loader())
    assert [row["kind"] for row in data.skipped] == kinds


@pytest.mark.parametrize("exif", [b"Exif\0\0MM\0*\0\0\0\x08" + b"\xff" * 60, b"Exif\0\0" + b"\0" * 30, b"Exif\0\0II"])
def test_broken_metadata_costs_no_picture(tmp_path: Path, exif: bytes) -> None:
    content = encoded(Image.new("RGB", (8, 8)), "JPEG", exif=exif)
    _, skipped = epoch(tar_of(tmp_path / "x.tar", [("a.jpg", content)]))
    assert skipped == []


# -- archives ------------------------------------------------------------------------------------------------------


def header(size: bytes = b"00000000010\0", kind: bytes = b"0", name: bytes = b"a.txt") -> bytes:
    """A tar header with whatever is said about its member."""
    block = bytearray(512)
    block[: len(name)] = name
    block[124:136] = size
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def extended(records: bytes, size: int | None = None) -> bytes:
    """An extended header, then a member of eight bytes."""
    length = len(records) if size is None else size
    padded = records + bytes(-len(records) % 512)
    return header(b"%011o\0" % length, b"x", b"pax") + padded + header() + bytes(512)


def record(key: str, value: str) -> bytes:
    body = f" {key}={value}\n".encode()
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    return str(length).encode() + body


@pytest.mark.parametrize(
    "content",
    [
        header(b"\x80" + (1 << 40).to_bytes(11, "big")),
        header(b"\xff" * 12),
        header(b"77777777777\0"),
        header(b"-0000000010\0"),
        header(kind=b"S"),
        header(kind=b"Z"),
        extended(record("size", "1" + "0" * 12)),
        extended(record("size", "9" * 5000)),
        extended(record("size", "\u00b2")),
        extended(record("size", "-5")),
        extended(record("GNU.sparse.major", "1")),
        extended(b"9" * 5000 + b" path=x\n"),
        extended(b"0 path=x\n"),
        extended(b"7 a=b\n" * 1_000_000),
        extended(b"x", size=1 << 36),
        extended(record("path", "x/" * 30_000 + "a")),
        extended(record("path", "/" * 65_000)),
        header(b"%011o\0" % (1 << 21), b"L") + b"/" * (1 << 21) + header() + bytes(512),
        b"".join(header(b"00000000000\0", name=b"a.%d" % number) for number in range(2_000)),
    ],
    ids=["a terabyte", "negative", "8 GiB", "minus", "sparse", "kind", "pax terabyte", "pax digits", "pax superscript",
         "pax minus", "pax sparse", "pax length", "pax zero", "pax many", "pax cut", "pax path", "pax slashes",
         "long name", "kinds of members"],
)  # fmt: skip
def test_archives_that_lie_are_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(content + bytes(1024))
    with pytest.raises(ShardError, match=r"x\.tar") as caught:
        epoch(tmp_path / "x.tar")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 10_000


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_links_and_devices_are_not_followed(tmp_path: Path, kind: bytes) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(GOOD)
    link = tarfile.TarInfo("b.png")
    link.type, link.linkname, link.devmajor, link.devminor = kind, str(secret), 1, 5
    members = [("a.png", GOOD), ("b.json", b"{}"), (link, b"")]
    _, skipped = epoch(tar_of(tmp_path / "x.tar", members))
    assert [(row["key"], row["kind"]) for row in skipped] == [("b", "missing member")]


NAMES = ["../../../canary", "/tmp/canary", "~/canary", "C:\\canary", "\x1b]0;title\x07\x1b[2J", "x\ny", "\u202egnp"]


@pytest.mark.parametrize("name", NAMES, ids=map(ascii, NAMES))
def test_names_are_keys_and_never_paths_or_commands(tmp_path: Path, name: str) -> None:
    before = sorted(tmp_path.rglob("*"))
    batches, skipped = epoch(tar_of(tmp_path / "x.tar", [(f"{name}.png", GOOD)]))
    assert skipped == [] and batches[0]["key"] == [name]
    tar_of(tmp_path / "x.tar", [(f"{name}.png", b"\x1b[2J"), (f"{name}2.png", GOOD)])
    with pytest.raises(TooManyBadSamples) as caught:
        data = ShardData(str(tmp_path / "x.tar"), image_size=8, batch_size=4, max_bad_fraction=0.0)
        list(data.statistics_loader())
    assert all(line.isprintable() for line in str(caught.value).splitlines())
    assert len(str(caught.value).splitlines()) == 2
    assert sorted({*tmp_path.rglob("*")} - {tmp_path / "x.tar"}) == before
    assert not Path(f"{name}.png").expanduser().exists() and not (tmp_path / f"{name}.png").exists()


# -- text ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"[" * 1_000_000, "broken json"),
        (b'{"a":' * 1_000_000, "broken json"),
        (b'{"label": ' + b"9" * 1_000_000 + b"}", "broken json"),
        (b'{"caption": "c", "label": ' + b"9" * 4000 + b', "objects": []}', "missing label"),
        (b'{"caption": "c", "label": NaN, "objects": []}', "missing label"),
        (b'{"caption": "c", "label": 1e999, "objects": []}', "missing label"),
        (b'{"caption": "\\ud800", "label": 1, "objects": []}', "not utf-8"),
        (b'{"caption": {"$ref": "#"}, "label": 1, "objects": []}', "missing caption"),
        (b'{"caption": "c", "label": 1, "objects": [{"category": 0, "box": [NaN, 0, 1, 1]}]}', "broken objects"),
        (b'{"caption": "c", "label": 1, "objects": [{"category": 0, "box": [0, 0, 1, 1' + b"0" * 400 + b"]}]}",
         "broken objects"),
        (b'{"caption": "c", "label": 1, "objects": [{"category": -1, "box": [0, 0, 1, 1]}]}', "broken objects"),
        (b'{"caption": "c", "label": 1, "objects": {"category": 0}}', "broken objects"),
        (b'{"caption": "c", "label": 1, "objects": 7}', "broken objects"),
        (b"\xff\xfe{}", "not utf-8"),
    ],
    ids=["nested lists", "nested objects", "a million digits", "4000 digits", "NaN", "infinity", "half a pair",
         "object", "NaN box", "huge box", "negative", "mapping", "number", "utf-16"],
)  # fmt: skip
def test_json_that_would_break_its_reader_is_a_skip(tmp_path: Path, content: bytes, kind: str) -> None:
    fields = {"caption": Caption(), "label": Label(), "layout": Layout(num_classes=4)}
    assert skipped_kinds(tmp_path, {"json": content}, **fields) == [kind]


def test_a_hostile_manifest_is_named(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "x.tar", [("a.png", GOOD)])
    for content in (b"[" * 1_000_000, b'{"splits": {"a": {"shards": ["x"]}}}', b'{"splits": 7}', b"\xff"):
        (tmp_path / "manifest.json").write_bytes(content)
        with pytest.raises(ShardError, match=r"manifest\.json"):
            _ = ShardData(str(path), image_size=8, batch_size=1).fingerprint


def test_a_manifest_of_too_many_parts_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_json, "MAX_PARTS", 4)
    assert load_json(b"[[], 1, 2]") == [[], 1, 2]
    with pytest.raises(ValueError, match="JSON of 5 parts, 4 allowed"):
        load_json(b"[[], {}, 2]")


TEXTS = [
    "\x1b[2J\x1b]0;x\x07",
    "${oc.env:HOME}",
    "{{7*7}}",
    "<script>alert(1)</script>",
    "$\\frac",
    "[bold red]x[/]",
    "%s%n",
]


@pytest.mark.parametrize("text", TEXTS, ids=map(ascii, TEXTS))
def test_captions_arrive_as_they_were_written_and_pages_escape_them(tmp_path: Path, text: str) -> None:
    from ldm.report.page import Code, Section, write_report

    member = json.dumps({"caption": text}).encode()
    batches, _ = epoch(tar_of(tmp_path / "x.tar", [("a.png", GOOD), ("a.json", member)]), caption=Caption())
    assert batches[0]["caption"] == [text]
    page = write_report(tmp_path / "page", text, text, [Section(text, text, [Code(text, text)])])
    shown = page.read_text(encoding="utf-8")
    assert str(escape(text)) in shown and "<script" not in shown
