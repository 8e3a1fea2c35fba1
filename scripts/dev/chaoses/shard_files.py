"""Shards, their members, their indices and manifests: spoilt, and read as training reads them."""

import io
import json
import random
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from chaoses import bad_pictures as bad
from chaoses import mutations as spoil
from chaoses.file_kinds import Kind, scratch, without_address
from ldm.data.decoding import DECODERS
from ldm.data.derived import cache_folder
from ldm.data.errors import BadSample
from ldm.data.fields import Caption, Embeddings, Field, Label, Layout, Mask, SemanticMap
from ldm.data.module import ShardData
from ldm.data.shards import ShardSet
from ldm.data.writing import write_shard

NUMBERS = (11, 222, 3333, 4444, 55555, 60606)  # what the pictures of a shard show


def samples() -> list[dict[str, Any]]:
    return [bad.sample(number, ("jpg", "png", "webp")[place % 3]) for place, number in enumerate(NUMBERS)]


@cache
def shard_bytes() -> bytes:
    path = scratch("shard") / "x.tar"
    write_shard(path, samples())
    return path.read_bytes()


def data_of(train: str, **fields: Field) -> ShardData:
    return ShardData(train, image_size=bad.SIZE, batch_size=2, fields=fields, max_bad_fraction=1.0)


def mispaired(data: ShardData) -> list[str]:
    """Pictures that are paired with another one's caption; a picture that was itself changed shows no number."""
    captions = {bad.caption_of(number): number for number in NUMBERS}
    wrong = []
    for batch in data.statistics_loader():
        for image, text in zip(batch["image"].numpy(), batch["caption"], strict=True):
            shown, said = bad.number_in(image), captions.get(text[:64])
            if shown in NUMBERS and said is not None and shown != said:
                wrong.append(f"the picture {shown} has the caption of {said}")
    return wrong


def _read_shard(folder: Path, content: bytes, how: spoil.Mutation) -> list[str]:
    (folder / "train-0.tar").write_bytes(content)
    wrong = mispaired(data_of(f"{folder}/train-0.tar", caption=Caption()))
    return wrong if how in spoil.IN_PLACE else []  # a moved or renamed member really is another sample's


def _read_member(name: str, field: Field, folder: Path, content: bytes, how: spoil.Mutation) -> list[str]:
    """The member of one sample is corrupted; the other sample has to be unchanged."""
    good, spoilt = samples()[:2]
    rest = {key: value for key, value in spoilt.items() if name not in ("jpg", "png", "webp") or key[:2] == "__"}
    write_shard(folder / "train-0.tar", [{**good, name: MEMBERS[name][0](random.Random(0))}, {**rest, name: content}])
    data = data_of(f"{folder}/train-0.tar", x=field)
    kept = [key for batch in data.statistics_loader() for key in batch["key"]]
    known = {row["key"] for row in data.skipped}
    if good["__key__"] not in kept:
        return [f"{good['__key__']} was lost: {data.skipped}"]
    if len(kept) + len(known) != 2:
        return [f"{len(kept)} kept and {len(known)} skipped of 2"]
    return without_address([row["reason"] for row in data.skipped])


def _picture(kind: str) -> Callable[[random.Random], bytes]:
    def make(rng: random.Random) -> bytes:
        image = bad.Image.fromarray(bad.pixels(rng.choice(NUMBERS))).convert(rng.choice(("RGB", "L")))
        options = {"progressive": True} if kind == "JPEG" and rng.random() < 0.3 else {}
        return bad.encoded(image, kind, **options)

    return make


def _label_image(rng: random.Random) -> bytes:
    values = np.kron(np.eye(4, dtype=np.uint8), np.ones((12, 12), dtype=np.uint8)) * rng.choice((1, 255))
    return bad.encoded(bad.Image.fromarray(values).convert(rng.choice(("L", "P", "1", "I;16"))))


def _objects(rng: random.Random) -> bytes:
    objects = [{"category": place, "box": [0.1 * place, 0.1, 0.5, 0.9]} for place in range(4)]
    return json.dumps({"caption": ["one", "two"], "label": 3, "objects": objects}).encode()


def _array(rng: random.Random) -> bytes:
    file = io.BytesIO()
    np.save(file, np.ones((3, 4), np.float16))
    return file.getvalue()


TEXT_FIELD = Caption(key=None, extension="txt")
# name of the member -> what it holds, how that is spoilt, the field that reads it
MEMBERS: dict[str, tuple[Callable[[random.Random], bytes], Sequence[spoil.Mutation], Field]] = {
    "mask.png": (_label_image, spoil.PNG, Mask()),
    "segmentation.png": (_label_image, spoil.PNG, SemanticMap()),
    "json": (_objects, spoil.JSON, Layout(num_classes=8)),
    "txt": (lambda rng: "ein grünes Herz\n".encode(), spoil.TEXT, TEXT_FIELD),
    "cls": (lambda rng: b"7\n", spoil.TEXT, Label(key=None, extension="cls")),
    "npy": (_array, spoil.BYTES, Embeddings(num_tokens=4)),
}


def _read_picture(folder: Path, content: bytes, how: spoil.Mutation) -> list[str]:
    wrong = []
    for name, decoder in DECODERS.items():
        try:
            pixels = decoder()(content, bad.SIZE)
        except BadSample as error:
            wrong += without_address([str(error)])
        else:
            if pixels.dtype != np.uint8 or min(pixels.shape[:2]) != bad.SIZE or pixels.shape[2] != 3:
                wrong.append(f"{name}: {pixels.dtype} {pixels.shape}")
    return wrong


def _read_index(folder: Path, content: bytes, how: spoil.Mutation) -> list[str]:
    """The cached index of a shard is corrupted: it must be rebuilt, or still be correct."""
    path = folder / "train-0.tar"
    path.write_bytes(shard_bytes())
    ShardSet.open([path])
    [kept] = (cache_folder() / "index").iterdir()
    kept.write_bytes(how(kept.read_bytes(), random.Random(content)))
    data = data_of(str(path), caption=Caption())
    wrong = mispaired(data)
    kept.unlink(missing_ok=True)
    return wrong


def _read_listing(folder: Path, content: bytes, how: spoil.Mutation) -> list[str]:
    (folder / "train-0.tar").write_bytes(shard_bytes())
    (folder / "manifest.json").write_bytes(content)
    data = data_of(f"{folder}/train-0.tar", caption=Caption())
    data.setup()
    return [] if len(data.fingerprint) == 64 else [f"the fingerprint {data.fingerprint}"]


def _listing(rng: random.Random) -> bytes:
    row = {"name": "train-0.tar", "samples": 6, "bytes": len(shard_bytes()), "sha256": "0" * 64}
    return json.dumps(
        {"name": "x", "class_names": ["a"], "splits": {"train": {"samples": 6, "shards": [row]}}}
    ).encode()


KINDS: dict[str, Kind] = {
    "shard": Kind(lambda rng: shard_bytes(), spoil.TAR, _read_shard),
    "index of a shard": Kind(lambda rng: rng.randbytes(8), spoil.BYTES, _read_index),
    "manifest of shards": Kind(_listing, spoil.JSON, _read_listing),
    "jpeg": Kind(_picture("JPEG"), spoil.JPEG, _read_picture),
    "png": Kind(_picture("PNG"), spoil.PNG, _read_picture),
    **{name.lower(): Kind(_picture(name), spoil.BYTES, _read_picture) for name in ("WEBP", "GIF", "TIFF", "BMP")},
    **{
        f"member {name}": Kind(whole, mutations, partial(_read_member, name, field))
        for name, (whole, mutations, field) in MEMBERS.items()
    },
}
MADE_ONCE = (shard_bytes,)
