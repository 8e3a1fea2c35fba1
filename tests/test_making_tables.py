"""Tables of images become shards; a row that is wrong is left out by name, and a table that is none is one line."""

import csv
import json
import os
import random
import unicodedata
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from photos import facts_of, left_out, picture, run

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
    assert manifest["notes"] == ["rows of one image differ in id (1 images, the first: 'a.png'); that of the first row "
                                 "is kept"]  # fmt: skip


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
        ("image;caption\na.png;x\n", {}, "table.csv: its columns are separated by semicolons; save it with commas"),
        ("sep=;\nimage;caption\na.png;x\n", {}, "table.csv: its first line is 'sep=;', a word for Excel"),
        ("sep=,\nimage,caption\na.png,x\n", {}, "table.csv: its first line is 'sep=', a word for Excel"),
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


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{cut", "line 2"),
        ("[1]", "line 2: not a JSON object"),
        ('{"image": "a.png", "image": "b.png"}', "line 2: it has 'image' twice, and not the same"),
        ('{"image": "a.png", "caption": "x\\u0000"}', "line 2: the caption holds zero bytes"),
    ],
)
def test_a_broken_line_of_json_is_named(tmp_path: Path, line: str, reason: str) -> None:
    (tmp_path / "t.jsonl").write_text('{"image": "a.png", "caption": "x"}\n' + line)
    with pytest.raises(ValueError, match=reason):
        run(tmp_path / "t.jsonl", tmp_path / "shards")


# -- single rows ---------------------------------------------------------------------------------------------------

DIGITS = ["7", "1984", "3.5", "007", "1e5", "-2", "seven", "0", "1e999"]


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_captions_of_digits_are_text_as_it_is_written(tmp_path: Path, kind: str) -> None:
    rows = [{"image": f"{place}.png", "caption": text, "num": text} for place, text in enumerate(DIGITS)]
    for row in rows:
        picture(tmp_path / row["image"], 0)
    run(write_table(tmp_path / f"t.{kind}", rows), tmp_path / "shards", validation=0)
    found = facts_of(tmp_path / "shards")
    assert [found[row["image"]]["caption"] for row in rows] == DIGITS
    assert [found[row["image"]]["num"] for row in rows] == [7, 1984, 3.5, "007", 1e5, -2, "seven", 0, "1e999"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_an_image_may_be_called_by_digits_and_a_number_be_a_caption(tmp_path: Path, kind: str) -> None:
    rows = [{"image": "1984.png", "caption": 7}, {"image": "b.png", "caption": 8}]
    for row in rows:
        picture(tmp_path / row["image"], 0)
    run(write_table(tmp_path / f"t.{kind}", rows), tmp_path / "shards", validation=0)
    assert facts_of(tmp_path / "shards") == {"1984.png": {"caption": "7"}, "b.png": {"caption": "8"}}


def test_a_wrong_row_of_json_stops_nothing(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 0)
    lines = [
        '\ufeff{"image": "a.png", "caption": ["x", 3.5], "y": NaN, "z": {"n": [1, NaN, {"i": -Infinity}]}}',
        '{"image": "a.png", "caption": true}',
        '{"image": "a.png", "caption": "\\ud800"}',
        '{"image": 3, "caption": "x"}',
        '{"image": "\\ud800.png", "caption": "x"}',
        '{"image": "a\\u0000.png", "caption": "x"}',
        '{"caption": "x"}',
        '{"image": "b.png", "caption": "x", "deep": ' + "[" * 60 + "]" * 60 + "}",
        "[" * 100_000,
        '{"image": "a.png", "caption": "' + "x" * 10_000_000 + '"}',
        '{"image": "a.png", "x": [' + "[]," * 1_000_000 + "[]]}",
        "",
        '{"image": "a.png", "number": ' + "1" * 5000 + "}",
        '{"image": "./a.png", "caption": "y"}',
    ]
    content = "\n".join(lines).encode() + b'\n{"image": "a.png", "caption": "\xe9"}\n{cut'
    (tmp_path / "t.jsonl").write_bytes(content)
    manifest = run(tmp_path / "t.jsonl", tmp_path / "shards", validation=0)
    assert facts_of(tmp_path / "shards") == {
        "a.png": {"z": {"n": [1, None, {"i": None}]}, "caption": ["x", "3.5", "y"]}
    }
    assert left_out(manifest) == {
        "t.jsonl, line 2": "caption is no text",
        "t.jsonl, line 3": "not utf-8",
        "t.jsonl, line 4": "broken row",
        "t.jsonl, line 5": "not utf-8",
        "a\0.png": "image not found",
        "t.jsonl, line 7": "row without an image",
        **{f"t.jsonl, line {number}": "broken row" for number in (8, 9, 10, 11, 13)},
        "t.jsonl, line 15": "not utf-8",
        "t.jsonl, line 16": "broken row",
    }


def test_a_column_that_has_to_give_way_is_said(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 0)
    table = write_table(tmp_path / "t.csv", [{"image": "a.png", "caption": "x", "name": "Anna"}])
    assert "the column name is not kept" in run(table, tmp_path / "out")["notes"][0]
    with pytest.raises(ValueError, match="images=~nobody-of-this-name"):
        run(table, tmp_path / "none", images="~nobody-of-this-name")


def test_a_wrong_row_of_csv_stops_nothing(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        picture(tmp_path / name, 0)
    rows = [
        b"image,caption,n",
        b"a.png,a,1",
        b"a.png,x,1,2",
        b'a.png,"the "big" dog",1',
        b"b.png," + b"x" * 200_000 + b",1",
        b"b.png," + b"x" * 3_000_000 + b",1",
        b"b.png,\x00,1",
        b"b.png,\xe9,1",
        b"b.png,b,2",
        b"c.png",
        b'b.png,"never closed,3',
    ]
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbf" + b"\n".join(rows))
    manifest = run(tmp_path / "t.csv", tmp_path / "shards", validation=0)
    assert facts_of(tmp_path / "shards") == {"a.png": {"n": 1, "caption": "a"}, "b.png": {"n": 2, "caption": "b"}}
    assert left_out(manifest) == {
        "t.csv, line 3": "broken row",
        "t.csv, line 4": "broken row",
        "t.csv, line 5": "broken row",
        "t.csv, line 6": "broken row",
        "t.csv, line 7": "broken row",
        "t.csv, line 8": "not utf-8",
        "c.png": "missing caption",
        "t.csv, line 11": "broken row",
    }


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_a_table_that_is_none_is_one_line_that_names_it(tmp_path: Path, kind: str) -> None:
    picture(tmp_path / "a.png", 0)
    table = write_table(tmp_path / f"t.{kind}", [{"image": "a.png", "caption": f"x{i}"} for i in range(20)])
    whole, draw = table.read_bytes(), random.Random(0)
    contents = [whole.decode("latin-1").encode(encoding) for encoding in ("utf-16", "utf-16-le", "utf-32")]
    contents += [b"", b"\x1f\x8b\x08\0" + bytes(50), whole[: len(whole) // 2], whole[:-1]]
    for count in [1, 3, 20] * 5:
        damaged = bytearray(whole)
        for _ in range(count):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        contents.append(bytes(damaged))
    refused = 0
    for number, content in enumerate(contents):
        table.write_bytes(content)
        try:
            run(table, tmp_path / f"out{number}", validation=0)
        except ValueError as error:
            refused += 1
            assert "t." + kind in str(error) and "\n" not in str(error), error
    assert refused >= 5


def test_a_parquet_of_odd_values_keeps_what_json_can_hold(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    picture(tmp_path / "a.png", 0)
    picture(tmp_path / "b.png", 0)
    days = arrow.array([1, -10_000_000], arrow.int32()).cast(arrow.date32())
    nested = [{"score": float("nan"), "price": Decimal("1.50")}] * 2
    columns = {"image": ["a.png", "b.png"], "caption": [7, 8], "day": days, "nested": nested}
    parquet.write_table(arrow.table(columns), tmp_path / "t.parquet")
    manifest = run(tmp_path / "t.parquet", tmp_path / "shards", validation=0)
    assert facts_of(tmp_path / "shards") == {
        "a.png": {"day": "1970-01-02", "nested": {"score": None, "price": "1.50"}, "caption": "7"}
    }
    assert left_out(manifest) == {"t.parquet, row 2": "broken row"}
    twice = arrow.Table.from_arrays([arrow.array(["a.png"])] * 2, names=["image", "image"])
    parquet.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(ValueError, match="several columns are called 'image'"):
        run(tmp_path / "twice.parquet", tmp_path / "none")
    held = arrow.table({"image": ["a.png"], "caption": ["x"], "file": [{"bytes": b"x", "path": "a.png"}]})
    parquet.write_table(held, tmp_path / "held.parquet")
    with pytest.raises(ValueError, match="the column file holds bytes"):
        run(tmp_path / "held.parquet", tmp_path / "none")


# -- places --------------------------------------------------------------------------------------------------------


def test_names_lead_to_nothing_outside_the_folder_of_images(tmp_path: Path) -> None:
    images, private = tmp_path / "images", tmp_path / "private"
    for path in (images / "a.png", images / "sub" / "b.png", private / "secret.png"):
        picture(path, 0)
    (images / "link.png").symlink_to(private / "secret.png")
    (images / "folder").symlink_to(private)
    (images / "round.png").symlink_to("round.png")
    (images / "within.png").symlink_to("a.png")
    os.mkfifo(images / "pipe.png")
    names = {
        "a.png": None,
        f"{images}/sub/b.png": None,
        "folder/../a.png": "outside images=",  # beside what the link leads to
        "sub/../within.png": None,
        "link.png": "outside images=",
        "folder/secret.png": "outside images=",
        "../private/secret.png": "outside images=",
        f"{private}/secret.png": "outside images=",
        "round.png": "image not found",
        "pipe.png": "not a regular file",
        "sub": "not a regular file",
        "..": "outside images=",
        "x" * 300 + ".png": "image not found",
        "gone.png": "image not found",
    }
    table = write_table(tmp_path / "t.csv", [{"image": name, "caption": "x"} for name in names])
    manifest = run(table, tmp_path / "shards", images=images, validation=0)
    assert left_out(manifest) == {name: kind for name, kind in names.items() if kind is not None}
    assert manifest["samples"] == 3


def test_letters_may_be_spelled_in_either_normal_form(tmp_path: Path) -> None:
    names = ["caf\u00e9.png", "cafe\u0301s.png"]
    for name in names:
        picture(tmp_path / "photos" / name, 0)
    spelled = [unicodedata.normalize(form, name) for form, name in zip(("NFD", "NFC"), names, strict=True)]
    rows = [{"image": name, "caption": "x"} for name in spelled]
    manifest = run(write_table(tmp_path / "t.csv", rows), tmp_path / "out", images=tmp_path / "photos", validation=0)
    assert manifest["samples"] == 2 and set(facts_of(tmp_path / "out")) == {row["image"] for row in rows}
