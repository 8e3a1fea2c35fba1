"""Folders of Hugging Face's layout: safetensors only, all of the weights, and one line where something is amiss."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from toys import clip_folder, clip_image_folder, t5_folder

from ldm.conditioners.clip import ClipText
from ldm.conditioners.clip_image import clip_image
from ldm.conditioners.t5 import t5_tokens
from ldm.conditioners.text import text_tokens

WEIGHTS = "model.safetensors"
KINDS = {
    "text": (text_tokens, clip_folder),
    "clip_text": (ClipText, clip_folder),
    "t5": (t5_tokens, t5_folder),
    "clip_image": (clip_image, clip_image_folder),
}


def refused(name: str, folder: Path) -> str:
    """What the conditioner of that name says of a folder, which has to be one line with its key."""
    with pytest.raises(ValueError) as caught:
        KINDS[name][0](path=str(folder))
    said = str(caught.value)
    assert said.startswith(f"conditioner.{name}.path={folder}: ") and "\n" not in said and len(said) < 600
    return said


@pytest.fixture
def copy(tmp_path: Path):
    """``copy(name)`` -> a copy of a toy's folder."""
    return lambda name: Path(shutil.copytree(KINDS[name][1](), tmp_path / name))


@pytest.mark.parametrize("name", KINDS)
def test_pickles_are_refused_unread(name: str, copy, monkeypatch: pytest.MonkeyPatch):
    folder = copy(name)
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was read"))
    assert "pickles (.bin, .pt) are not read" in refused(name, folder)
    (folder / "other.safetensors").write_bytes(b"")  # beside them is no better
    assert "no file named model.safetensors" in refused(name, folder)


@pytest.mark.parametrize("name", KINDS)
def test_incomplete_and_broken_weights_are_refused(name: str, copy):
    folder = copy(name)
    state = load_file(folder / WEIGHTS)
    lost = next(name for name in sorted(state) if "layer" in name and not name.startswith(("text", "decoder")))
    save_file({key: value for key, value in state.items() if key != lost}, folder / WEIGHTS, {"format": "pt"})
    assert "1 are missing or of another shape, such as" in refused(name, folder)
    (folder / WEIGHTS).write_bytes(b"nothing of that kind")
    refused(name, folder)
    (folder / "config.json").unlink()
    assert "no encoder there" in refused(name, folder)


def test_a_folder_of_another_kind_is_refused(copy):
    assert "conditioner=[t5]" in refused("text", t5_folder())
    assert "clip_text_model is not a T5" in refused("t5", clip_folder())
    assert "not the weights of a CLIPVisionModelWithProjection" in refused("clip_image", clip_folder())
    folder = copy("t5")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    (folder / "spiece.model").write_bytes(b"no model of words")
    assert "no tokenizer that can be read" in refused("t5", folder)
