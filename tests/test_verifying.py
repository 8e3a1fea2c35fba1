"""Shards held against their manifest byte by byte: what is exchanged for the same number of other bytes is found."""

from pathlib import Path

import pytest
from range_server import serving
from test_shards import make_shard

from ldm.data.errors import ShardError
from ldm.data.paths import expand
from ldm.data.shards import ShardSet
from ldm.data.verifying import verify
from ldm.data.writing import sha256_of, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    paths = [make_shard(tmp_path / f"train-{i}.tar", [f"s{i}k{j}" for j in range(4)]) for i in range(3)]
    rows = [{"name": p.name, "samples": 4, "bytes": p.stat().st_size, "sha256": sha256_of(p)} for p in paths]
    write_manifest(tmp_path, {"splits": {"train": {"shards": rows}}})
    return tmp_path


def test_bytes_exchanged_for_as_many_others_are_found_on_disk_and_over_http(folder: Path) -> None:
    paths = expand(f"{folder}/train-*.tar", "data.train")
    assert [(v.problem, v.listed, v.sha256) for v in verify(paths)] == [(None, True, sha256_of(p)) for p in paths]
    believed = ShardSet.open(paths).fingerprint()
    paths[1].write_bytes(paths[1].read_bytes().replace(b"text s1k2", b"text s1k0"))
    assert ShardSet.open(paths).fingerprint() == believed  # nothing else reads a member's content
    with serving(folder) as server:
        for places in (paths, expand(f"{server.url}/train-{{0..2}}.tar", "data.train")):
            problems = [verdict.problem for verdict in verify(places)]
            assert problems[0] is None is problems[2] and "not those that the manifest lists" in problems[1]


def test_other_lengths_damage_and_missing_shards_are_each_one_line(folder: Path) -> None:
    paths = expand(f"{folder}/train-*.tar", "data.train")
    paths[0].write_bytes(paths[0].read_bytes() + bytes(512))
    paths[1].unlink()
    (folder / "new.tar").write_bytes(b"no tar at all" * 100)
    long, gone, whole, new = verify([*paths, folder / "new.tar"])
    assert "bytes, its manifest says" in long.problem and long.listed
    assert "train-1.tar" in gone.problem and gone.sha256 == ""
    assert whole.problem is None
    assert "new.tar" in new.problem and not new.listed
    (folder / "manifest.json").write_text("[]")
    with pytest.raises(ShardError, match=r"manifest\.json"):
        list(verify(paths))
