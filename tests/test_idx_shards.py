"""Shards of IDX files: padded, labelled, t10k held out, the same bytes each time."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds

from ldm.data.making.idx import make_idx_shards
from ldm.errors import UserError
from scripts.make_idx_shards import parse


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    for name, count in (("train", 7), ("t10k", 3)):
        images = np.arange(count * 16, dtype=np.uint8).reshape(count, 4, 4)
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(idx(np.arange(count, dtype=np.uint8)))
    return folder


def test_images_are_padded_and_t10k_is_held_out(source: Path, tmp_path: Path):
    manifest = make_idx_shards(source, tmp_path / "out", size=8, shard_samples=4)
    assert [(part["samples"], len(part["shards"])) for part in manifest["splits"].values()] == [(7, 2), (3, 1)]
    samples = list(wds.WebDataset(str(tmp_path / "out" / "train-00001.tar"), shardshuffle=False).decode("l"))
    assert [sample["json"]["label"] for sample in samples] == [4, 5, 6]
    assert manifest["class_names"][4] == samples[0]["json"]["class"] == "coat"
    pixels = np.round(samples[0]["png"] * 255)
    assert pixels.shape == (8, 8) and np.array_equal(pixels[2:6, 2:6], np.arange(64, 80).reshape(4, 4))
    assert pixels.sum() == pixels[2:6, 2:6].sum()
    again = make_idx_shards(source, tmp_path / "again", size=8, shard_samples=4)
    assert again["splits"] == manifest["splits"]


def test_what_is_no_idx_is_named(source: Path, tmp_path: Path):
    with pytest.raises(UserError, match="size=2: images of 4 x 4 px"):
        make_idx_shards(source, tmp_path / "out", size=2)
    (source / "t10k-labels-idx1-ubyte").write_bytes(b"something else")
    with pytest.raises(UserError, match="t10k-labels-idx1-ubyte: not to be read as IDX"):
        make_idx_shards(source, tmp_path / "out", size=8)
    (source / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(UserError, match=r"no t10k-labels-idx1-ubyte there, nor .*\.gz"):
        make_idx_shards(source, tmp_path / "out", size=8)
    for content, said in (
        (gzip.compress(b"x" * 100)[:15] + b"\xff" * 20, "Error|invalid"),
        (gzip.compress(struct.pack(">HBB3I", 0, 8, 3, 1 << 20, 1 << 10, 1 << 10)), "is more than"),
        (gzip.compress(struct.pack(">HBB3I", 0, 8, 3, 3, 4, 4)), "fewer bytes"),
    ):
        (source / "train-images-idx3-ubyte.gz").write_bytes(content)
        with pytest.raises(UserError, match=f"train-images-idx3-ubyte.gz: not to be read as IDX: .*({said})"):
            make_idx_shards(source, tmp_path / "out", size=8)
    for name in ("train", "t10k"):
        (source / f"{name}-images-idx3-ubyte").write_bytes(idx(np.zeros((0, 4, 4), np.uint8)))
        (source / f"{name}-labels-idx1-ubyte").write_bytes(idx(np.zeros(0, np.uint8)))
    with pytest.raises(UserError, match="train has no images"):
        make_idx_shards(source, tmp_path / "out", size=8)
    assert not (tmp_path / "out").exists()


def test_words_that_are_there_twice_and_homes_of_nobody_are_named(source: Path, tmp_path: Path, monkeypatch):
    words = [f"source={source}", f"out={tmp_path}/out"]
    for more, said in (([f"source={tmp_path}"], "source is given 2 times"), (["size=8", "size=9"], "size is given 2")):
        with pytest.raises(UserError, match=said):
            parse([*words, *more])
    with pytest.raises(UserError, match="out=~nobody-of-that-name/x: "):
        parse([words[0], "out=~nobody-of-that-name/x"])
    with pytest.raises(UserError, match="size=100000: "):
        parse([*words, "size=100000"])
    for empty in ("", "[]", "zero,,two"):
        with pytest.raises(UserError, match=r"classes=.*: a name is empty"):
            parse([*words, f"classes={empty}"])
    assert parse([*words, "classes=[zero,one]"])[3] == ["zero", "one"] and parse(words)[3] == []
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse([words[0], "out=~/out"])[1] == tmp_path / "out"


def test_only_its_own_shards_are_finished(source: Path, tmp_path: Path):
    out = tmp_path / "out"
    manifest = make_idx_shards(source, out, size=8, shard_samples=4)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for words in {"size": 10}, {"shard_samples": 7}, {"classes": [str(digit) for digit in range(10)]}:
        with pytest.raises(UserError, match=r"already holds|have changed since"):
            make_idx_shards(source, out, **{"size": 8, "shard_samples": 4, **words})
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (out / "manifest.json").unlink()  # killed before it was written
    (out / "validation-00000.tar").unlink()
    with pytest.raises(UserError, match=r"train-00000\.tar is finished"):
        make_idx_shards(source, out, size=10, shard_samples=4)
    assert make_idx_shards(source, out, size=8, shard_samples=4) == manifest
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
