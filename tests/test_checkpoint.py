"""Checkpoints and weights: read back as written, damage noticed and named, nothing executed."""

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ldm.checkpoint import resume, weights
from ldm.checkpoint.finite import check_finite, not_finite
from ldm.files import sha256


def state(value: float = 1.0) -> dict:
    return {"step": 3, "trained": {"a": torch.full((2, 3), value)}, "ema": None, "lists": [1, 2.5, {"x": True}]}


def save(folder: Path, *steps: int) -> list[Path]:
    return [resume.save(folder, step, state(step), {"step": step, "samples_seen": 8 * step}) for step in steps]


def flip_bit(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


# Checkpoints


def test_a_checkpoint_is_read_back_as_it_was_saved(tmp_path):
    (path,) = save(tmp_path, 3)
    assert path.name == "step_00000003.ckpt" and (tmp_path / "last.ckpt").read_text() == f"{path.name}\n"
    loaded = resume.load(path)
    assert torch.equal(loaded.pop("trained")["a"], torch.full((2, 3), 3.0))
    assert loaded == {"step": 3, "ema": None, "lists": [1, 2.5, {"x": True}]}
    assert json.loads((path / "state.json").read_text()) == {"step": 3, "samples_seen": 24}
    assert resume.damage(path) is None


def test_the_newest_is_found_by_scanning_and_not_by_the_hint(tmp_path):
    assert resume.newest(tmp_path) is None
    assert resume.newest(tmp_path / "nowhere") is None
    paths = save(tmp_path, 5, 10, 99_999_999, 100_000_000)
    (tmp_path / "last.ckpt").write_text("step_00000005.ckpt")
    (tmp_path / "step_junk.ckpt").mkdir()
    (tmp_path / ".writing-1-step_00000020.ckpt").mkdir()
    assert resume.newest(tmp_path) == paths[-1]


def cut(path: Path) -> None:
    os.truncate(path / "state.pt", 100)


def no_state(path: Path) -> None:
    (path / "state.pt").unlink()


def no_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def empty(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


def a_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("?")


def cut_manifest(path: Path) -> None:
    os.truncate(path / "manifest.json", 20)


def other_manifest(path: Path) -> None:
    (path / "manifest.json").write_text('["files"]')


def manifest_without_state(path: Path) -> None:
    (path / "manifest.json").write_text('{"files": {}}')


def binary_manifest(path: Path) -> None:
    (path / "manifest.json").write_bytes(bytes(range(256)))


def counters_changed(path: Path) -> None:
    (path / "state.json").write_text('{"step": 0}')


def other_keys(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    forge(path, {("fjnite" if key == "finite" else key): value for key, value in manifest.items()})


def forge(path: Path, manifest: dict) -> None:
    (path / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def one_bit(path: Path) -> None:
    flip_bit(path / "state.pt", (path / "state.pt").stat().st_size // 2)


DAMAGES = [
    cut, no_state, no_manifest, empty, a_file, cut_manifest, other_manifest, manifest_without_state, binary_manifest,
    counters_changed, one_bit, other_keys,
]  # fmt: skip


@pytest.mark.parametrize("harm", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path, caplog, harm: Callable[[Path], None]):
    before, last = save(tmp_path, 1, 2)
    harm(last)
    with caplog.at_level(logging.WARNING):
        assert resume.newest(tmp_path) == before
    assert str(last) in caplog.text and "the one before it" in caplog.text
    with pytest.raises(ValueError, match=r"step_00000002\.ckpt"):
        resume.load(last)


def test_if_all_are_broken_it_does_not_start_from_zero(tmp_path):
    for path in save(tmp_path, 1, 2, 3):
        cut(path)
    with pytest.raises(ValueError, match=r"none of its 3 checkpoints is whole; overwrite=true"):
        resume.newest(tmp_path)


def test_every_flipped_bit_is_noticed(tmp_path):
    (path,) = save(tmp_path, 1)
    for name in ("state.pt", "state.json"):
        size = (path / name).stat().st_size
        for place in range(0, size, max(size // 20, 1)):
            flip_bit(path / name, place)
            assert name in resume.damage(path)
            flip_bit(path / name, place)
    assert resume.damage(path) is None


@pytest.mark.parametrize(
    ("keep", "left"), [(0, [4, 5]), (1, [4, 5]), (2, [4, 5]), (3, [3, 4, 5]), (9, [1, 2, 3, 4, 5])]
)
def test_retention_keeps_the_newest_and_at_least_two(tmp_path, keep, left):
    save(tmp_path, 1, 2, 3, 4, 5)
    (tmp_path / ".writing-1-step_00000006.ckpt").mkdir()
    resume.retain(tmp_path, keep)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [f"step_{n:08d}.ckpt" for n in left]


def test_retention_keeps_every_so_many(tmp_path):
    save(tmp_path, 1, 2, 3, 4, 5)
    resume.retain(tmp_path, keep=2, every_steps=2)
    assert sorted(path.name for path in tmp_path.glob("step_*")) == [f"step_{n:08d}.ckpt" for n in (2, 4, 5)]


def test_broken_later_checkpoints_do_not_crowd_out_whole_ones(tmp_path):
    for path in save(tmp_path, 1, 2, 3, 4)[2:]:
        one_bit(path)
    resume.save(tmp_path, 2, state(), {})  # it went on from step 2 or before
    resume.retain(tmp_path, 2)
    assert [path.name for path in sorted(tmp_path.glob("step_*"))] == ["step_00000001.ckpt", "step_00000002.ckpt"]
    assert resume.newest(tmp_path).name == "step_00000002.ckpt"


def test_a_step_saved_again_replaces_its_checkpoint(tmp_path):
    save(tmp_path, 1)
    path = resume.save(tmp_path, 1, state(7.0), {})
    assert resume.load(path)["trained"]["a"][0, 0] == 7.0


class Malice:
    """A pickle that would write a file when it is read."""

    def __init__(self, witness: Path):
        self.witness = witness

    def __reduce__(self):
        return Path.touch, (self.witness,)


def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path):
    (path,) = save(tmp_path, 1)
    witness = tmp_path / "executed"
    torch.save({"a": Malice(witness)}, path / "state.pt")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["state.pt"] = sha256(path / "state.pt")
    forge(path, manifest)
    assert resume.damage(path) is None, "the manifest is the attacker's"
    with pytest.raises(ValueError, match="can be read without running code"):
        resume.load(path)
    assert not witness.exists()


def test_a_manifest_cannot_point_outside_its_folder(tmp_path):
    (path,) = save(tmp_path, 1)
    secret = tmp_path / "secret"
    secret.write_text("x")
    forge(path, {"files": {"../secret": sha256(secret), "state.pt": "0"}})
    assert "secret" in resume.damage(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_state_that_is_not_finite_is_never_taken_for_good(tmp_path, value: float):
    before, _ = save(tmp_path, 1, 2)
    broken = {**state(), "lists": [{"deep": torch.tensor([1.0, value])}]}
    assert not_finite(broken) == "lists.0.deep"
    path = resume.save(tmp_path, 2, broken, {})
    assert resume.newest(tmp_path) == before
    with pytest.raises(ValueError, match="not finite"):
        resume.load(path)


@pytest.mark.parametrize("older", [["files"], ["step", "files"]])
def test_manifests_of_older_formats_are_read(tmp_path, older: list[str]):
    (path,) = save(tmp_path, 3)
    manifest = json.loads((path / "manifest.json").read_text())
    forge(path, {key: manifest[key] for key in older})
    assert resume.newest(tmp_path) == path
    one_bit(path)
    assert "state.pt is damaged" in resume.damage(path)


def test_nothing_in_a_large_finite_state_is_taken_for_an_infinity():
    largest = torch.finfo(torch.float32).max
    assert not_finite({"a": torch.tensor([largest, -largest]), "b": torch.empty(0), "c": torch.arange(3)}) is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e5m2, torch.complex64])
def test_numbers_that_are_not_finite_are_found_in_every_type(dtype: torch.dtype):
    good = torch.ones(3).to(dtype)
    check_finite({"a": good, "b": [good[None]]}, "here")
    with pytest.raises(ValueError, match=r"model\.safetensors: b\.0 holds a NaN"):
        check_finite({"a": good, "b": [torch.tensor([1.0, float("nan")]).to(dtype)]}, Path("model.safetensors"))


def test_weights_and_checkpoints_that_are_not_finite_are_refused_whatever_is_said_of_them(tmp_path):
    weights.save(tmp_path / "weights", 1, {"raw": {"ok": torch.ones(2), "bad": torch.tensor([1.0, torch.inf])}}, {})
    with pytest.raises(ValueError, match=r"step_00000001\.raw\.safetensors: bad holds a NaN or an infinity"):
        weights.load(tmp_path)
    path = resume.save(tmp_path, 1, {"trained": {"w": torch.tensor([torch.nan])}}, {})
    forge(path, json.loads((path / "manifest.json").read_text()) | {"finite": True})
    with pytest.raises(ValueError, match=r"step_00000001\.ckpt: trained\.w holds a NaN"):
        resume.load(path)


# Weights


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def states(seed: int = 0) -> dict:
    return {"raw": small(seed).state_dict(), "ema": small(seed + 1).state_dict()}


def test_weights_are_read_back_with_what_they_are(tmp_path):
    weights.save(tmp_path / "weights", 1, states(0), {"samples_seen": 8})
    weights.save(tmp_path / "weights", 2, states(5), {"samples_seen": 16})
    found = weights.load(tmp_path)
    assert (found.run, found.path.name) == (tmp_path, "step_00000002.ema.safetensors")
    assert found.metadata["step"] == 2 and found.metadata["samples_seen"] == 16
    assert found.digest == sha256(found.path) == found.metadata["sha256"]["ema"]
    for name, tensor in small(6).state_dict().items():
        assert torch.equal(found.state[name], tensor)
    raw = weights.load(tmp_path, "raw")
    assert torch.equal(raw.state["0.weight"], small(5).state_dict()["0.weight"])
    older = weights.load(tmp_path / "weights" / "step_00000001.ema.safetensors")
    assert (older.run, older.metadata["step"]) == (tmp_path, 1)


def test_without_an_average_the_raw_weights_are_used(tmp_path):
    weights.save(tmp_path / "weights", 1, {"raw": small().state_dict()}, {})
    assert weights.load(tmp_path).path.name == "step_00000001.raw.safetensors"


def test_the_raw_weights_do_not_stand_for_an_average_that_is_gone(tmp_path, caplog):
    for step in (1, 2):
        weights.save(tmp_path / "weights", step, states(step), {})
    (tmp_path / "weights" / "step_00000002.ema.safetensors").unlink()
    assert weights.load(tmp_path).path.name == "step_00000001.ema.safetensors"
    assert "step_00000002.ema.safetensors: no such weights" in caplog.text
    (tmp_path / "weights" / "step_00000001.ema.safetensors").unlink()
    with pytest.raises(ValueError, match=r"step_00000001\.ema\.safetensors: no such weights.* or ema=raw does without"):
        weights.load(tmp_path)
    assert weights.load(tmp_path, "raw").path.name == "step_00000002.raw.safetensors"


def test_amending_adds_facts_to_the_newest_and_keeps_the_others(tmp_path):
    folder = tmp_path / "weights"
    weights.save(folder, 1, states(), {})
    weights.save(folder, 2, states(), {"seconds": 1.5})
    weights.amend(folder, {"latent": {"mean": [0.5]}})
    metadata = weights.load(tmp_path).metadata
    assert metadata["latent"] == {"mean": [0.5]} and metadata["seconds"] == 1.5 and metadata["step"] == 2
    assert "latent" not in json.loads((folder / "step_00000001.json").read_text())


def test_retention_of_weights(tmp_path):
    for step in (1, 2, 3):
        weights.save(tmp_path, step, states(), {})
    (tmp_path / "step_00000001.json").unlink()  # as when the deletion of a set was cut off
    weights.retain(tmp_path, 2)
    kept = [f"step_0000000{step}.{end}" for step in (2, 3) for end in ("ema.safetensors", "json", "raw.safetensors")]
    assert sorted(path.name for path in tmp_path.iterdir()) == kept


@pytest.mark.parametrize(
    ("every", "best", "largest", "kept"),
    [
        (2, None, False, [2, 4, 5]),
        (None, "loss", False, [3, 5]),
        (4, "loss", False, [3, 4, 5]),
        (None, "loss", True, [1, 5]),
    ],
)
def test_retention_of_weights_keeps_every_so_many_and_the_best(tmp_path, every, best, largest, kept):
    for step, loss in enumerate((0.5, float("nan"), 0.2, 0.2, 0.3), start=1):
        weights.save(tmp_path, step, states(), {"validation": {"loss": loss} if step != 4 else {}})
        weights.retain(tmp_path, 1, every, best, largest)
    (tmp_path / ".writing-1-x").write_text("half")
    weights.retain(tmp_path, 1, every, best, largest)
    assert sorted(path.name for path in tmp_path.glob("*.json")) == [f"step_{step:08d}.json" for step in kept]
    assert len(list(tmp_path.iterdir())) == 3 * len(kept)


def test_weights_of_an_abandoned_future_are_not_the_newest(tmp_path):
    for step in (1, 4, 2):
        weights.save(tmp_path / "weights", step, states(step), {})
    assert weights.load(tmp_path).metadata["step"] == 2
    assert not list((tmp_path / "weights").glob("step_00000004*"))


def test_damaged_weights_are_named_and_the_ones_before_are_used(tmp_path, caplog):
    for step in (1, 2):
        weights.save(tmp_path / "weights", step, states(step), {})
    path = weights.load(tmp_path).path
    flip_bit(path, path.stat().st_size - 1)
    assert weights.load(tmp_path).metadata["step"] == 1
    assert "step_00000002.ema.safetensors: damaged" in caplog.text


def test_weights_of_one_checkpoint(tmp_path):
    for step in (1, 2):
        weights.save(tmp_path / "weights", step, states(step), {})
    assert weights.load(tmp_path / "checkpoints" / "step_00000001.ckpt").metadata["step"] == 1
    with pytest.raises(ValueError, match="no such weights"):
        weights.load(tmp_path / "checkpoints" / "step_00000009.ckpt")


def test_damaged_weights_are_refused(tmp_path):
    weights.save(tmp_path / "weights", 1, states(), {})
    path = weights.load(tmp_path).path
    flip_bit(path, path.stat().st_size - 1)
    with pytest.raises(ValueError, match=r"step_00000001\.ema\.safetensors: damaged"):
        weights.load(tmp_path)
    for text in ("{", "[]", "{}", '{"sha256": 3}'):
        path.with_name("step_00000001.json").write_text(text)
        with pytest.raises(ValueError, match=r"step_00000001\.json"):
            weights.load(tmp_path)


def test_what_is_no_run_is_told_from_a_run_without_weights(tmp_path):
    with pytest.raises(ValueError, match="not a run's folder"):
        weights.load(tmp_path)
    (tmp_path / "config.yaml").write_text("{}")
    with pytest.raises(ValueError, match="has not finished a checkpoint yet"):
        weights.load(tmp_path)
    with pytest.raises(ValueError, match="no such weights"):
        weights.load(tmp_path / "weights" / "step_00000001.ema.safetensors")


def test_weights_without_their_description_are_refused(tmp_path):
    (tmp_path / "weights").mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "weights" / "step_00000001.ema.safetensors")
    with pytest.raises(ValueError, match=r"no step_00000001\.json beside them"):
        weights.load(tmp_path / "weights" / "step_00000001.ema.safetensors")


def test_strict_loading_names_what_is_missing_too_many_and_of_another_shape():
    good = small(1).state_dict()
    model = small(2)
    weights.load_strict(model, good, "here")
    assert torch.equal(model.state_dict()["0.weight"], good["0.weight"])
    bad = {name: tensor for name, tensor in good.items() if name != "0.bias"}
    bad |= {"1.weight": torch.zeros(5), "2.new": torch.zeros(1)}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError) as caught:
        weights.load_strict(model, bad, "model.safetensors")
    message = str(caught.value)
    assert message.startswith("model.safetensors does not fit this model: ")
    for part in ("1 keys missing (0.bias)", "1 keys too many (2.new)", "1.weight is (5,), not (3,)"):
        assert part in message
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items()), "nothing was loaded"


def test_tensors_that_are_views_are_saved_as_they_are(tmp_path):
    table = torch.arange(12.0).view(3, 4)
    weights.save(tmp_path / "weights", 1, {"raw": {"t": table.T, "row": table[1].clone()}}, {})
    assert torch.equal(weights.load(tmp_path).state["t"], table.T)
