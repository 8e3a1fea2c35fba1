"""A folder of anyone's images becomes shards that ShardData reads; what is wrong with it is said."""

import io
import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from data.fields import Caption, Label
from data.index import read_index
from data.module import ShardData
from scripts.make_shards import main, make_shards, parse


def picture(path: Path, seed: int, size: tuple[int, int] = (40, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(path)


def captioned(folder: Path, num: int = 20) -> Path:
    for i in range(num):
        picture(folder / f"photo.{i}.{('jpg', 'png', 'webp')[i % 3]}", i)
        (folder / f"photo.{i}.txt").write_text(f"photo number {i}\n")
    return folder


def run(source: Path, out: Path, **options: object) -> dict:
    words = [f"source={source}", f"out={out}", *(f"{key}={value}" for key, value in options.items())]
    return make_shards(parse(words), Console(quiet=True))


def load(out: Path, fields: dict) -> list[dict]:
    data = ShardData(f"{out}/train-*.tar", 16, 4, validation=f"{out}/validation-*.tar", fields=fields)
    return [*islice(data.train_loader(), 4), *data.validation_loader()]


def test_captions_travel_with_their_images(tmp_path: Path) -> None:
    source, out = captioned(tmp_path / "photos"), tmp_path / "shards"
    manifest = run(source, out, validation=0.2, shard_samples=7)
    assert [len(manifest["splits"][part]["shards"]) for part in ("train", "validation")] == [3, 1]
    assert [manifest["splits"][part]["samples"] for part in ("train", "validation")] == [16, 4]
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
    assert manifest["samples"] == 17


def test_the_same_folder_gives_the_same_bytes_and_a_stopped_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = captioned(tmp_path / "photos")
    whole = run(source, tmp_path / "whole", shard_samples=5)
    written: list[str] = []
    original = make_shards.__globals__["write"]

    def stop_at_third(path: Path, *rest: object) -> dict:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path.name)
        return original(path, *rest)

    with monkeypatch.context() as patch:
        patch.setitem(make_shards.__globals__, "write", stop_at_third)
        with pytest.raises(KeyboardInterrupt):
            run(source, tmp_path / "parts", shard_samples=5)
        assert len(written) == 2 and not (tmp_path / "parts" / "manifest.json").exists()
    first = (tmp_path / "parts" / written[0]).stat()
    assert run(source, tmp_path / "parts", shard_samples=5) == whole
    assert (tmp_path / "parts" / written[0]).stat().st_mtime_ns == first.st_mtime_ns
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "parts" / path.name).read_bytes()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["source={photos}"], "out= is missing"),
        (["source={photos}", "out={out}", "shard_sample=3"], "did you mean shard_samples="),
        (["source={photos}", "out={out}", "size=big"], "size='big' is not a number"),
        (["source={photos}", "out={out}", "validation=1.5"], "validation=1.5 must be"),
        (["source={photos}/gone", "out={out}"], "gone is not a folder"),
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
