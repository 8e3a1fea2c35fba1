"""What make_shards reads: tables, annotations and captions beside pictures."""

import io
import json
import random
from contextlib import redirect_stderr, redirect_stdout
from functools import cache, partial
from pathlib import Path

from chaoses import bad_pictures as bad
from chaoses import mutations as spoil
from chaoses.file_kinds import Kind, without_address
from ldm.errors import UserError
from scripts import make_shards

TABLE = 'image,caption,n\na.png,a red heart,1\nb.png,"two, words",2\n'


def _made(folder: Path, words: list[str]) -> list[str]:
    """Run make_shards; its error line is raised as an exception."""
    quiet = io.StringIO()
    try:
        with redirect_stdout(quiet), redirect_stderr(quiet):
            make_shards.main([*words, f"out={folder}/out", "workers=1", "validation=0"])
    except SystemExit as stop:
        raise UserError(str(stop)) from None
    manifest = json.loads((folder / "out" / "manifest.json").read_text())
    return without_address([row["reason"] for row in manifest["skipped"]])


def _images(folder: Path) -> Path:
    images = folder / "images"
    images.mkdir()
    for name, number in (("a.png", 11), ("b.png", 222)):
        (images / name).write_bytes(bad.encoded(bad.Image.fromarray(bad.pixels(number))))
    return images


def _read_table(suffix: str, folder: Path, content: bytes, how: spoil.Mutation) -> list[str]:
    (folder / f"table{suffix}").write_bytes(content)
    return _made(folder, [f"source={folder}/table{suffix}", f"images={_images(folder)}"])


def _read_annotations(folder: Path, content: bytes, how: spoil.Mutation) -> list[str]:
    (folder / "a.json").write_bytes(content)
    return _made(folder, [f"source={_images(folder)}", f"annotations={folder}/a.json"])


def _read_folder(folder: Path, content: bytes, how: spoil.Mutation) -> list[str]:
    images = _images(folder)
    (images / "b.txt").write_bytes(b"good")
    (images / "a.txt").write_bytes(content)
    return _made(folder, [f"source={images}"])


def _jsonl(rng: random.Random) -> bytes:
    rows = [{"image": "a.png", "caption": "x", "n": [1, {"y": 2.5}]}, {"image": "b.png", "caption": ["x", "y"]}]
    return b"\n".join(json.dumps(row).encode() for row in rows)


@cache
def _parquet() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pq.write_table(pa.table({"image": ["a.png", "b.png"], "caption": ["x", "y"], "n": [1, 2]}), file)
    return file.getvalue()


def _annotations(rng: random.Random) -> bytes:
    images = [{"id": n, "file_name": f"{name}.png", "width": 48, "height": 48} for n, name in enumerate("ab", 1)]
    boxes = [{"id": n, "image_id": n, "category_id": 7, "bbox": [4, 4, 20, 20.5], "iscrowd": 0} for n in (1, 2)]
    return json.dumps({"images": images, "annotations": boxes, "categories": [{"id": 7, "name": "cat"}]}).encode()


KINDS: dict[str, Kind] = {
    "csv": Kind(lambda rng: TABLE.encode(), spoil.TEXT, partial(_read_table, ".csv")),
    "jsonl": Kind(_jsonl, spoil.TEXT, partial(_read_table, ".jsonl")),
    "parquet": Kind(lambda rng: _parquet(), spoil.BYTES, partial(_read_table, ".parquet")),
    "annotations": Kind(_annotations, spoil.JSON, _read_annotations),
    "caption file": Kind(lambda rng: b"a red heart\n", spoil.TEXT, _read_folder),
}
MADE_ONCE = (_parquet,)
