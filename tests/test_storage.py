"""Remote shards: the same samples as from disk, few requests at the same time, faults survived or named."""

import hashlib
import os
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import fsspec
import pytest
from range_server import RangeServer, serving
from test_data_module import NUM, make, same, sample, take, write

from ldm.data import attempts, index_cache, ranges
from ldm.data.copying import copy_all
from ldm.data.errors import ShardError
from ldm.data.index import read_index
from ldm.data.local_copies import GB, LocalCopies, job_for
from ldm.data.module import ShardData
from ldm.data.objects import Span
from ldm.data.paths import expand
from ldm.data.shards import MemberReader, ShardSet
from ldm.data.storage import Url, facts, read_spans
from ldm.data.user_error import UserError
from ldm.data.writing import write_shard


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "PAUSES", (0.01, 0.02))


@pytest.fixture
def shards(tmp_path: Path) -> str:
    return write(tmp_path, [sample(i) for i in range(NUM)])


@pytest.fixture
def server(shards: str, tmp_path: Path) -> Iterator[RangeServer]:
    with serving(tmp_path) as running:
        yield running


@pytest.fixture
def bucket(shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The shards in a bucket of an S3 server on loopback."""
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    running.start()
    host, port = running.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    system = fsspec.filesystem("s3")
    system.makedirs("photos", exist_ok=True)  # what moto holds outlives its server
    for path in tmp_path.glob("*.tar"):
        system.put_file(str(path), f"photos/set/{path.name}")
    yield "s3://photos/set"
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    running.stop()


def batches(shards: str, **options: Any) -> list[dict[str, Any]]:
    return take(make(shards, horizontal_flip_prob=0.5, **options), 5)


def names_of(shards: str | list[str]) -> list[str]:
    return [path.name for path in expand(shards, "data.train")]


# -- the same samples -----------------------------------------------------------------------------------------------


def test_http_gives_what_the_disk_gives(shards: str, server: RangeServer) -> None:
    remote = f"{server.url}/train-{{0..2}}.tar"
    assert all(same(a, b) for a, b in zip(batches(remote), batches(shards), strict=True))
    assert all(same(a, b) for a, b in zip(batches(remote, num_workers=2), batches(shards), strict=True))
    assert make(remote).fingerprint == make(shards).fingerprint


def test_s3_gives_what_the_disk_gives(shards: str, bucket: str) -> None:
    with patch.object(index_cache, "read_index", side_effect=read_index) as reads:
        for pattern in (f"{bucket}/train-{{0..2}}.tar", f"{bucket}/train-*.tar", f"{bucket}/train-[012].tar"):
            found = batches(pattern)
            assert all(same(a, b) for a, b in zip(found, batches(shards), strict=True))
            assert sum(isinstance(call.args[0], Url) for call in reads.call_args_list) == 3  # once for all patterns
    assert all(same(a, b) for a, b in zip(batches(pattern, num_workers=2), batches(shards), strict=True))
    with pytest.raises(ShardError, match=r"data\.train: no shard s3://photos/set/test-\*\.tar"):
        make(f"{bucket}/test-*.tar").setup()
    with pytest.raises(ShardError, match=r"s3://photos/set/train-9\.tar: there is no such object"):
        make(f"{bucket}/train-{{0,9}}.tar").setup()
    with pytest.raises(ShardError, match=r"s3://nowhere/train\.tar: (there is no such object|cannot be read)"):
        make("s3://nowhere/train.tar").setup()


def test_memory_is_a_file_system_too_and_places_mix(shards: str, tmp_path: Path, server: RangeServer) -> None:
    system = fsspec.filesystem("memory")
    for place in (0, 1):
        system.pipe_file(f"/set/train-{place}.tar", (tmp_path / f"train-{place}.tar").read_bytes())
    mixed = ["memory://set/train-*.tar", f"{server.url}/train-2.tar"]
    assert all(same(a, b) for a, b in zip(batches(mixed), batches(shards), strict=True))
    assert names_of(mixed) == ["train-0.tar", "train-1.tar", "train-2.tar"]
    system.rm("/set", recursive=True)


# -- few requests, at the same time ---------------------------------------------------------------------------------


def test_headers_are_read_once_ahead_and_a_batch_at_once(server: RangeServer) -> None:
    remote = f"{server.url}/train-{{0..2}}.tar"
    data = make(remote, batch_size=15)
    data.setup()
    assert len(server.gets()) == 3  # a small shard is one window
    again = make(remote, batch_size=15)
    again.setup()
    assert len(server.gets()) == 3
    server.requests.clear()
    server.delay = 0.3  # long enough that a busy machine has sent the others by then
    [batch] = take(again, 1)
    sizes = {name: (server.folder / name).stat().st_size for name in ("train-0.tar", "train-1.tar", "train-2.tar")}
    assert len(batch["key"]) == len(server.gets()) == 15  # one span for each sample
    assert server.most_at_once > 5
    assert sum(size for _, size in server.gets()) < sum(sizes.values()) / 2


def test_only_headers_of_large_members_are_read(tmp_path: Path) -> None:
    large = {f"{name}.bin": bytes(3 << 20) for name in "ab"}
    write_shard(tmp_path / "large.tar", ({"__key__": f"k{i}", **large} for i in range(4)))
    with serving(tmp_path) as running:
        index = read_index(Url(f"{running.url}/large.tar"))
        assert len(index) == 4
        assert sum(size for _, size in running.gets()) < 11 << 20  # of 24 MiB
        running.requests.clear()
        [members] = MemberReader().read_all([(index, 2)], {"b.bin"})
        assert members == {"b.bin": bytes(3 << 20)} and [size for _, size in running.gets()] == [(3 << 20) + 512]


# -- faults ---------------------------------------------------------------------------------------------------------


def test_what_fails_is_asked_for_again(shards: str, server: RangeServer) -> None:
    remote = f"{server.url}/train-{{0..2}}.tar"
    server.failures = 2
    data = make(remote, batch_size=15)
    data.setup()
    server.failures = 2
    assert all(same(a, b) for a, b in zip(take(data, 2), take(make(shards, batch_size=15), 2), strict=True))


def test_what_fails_for_good_names_the_shard(server: RangeServer) -> None:
    data = make(f"{server.url}/train-{{0..2}}.tar")
    data.setup()
    server.failures = 10**6
    with pytest.raises(ShardError, match=r"127.*/train-\d\.tar: cannot be read in 3 attempts \(.*503"):
        take(data, 1)
    with pytest.raises(ShardError, match=r"127.*/train-7\.tar: cannot be read in 3 attempts"):
        make(f"{server.url}/train-7.tar").setup()
    server.failures = 0
    with pytest.raises(ShardError, match=r"127.*/train-7\.tar: there is no such object"):
        make(f"{server.url}/train-7.tar").setup()


Answer = tuple[int, bytes, dict[str, str]]


def _shifted(status: int, content: bytes, headers: dict[str, str]) -> Answer:
    start, rest = headers["Content-Range"].removeprefix("bytes ").split("-", 1)
    return status, content, {**headers, "Content-Range": f"bytes {int(start) + 512}-{rest}"}


LIES = {
    "another range": (_shifted, "the server sent 'bytes"),
    "no range named": (lambda s, c, h: (s, c, {"ETag": h["ETag"]}), "bytes that it does not name"),
    "another version": (lambda s, c, h: (s, c, {**h, "ETag": '"other"'}), "changed while it was in use"),
    "another length": (
        lambda s, c, h: (s, c, {**h, "Content-Range": h["Content-Range"] + "0"}), "changed while it was in use",
    ),
    "too short": (lambda s, c, h: (s, c[:-1], h), "bytes came"),
    "too long": (lambda s, c, h: (s, c + b"x", h), "more than the"),
    "cut off": (
        lambda s, c, h: (s, c[:9], {**h, "Content-Length": str(len(c)), "Connection": "close"}), "cannot be read in 3",
    ),
    "all of it": (lambda s, c, h: (200, c * 2, {"ETag": h["ETag"]}), "the server sends all of it"),
    "not satisfiable": (lambda s, c, h: (416, b"", {}), "changed while it was in use"),
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
def test_an_answer_to_another_question_is_asked_for_again_and_then_named(
    name: str, shards: str, server: RangeServer
) -> None:
    data = make(f"{server.url}/train-{{0..2}}.tar", batch_size=15)
    data.setup()
    server.lie, reason = LIES[name]
    server.lies = 5
    assert all(same(a, b) for a, b in zip(take(data, 2), take(make(shards, batch_size=15), 2), strict=True))
    assert server.lies == 0
    server.lies = 10**6
    with pytest.raises(ShardError, match=rf"127.*/train-\d\.tar.*{reason}"):
        take(data, 1)


def test_a_header_that_names_another_member_is_a_changed_shard(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", [sample(i) for i in range(4)])
    with serving(tmp_path) as server:
        index = read_index(Url(f"{server.url}/a.tar"))
        step = index.offset[index.first[1]] - index.offset[0]

        def honest(status: int, content: bytes, headers: dict[str, str]) -> Answer:
            return status, (tmp_path / "a.tar").read_bytes()[step : step + len(content)], headers

        server.lie, server.lies = honest, 10**6  # the words are those of the question, the bytes another member's
        [size] = {index.size[index.first[i]] for i in (0, 1)}
        assert size
        with pytest.raises(ShardError, match=r"a\.tar changed while it was in use"):
            MemberReader().read(index, 0, {index.extensions[index.kind[0]]})


def test_an_s3_object_replaced_in_use_is_named(bucket: str) -> None:
    data = make(f"{bucket}/train-{{0..2}}.tar", batch_size=45)
    data.setup()
    system = fsspec.filesystem("s3")
    content = system.cat_file("photos/set/train-1.tar")
    system.pipe_file("photos/set/train-1.tar", content[:512] + content[512:].replace(b"k", b"K"))  # of the same size
    with pytest.raises(ShardError, match=r"s3://photos/set/train-1\.tar changed while it was in use"):
        take(data, 1)


def test_an_object_whose_answers_tell_no_version_is_looked_at_again(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "LOOK_AGAIN_SECONDS", 0.0)
    system = fsspec.filesystem("memory")
    content = (tmp_path / "train-0.tar").read_bytes()
    system.pipe_file("/looked/train-0.tar", content)
    data = make("memory://looked/train-0.tar", batch_size=5)
    data.setup()
    system.pipe_file("/looked/train-0.tar", content)
    with pytest.raises(ShardError, match=r"train-0\.tar changed while it was in use"):
        take(data, 1)
    system.rm("/looked", recursive=True)


def test_a_server_without_ranges_is_named(server: RangeServer) -> None:
    data = make(f"{server.url}/train-{{0..2}}.tar")
    data.setup()
    server.ranges = False
    with pytest.raises(ShardError, match=r"train-\d\.tar: the server sends all of it .* byte ranges are needed"):
        take(data, 1)


def test_a_remote_shard_changed_in_use_is_named(server: RangeServer) -> None:
    data = make(f"{server.url}/train-{{0..2}}.tar", batch_size=45)
    data.setup()
    for place in range(3):
        write_shard(server.folder / f"train-{place}.tar", [sample(i) for i in range(44, 10, -1)])
    with pytest.raises(ShardError, match=r"train-\d\.tar changed while it was in use"):
        take(data, 1)
    assert len(ShardSet.open(expand(f"{server.url}/train-0.tar", "data.train"))) == 34  # seen at the next start


def test_a_cut_remote_shard_is_an_error_that_names_it(server: RangeServer) -> None:
    path = server.folder / "train-1.tar"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ShardError, match=r"127.*/train-1\.tar: .*cut short"):
        make(f"{server.url}/train-{{0..2}}.tar").setup()


def test_members_of_a_remote_sample_may_be_too_large(server: RangeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldm.data.shards.MAX_MEMBER_BYTES", 10)
    data = make(f"{server.url}/train-0.tar", batch_size=5, max_bad_fraction=1.0)
    with pytest.raises(ValueError, match="member too large"):
        take(data, 1)


# -- what a URL may be ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern",
    [
        "pipe:curl http://127.0.0.1/a.tar",
        "file:///etc/passwd",
        "local://a.tar",
        "ssh://host/a.tar",
        "sftp://host/a.tar",
        "github://org:repo@main/a.tar",
        "python://os.system",
        "reference://a.tar",
        "simplecache::s3://bucket/a.tar",
        "s3://bucket/a.tar::file:///etc/passwd",
        "memory://a.tar::zip://b",
        "zip://a.tar::memory://b",
        "S3://bucket/a.tar",
        "{s3,pipe}://bucket/a.tar",
    ],
)
def test_other_schemes_are_refused(pattern: str) -> None:
    with pytest.raises(ShardError, match=r"^data\.train: .*(is not read; URLs begin with s3://|would run a shell)"):
        expand(pattern, "data.train")


def test_urls_have_the_names_of_paths() -> None:
    url = Url("https://host/a/b-0.tar?token=x/y")
    assert (url.name, str(url.parent), str(url.parent / "manifest.json")) == (
        "b-0.tar", "https://host/a", "https://host/a/manifest.json",
    )  # fmt: skip
    assert [url.text for url in expand("https://host/a.tar?part=1", "data.train")] == ["https://host/a.tar?part=1"]


SIGNED = {
    "S3 v4": "X-Amz-Algorithm=a&X-Amz-Credential=c%2F1&X-Amz-Date={0}&X-Amz-Expires=60&X-Amz-Signature={0}",
    "S3 v2": "AWSAccessKeyId=key&Expires={0}&Signature={0}",
    "Google": "X-Goog-Algorithm=a&X-Goog-Credential=c&X-Goog-Expires=60&X-Goog-SignedHeaders=host&X-Goog-Signature={0}",
    "Google v2": "GoogleAccessId=me&Expires={0}&Signature={0}",
    "Azure": "sv=2024-11-04&st={0}&se={0}&sr=b&sp=r&sig={0}",
    "CloudFront": "Expires={0}&Signature={0}&Key-Pair-Id=k",
}


@pytest.mark.parametrize("query", SIGNED.values(), ids=SIGNED)
def test_a_newly_signed_url_is_the_same_place(query: str, server: RangeServer) -> None:
    first, again = (f"{server.url}/train-0.tar?part=1&{query.format(mark)}" for mark in ("aaaa", "bbbb"))
    with patch.object(index_cache, "read_index", side_effect=read_index) as reads:
        found = [ShardSet.open(expand(url, "data.train")) for url in (first, again)]
    assert reads.call_count == 1 and len({own.fingerprint() for own in found}) == 1
    assert Url(first).place == Url(again).place == f"{server.url}/train-0.tar?part=1"
    with pytest.raises(ShardError, match="twice"):
        expand([first, again], "data.train")


def test_tokens_in_urls_are_not_written_to_the_cache(server: RangeServer) -> None:
    from ldm.data import derived

    before = set(derived.cache_folder().rglob("*"))
    ShardSet.open(expand(f"{server.url}/train-0.tar?token=secret", "data.train"))
    [made] = [path for path in set(derived.cache_folder().rglob("*")) - before if path.is_file()]
    assert b"secret" not in made.read_bytes() and "secret" not in made.name


def test_a_folder_of_img2dataset_works_as_it_is(tmp_path: Path) -> None:
    from ldm.data.fields import Caption
    from ldm.data.module import ShardData

    for shard in range(2):
        rows = []
        for i in range(5):
            facts = b'{"caption": "in json %d", "width": 16, "height": 12, "similarity": 0.3}' % i
            rows.append({"__key__": f"{shard:05d}{i:04d}", "jpg": _jpeg(i), "txt": b"in txt %d" % i, "json": facts})
        write_shard(tmp_path / f"{shard:05d}.tar", rows)
        (tmp_path / f"{shard:05d}.parquet").write_bytes(b"columns")
        (tmp_path / f"{shard:05d}_stats.json").write_text("{}")
    for field, text in ((Caption(), "in json"), (Caption(key=None, extension="txt"), "in txt")):
        data = ShardData(f"{tmp_path}/*.tar", 8, 5, fields={"caption": field})
        found = list(islice(data.train_loader(), 2))
        assert sorted(key for batch in found for key in batch["key"])[-1] == "000010004"
        assert all(
            caption == f"{text} {int(key[-4:])}"
            for b in found
            for key, caption in zip(b["key"], b["caption"], strict=True)
        )


def _jpeg(value: int) -> bytes:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (16, 12), (value, value, value)).save(file, "JPEG")
    return file.getvalue()


def test_workers_open_their_own_connections(server: RangeServer) -> None:
    remote = f"{server.url}/train-{{0..2}}.tar"
    first = take(make(remote), 2)  # through connections of this process, before it forks
    assert all(same(a, b) for a, b in zip(take(make(remote, num_workers=2), 2), first, strict=True))


# -- copies on a local disk ------------------------------------------------------------------------------------------


def copied(data: ShardData) -> None:
    """Wait until the process that copies has nothing more to do."""
    folder = data._copies.folder
    deadline = time.monotonic() + 60
    while len(list(folder.glob("*.tar"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)


def test_copies_give_what_the_place_gives_and_leave_it_alone(server: RangeServer, tmp_path: Path) -> None:
    """Training begins before the copies are there; with them the batches are the same and nothing is asked for."""
    remote = f"{server.url}/train-{{0..2}}.tar"
    options = {"cache_dir": str(tmp_path / "copies"), "num_workers": 1, "horizontal_flip_prob": 0.5}
    without = batches(remote)
    data = make(remote, **options)
    first = take(data, 5)
    copied(data)
    data.teardown()
    assert not list((tmp_path / "copies").glob("*.partial"))
    asked = len(server.gets(".tar"))
    later = make(remote, **options)
    assert all(same(a, b) and same(a, c) for a, b, c in zip(without, first, take(later, 5), strict=True))
    assert later._copying is None and len(server.gets(".tar")) == asked
    (server.folder / "train-1.tar").touch()  # another version: its copy is not it
    again = make(remote, **options)
    assert again._copies.find(Url(f"{server.url}/train-1.tar"), facts(Url(f"{server.url}/train-1.tar"))) is None


def test_copies_keep_to_their_bound_and_let_unused_ones_go(server: RangeServer, tmp_path: Path) -> None:
    shards = ShardSet.open(expand(f"{server.url}/train-{{0..2}}.tar", "data.train")).shards
    jobs = [job_for(shard, None) for shard in shards]
    sizes = [shard.facts.num_bytes for shard in shards]
    copies = LocalCopies(tmp_path / "copies", (sizes[0] + sizes[1]) / GB)
    stranger = copies.folder / "0123.tar"
    stranger.write_bytes(b"x" * sizes[0])
    copy_all(copies, jobs)
    assert [copies.find(s.path, s.facts) is not None for s in shards] == [True, False, False] and stranger.exists()
    os.utime(stranger, (0, 0))
    copy_all(copies, jobs)
    assert [copies.find(s.path, s.facts) is not None for s in shards] == [True, True, False] and not stranger.exists()


def test_a_copy_has_the_hash_that_its_manifest_says(
    server: RangeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [shard] = ShardSet.open(expand(f"{server.url}/train-0.tar", "data.train")).shards
    copies = LocalCopies(tmp_path / "copies", 1.0)
    copy_all(copies, [job_for(shard, "0" * 64)])
    assert copies.find(shard.path, shard.facts) is None and "another hash than its manifest" in capsys.readouterr().err
    copy_all(copies, [job_for(shard, hashlib.sha256((tmp_path / "train-0.tar").read_bytes()).hexdigest())])
    assert copies.find(shard.path, shard.facts) is not None


@pytest.mark.parametrize(("folder", "gb"), [("file/copies", 1.0), ("copies", 0.0)])
def test_where_there_can_be_no_copies_is_said(folder: str, gb: float, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^data\.cache_dir"):
        LocalCopies(tmp_path / folder, gb)


def test_pauses_are_told_of_once(server: RangeServer, capsys: pytest.CaptureFixture[str]) -> None:
    attempts._told.cache_clear()
    url = Url(f"{server.url}/train-0.tar")
    known = facts(url)
    for _ in range(2):
        server.failures = 1
        read_spans([Span(url, 0, 512, known)])
    assert capsys.readouterr().err.count("asking again") == 1
