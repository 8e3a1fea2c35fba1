"""Filters: each rule removes what it says and counts it; decided once, part of the fingerprint, clear when wrong."""

import hashlib
import io
import json
import pickle
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

from ldm.data import derived
from ldm.data.filters import Filters, read_filters, stored_size
from ldm.data.module import ShardData
from ldm.data.writing import write_shard

SCORES = np.linspace(0, 9, 40).round(2)


def image(width: int, height: int, turned: bool = False, form: str = "JPEG", value: int = 0) -> bytes:
    file, exif = io.BytesIO(), Image.Exif()
    if turned:
        exif[0x0112] = 6
    Image.new("RGB", (width, height), (value, 0, 0)).save(file, form, exif=exif)
    return file.getvalue()


def samples() -> list[dict[str, Any]]:
    """40 samples: sizes 16 to 55 by 32, a score, one of two languages."""
    return [
        {
            "__key__": f"k{i:02d}",
            "jpg": image(16 + i, 32, value=5 * i),
            "json": json.dumps({"score": score, "LANGUAGE": ("en", "de", None)[i % 3], "label": i}).encode(),
        }
        for i, score in enumerate(SCORES)
    ]


def write(folder: Path, rows: list[dict[str, Any]], num_shards: int = 3) -> str:
    for number, places in enumerate(np.array_split(np.arange(len(rows)), num_shards)):
        write_shard(folder / f"train-{number}.tar", [rows[place] for place in places])
    return f"{folder}/train-*.tar"


@pytest.fixture
def shards(tmp_path: Path) -> str:
    return write(tmp_path, samples())


def make(shards: str, filters: dict[str, Any] | None, **options: Any) -> ShardData:
    return ShardData(shards, image_size=8, batch_size=10, filters=filters, **options)


def kept(data: ShardData) -> list[int]:
    return sorted(int(key[1:]) for batch in data.statistics_loader() for key in batch["key"])


def test_each_rule_removes_what_it_says_and_counts_it(shards: str, tmp_path: Path) -> None:
    excluded = tmp_path / "evaluation.txt"
    excluded.write_text(f"k00\n{hashlib.sha256(samples()[39]['jpg']).hexdigest()}\n\nno-such-key\n")
    for filters, left, removed in [
        ({"min_size": 20}, range(4, 40), {"min_size": 4}),
        ({"min_size": 32}, range(16, 40), {"min_size": 16}),
        ({"aspect": [0.75, 1.5]}, range(8, 33), {"aspect": 15}),
        ({"aspect": [None, 1]}, range(17), {"aspect": 23}),
        ({"ranges": {"score": [4.5, None]}}, np.flatnonzero(SCORES >= 4.5), {"ranges.score": 20}),
        ({"ranges": {"score": [None, 1], "label": [2, 3]}}, [2, 3], {"ranges.score": 35, "ranges.label": 3}),
        ({"ranges": {"missing": [0, None]}, "min_size": 10}, None, None),
        ({"values": {"LANGUAGE": ["en"]}}, range(0, 40, 3), {"values.LANGUAGE": 26}),
        ({"values": {"LANGUAGE": ["de", None]}}, [i for i in range(40) if i % 3], {"values.LANGUAGE": 14}),
        ({"exclude": str(excluded)}, range(1, 39), {"exclude": 2}),
        ({"exclude": str(excluded), "min_size": 20}, range(4, 39), {"exclude": 2, "min_size": 3}),
    ]:
        data = make(shards, filters)
        if left is None:
            with pytest.raises(ValueError, match=r"data\.filters leave none of 40 samples; .* 40 by ranges\.missing"):
                data.setup()
            continue
        assert kept(data) == list(left) and data.removed == removed
        assert data.num_train == len(left) == 40 - sum(removed.values())


def test_training_sees_only_what_is_kept_once_an_epoch(shards: str) -> None:
    for options in ({}, {"shuffle_block": 3}, {"num_workers": 2}):
        data = make(shards, {"min_size": 20}, validation=shards, **options)
        batches = list(islice(data.train_loader(), 18))  # five epochs of 36
        keys = [key for batch in batches for key in batch["key"]]
        for epoch in range(5):
            assert sorted(keys[epoch * 36 : epoch * 36 + 36]) == [f"k{i:02d}" for i in range(4, 40)]
        assert {int(i) for batch in batches for i in batch["index"]} == set(range(36))  # counts what is kept
        assert data.num_validation == 40
    few = make(shards, {"min_size": 20}, max_samples=5)
    assert few.num_train == 5 and kept(few) == [4, 5, 6, 7, 8]


def test_it_is_decided_once(shards: str, tmp_path: Path) -> None:
    filters = {"ranges": {"score": [2, 7]}}

    def decided(shards: str) -> int:
        with patch.object(Filters, "broken", autospec=True, side_effect=Filters.broken) as asked:
            make(shards, filters).setup()
        return asked.call_count

    assert decided(shards) == 40
    assert decided(shards) == 0
    write_shard(tmp_path / "train-9.tar", [{**row, "__key__": f"new{i}"} for i, row in enumerate(samples()[:7])])
    assert decided(shards) == 7
    for file in (derived.cache_folder() / "filters").iterdir():  # damaged: decided again, not believed
        content = bytearray(file.read_bytes())
        content[0] ^= 1
        file.write_bytes(content)
    assert decided(shards) == 47
    assert kept(make(f"{tmp_path}/train-[0-2].tar", filters)) == np.flatnonzero((SCORES >= 2) & (SCORES <= 7)).tolist()


def test_processes_map_what_is_kept_and_are_not_sent_it(shards: str) -> None:
    data = make(shards, {"min_size": 20})
    keys = [data.training_set.shards.locate(i)[1] for i in range(36)]
    sent = pickle.dumps(data.training_set.shards)
    again = pickle.loads(sent)
    assert again.kept._array is None and len(sent) < 2000
    assert [again.locate(i)[1] for i in range(36)] == keys and len(again) == 36


def test_what_is_kept_is_part_of_the_fingerprint(shards: str) -> None:
    plain = make(shards, None).fingerprint
    assert make(shards, {"min_size": None, "ranges": None}).fingerprint == plain
    some = make(shards, {"min_size": 20}).fingerprint
    assert some != plain and make(shards, {"min_size": 20}, num_workers=2).fingerprint == some
    assert make(shards, {"min_size": 21}).fingerprint not in (plain, some)


def test_metadata_that_says_nothing_breaks_its_rules_and_broken_images_none(tmp_path: Path) -> None:
    rows = samples()[:12]
    rows[0]["json"] = b'{"score": "9"}'
    rows[1]["json"] = b'{"score": true}'
    rows[2]["json"] = b'{"score": NaN}'
    rows[3]["json"] = b"[1, 2"
    rows[4]["json"] = b"[" * 100_000
    rows[5]["json"] = b"\xff\xfe"
    rows[6]["json"] = b"[9]"
    del rows[7]["json"]
    rows[8]["jpg"] = rows[8]["jpg"][:20]
    rows[9]["jpg"] = b""
    del rows[10]["jpg"]
    data = make(write(tmp_path, rows), {"ranges": {"score": [0, None]}, "min_size": 8}, max_bad_fraction=0.9)
    data.setup()
    assert data.removed == {"min_size": 0, "ranges.score": 8} and data.num_train == 4
    batch = next(iter(data.train_loader()))
    assert set(batch["key"]) == {"k11"} and {row["key"] for row in batch["skipped"]} == {"k08", "k09", "k10"}


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("turned", [False, True])
def test_the_size_is_that_of_the_upright_image(form: str, turned: bool) -> None:
    assert stored_size(image(30, 20, turned, form)) == ((20, 30) if turned else (30, 20))


def test_a_mixture_is_filtered_set_by_set(shards: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = write(tmp_path / "other", [{**row, "__key__": f"o{row['__key__']}"} for row in samples()[20:]], 2)
    mixture = {"a": {"shards": shards, "weight": 1}, "b": {"shards": other, "weight": 1}}
    data = ShardData(None, 8, 10, mixture=mixture, filters={"min_size": 20})
    rows = [
        (source, key)
        for batch in islice(data.train_loader(), 10)
        for source, key in zip(batch["source"], batch["key"], strict=True)
    ]
    assert {key for source, key in rows if source == "a"} == {f"k{i:02d}" for i in range(4, 40)}
    assert {key for source, key in rows if source == "b"} == {f"ok{i:02d}" for i in range(20, 40)}
    wide = ShardData(None, 8, 10, mixture=mixture, filters={"aspect": [None, 1]})
    with pytest.raises(ValueError, match=r"data\.mixture\.b: data\.filters leave none"):
        next(iter(wide.train_loader()))


@pytest.mark.parametrize(
    ("filters", "reason"),
    [
        ({"min_sise": 3}, r"data\.filters\.min_sise: no such key \(there are min_size, aspect"),
        ({"min_size": "large"}, r"data\.filters\.min_size='large'"),
        ({"aspect": 2}, r"data\.filters\.aspect=2: expected \[from, to\]"),
        ({"aspect": [2, 1]}, r"data\.filters\.aspect=\[2, 1\]: nothing lies between"),
        ({"ranges": {"score": 5}}, r"data\.filters\.ranges\.score=5: expected \[from, to\]"),
        ({"ranges": [5, 6]}, r"data\.filters\.ranges=\[5, 6\]: expected fields"),
        ({"values": {"LANGUAGE": "en"}}, r"data\.filters\.values\.LANGUAGE='en': expected a list"),
    ],
)
def test_what_makes_no_sense_names_its_key(filters: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_filters(filters)


def test_a_missing_list_is_named(shards: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.filters\.exclude=.*gone\.txt: cannot be read"):
        make(shards, {"exclude": str(tmp_path / "gone.txt")}).setup()


@pytest.mark.parametrize("line", ["{}", "{}  evaluation/39.jpg", "{} *evaluation/39.jpg"])
@pytest.mark.parametrize("capitals", [False, True])
def test_a_list_of_hashes_is_read_as_programs_write_it(shards: str, tmp_path: Path, line: str, capitals: bool) -> None:
    digest = hashlib.sha256(samples()[39]["jpg"]).hexdigest()
    excluded = tmp_path / "evaluation.txt"
    excluded.write_text(line.format(digest.upper() if capitals else digest) + "\n")
    data = make(shards, {"exclude": str(excluded)})
    assert kept(data) == list(range(39)) and data.removed == {"exclude": 1}
