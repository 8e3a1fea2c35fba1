"""Text and JSON are read in one way: UTF-8, no byte order mark, and what is neither is named."""

import json
from pathlib import Path

import pytest

from ldm.data.errors import BadSample
from ldm.data.fields import Caption, Label, Layout
from ldm.data.filters import Filters
from ldm.data.members import MAX_TEXT_BYTES, read_entries, read_entry, read_object, read_text
from ldm.data.rasters import picture

BOM = b"\xef\xbb\xbf"


def test_a_byte_order_mark_is_no_text() -> None:
    assert read_text(BOM + b"a red heart") == read_text(BOM + BOM + b"a red heart") == "a red heart"
    assert read_entry(BOM + b'{"a": 1}', "a", "missing") == 1
    assert Caption(key=None, extension="txt").read(BOM + b"a red heart\r\n", None) == ("a red heart",)
    assert Label(key=None, extension="cls").read(BOM + b"3\r\n", None) == 3


def test_filters_see_through_a_byte_order_mark(tmp_path: Path) -> None:
    members = {"json": BOM + b'{"score": 7}'}
    assert Filters(ranges={"score": [5, None]}).broken("key", members) is None
    (tmp_path / "list").write_bytes(BOM + b"first\nsecond\n")
    assert Filters(exclude=str(tmp_path / "list")).broken("first", {}) == "exclude"
    (tmp_path / "list").write_bytes("first\n".encode("utf-16"))
    with pytest.raises(ValueError, match=r"data\.filters\.exclude=.*looks like UTF-16"):
        _ = Filters(exclude=str(tmp_path / "list")).excluded


@pytest.mark.parametrize(
    ("encoding", "name"),
    [("utf-16", "UTF-16"), ("utf-32", "UTF-32"), ("utf-16-le", "UTF-16 (little"), ("utf-16-be", "UTF-16 (big"),
     ("utf-32-le", "UTF-32 (little"), ("utf-32-be", "UTF-32 (big"), ("cp1252", "Windows-1252"), ("gbk", "of its kind")],
)  # fmt: skip
@pytest.mark.parametrize("text", ["ab", "ein grünes Herz, und noch eines"])
def test_other_encodings_are_named(encoding: str, name: str, text: str) -> None:
    content = text.replace("ü", "ü" if encoding != "gbk" else "红").encode(encoding)
    if content == text.encode():
        return
    with pytest.raises(BadSample) as caught:
        read_text(content)
    assert caught.value.kind == "not utf-8" and name in str(caught.value)


def test_zero_bytes_and_other_files_are_no_text() -> None:
    for content, said in ((b"a red\0heart and more", "zero bytes"), (b"\x89PNG\r\n\x1a\n" + b"x" * 9, "a PNG file"),
                          (b"x" * 1000 + b"\0", "zero bytes"), (b"\x1f\x8b\x08\xff", "a gzip file")):  # fmt: skip
        with pytest.raises(BadSample, match=said):
            read_text(content)


def test_the_bytes_of_texts_are_bounded_before_they_are_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    long = b"[" + b"[]," * (MAX_TEXT_BYTES // 3) + b"[]]"
    monkeypatch.setattr(json, "loads", lambda *args, **options: pytest.fail("parsed"))
    with pytest.raises(BadSample, match="bytes of JSON"):
        read_entries(long)
    with pytest.raises(BadSample, match="bytes of text"):
        Caption(key=None, extension="txt").read(long, None)
    assert read_text(long, max_bytes=None) == long.decode()


def test_a_key_that_is_there_twice_is_refused_where_it_is_asked_for() -> None:
    content = b'{"a": 1, "b": {"c": 1, "c": 2}, "a": 2, "d": 3, "d": 3}'
    assert read_entry(content, "d", "missing") == 3
    with pytest.raises(BadSample, match="'a' twice"):
        read_entry(content, "a", "missing")
    with pytest.raises(BadSample, match="'c' twice"):
        read_object(content)
    with pytest.raises(BadSample, match="not a JSON object"):
        read_object(b'["a"]')
    assert read_object(b'{"d": [3], "d": [3]}') == {"d": [3]}


@pytest.mark.parametrize("text", ["+3", "-3", "3.0", "\u0663", "0x3", "3 4", "1e3", "3\u00b2", "", "9" * 11, "3,"])
def test_a_label_is_plain_digits(text: str) -> None:
    with pytest.raises(BadSample, match="class number"):
        Label(key=None, extension="cls").read(text.encode(), None)


@pytest.mark.parametrize("label", [3.0, "3", True, None, [3], float("nan")])
def test_a_label_in_json_is_a_whole_number(label: object) -> None:
    with pytest.raises(BadSample):
        Label().read(json.dumps({"label": label}).encode(), None)


@pytest.mark.parametrize("caption", [7, 3.5, True, ["a", None], ["a", 3], {"text": "a"}])
def test_a_caption_in_json_is_text_and_what_else_it_is_is_said(caption: object) -> None:
    with pytest.raises(BadSample, match="which is not text; write it in quotes"):
        Caption().read(json.dumps({"caption": caption}).encode(), None)
    assert Caption().read(b'{"caption": "007"}', None) == ("007",)


@pytest.mark.parametrize(
    "entry",
    [{"box": ["0", "0", "1", "1"]}, {"box": [0, 0, 1, True]}, {"box": [0, 0]}, {"box": [0, 0, 1, 1] * 2},
     {"box": [0, 0, 1, 1], "group": "false"}],
)  # fmt: skip
def test_objects_are_not_converted(entry: dict[str, object]) -> None:
    content = json.dumps({"objects": [{"category": 1, **entry}] * 2}).encode()
    with pytest.raises(BadSample) as caught:
        Layout(num_classes=4).read(content, picture((8, 8), 1, 8))
    assert caught.value.kind == "broken objects"


@pytest.mark.parametrize(
    ("objects", "said"),
    [
        ([{"category": 1}], "objects: a list of objects is meant, each with category and box"),
        ([1, 2], "objects: a list of objects is meant, each with category and box"),
        ({"category": 1, "box": [0, 0, 1, 1]}, "objects: a list of objects is meant, each with category and box"),
        ([{"category": 9, "box": [0, 0, 1, 1]}], "objects: category 9 is not in 0..3"),
    ],
)
def test_objects_that_are_none_are_told_of_in_words_and_not_by_a_name_of_python(objects: object, said: str) -> None:
    with pytest.raises(BadSample) as caught:
        Layout(num_classes=4).read(json.dumps({"objects": objects}).encode(), picture((8, 8), 1, 8))
    assert caught.value.kind == "broken objects" and str(caught.value) == said
