"""T5's tokens: those of transformers, masked; zero where dropped; the decoder stays away."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from toys import t5_folder

from ldm.conditioners import lazy as unread
from ldm.conditioners import t5
from ldm.conditioners.base import Conditioners
from ldm.conditioners.t5 import t5_tokens
from ldm.conditioners.text import FrozenText

BATCH = {"caption": ["a red heart", "red", "heart a"]}
KEEP = torch.zeros(3, dtype=torch.bool)


def make(**given):
    return t5_tokens(str(t5_folder()), **{"max_tokens": 6, "dtype": "fp32", **given})


@pytest.mark.parametrize(("dtype", "kind"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_tokens_are_those_of_transformers(dtype: str, kind: torch.dtype):
    from transformers import AutoTokenizer, T5Model

    whole = T5Model.from_pretrained(t5_folder(), dtype=kind).eval()
    given = AutoTokenizer.from_pretrained(t5_folder())(BATCH["caption"], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = whole.encoder(**given).last_hidden_state.float()
    conditioner = make(dtype=dtype)
    kept = conditioner(BATCH, KEEP)
    assert conditioner.widths == {"tokens": 8} and kept["tokens"].shape == (3, 6, 8)
    assert kept["tokens"].dtype == torch.float32
    assert kept["tokens_mask"].sum(1).tolist() == [4, 2, 3]  # </s> is one of them
    mask = given.attention_mask.bool()
    assert torch.equal(kept["tokens"][:, :4][mask], expected[mask])
    assert not kept["tokens"][~kept["tokens_mask"]].any()


def test_the_decoder_is_not_loaded_and_nothing_is_trained_or_saved():
    conditioner = make()
    model = conditioner.frozen.encoder.module.model
    assert type(model).__name__ == "T5EncoderModel" and not any("decoder" in name for name in model.state_dict())
    assert not conditioner.state_dict() and not list(conditioner.parameters())
    assert make().frozen.encoder.module is conditioner.frozen.encoder.module, "one for the whole process"


def test_what_is_dropped_is_zero_and_seen():
    conditioner = make(memo_captions=9)
    kept, null = conditioner(BATCH, KEEP), conditioner({}, ~KEEP)
    assert not null["tokens"].any() and null["tokens_mask"].all() and null["tokens_mask"].dtype == torch.bool
    mixed = conditioner(BATCH, torch.tensor([False, True, False]))
    for key in mixed:
        assert torch.equal(mixed[key][[0, 2]], kept[key][[0, 2]]) and torch.equal(mixed[key][1], null[key][1])
    negative = Conditioners({"t5": conditioner})(BATCH, drop={"t5": ~KEEP}, negative={"caption": ["red"] * 3})
    assert torch.equal(negative["tokens"][2], kept["tokens"][1])


def test_messages_name_it(caplog):
    with pytest.raises(ValueError, match=r"conditioner\.t5\.max_tokens=513: must lie in 2 to 512"):
        make(max_tokens=513)
    with pytest.raises(ValueError, match="conditioner t5 needs 'caption'"):
        make()({}, KEEP)
    make(max_tokens=3)({"caption": ["a red heart"]}, KEEP[:1])
    assert "conditioner.t5.max_tokens=3" in caplog.text


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the toy, believed as soon as it is saved; nothing is known of it."""
    monkeypatch.setattr(unread, "SETTLING_NS", 0)
    monkeypatch.setattr(unread, "cache_folder", lambda: tmp_path / "cache")
    shutil.copytree(t5_folder(), tmp_path / "t5")
    return tmp_path / "t5"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders whose weights were read, in order."""
    folders, load_model = [], t5.load_model
    monkeypatch.setattr(t5, "load_model", lambda kind, at, *more: folders.append(at) or load_model(kind, at, *more))
    return folders


def start_with(folder: Path, **given) -> FrozenText:
    """As the next process makes it."""
    t5._find.cache_clear()
    return t5_tokens(str(folder), **{"max_tokens": 6, "dtype": "fp32", **given})


def change(folder: Path) -> None:
    """Another file in its place, as long and, by its date, as old, with another last weight."""
    weights, other = folder / "model.safetensors", folder.with_name("other")
    other.write_bytes(weights.read_bytes()[:-4] + b"\0\0\x80\x3f")
    os.utime(other, ns=(weights.stat().st_mtime_ns,) * 2)
    other.replace(weights)


def test_one_that_is_known_is_read_when_a_caption_needs_it(folder: Path, read: list[Path]):
    first = start_with(folder)
    known, tokens = first.frozen.describe(), first(BATCH, KEEP)
    assert len(read) == 1
    second = start_with(folder)
    assert (second.widths, second.num_tokens, second.frozen.describe()) == (first.widths, first.num_tokens, known)
    made = {known["digest"]: {"tokens": tokens["tokens"], "mask": tokens["tokens_mask"]}}
    from_cache = second({"encoded": made}, torch.tensor([False, True, False]))
    assert torch.equal(from_cache["tokens"][[0, 2]], tokens["tokens"][[0, 2]]) and not from_cache["tokens"][1].any()
    second({}, ~KEEP)
    assert len(read) == 1, "cached and dropped tokens need no encoder"
    for _ in range(2):
        again = second(BATCH, KEEP)
        assert len(read) == 2 and all(torch.equal(again[key], tokens[key]) for key in tokens)


def test_it_is_known_only_as_it_was_asked_for_and_while_its_files_are_as_they_were(folder: Path, read: list[Path]):
    before = start_with(folder).frozen.digest
    others = [start_with(folder, **given).frozen.digest for given in ({"dtype": "bf16"}, {"max_tokens": 5})]
    assert len({before, *others}) == 3 and len(read) == 3
    change(folder)
    assert start_with(folder).frozen.digest != before and len(read) == 4
    start_with(folder)
    assert len(read) == 4
    (folder / "tokenizer_config.json").touch()
    start_with(folder)
    assert len(read) == 5


def test_one_that_changes_while_it_is_read_is_not_known_afterwards(folder: Path, read: list[Path]):
    first = start_with(folder)
    change(folder)
    before = first.frozen.digest
    assert start_with(folder).frozen.digest != before and len(read) == 2
    shutil.move(folder, folder.with_name("elsewhere"))
    with pytest.raises(ValueError, match="no encoder there"):
        start_with(folder)


def test_one_that_changes_before_it_is_read_is_refused(folder: Path):
    start_with(folder).frozen.describe()
    late = start_with(folder)
    change(folder)
    with pytest.raises(ValueError, match=r"conditioner\.t5\.path=.*: its files were changed after the run began"):
        late(BATCH, KEEP)


def test_one_that_was_just_saved_is_not_believed_to_stay_so(folder: Path, read: list[Path], monkeypatch):
    monkeypatch.setattr(unread, "SETTLING_NS", 3600 * 10**9)
    for _ in range(2):
        assert start_with(folder).frozen.digest
    assert len(read) == 2


def test_what_was_kept_of_it_may_be_damaged_or_have_nowhere_to_be(folder: Path, read: list[Path], tmp_path: Path):
    digest = start_with(folder).frozen.digest
    (kept,) = (tmp_path / "cache" / "encoders").iterdir()
    for damaged in ("", "{}", '{"kind": "text encoder 1"}', kept.read_text().replace("width", "height")):
        kept.write_text(damaged)
        assert start_with(folder).frozen.digest == digest
    assert len(read) == 5
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("a file")
    assert start_with(folder).frozen.digest == digest
