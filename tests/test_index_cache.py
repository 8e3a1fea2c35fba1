"""Indices on disk: read once, believed only while they are whole and their shard is the one they were made from."""

import hashlib
import multiprocessing
import os
import pickle
import random
from pathlib import Path
from unittest.mock import patch

import pytest

from ldm.data import derived, index_cache, shards
from ldm.data.errors import ShardError
from ldm.data.index import read_index
from ldm.data.shards import MemberReader, ShardSet
from ldm.data.writing import write_shard


def make_shard(path: Path, num: int = 20, size: int = 30, settled: bool = True) -> Path:
    """A shard whose members tell their key; long unchanged, if `settled`."""
    write_shard(path, ({"__key__": f"k{i:04d}", "txt": f"k{i:04d}".encode() * size, "cls": b"1"} for i in range(num)))
    if settled:
        os.utime(path, (1e9, 1e9))
    return path


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return make_shard(tmp_path / "a.tar")


def contents(found: ShardSet) -> list[tuple[str, dict[str, bytes]]]:
    places = [found.locate(index) for index in range(len(found))]
    members = MemberReader().read_all(places)
    return [(shard.keys[place], own) for (shard, place), own in zip(places, members, strict=True)]


def entry_of(path: Path) -> Path:
    return index_cache._file(path)


def headers_read(paths: list[Path]) -> int:
    """How many shards' headers are parsed when a data set is opened and looked through."""
    with patch.object(index_cache, "read_index", side_effect=read_index) as reads:
        contents(ShardSet.open(paths))
    return reads.call_count


def test_headers_are_parsed_once(tmp_path: Path) -> None:
    paths = [make_shard(tmp_path / f"{i}.tar", num=i + 1) for i in range(40)]
    assert headers_read(paths) == 40
    assert headers_read(paths) == 0
    assert headers_read([*paths, make_shard(tmp_path / "new.tar")]) == 1


def test_a_shard_that_changed_is_parsed_again(shard: Path) -> None:
    headers_read([shard])
    os.utime(shard, (1e9, 1e9 + 1))
    assert headers_read([shard]) == 1
    make_shard(shard, num=21)
    found = ShardSet.open([shard])
    assert len(found) == 21 and contents(found)[20][0] == "k0020"


def test_an_index_made_right_after_its_shard_is_not_believed_later(tmp_path: Path) -> None:
    fresh = make_shard(tmp_path / "fresh.tar", settled=False)
    stamp = fresh.stat().st_mtime_ns
    assert headers_read([fresh]) == 1
    content = fresh.read_bytes().replace(b"k0003", b"other")  # of the same size, within a tick of the clock
    fresh.write_bytes(content)
    os.utime(fresh, ns=(stamp, stamp))
    with pytest.raises(ShardError, match=r"fresh\.tar: damaged header"):
        ShardSet.open([fresh])


def test_what_is_mapped_is_what_was_read(shard: Path) -> None:
    fresh = read_index(shard)
    found = ShardSet.open([shard])
    mapped = found.shard(0)
    assert list(mapped.keys) == list(fresh.keys) and mapped.keys[-1] == "k0019" and len(mapped) == 20
    assert [mapped.members(i) for i in range(20)] == [fresh.members(i) for i in range(20)]
    assert found.fingerprint() == ShardSet.open([shard]).fingerprint()
    with pytest.raises(IndexError):
        mapped.keys[20]


def test_any_damage_to_an_entry_is_found(shard: Path) -> None:
    expected = contents(ShardSet.open([shard]))
    path, rng = entry_of(shard), random.Random(0)
    whole = path.read_bytes()
    for trial in range(300):
        damaged = bytearray(whole)
        bit = rng.randrange(8 * len(whole))
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged[: rng.randrange(len(whole))] if trial % 3 == 0 else damaged)
        assert contents(ShardSet.open([shard])) == expected
    path.write_bytes(b"")
    assert contents(ShardSet.open([shard])) == expected
    path.unlink()
    assert contents(ShardSet.open([shard])) == expected


def test_an_entry_of_another_shard_is_not_used(shard: Path, tmp_path: Path) -> None:
    expected = contents(ShardSet.open([shard]))
    other = make_shard(tmp_path / "b.tar", size=31)
    ShardSet.open([other])
    entry_of(shard).write_bytes(entry_of(other).read_bytes())
    assert contents(ShardSet.open([shard])) == expected


@pytest.mark.parametrize(
    ("section", "value"),
    [
        ("first", -1),
        ("first", 1 << 40),
        ("offset", -1),
        ("offset", 1 << 40),
        ("size", -1),
        ("size", 1 << 40),
        ("kind", 77),
    ],
)
def test_an_entry_that_points_outside_is_not_used_though_its_hashes_hold(shard: Path, section: str, value: int) -> None:
    expected = contents(ShardSet.open([shard]))
    head, body = derived.read(entry_of(shard), check=True)
    index = read_index(shard)
    changed = bytearray(body)
    width = 2 if section == "kind" else 8
    place = index.body.tobytes().index(bytes(memoryview(getattr(index, section)).cast("B"))) + width * 3
    changed[place : place + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
    derived.write(entry_of(shard), head, [bytes(changed)])
    assert contents(ShardSet.open([shard])) == expected


def test_an_entry_lost_in_use_is_made_again_and_a_changed_shard_is_named(shard: Path) -> None:
    found = ShardSet.open([shard])
    entry_of(shard).unlink()
    assert len(contents(found)) == 20 and entry_of(shard).exists()
    found = ShardSet.open([shard])
    entry_of(shard).unlink()
    os.utime(shard, (1e9, 1e9 + 5))
    with pytest.raises(ShardError, match=r"a\.tar changed while it was in use"):
        contents(found)


def test_a_shard_rewritten_in_use_is_named_even_at_its_old_size(shard: Path) -> None:
    found = ShardSet.open([shard])
    make_shard(shard, settled=False)
    with pytest.raises(ShardError, match=r"a\.tar changed while it was in use"):
        contents(found)


def test_few_indices_are_open_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MAX_OPEN_INDICES", 3)
    found = ShardSet.open([make_shard(tmp_path / f"{i}.tar", num=2) for i in range(9)])
    assert len(found._indices) == 0
    for index in [0, 17, 3, 9, 11, 5, 0]:
        found.locate(index)
        assert len(found._indices) <= 3
    again = pickle.loads(pickle.dumps(found))
    assert len(again._indices) == 0 and contents(again) == contents(found)


def test_a_cache_that_cannot_be_written_is_one_line_with_the_way_out(shard: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    there = patch("ldm.data.derived.cache_folder", return_value=tmp_path / "file")
    with there, pytest.raises(ValueError, match=r"cannot be written .*; set LDM_CACHE"):
        ShardSet.open([shard])


def test_a_shard_may_be_in_a_data_set_several_times(shard: Path) -> None:
    assert contents(ShardSet.open([shard] * 40)) == contents(ShardSet.open([shard])) * 40


def test_one_bad_shard_among_many_is_named(tmp_path: Path) -> None:
    paths = [make_shard(tmp_path / f"{i}.tar") for i in range(30)]
    paths[17].write_bytes(paths[17].read_bytes()[:3000])
    with pytest.raises(ShardError, match=r"17\.tar: .*cut short"):
        ShardSet.open(paths)


def test_processes_that_start_together_share_the_work_and_agree(tmp_path: Path) -> None:
    paths = [make_shard(tmp_path / f"{i}.tar", num=i + 1, settled=i % 2 == 0) for i in range(40)]
    with multiprocessing.get_context("fork").Pool(3) as pool:
        prints = pool.map(_fingerprint, [paths] * 6)
    assert set(prints) == {ShardSet.open(paths).fingerprint()}
    assert not list(entry_of(paths[0]).parent.glob("*.partial"))


def _fingerprint(paths: list[Path]) -> str:
    found = ShardSet.open(paths)
    assert len(contents(found)) == sum(range(41))
    return found.fingerprint()


@pytest.mark.parametrize("change", [{"facts": 5}, {"facts": ()}, {"num_samples": "x"}, {"num_members": -1},
                                    {"extensions": 7}, {"read_at_ns": None}])  # fmt: skip
def test_an_entry_of_another_form_is_none(shard: Path, change: dict) -> None:
    expected = contents(ShardSet.open([shard]))
    head, body = derived.read(entry_of(shard), check=True)
    derived.write(entry_of(shard), {**head, **change}, [bytes(body)])
    assert contents(ShardSet.open([shard])) == expected
    text = b"[" * 100_000
    entry_of(shard).write_bytes(text + len(text).to_bytes(4, "little") + hashlib.sha256(text).digest() + derived.MAGIC)
    assert contents(ShardSet.open([shard])) == expected
