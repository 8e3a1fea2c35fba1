"""The walk over a folder: every picture is taken or named, and what belongs to it is found."""

import os
import unicodedata
from pathlib import Path

import pytest
from photos import captioned, facts_of, left_out, picture, run, words
from PIL import Image

from ldm.data.decoding import decode_image
from ldm.data.image_names import IMAGE_EXTENSIONS
from ldm.data.index import read_index
from ldm.data.making import walk as walking
from ldm.data.making.files import MAX_TEXT_BYTES
from ldm.data.user_error import UserError
from scripts.make_shards import main

OTHERS = ("svg", "psd", "cr2", "jxl", "heic", "BMP", "gif", "tiff", "avif", "jfif")


def test_every_file_that_looks_like_a_picture_is_accounted_for(tmp_path: Path) -> None:
    captioned(tmp_path / "photos", num=2)
    for extension in OTHERS:
        (tmp_path / "photos" / f"other.{extension}").write_bytes(b"no picture")
    png = (tmp_path / "photos" / "photo.1.png").read_bytes()
    for name in ("IMG_0001", "a.jpg~", "b.jpg?size=large", "notes.md"):
        (tmp_path / "photos" / name).write_bytes(b"words" if name == "notes.md" else png)
    (tmp_path / "photos" / "readme.txt").write_text("my photos")
    manifest = run(tmp_path / "photos", tmp_path / "out", validation=0)
    found = left_out(manifest)
    assert manifest["samples"] + len(found) == 2 + len(OTHERS) + 3
    assert {found[name] for name in ("IMG_0001", "a.jpg~", "b.jpg?size=large")} == {"unknown format"}
    unread = [name for name in OTHERS if name.lower() not in IMAGE_EXTENSIONS]
    assert all(found[f"other.{extension}"] == "unknown format" for extension in unread)
    assert manifest["notes"] == ["1 text files belong to no image by their name; the first: 'readme.txt'"]


@pytest.mark.parametrize(
    "hidden",
    [".git/a.jpg", "__MACOSX/cat/._a.jpg", "@eaDir/a.jpg/THUMB.jpg", ".thumbnails/a.jpg", "cat/.a.jpg",
     "lost+found/a.jpg", "cat/.ipynb_checkpoints/a.jpg", "$RECYCLE.BIN/S-1/a.jpg", "cat/._b.png",
     "System Volume Information/x/a.heic"],
)  # fmt: skip
def test_what_systems_put_among_images_is_no_class_and_no_sample(tmp_path: Path, hidden: str) -> None:
    for name in ("cat", "dog"):
        picture(tmp_path / "photos" / name / "a.jpg", 0)
    path = tmp_path / "photos" / hidden
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((tmp_path / "photos" / "cat" / "a.jpg").read_bytes())
    (path.parent / "Thumbs.db").touch()
    manifest = run(tmp_path / "photos", tmp_path / "out", validation=0)
    assert (manifest["class_names"], manifest["samples"]) == (["cat", "dog"], 2)
    assert left_out(manifest) == {hidden: "hidden or system file"}


def test_files_beside_an_image_go_with_it_as_members(tmp_path: Path) -> None:
    photos, members = tmp_path / "photos", "depth.png,pose.json"
    for name in ("cat/a", "cat/b.1", "dog/c"):
        picture(photos / f"{name}.jpg", 0)
        picture(photos / f"{name}.depth.png", 1)
        (photos / f"{name}.pose.json").write_text('{"joints": 3}')
    (photos / "dog" / "c.pose.json").unlink()
    manifest = run(photos, tmp_path / "out", validation=0, members=members)
    assert manifest["samples"] == 2 and left_out(manifest) == {"dog/c.jpg": "missing member"}
    assert {"depth.png": 2, "pose.json": 2}.items() <= manifest["fields"].items()
    assert not any("part of another" in note for note in manifest["notes"])
    shard = next((tmp_path / "out").glob("*.tar"))
    index = read_index(shard)
    extent = index.members(0)["depth.png"]
    content = shard.read_bytes()[extent.offset : extent.offset + extent.size]
    assert content in [path.read_bytes() for path in photos.glob("cat/*.depth.png")]
    assert run(photos, tmp_path / "out", validation=0, members=members) == manifest
    for wrong in ("json", "png", "depth.PNG", "a/b.png", "depth.png,", ".png"):
        with pytest.raises(UserError, match=f"members=.*{wrong.split(',')[-1]}"):
            run(photos, tmp_path / "else", members=wrong)


def test_links_are_followed_each_folder_once(tmp_path: Path) -> None:
    photos, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    picture(photos / "zebra" / "a.png", 0)
    picture(elsewhere / "b.png", 1)
    (photos / "cat").symlink_to(elsewhere)
    (photos / "dog").symlink_to(elsewhere)  # as cat
    (photos / "ape").symlink_to("zebra")  # the folder itself counts, not the link
    (photos / "zebra" / "up").symlink_to(photos)
    (elsewhere / "round").symlink_to(elsewhere)
    (photos / "above").symlink_to(tmp_path)
    (photos / "self").symlink_to("self")
    (photos / "c.png").symlink_to(elsewhere / "b.png")
    (photos / "gone.png").symlink_to("nowhere.png")
    manifest = run(photos, tmp_path / "out", validation=0)
    assert set(facts_of(tmp_path / "out")) == {"zebra/a.png", "cat/b.png"}
    assert left_out(manifest) == {
        **dict.fromkeys(("dog", "ape", "zebra/up", "cat/round", "above"), "repeated folder"),
        "c.png": "missing caption",
        "gone.png": "missing caption",
    }


def test_what_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = captioned(tmp_path / "photos", num=8)
    picture(source / "locked" / "a.png", 0)
    (source / "photo.1.txt").unlink()
    os.mkfifo(source / "photo.1.txt")
    (source / "photo.2.txt").unlink()
    (source / "photo.2.txt").symlink_to("/dev/zero")
    os.truncate(source / "photo.3.txt", 20 << 30)
    os.truncate(source / "photo.4.png", 20 << 30)
    (source / "photo.5.webp").unlink()
    os.mkfifo(source / "photo.5.webp")
    (source / "photo.6.jpg").unlink()
    (source / "photo.6.jpg").symlink_to("/dev/zero")
    scan, stat = os.scandir, os.stat

    def refuse(path: Path) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    def locked(path: object, **options: object) -> os.stat_result:
        if str(path).endswith("photo.7.txt"):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(os, "scandir", refuse)
    monkeypatch.setattr(os, "stat", locked)
    manifest = run(source, tmp_path / "out", validation=0)
    assert left_out(manifest) == {
        "locked": "unreadable folder",
        "photo.1.png": "not a regular file",
        "photo.2.webp": "not a regular file",
        "photo.3.jpg": "file too large",
        "photo.4.png": "file too large",
        "photo.5.webp": "not a regular file",
        "photo.6.jpg": "not a regular file",
        "photo.7.png": "unreadable file",
    }
    assert str(tmp_path) not in str(manifest["skipped"])  # the same bytes, wherever it is made
    assert MAX_TEXT_BYTES < 20 << 30


# -- captions ------------------------------------------------------------------------------------------------------


def test_the_text_beside_a_picture_is_found_and_read_as_text(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    accent = "caf\u00e9"
    for name in ("a.png", "b.JPG", "b.jpg", "c.png", "d.png", "e.png", f"{accent}.png"):
        picture(source / name, 0)
    (source / "a.txt").write_bytes(b"\xef\xbb\xbfa red heart")
    (source / "b.TXT").write_text("007")
    (source / "c.Txt").write_bytes("a heart".encode("utf-16"))
    (source / "d.txt").write_bytes("ein grünes Herz".encode("cp1252"))
    (source / "e.txt").write_text(" \u200b\ufeff\n")  # no letter to be seen
    (source / (unicodedata.normalize("NFD", accent) + ".txt")).write_text("coffee")
    manifest = run(source, tmp_path / "out", validation=0)
    assert {name: facts["caption"] for name, facts in facts_of(tmp_path / "out").items()} == {
        "a.png": "a red heart", "b.JPG": "007", "b.jpg": "007", f"{accent}.png": "coffee",
    }  # fmt: skip
    assert left_out(manifest) == {"c.png": "not utf-8", "d.png": "not utf-8", "e.png": "missing caption"}
    reasons = {row["name"]: row["reason"] for row in manifest["skipped"]}
    assert "UTF-16" in reasons["c.png"] and "1252" in reasons["d.png"] and "e.txt is empty" in reasons["e.png"]
    assert manifest["notes"] == ["2 images share the text file beside them with another; the first: 'b.JPG'"]


def test_a_picture_that_may_be_the_mask_of_another_is_said(tmp_path: Path) -> None:
    for name in ("a.png", "a.mask.png", "b.1.png", "b.2.png", "c/a.0.png"):
        picture(tmp_path / "photos" / "class" / name, 0)
    said = [note for note in run(tmp_path / "photos", tmp_path / "out")["notes"] if "its mask" in note]
    assert len(said) == 1 and said[0].startswith("1 images are named like a part of another")
    assert said[0].endswith("the first: 'class/a.mask.png'")


def test_pictures_alone_are_taken_and_a_class_in_the_place_of_a_caption_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("flat/a.png", "flat/b.png", "classes/cat/a.png", "classes/Cat/a.png"):
        picture(tmp_path / name, 0)
    (tmp_path / "flat" / "metadata.jsonl").touch()
    main(words(tmp_path / "flat", tmp_path / "out1", validation=0))
    said = capsys.readouterr().out
    assert "train with: data=image_shards" in said and "images alone, without captions" in said
    assert "'metadata.jsonl' is a table, and was not read" in said
    assert facts_of(tmp_path / "out1") == {"a.png": {}, "b.png": {}}
    main(words(tmp_path / "classes", tmp_path / "out2", validation=0))
    said = capsys.readouterr().out
    assert "train with: data=labelled_shards" in said and "conditioner.label.num_classes=2 " in said
    assert "classes whose names differ in case or spelling alone" in said and "caption" not in said
    (tmp_path / "classes" / "cat" / "a.txt").write_text("a cat")
    manifest = run(tmp_path / "classes", tmp_path / "out3", validation=0)
    assert "1 of 2 images have no text file beside them; their caption is their class's name" in manifest["notes"][0]


# -- names and sizes -----------------------------------------------------------------------------------------------


def test_names_that_are_alike_or_hostile_stay_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    accents = [unicodedata.normalize(form, "caf\u00e9") + ".png" for form in ("NFC", "NFD")]
    names = [
        "a.b.c.png",
        "a.b.png",
        "A.B.png",
        "x.png",
        "x.jpg",
        "x.PNG",
        *accents,
        "li\nne\x1b[31m.png",
        "pipe: x.png",
    ]
    names += [os.fsdecode(b"latin\xe9.png"), ".".join("12345") + ".webp", "z" * 200 + ".png"]
    for seed, name in enumerate(names):
        picture(tmp_path / "photos" / name, seed)
    (tmp_path / "photos" / "b\x1b[31mroken\n.png").write_bytes(b"no image")
    main(words(tmp_path / "photos", tmp_path / "out", validation=0))
    assert "\x1b[31" not in (said := capsys.readouterr().out) and r"'b\x1b[31mroken\n.png'" in said
    assert set(facts_of(tmp_path / "out")) == set(names)
    index = read_index(tmp_path / "out" / "train-00000.tar")
    assert len(index) == len(set(index.keys)) == len(names) and not any("." in key for key in index.keys)


def test_what_webp_cannot_hold_is_written_another_way(tmp_path: Path) -> None:
    Image.new("L", (30_000, 40), 90).save(tmp_path / "strip.png")
    picture(tmp_path / "a.png", 0)
    manifest = run(tmp_path, tmp_path / "out", size=32, validation=0)
    assert manifest["samples"] == 2 and manifest["fields"]["webp"] == manifest["fields"]["png"] == 1
    shard = read_index(tmp_path / "out" / "train-00000.tar")
    extent = next(shard.members(i)["png"] for i in range(2) if "png" in shard.members(i))
    content = (tmp_path / "out" / "train-00000.tar").read_bytes()[extent.offset : extent.offset + extent.size]
    assert decode_image(content).size == (24_000, 32)


def test_a_manifest_is_the_same_bytes_twice(tmp_path: Path) -> None:
    source = captioned(tmp_path / "photos", num=3)
    for name, content in {"w": b"no image", "x": b"", "y": b"\xff\xd8\xff\xe0 cut", "z": b"8BPS" + bytes(40)}.items():
        (source / f"{name}.jpg").write_bytes(content)
        (source / f"{name}.txt").write_text("x")
    for out in ("one", "two"):
        run(source, tmp_path / out)
    text = (tmp_path / "one" / "manifest.json").read_text()
    assert text == (tmp_path / "two" / "manifest.json").read_text() and "0x" not in text
    assert "no image'" in text and "the file is empty" in text and "Photoshop" in text


def test_the_walk_knows_formats_by_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.psd").touch()
    assert walking.walk(tmp_path).pictures == []
    monkeypatch.setattr(walking, "IMAGE_EXTENSIONS", (*IMAGE_EXTENSIONS, "psd"))
    assert walking.walk(tmp_path).pictures == ["a.psd"]
