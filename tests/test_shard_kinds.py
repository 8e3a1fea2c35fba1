"""What is given as a shard and is none, or holds more or less than samples; names of every kind, at a bounded cost."""

import bz2
import gzip
import io
import lzma
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from ldm.data import tar_headers
from ldm.data.braces import expand_braces
from ldm.data.errors import ShardError
from ldm.data.index import EmptyShard, read_index, split_name
from ldm.data.open_files import OpenFiles, room
from ldm.data.paths import expand
from ldm.data.shards import MemberReader, ShardSet


def tar_of(path: Path, names: list[str | tarfile.TarInfo], form: int = tarfile.GNU_FORMAT) -> Path:
    """A tar of members that hold their own names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name in names:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            content = info.name.encode() if info.isreg() else b""
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def read(*paths: Path) -> dict[str, dict[str, bytes]]:
    shards, reader = ShardSet.open(paths), MemberReader()
    places = [shards.locate(index) for index in range(len(shards))]
    return {s.keys[p]: own for (s, p), own in zip(places, reader.read_all(places), strict=True)}


# -- not a tar -----------------------------------------------------------------------------------------------------

RAW = b"0" * 4096
KINDS = {
    "gzip": (gzip.compress(RAW), "compressed with gzip: uncompress"),
    "bzip2": (bz2.compress(RAW), "compressed with bzip2"),
    "xz": (lzma.compress(RAW), "compressed with xz"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(600), "compressed with zstd"),
    "zip": (b"PK\3\4" + os.urandom(2000), "it is a zip"),
    "page": (b"\n<!DOCTYPE html><html>" + b" " * 2000, "it is a web page"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "it is a web page or XML"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
    "parquet": (b"PAR1" + os.urandom(2000), "parquet table.*make_shards"),
    "json": (b'{"error": "no"}', "it is JSON"),
    "jpeg": (b"\xff\xd8\xff\xe0" + os.urandom(900), "it is a JPEG"),
    "text": (b"Not Found. " * 90, "it is text"),
    "empty": (b"", "the file is empty"),
    "noise": (b"\xf3\1\2\0" * 400, "damaged header"),
}


@pytest.mark.parametrize("name", KINDS)
def test_what_is_no_tar_is_called_what_it_is(name: str, tmp_path: Path) -> None:
    content, reason = KINDS[name]
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(ShardError, match=rf"x\.tar: .*{reason}") as caught:
        read_index(tmp_path / "x.tar")
    assert str(caught.value).isprintable()


def test_zeros_that_never_came_are_no_end(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "x.tar", ["a.txt"])
    with open(path, "r+b") as file:
        file.truncate(1 << 40)  # as a download that reserved its place leaves it
    with pytest.raises(ShardError, match="not copied whole"):
        read_index(path)


# -- members that are no samples -----------------------------------------------------------------------------------


def test_what_systems_leave_behind_is_no_sample(tmp_path: Path) -> None:
    plain = [f"photos/{i}.{kind}" for i in range(3) for kind in ("jpg", "json")]
    hidden = [name.replace("/", "/._") for name in plain]
    for number, names in enumerate(
        [
            [x for pair in zip(hidden, plain, strict=True) for x in pair],
            ["photos/.DS_Store", *plain[:2], "photos/.hidden.jpg", *plain[2:]],
            [*plain, *(f"__MACOSX/{name}" for name in plain), "x/@eaDir/0.jpg/THUMB.jpg"],
        ]
    ):
        found = read(tar_of(tmp_path / f"{number}.tar", names))
        assert found == {f"photos/{i}": {k: f"photos/{i}.{k}".encode() for k in ("jpg", "json")} for i in range(3)}
    assert read(tar_of(tmp_path / "dots.tar", [f"./{name}" for name in plain])).keys() == {
        f"./photos/{i}" for i in "012"
    }


def test_a_hard_link_is_the_member_it_names_and_other_links_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, target
        return info

    long = "d/" * 60 + "0.jpg"
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        names = ["0.jpg", "0.json", link("1.jpg", "0.jpg", tarfile.LNKTYPE), "1.json", long,
                 link("2.jpg", long, tarfile.LNKTYPE)]  # fmt: skip
        found = read(tar_of(tmp_path / f"hard-{form}.tar", names, form))
        assert found["1"] == {"jpg": b"0.jpg", "json": b"1.json"} and found["2"] == {"jpg": long.encode()}
    assert capsys.readouterr().err == ""
    names = ["0.jpg", link("1.jpg", "0.jpg", tarfile.SYMTYPE), "1.json", link("1.png", "../x.png", tarfile.LNKTYPE)]
    path = tar_of(tmp_path / "soft.tar", names)
    for _ in range(2):  # also where its index is known
        assert read(path)["1"] == {"json": b"1.json"}
        assert "soft.tar: 2 links" in (said := capsys.readouterr().err) and "'1.jpg', '1.png'" in said
        assert "tar -h" in said and "--hard-dereference" in said


def test_links_made_by_tar_itself_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / "0.jpg").write_bytes(b"picture")
    os.link(folder / "0.jpg", folder / "1.jpg")
    subprocess.run(["tar", "--sort=name", "-C", folder, "-cf", tmp_path / "x.tar", "."], check=True)
    assert read(tmp_path / "x.tar") == {"./0": {"jpg": b"picture"}, "./1": {"jpg": b"picture"}}


def test_a_shard_without_samples_is_passed_over_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    paths = [tar_of(tmp_path / f"{i}.tar", [] if i == 1 else [f"k{i}.txt"]) for i in range(3)]
    assert read(*paths).keys() == {"k0", "k2"}
    assert "1 of 3 shards hold no samples" in (said := capsys.readouterr().err) and "1.tar" in said
    assert len(said.splitlines()) == 1
    other = tar_of(tmp_path / "other.tar", ["README", "LICENSE"])
    with pytest.raises(ShardError, match=r"none of 2 shards .*1\.tar.*other\.tar.*'README', 'LICENSE'; .*KEY\.EXT"):
        ShardSet.open([paths[1], other])
    with pytest.raises(EmptyShard, match="holds no samples"):
        ShardSet.open([paths[1]])


def test_names_with_more_dots_are_explained(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "x.tar", [f"IMG.{i}.jpg" for i in range(1100)])
    with pytest.raises(ShardError, match=r"kinds of members.*begins at a name's first dot"):
        read_index(path)


# -- cost ----------------------------------------------------------------------------------------------------------


class Counted(bytes):
    """An archive that counts the bytes which are asked of it."""

    taken = 0

    def __getitem__(self, where: slice) -> bytes:
        found = bytes.__getitem__(self, where)
        Counted.taken += len(found)
        return found


@pytest.mark.parametrize(
    "name", ["/" * 4090, "a/" * 2040 + "x" * 9, "." * 4090, "a." * 2040, "/." * 2040, "__MACOSX/" * 450]
)
def test_each_byte_of_an_archive_is_asked_for_a_bounded_number_of_times(name: str, tmp_path: Path) -> None:
    path = tar_of(tmp_path / "x.tar", [name] * 30, tarfile.PAX_FORMAT)
    archive = Counted(path.read_bytes())
    Counted.taken = 0
    members = list(tar_headers.walk(archive))
    assert len(members) == 30 and Counted.taken <= 2 * len(archive)
    for member in members:
        split_name(member.name)  # finds, no pattern: nothing in it can go back


def test_names_are_split_as_the_pattern_of_webdataset_does() -> None:
    import random
    import re

    pattern = re.compile(r"((?:.*/)?[^.]+)\.([^/]*)", re.DOTALL)
    rng = random.Random(0)
    for _ in range(20_000):
        name = "".join(rng.choices("ab./\n_", k=rng.randrange(1, 9)))
        match = pattern.fullmatch(name)
        base = name.rpartition("/")[2]
        expected = None if match is None or base.startswith(".") else (match[1], match[2])
        if not (name.startswith("__") and name.endswith("__")):
            assert split_name(name) == expected, name


def test_records_of_an_extended_header_are_read_in_one_pass() -> None:
    reads = 0

    class Content(bytes):
        def __getitem__(self, where: slice) -> bytes:
            nonlocal reads
            found = bytes.__getitem__(self, where)
            reads += len(found)
            return found

    for count in (1000, 2000):
        reads = 0
        tar_headers._records(Content(b"7 a=b\n\n" * count))
        assert reads <= 2 * 7 * count


BOMBS = [
    "{1..99999999}",
    "{a,b}" * 40,
    "{" * 1500 + "}" * 1500,
    "{{1..99999},x}{{1..99999},x}",
    "{" + "0" * 5000 + "1..9}",
    "{9" + "9" * 5000 + "..1}",
    "{0000000000000001..0999999999}" + "x" * 4000,
    "{1",
    "}{",
]


@pytest.mark.parametrize("bomb", BOMBS, ids=range(len(BOMBS)))
@pytest.mark.parametrize("where", ["", "http://127.0.0.1:9/"])
def test_braces_that_stand_for_too_much_are_refused_unexpanded(bomb: str, where: str) -> None:
    with pytest.raises(ShardError, match=r"^data\.train: ") as caught:
        expand(f"{where}{bomb}.tar", "data.train")
    assert len(str(caught.value)) < 1500


def test_braces_that_are_counted_are_those_that_come() -> None:
    for text, names in {"{1..3}": 3, "a{b,c{1..4}}d{x..z}": 15, "{a}": 1, "{,x}": 2, "{}": 1, "{{a,b}}": 2}.items():
        assert len(list(expand_braces(text))) == names


# -- names ---------------------------------------------------------------------------------------------------------


def test_names_that_exist_are_taken_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = [
        "my [set] v2/train-0.tar",
        "my [set] v2/train-1.tar",
        "draft*/a.tar",
        "drafts/a.tar",
        "{odd}/x{1,2}.tar",
        "a::b/a.tar",
    ]
    for name in made:
        tar_of(tmp_path / name, ["a.txt"])
    for pattern, count in {
        "my [set] v2/train-*.tar": 2, "my [set] v2/train-{0..1}.tar": 2, f"{tmp_path}/my [set] v2/train-0.tar": 1,
        "draft*/a.tar": 1, "draft?/a.tar": 2, "{odd}/x{1,2}.tar": 1, "{odd}/*.tar": 1, "./{odd}//x*.tar/": 1,
        "a::b/*.tar": 1,
        "[draft*/a.tar,drafts/a.tar]": 2, '["drafts/a.tar", \'draft*/a.tar\']': 2, "[{odd}/x{1,2}.tar]": 1,
    }.items():  # fmt: skip
        assert len(expand(pattern, "data.train")) == count, pattern


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('"a.tar"', "quotes are a part of the name"),
        ("'a.tar'", "quotes are a part of the name"),
        ("a.tar,b.tar", r"several are written \{a.tar,b.tar\} or \[a.tar,b.tar\]"),
        ("~nosuchuser/a.tar", "no user's folder"),
        ("", "names no shards"),
        ("[]", "names no shards"),
        ("[a.tar,./a.tar]", "twice"),
        ("\x1b[2Jx.tar", r"no shard \\x1b\[2Jx"),
        ("x" * 5000, "no shard xxx"),
    ],
)
def test_what_is_meant_otherwise_is_said(
    text: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tar_of(tmp_path / "a.tar", ["a.txt"])
    with pytest.raises(ShardError, match=rf"^data\.train.*{reason}") as caught:
        expand(text, "data.train")
    assert str(caught.value).isprintable()


# -- in use --------------------------------------------------------------------------------------------------------


def test_a_shard_overwritten_while_it_is_open_is_an_error_and_one_replaced_is_the_old_one(tmp_path: Path) -> None:
    names = [f"k{i}.txt" for i in range(6)]
    path = tar_of(tmp_path / "x.tar", names)
    other = tar_of(tmp_path / "other.tar", names[::-1]).read_bytes()
    shards, reader = ShardSet.open([path]), MemberReader()
    reader.read_all([shards.locate(0)])
    (tmp_path / "new.tar").write_bytes(other)
    os.replace(tmp_path / "new.tar", path)  # the open one is still read
    assert [row["txt"] for row in reader.read_all([shards.locate(i) for i in range(6)])] == [n.encode() for n in names]
    with pytest.raises(ShardError, match=r"x\.tar changed while it was in use; start again"):
        MemberReader().read_all([shards.locate(0)])
    shards, reader = ShardSet.open([path]), MemberReader()
    reader.read_all([shards.locate(0)])
    with open(path, "r+b") as file:
        file.write(tar_of(tmp_path / "other.tar", names).read_bytes())
    with pytest.raises(ShardError, match=r"x\.tar changed while it was in use; start again"):
        reader.read_all([shards.locate(1)])


def test_few_files_are_held_open_and_too_many_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldm.data.open_files.file_limit", lambda: 64)
    paths = [tar_of(tmp_path / f"{i}.tar", [f"k{i}.txt"]) for i in range(12)]
    assert room(64) == 4 and len(read(*paths)) == 12
    files = OpenFiles(64)
    for entry in ShardSet.open(paths).shards:
        files.open(entry.path, entry.facts)
    assert len(files._files) == 4

    def full(path: Path) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("ldm.data.open_files.FileIO", full)
    with pytest.raises(ShardError, match=r"0\.tar: too many open files .*ulimit -n"):
        read(paths[0])
