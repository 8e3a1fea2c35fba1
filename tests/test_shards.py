"""Paths, index, reading and plan: every byte accounted for, every sample once, every fault named."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds

from ldm.data import shards as shards_module
from ldm.data.errors import ShardError
from ldm.data.index import read_index
from ldm.data.open_files import OpenFile
from ldm.data.paths import expand
from ldm.data.plan import BatchPlan, Plan, permute
from ldm.data.shards import MemberReader, ShardSet
from ldm.data.storage import facts
from ldm.data.streams import MemberStream
from ldm.data.writing import write_manifest, write_shard


def make_shard(path: Path, keys: list[str]) -> Path:
    samples = ({"__key__": key, "txt": f"text {key}".encode(), "mask.png": key.encode() * 200} for key in keys)
    write_shard(path, samples)
    return path


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return make_shard(tmp_path / "a-00000.tar", [f"k{i}" for i in range(8)])


def all_members(shards: ShardSet) -> list[tuple[str, dict[str, bytes]]]:
    reader = MemberReader()
    found = []
    for index in range(len(shards)):
        shard, place = shards.locate(index)
        found.append((shard.keys[place], reader.read(shard, place, shard.extensions)))
    return found


# -- paths ---------------------------------------------------------------------------------------------------------


def test_braces_globs_and_lists_name_the_same_shards(tmp_path: Path) -> None:
    paths = [make_shard(tmp_path / f"a-{i:05d}.tar", [f"k{i}"]) for i in range(12)]
    assert expand(f"{tmp_path}/a-{{00000..00011}}.tar", "data.train") == paths
    assert expand(f"{tmp_path}/a-*.tar", "data.train") == paths
    assert expand([str(path) for path in paths], "data.train") == paths


def test_paths_of_shipped_data_hold_in_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(expand("data/quickstart/train-{00000..00005}.tar", "data.train")) == 6
    (tmp_path / "data" / "quickstart").mkdir(parents=True)
    own = make_shard(tmp_path / "data" / "quickstart" / "validation-00000.tar", ["own"])
    assert expand("data/quickstart/validation-00000.tar", "data.validation") == [own]


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("{folder}/a-{{00000..00002}}.tar", "no shard .*a-00001.tar"),
        ("{folder}/b-*.tar", "no shard .*b-"),
        ("{folder}", "is a folder"),
        ("pipe:cat {folder}/a-00000.tar", "would run a shell command"),
        ("ftp://example.org/a.tar", "URLs begin with s3://"),
    ],
)
def test_what_names_no_shard_is_one_error_with_the_key(shard: Path, pattern: str, reason: str) -> None:
    with pytest.raises(ShardError, match=f"data.train.*{reason}"):
        expand(pattern.format(folder=shard.parent), "data.train")


def test_a_shard_named_twice_is_refused(shard: Path) -> None:
    with pytest.raises(ShardError, match=r"a-00000\.tar twice"):
        expand([str(shard), f"{shard.parent}/*.tar"], "data.train")


# -- index ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_index_agrees_with_webdataset_on_names_of_every_kind(tmp_path: Path, tar_format: int) -> None:
    path = tmp_path / "names.tar"
    long = "d" * 60 + "/" + "x" * 90  # fits a ustar header by its prefix only
    if tar_format != tarfile.USTAR_FORMAT:
        long += "y" * 200
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name in [
            "a.b.txt",
            "a.JPG",
            "dir.v1/b.txt",
            long + ".txt",
            "\u00e9\u6f22.txt",
            "no_extension",
            "__meta__.x__",
        ]:
            member = tarfile.TarInfo(name)
            content = name.encode() * 37
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    expected = [
        (sample["__key__"], {key: value for key, value in sample.items() if not key.startswith("__")})
        for sample in wds.WebDataset(str(path), shardshuffle=False)
    ]
    assert len(expected) == 4
    assert all_members(ShardSet.open([path])) == expected


def test_a_shard_cut_anywhere_is_an_error_that_names_it(shard: Path, tmp_path: Path) -> None:
    content = shard.read_bytes()
    last = len(content.rstrip(b"\0"))
    cut = tmp_path / "cut.tar"
    for size in [0, 100, 512, 1000, 1024, 2048, 3072, *range(4096, last, 1536), last - last % 512 + 512]:
        cut.write_bytes(content[:size])
        with pytest.raises(ShardError, match=r"cut\.tar: (.*the file was cut short|the file is empty)"):
            read_index(cut)


def test_damage_inside_a_shard_is_an_error(shard: Path, tmp_path: Path) -> None:
    content = shard.read_bytes()
    bad = tmp_path / "bad.tar"
    for start, piece, reason in [
        (1024, bytes(512), "data follows a block of zeros"),
        (1024 + 130, b"\xff", "damaged header at byte 1024"),
        (1024 + 156, b"S", "damaged header at byte 1024"),
        (len(content) - 1, b"x", "data follows a block of zeros"),
    ]:
        bad.write_bytes(content[:start] + piece + content[start + len(piece) :])
        with pytest.raises(ShardError, match=f"bad.tar: {reason}"):
            read_index(bad)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["a.txt", "b.txt", "a.jpg"], "the key 'a' occurs twice"),
        (["a.txt", "a.TXT"], "member 'a.TXT' occurs twice"),
        (["README"], "holds no samples"),
    ],
)
def test_ambiguous_shards_are_refused(tmp_path: Path, names: list[str], reason: str) -> None:
    path = tmp_path / "names.tar"
    with tarfile.open(path, "w") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(ShardError, match=reason):
        read_index(path)


def test_a_shard_changed_in_use_is_an_error(shard: Path) -> None:
    shards = ShardSet.open([shard])
    shard.write_bytes(shard.read_bytes() + bytes(512))
    with pytest.raises(ShardError, match="changed while it was in use"):
        all_members(shards)


def test_more_shards_than_may_be_open_are_read_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that made room for others is not read any more: its number may be that of another by then."""
    monkeypatch.setattr(shards_module, "MAX_OPEN_FILES", 2)
    shards = ShardSet.open([make_shard(tmp_path / f"a-{i:05d}.tar", [f"k{i}"]) for i in range(7)])
    places = [shards.locate(index) for index in (*range(7), *range(7))]
    found = MemberReader().read_all(places)
    assert [members["txt"] for members in found] == [f"text k{i}".encode() for i in (*range(7), *range(7))]


def test_a_closed_file_is_not_read_by(shard: Path) -> None:
    file = OpenFile(shard, facts(shard))
    file.close()
    with pytest.raises(ValueError, match="closed"):
        os.pread(file.descriptor, 1, 0)


def test_writing_is_reproducible_and_indices_run_through_the_shards(tmp_path: Path) -> None:
    first = make_shard(tmp_path / "a.tar", ["x", "y"])
    second = make_shard(tmp_path / "b.tar", ["x", "z", "w"])
    again = make_shard(tmp_path / "c.tar", ["x", "y"])
    assert first.read_bytes() == again.read_bytes()
    shards = ShardSet.open([first, second])
    assert [key for key, _ in all_members(shards)] == ["x", "y", "x", "z", "w"]
    assert all(members["txt"] == f"text {key}".encode() for key, members in all_members(shards))


def test_fingerprint_follows_content_and_prefers_the_manifest(tmp_path: Path) -> None:
    path = make_shard(tmp_path / "a.tar", ["x", "y"])
    plain = ShardSet.open([path]).fingerprint()
    assert ShardSet.open([path]).fingerprint() == plain
    row = {"name": "a.tar", "samples": 2, "bytes": path.stat().st_size, "sha256": "0" * 64}
    write_manifest(tmp_path, {"splits": {"train": {"shards": [row]}}})
    listed = ShardSet.open([path]).fingerprint()
    write_manifest(tmp_path, {"splits": {"train": {"shards": [{**row, "sha256": "1" * 64}]}}})
    assert len({plain, listed, ShardSet.open([path]).fingerprint()}) == 3
    make_shard(path, ["x", "longer"])
    (tmp_path / "manifest.json").unlink()
    assert ShardSet.open([path]).fingerprint() != plain


# -- plan ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num", [1, 2, 3, 4, 5, 31, 32, 33, 1000, 65537])
def test_permute_is_a_bijection(num: int) -> None:
    assert sorted(permute(np.arange(num), num, "key").tolist()) == list(range(num))


def test_permute_is_even_handed() -> None:
    num, keys = 13, 4000
    counts = np.zeros((num, num))
    for key in range(keys):
        counts[np.arange(num), permute(np.arange(num), num, str(key))] += 1
    chi_squared = ((counts - keys / num) ** 2 / (keys / num)).sum() / (num - 1) ** 2
    assert chi_squared < 1.5  # 1 on average, standard deviation 0.12
    orders = np.stack([permute(np.arange(997), 997, str(key)) for key in range(50)])
    assert abs(np.corrcoef(orders[:, :-1].ravel(), orders[:, 1:].ravel())[0, 1]) < 0.02


def test_every_epoch_holds_every_sample_once_in_its_own_order() -> None:
    plan = Plan(37, seed=3)
    epochs = plan.indices(np.arange(37 * 4)).reshape(4, 37)
    assert all(sorted(epoch.tolist()) == list(range(37)) for epoch in epochs)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 4
    assert (Plan(37, seed=4).indices(np.arange(37)) != epochs[0]).any()


def test_an_order_does_not_depend_on_how_it_is_asked_for() -> None:
    plan = Plan(1000, seed=0)
    whole = plan.indices(np.arange(5000))
    far = plan.indices(np.arange(4990, 5000))
    assert (whole[4990:] == far).all()
    assert [int(plan.indices(np.array([n]))[0]) for n in (7, 2500)] == [whole[7], whole[2500]]


def test_successor_stays_in_the_epoch() -> None:
    plan = Plan(10, seed=0)
    order = plan.indices(np.arange(10, 20)).tolist()
    assert [plan.successor(18, steps) for steps in (1, 2, 3)] == [order[9], order[0], order[1]]


@pytest.mark.parametrize("accumulation", [1, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_and_micro_batches_tile_each_step(world_size: int, accumulation: int) -> None:
    for step in range(3):
        numbers = [
            BatchPlan(24, rank, world_size, accumulation, start=48).numbers(step * accumulation + part).tolist()
            for rank in range(world_size)
            for part in range(accumulation)
        ]
        assert sorted(number for share in numbers for number in share) == list(
            range(48 + step * 24, 48 + (step + 1) * 24)
        )


def test_an_indivisible_batch_names_all_three_numbers() -> None:
    with pytest.raises(
        ValueError, match=r"data.batch_size=10 is not divisible by 2 ranks x accumulation=3 = 6.* 6 and 12"
    ):
        BatchPlan(10, 0, 2, 3, start=0)


def test_the_plan_is_a_first_stage_for_webdataset(tmp_path: Path) -> None:
    paths = [make_shard(tmp_path / f"{i}.tar", [f"s{i}k{j}" for j in range(5)]) for i in range(3)]
    shards = ShardSet.open(paths)
    ranks = []
    for rank in range(2):
        stream = MemberStream(shards, seed=1, start=30, rank=rank, world_size=2)
        pipeline = wds.DataPipeline(stream, wds.to_tuple("__key__", "txt"), wds.slice(15))
        pairs = list(pipeline)
        assert all(text == f"text {key}".encode() for key, text in pairs)
        ranks.append([key for key, _ in pairs])
    merged = [key for pair in zip(*ranks, strict=True) for key in pair]
    everything = sorted(key for path in paths for key in read_index(path).keys)
    assert sorted(merged[:15]) == everything == sorted(merged[15:])
