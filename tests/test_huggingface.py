"""Folders of Hugging Face's layout: safetensors only, all of the weights, and one line where something is amiss."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from toys import clip_folder, clip_image_folder, t5_folder

from ldm.conditioners import clip, t5, text
from ldm.conditioners import clip_image as images
from ldm.conditioners.clip import ClipText
from ldm.conditioners.clip_image import clip_image
from ldm.conditioners.t5 import t5_tokens
from ldm.conditioners.text import frozen_text

WEIGHTS = "model.safetensors"
KINDS = {
    "text": (frozen_text, clip_folder),
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
    assert "clip_text_model is no CLIP of images" in refused("clip_image", clip_folder())
    folder = copy("t5")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    (folder / "spiece.model").write_bytes(b"no model of words")
    assert "no tokenizer that can be read" in refused("t5", folder)


# What a folder from anyone may ask for: code of its own, kernels, pickles, memory


def changed(folder: Path, file: str, **keys: object) -> None:
    path = folder / file
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **keys}))


def with_code(folder: Path, canary: Path) -> None:
    touch = f"import pathlib\npathlib.Path({str(canary)!r}).touch()\n"
    (folder / "evil.py").write_text(f"{touch}class Evil:\n    pass\n")


AUTO_MAP = {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil", "AutoTokenizer": ["evil.Evil", "evil.Evil"]}
ASKED = {
    "code": lambda folder: changed(folder, "config.json", auto_map=AUTO_MAP),
    "code of another type": lambda folder: changed(folder, "config.json", model_type="evil", auto_map=AUTO_MAP),
    "code for a part": lambda folder: changed(folder, "config.json", text_config={"auto_map": AUTO_MAP}),
    "a hub kernel": lambda folder: changed(folder, "config.json", _attn_implementation="kernels-community/flash-attn"),
    "another kernel": lambda folder: changed(folder, "config.json", attn_implementation="evil/kernel:evil"),
    "kernels for parts": lambda folder: changed(folder, "config.json", vision_config={"_attn_implementation": "a/b"}),
    "quantization": lambda folder: changed(folder, "config.json", quantization_config={"quant_method": "hqq"}),
    "weights in a pickle": lambda folder: changed(folder, "config.json", transformers_weights="adapter_model.bin"),
    "another library": lambda folder: changed(
        folder, "config.json", model_type="timm_wrapper", architecture="hf-hub:a"
    ),
    "a rag": lambda folder: changed(folder, "config.json", model_type="rag"),
    "no type": lambda folder: changed(folder, "config.json", model_type=["bert"]),
    "a width of 8 million": lambda folder: changed(folder, "config.json", **WIDE),
    "layers without end": lambda folder: changed(folder, "config.json", **DEEP),
    "a depth of brackets": lambda folder: (folder / "config.json").write_text("[" * 100_000),
    "a list": lambda folder: (folder / "config.json").write_text("[1]"),
}
WIDE = {"hidden_size": 8_000_000, "d_model": 8_000_000, "vision_config": {"hidden_size": 8_000_000}}
DEEP = {"num_hidden_layers": 10**12, "num_layers": 10**12, "vision_config": {"num_hidden_layers": 10**12}}


@pytest.fixture(autouse=True)
def read_anew():
    """No encoder is kept from one test to the next."""
    for kept in (clip._encoder, images._load, t5._find, text._load):
        kept.cache_clear()


@pytest.mark.parametrize("name", KINDS)
def test_what_a_folder_asks_for_beside_its_own_kind_is_refused(name: str, copy: Callable, tmp_path: Path):
    folder, canary = copy(name), tmp_path / "canary"
    with_code(folder, canary)
    plain = (folder / "config.json").read_text()
    for asked, ask in ASKED.items():
        ask(folder)
        said = refused(name, folder)
        assert not canary.exists(), (asked, said)
        (folder / "config.json").write_text(plain)
    assert KINDS[name][0](path=str(folder)) is not None, "as it was"


@pytest.mark.parametrize("name", ["text", "clip_text", "t5"])
def test_a_tokenizer_is_of_a_class_named_here(name: str, copy: Callable, tmp_path: Path):
    folder, canary = copy(name), tmp_path / "canary"
    with_code(folder, canary)
    file = folder / "tokenizer_config.json"
    plain = file.read_text()
    for keys in ({"tokenizer_class": "Evil", "auto_map": AUTO_MAP}, {"auto_map": AUTO_MAP}, {"tokenizer_class": "Evil"},
                 {"tokenizer_class": "TransfoXLTokenizer"}, {"tokenizer_class": "RagTokenizer"}):  # fmt: skip
        changed(folder, file.name, **keys)
        refused(name, folder)
        assert not canary.exists()
        file.write_text(plain)


@pytest.mark.parametrize("names", [["../other.safetensors"], ["/etc/passwd"], ["a.bin"], [], ["x/a.safetensors"]])
def test_an_index_names_files_of_its_folder(names, copy):
    folder = copy("clip_text")
    (folder / WEIGHTS).rename(folder / "a.safetensors")
    index = folder / f"{WEIGHTS}.index.json"
    index.write_text(json.dumps({"weight_map": {str(place): name for place, name in enumerate(names)}}))
    assert "names no safetensors of this folder" in refused("clip_text", folder)
    index.write_text(json.dumps({"weight_map": {"all": "a.safetensors"}}))
    assert ClipText(path=str(folder)).widths == {"tokens": 8}
