"""Anyone's images, in any of their forms, become shards that ShardData reads; what is wrong with them is said."""

import csv
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

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from data.fields import Caption, Field, Label, Layout
from data.index import read_index
from data.making import make
from data.making.encode import Job, make_shard
from data.making.make import make_shards
from data.making.sources import scan
from data.module import ShardData
from scripts.make_shards import main, parse

ROOT = Path(__file__).resolve().parents[1]


def picture(path: Path, seed: int, size: tuple[int, int] = (40, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(path)


def captioned(folder: Path, num: int = 20) -> Path:
    for i in range(num):
        picture(folder / f"photo.{i}.{('jpg', 'png', 'webp')[i % 3]}", i)
        (folder / f"photo.{i}.txt").write_text(f"photo number {i}\n")
    return folder


def words(source: Path, out: Path, **options: object) -> list[str]:
    options = {"workers": 1, **options}
    return [f"source={source}", f"out={out}", *(f"{key}={value}" for key, value in options.items())]


def run(source: Path, out: Path, **options: object) -> dict:
    return make_shards(parse(words(source, out, **options)), Console(quiet=True))


def load(out: Path, fields: dict[str, Field]) -> list[dict]:
    data = ShardData(f"{out}/train-*.tar", 16, 4, validation=f"{out}/validation-*.tar", fields=fields)
    return [*islice(data.train_loader(), 4), *data.validation_loader()]


def facts_of(out: Path) -> dict[str, dict[str, Any]]:
    """name -> the .json member, of all samples."""
    found = {}
    for path in sorted(out.glob("*.tar")):
        shard, content = read_index(path), path.read_bytes()
        for i in range(len(shard)):
            extent = shard.members(i)["json"]
            facts = json.loads(content[extent.offset : extent.offset + extent.size])
            found[facts.pop("name")] = facts
    return found


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
        ("photo.5.webp", "missing caption"),
    ]
    assert manifest["samples"] == 17 and manifest["num_skipped"] == {"broken image": 1, "missing caption": 2}


# -- tables --------------------------------------------------------------------------------------------------------

ROWS = [
    {"file": "b.png", "text": "a quick, brown \"fox\"", "score": 6.25, "width": 40, "id": "007"},
    {"file": "a.png", "text": "a dog", "score": 5.0, "width": 41, "id": "1e999999"},
    {"file": "a.png", "text": "a puppy", "score": 5.0, "width": 41, "id": "8"},
    {"file": "gone.png", "text": "nothing", "score": 1.0, "width": 42, "id": "9"},
    {"file": "c.png", "text": "", "score": 1.0, "width": 43, "id": "10"},
    {"file": "d.psd", "text": "tagged", "score": 1.0, "width": 44, "id": "11"},
]  # fmt: skip


def write_table(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_a_table_names_images_captions_and_facts(tmp_path: Path, kind: str) -> None:
    for seed, name in enumerate(("a.png", "b.png", "c.png")):
        picture(tmp_path / "photos" / name, seed)
    (tmp_path / "photos" / "d.psd").touch()
    options = {"images": tmp_path / "photos", "image_column": "file", "caption_column": "text"}
    manifest = run(write_table(tmp_path / f"table.{kind}"), tmp_path / "shards", **options)
    assert {row["name"]: row["kind"] for row in manifest["skipped"]} == {
        "gone.png": "image not found",
        "c.png": "missing caption",
        "d.psd": "unknown format",
    }
    found = facts_of(tmp_path / "shards")
    assert found["b.png"] == {"caption": ROWS[0]["text"], "score": 6.25, "width": 40, "id": "007"}
    assert found["a.png"]["caption"] == ["a dog", "a puppy"] and found["a.png"]["width"] == 41


def test_a_table_may_have_no_captions(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 0)
    table = write_table(tmp_path / "t.csv", [{"image": "a.png", "label": 3}])
    manifest = run(table, tmp_path / "shards", caption_column="", validation=0)
    assert manifest["samples"] == 1 and facts_of(tmp_path / "shards") == {"a.png": {"label": 3}}


@pytest.mark.parametrize(
    ("content", "options", "reason"),
    [
        ("image_path,caption\na.png,x\n", {}, "image_column=image: .* did you mean image_column=image_path"),
        ("image,captions\na.png,x\n", {}, "caption_column=caption: .* did you mean caption_column=captions.*for none"),
        ("image,caption,text\na.png,x,y\n", {"caption_column": "text"}, "data.fields.caption.key=text"),
        ("image,caption\na.png,x,y\n", {}, "table.csv, line 2: more cells"),
        ("image,caption\n", {}, "has no rows"),
        ("image,caption\na.png,\udcff\n", {}, "table.csv: .*utf-8"),
        ("image,caption\na.png,x\n", {"images": "nowhere"}, "images=nowhere is not a folder"),
    ],
)
def test_an_unreadable_table_is_one_clear_line(tmp_path: Path, content: str, options: dict, reason: str) -> None:
    picture(tmp_path / "a.png", 0)
    table = tmp_path / "table.csv"
    table.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=reason):
        run(table, tmp_path / "shards", **options)


@pytest.mark.parametrize(("line", "reason"), [("{cut", "line 2"), ("[1]", "line 2: not a JSON object")])
def test_a_broken_line_of_json_is_named(tmp_path: Path, line: str, reason: str) -> None:
    (tmp_path / "t.jsonl").write_text('{"image": "a.png", "caption": "x"}\n' + line)
    with pytest.raises(ValueError, match=reason):
        run(tmp_path / "t.jsonl", tmp_path / "shards")


# -- annotations ---------------------------------------------------------------------------------------------------


def annotated(folder: Path) -> tuple[Path, Path]:
    """COCO's two files for three images."""
    for seed, name in enumerate(("1.png", "2.png", "3.png")):
        picture(folder / "images" / name, seed)
    images = [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in (1, 2, 3)]
    categories = [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}]
    boxes = [
        {"id": 5, "image_id": 1, "category_id": 18, "bbox": [10, 0, 20, 15], "iscrowd": 0},
        {"id": 6, "image_id": 1, "category_id": 3, "bbox": [30, 15, 20, 30], "iscrowd": 1},
        {"id": 7, "image_id": 2, "category_id": 3, "bbox": [0, 0, 0, 10]},
    ]
    texts = [{"id": 9, "image_id": 1, "caption": "second"}, {"id": 8, "image_id": 1, "caption": " first\n"},
             {"id": 10, "image_id": 3, "caption": "third"}]  # fmt: skip
    files = folder / "instances.json", folder / "captions.json"
    files[0].write_text(json.dumps({"images": images, "categories": categories, "annotations": boxes}))
    files[1].write_text(json.dumps({"images": images, "annotations": texts}))
    return files


def test_annotations_become_objects_and_captions(tmp_path: Path) -> None:
    instances, captions = annotated(tmp_path)
    options = {"annotations": f"{instances},{captions}", "validation": 0}
    manifest = run(tmp_path / "images", tmp_path / "shards", **options)
    assert manifest["class_names"] == ["car", "dog"]
    assert [(row["name"], row["kind"]) for row in manifest["skipped"]] == [("2.png", "missing caption")]
    found = facts_of(tmp_path / "shards")
    assert found["1.png"]["caption"] == ["first", "second"]
    assert found["1.png"]["objects"] == [
        {"category": 1, "box": [0.25, 0.0, 0.75, 0.5]},
        {"category": 0, "box": [0.75, 0.5, 1.0, 1.0], "group": True},
    ]
    assert found["3.png"]["objects"] == []
    fields = {"layout": Layout(num_classes=2), "caption": Caption()}
    data = ShardData(f"{tmp_path}/shards/train-*.tar", image_size=16, batch_size=2, fields=fields)
    assert next(iter(data.train_loader()))["layout"].shape == (2, 92) and data.skipped == []


def test_objects_alone_need_no_captions(tmp_path: Path) -> None:
    instances, _ = annotated(tmp_path)
    assert run(tmp_path / "images", tmp_path / "shards", annotations=instances)["samples"] == 3


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"images": []}, "lists no images"),
        ({"annotations": None}, "not of COCO's form"),
        ({"annotations": [{"id": 1, "image_id": 1, "bbox": [0, 0, 1, 1]}]}, "no 'category_id'"),
        ({"annotations": [{"id": 1, "image_id": 1, "category_id": 99, "bbox": [0, 0, 1, 1]}]}, "category_id 99"),
        ({"annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 1]}]}, "bbox"),
    ],
)
def test_annotations_of_another_form_are_one_clear_line(tmp_path: Path, change: dict, reason: str) -> None:
    instances, _ = annotated(tmp_path)
    instances.write_text(json.dumps({**json.loads(instances.read_text()), **change}))
    with pytest.raises(ValueError, match=f"annotation.*{reason}"):
        run(tmp_path / "images", tmp_path / "shards", annotations=instances)


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
        (["source={plain}", "out={out}"], "none of the 1 images can be used.*missing caption"),
        (["source={photos}", "out={old}"], "already holds train-00007.tar"),
    ],
)
def test_wrong_orders_get_one_clear_line(tmp_path: Path, words: list[str], reason: str) -> None:
    folders = {name: tmp_path / name for name in ("photos", "empty", "plain", "out", "old")}
    captioned(folders["photos"], num=3)
    picture(folders["plain"] / "a.png", 0)
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
    assert f"train with: data=shards data.train={tmp_path}/out/train-*.tar data.validation=" in said
