"""Anyone's images, in any of their forms, become shards that ShardData reads; what is wrong with them is said."""

import io
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from photos import captioned, load, picture, run, words
from PIL import Image

from ldm.data.fields import Caption, Label
from ldm.data.index import read_index
from ldm.data.making import make
from ldm.data.making.encode import Job, make_shard
from ldm.data.making.folders import scan
from ldm.data.paths import expand
from scripts.make_shards import main

ROOT = Path(__file__).resolve().parents[1]


# -- folders -------------------------------------------------------------------------------------------------------


def test_captions_travel_with_their_images(tmp_path: Path) -> None:
    source, out = captioned(tmp_path / "photos"), tmp_path / "shards"
    manifest = run(source, out, validation=0.2, shard_samples=7)
    assert [len(manifest["splits"][part]["shards"]) for part in ("train", "validation")] == [3, 1]
    assert [manifest["splits"][part]["samples"] for part in ("train", "validation")] == [16, 4]
    assert manifest["fields"] == {"jpg": 7, "json: caption": 20, "json: name": 20, "png": 7, "webp": 6}
    assert json.loads((out / "manifest.json").read_text()) == manifest
    captions = {text for batch in load(out, {"caption": Caption()}) for text in batch["caption"]}
    assert captions == {f"photo number {i}" for i in range(20)}
    for path in out.glob("*.tar"):
        shard, content = read_index(path), path.read_bytes()
        for i in range(len(shard)):
            members = {name: content[e.offset : e.offset + e.size] for name, e in shard.members(i).items()}
            facts = json.loads(members.pop("json"))
            [(extension, image)] = members.items()
            assert image == (source / facts["name"]).read_bytes() and facts["name"].endswith(extension)


def test_class_folders_give_labels_and_captions(tmp_path: Path) -> None:
    for name in ("red_fox", "barn-owl"):
        for i in range(6):
            picture(tmp_path / "photos" / name / "more" / f"{i}.png", i)
    manifest = run(tmp_path / "photos", tmp_path / "shards", validation=0.3)
    assert manifest["class_names"] == ["barn-owl", "red_fox"]
    pairs = {
        pair
        for batch in load(tmp_path / "shards", {"caption": Caption(), "label": Label()})
        for pair in zip(batch["caption"], batch["label"].tolist(), strict=True)
    }
    assert pairs == {("barn owl", 0), ("red fox", 1)}


def test_images_are_scaled_down_never_up(tmp_path: Path) -> None:
    picture(tmp_path / "photos" / "a" / "large.png", 0, (200, 100))
    picture(tmp_path / "photos" / "a" / "small.jpg", 1, (20, 10))
    run(tmp_path / "photos", tmp_path / "shards", size=50, validation=0)
    shard = read_index(tmp_path / "shards" / "train-00000.tar")
    sizes = set()
    for i in range(2):
        with open(shard.path, "rb") as file:
            extent = shard.members(i)["webp"]
            file.seek(extent.offset)
            sizes.add(Image.open(io.BytesIO(file.read(extent.size))).size)
    assert sizes == {(100, 50), (20, 10)}


def test_what_cannot_be_used_is_left_out_and_named(tmp_path: Path) -> None:
    source = captioned(tmp_path / "photos")
    (source / "photo.3.jpg").write_bytes(b"\xff\xd8 not much of a picture")
    (source / "photo.4.txt").unlink()
    (source / "photo.5.txt").write_bytes(b"\xff\xfe")
    manifest = run(source, tmp_path / "shards")
    assert sorted((row["name"], row["kind"]) for row in manifest["skipped"]) == [
        ("photo.3.jpg", "broken image"),
        ("photo.4.png", "missing caption"),
        ("photo.5.webp", "not utf-8"),
    ]
    assert manifest["samples"] == 17 and manifest["num_skipped"] == {
        "broken image": 1,
        "missing caption": 1,
        "not utf-8": 1,
    }


# -- processes and interruptions -----------------------------------------------------------------------------------


def assert_same_files(one: Path, other: Path) -> None:
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in other.iterdir())
    for path in one.iterdir():
        assert path.read_bytes() == (other / path.name).read_bytes(), path.name


def test_a_stopped_run_goes_on_and_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = captioned(tmp_path / "photos")
    whole = run(source, tmp_path / "whole", shard_samples=5)
    original = make.finish

    def stop_after_two(*arguments: Any) -> Any:
        yield from islice(original(*arguments), 2)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(make, "finish", stop_after_two)
        with pytest.raises(KeyboardInterrupt):
            run(source, tmp_path / "parts", shard_samples=5)
    parts = tmp_path / "parts"
    before = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.tar")}
    assert len(before) == 2 and not (parts / "manifest.json").exists()
    with (parts / "progress.jsonl").open("a") as journal:
        journal.write('{"shard": "train-00002.tar", "inp')  # a line that a kill cut short
    assert run(source, parts, shard_samples=5) == whole
    assert all((parts / name).stat().st_mtime_ns == time for name, time in before.items())
    assert_same_files(tmp_path / "whole", parts)


def test_a_noted_shard_is_written_anew_if_its_images_or_its_bytes_changed(tmp_path: Path) -> None:
    sources = scan(captioned(tmp_path / "photos", num=3)).sources
    job = Job(tmp_path / "x.tar", tuple(sources), size=0, quality=95)
    note = make_shard(job, lambda count: None)
    written = job.path.stat().st_mtime_ns
    again = replace(job, done=note)
    assert make_shard(again, lambda count: None) == note and job.path.stat().st_mtime_ns == written
    whole = job.path.read_bytes()
    job.path.write_bytes(whole[:-1])
    assert make_shard(again, lambda count: None) == note and job.path.read_bytes() == whole
    picture(sources[0].path, seed=9)
    assert make_shard(again, lambda count: None)["row"]["sha256"] != note["row"]["sha256"]


@pytest.mark.slow
def test_killed_anywhere_in_any_number_of_processes_it_gives_the_same_bytes(tmp_path: Path) -> None:
    source = captioned(tmp_path / "photos", num=60)
    options = {"shard_samples": 4, "size": 24}
    whole = run(source, tmp_path / "whole", **options)
    command = [sys.executable, "scripts/make_shards.py", *words(source, tmp_path / "parts", workers=2, **options)]
    kills = 0
    for wait in (1, 4, 8):  # shards that are done when it is killed
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        while process.poll() is None and len(list((tmp_path / "parts").glob("*.tar"))) < wait:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills == 3 and not (tmp_path / "parts" / "manifest.json").exists()
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "train with: data=shards" in said
    assert json.loads((tmp_path / "parts" / "manifest.json").read_text()) == whole
    assert_same_files(tmp_path / "whole", tmp_path / "parts")


def test_two_runs_do_not_write_to_one_folder(tmp_path: Path) -> None:
    import fcntl

    out = tmp_path / "shards"
    out.mkdir()
    with (out / make.JOURNAL).open("a") as journal:
        fcntl.flock(journal, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another process is writing"):
            run(captioned(tmp_path / "photos", num=3), out)


# -- the command line ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["source={photos}"], "out= is missing"),
        (["source={photos}", "out={out}", "shard_sample=3"], "did you mean shard_samples="),
        (["source={photos}", "out={out}", "size=big"], "size='big' is not a number"),
        (["source={photos}", "out={out}", "validation=1.5"], "validation=1.5 must be"),
        (["source={photos}", "out={out}", "workers=0"], "workers= at least 1"),
        (["source={photos}/gone", "out={out}"], "gone is neither a folder nor a table"),
        (["source={photos}/photo.0.txt", "out={out}"], "a table is one of .csv, .tsv, .jsonl, .parquet"),
        (["source={photos}", "out={out}", "annotations=gone.json"], "annotations=gone.json: No such file"),
        (["source={empty}", "out={out}"], "holds no images"),
        (["source={plain}", "out={out}"], "none of the 1 images can be used.*broken image"),
        (["source={photos}", "out={old}"], "already holds train-00007.tar"),
    ],
)
def test_wrong_orders_get_one_clear_line(tmp_path: Path, words: list[str], reason: str) -> None:
    folders = {name: tmp_path / name for name in ("photos", "empty", "plain", "out", "old")}
    captioned(folders["photos"], num=3)
    folders["plain"].mkdir()
    (folders["plain"] / "a.png").write_bytes(b"no picture")
    folders["empty"].mkdir()
    folders["old"].mkdir()
    (folders["old"] / "train-00007.tar").touch()
    with pytest.raises(SystemExit, match=f"make_shards: .*{reason}"):
        main([word.format(**folders) for word in words])


def test_it_says_what_it_left_out_and_how_to_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = captioned(tmp_path / "photos", num=5)
    (source / "photo.1.txt").unlink()
    main(words(source, tmp_path / "out", validation=0.4))
    said = capsys.readouterr().out
    assert "left out, missing caption: 'photo.1.png'" in said
    assert f"train with: data=shards 'data.train={tmp_path}/out/train-*.tar' 'data.validation=" in said


@pytest.mark.parametrize("name", ["my [set] v2", "two words", "it's", "draft*", "a::b", "a\nb\\'\x1b"])
def test_the_words_it_ends_with_find_the_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    main(words(captioned(tmp_path / "photos", num=2), tmp_path / name, validation=0))
    said = capsys.readouterr().out.split("train with: ")[1].splitlines()[0]
    assert said.isprintable()
    told = subprocess.run(["bash", "-c", f"printf '%s\\0' {said}"], capture_output=True, text=True, check=True).stdout
    given = dict(word.split("=", 1) for word in told.split("\0") if word)
    assert expand(given["data.train"], "data.train") == [tmp_path / name / "train-00000.tar"]


def test_home_is_home_and_each_key_is_given_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    captioned(tmp_path / "photos", num=2)
    main(["source=~/photos", "out=~/made", "workers=1"])
    assert (tmp_path / "made" / "manifest.json").exists()
    monkeypatch.chdir(tmp_path / "made")
    main(["source=../photos", "out=./~", "workers=1"])
    assert (tmp_path / "made" / "~" / "manifest.json").exists()
    with pytest.raises(SystemExit, match="size= is given twice: 8 and 16"):
        main(["source=~/photos", "out=~/other", "size=8", "size=16"])
    with pytest.raises(SystemExit, match="out= is empty"):
        main(["source=~/photos", "out="])
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="file is a file; name a folder"):
        main(["source=~/photos", "out=~/file"])
    with pytest.raises(SystemExit, match=r"Not a directory: .*file"):
        main(["source=~/photos", "out=~/file/below"])


# -- finished folders ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ['{"image": "a.png"}\n', '5\n[1]\n{"shard": "train-00000.tar"}\n', "a diary\n", '{"source": "x", "image": 1}\n'],
)
def test_a_file_of_the_journals_name_is_not_taken_for_one(tmp_path: Path, text: str) -> None:
    captioned(tmp_path / "photos", num=2)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "progress.jsonl").write_text(text)
    with pytest.raises(SystemExit, match=r"out=.*out holds a progress\.jsonl of another kind; choose another folder"):
        main(words(tmp_path / "photos", tmp_path / "out"))
    assert (tmp_path / "out" / "progress.jsonl").read_text() == text
    for cut in ("", "\n", '{"sou', '{"source": "/ph'):  # killed as it began
        (tmp_path / "out" / "progress.jsonl").write_text(cut)
        assert run(tmp_path / "photos", tmp_path / "out")["samples"] == 2


@pytest.mark.parametrize("row", ['{"name": "train-00000.tar"}', '{"name": []}'])
def test_a_manifest_with_rows_of_another_kind_is_named(tmp_path: Path, row: str) -> None:
    captioned(tmp_path / "photos", num=2)
    (tmp_path / "out").mkdir()
    splits = f'{{"train": {{"shards": [{row}]}}, "validation": {{"shards": []}}}}'
    (tmp_path / "out" / "manifest.json").write_text(f'{{"splits": {splits}}}')
    with pytest.raises(SystemExit, match=r"manifest\.json that is none of shards"):
        main(words(tmp_path / "photos", tmp_path / "out"))


def state_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("change", "options", "reason"),
    [
        ("nothing", {"size": 16}, "made with size=0, this run has size=16; choose another"),
        ("one more", {}, "holds finished shards of other images"),
        ("other pixels", {}, "train-0000..tar is finished, and its images.* have changed"),
        ("other words", {}, "train-0000..tar is finished, and its images.* have changed"),
        ("fewer shards", {"shard_samples": 9}, "already holds train-0000..tar, which is not of this run"),
    ],
)
def test_finished_shards_are_never_replaced(tmp_path: Path, change: str, options: dict, reason: str) -> None:
    source, out = captioned(tmp_path / "photos", num=6), tmp_path / "out"
    run(source, out, validation=0, shard_samples=2)
    before = state_of(out)
    if change == "one more":
        picture(source / "more.png", 1)
    if change == "other pixels":
        picture(source / "photo.1.png", 99)
    if change == "other words":
        (source / "photo.1.txt").write_text("another")
    with pytest.raises(ValueError, match=reason):
        run(source, out, **{"validation": 0, "shard_samples": 2, **options})
    assert state_of(out) == before


def test_a_finished_folder_is_confirmed_and_what_is_damaged_there_repaired(tmp_path: Path) -> None:
    source, out = captioned(tmp_path / "photos", num=6), tmp_path / "out"
    first = run(source, out, validation=0, shard_samples=2)
    whole = (out / "train-00001.tar").read_bytes()
    time_of_first = (out / "train-00000.tar").stat().st_mtime_ns
    (out / "train-00001.tar").write_bytes(whole[:-700])
    (out / "train-00002.tar").unlink()
    source = source.rename(tmp_path / "moved")
    again = run(source, out, validation=0, shard_samples=2)
    assert again["splits"] == first["splits"] and (out / "train-00001.tar").read_bytes() == whole
    assert (out / "train-00000.tar").stat().st_mtime_ns == time_of_first and (out / "train-00002.tar").exists()
    manifest = json.loads((out / "manifest.json").read_text())
    del manifest["made_with"]  # as they were before
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert run(source, out, validation=0, shard_samples=2)["made_with"] == first["made_with"]


def test_shards_and_manifests_of_others_stay(tmp_path: Path) -> None:
    source = captioned(tmp_path / "photos", num=3)
    for name, reason in [("train-00000.tar", "already holds train-00000.tar"), ("manifest.json", "none of shards")]:
        out = tmp_path / name.partition(".")[0]
        out.mkdir()
        (out / name).write_text('{"icons": []}')
        (out / "mine.partial").touch()
        before = state_of(out)
        with pytest.raises(ValueError, match=reason):
            run(source, out, validation=0)
        assert state_of(out) == before


def test_an_unfinished_folder_is_gone_on_with_by_its_own_source_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = captioned(tmp_path / "photos", num=6), tmp_path / "out"

    def stop(*arguments: Any) -> Any:
        raise KeyboardInterrupt
        yield

    with monkeypatch.context() as patch:
        patch.setattr(make, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            run(source, out)
    run(captioned(tmp_path / "others", num=3), out, size=8)  # nothing had been written yet
    assert not (out / make.JOURNAL).exists()
    (out / "manifest.json").rename(out / make.JOURNAL)
    (out / make.JOURNAL).write_text(json.dumps({"source": str(tmp_path / "others"), "images": "1"}))
    with pytest.raises(ValueError, match=r"holds the unfinished shards of .*others"):
        run(source, out, shard_samples=5)


def test_no_file_in_the_folder_is_left_where_no_image_can_be_used(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").touch()
    with pytest.raises(
        ValueError, match=r"none of the 1 images can be used: a.png: the file is empty \(broken image\)"
    ):
        run(tmp_path / "photos", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
