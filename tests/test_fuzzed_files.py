"""Every value in the small files that are read back replaced by one of another kind: one clear line, or none."""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from malicious import SAFETENSORS
from untrained import untrained_run

from ldm.checkpoint import resume
from ldm.config import compose, load_tree
from ldm.data.cache import MANIFEST, CacheFile, check, read_manifest
from ldm.data.errors import ShardError
from ldm.data.seals import SEAL
from ldm.ensemble import load_ensemble, write_manifest
from ldm.errors import UserError
from ldm.run import load, open_run

OTHERS = [None, True, -1, 10**30, float("nan"), "x" * 300, [[1], "a"], {"a": [None]}]


def places(node: Any, where: tuple = ()) -> Iterator[tuple]:
    """The path of every value in nested containers, containers too."""
    if where:
        yield where
    for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        yield from places(node[key], (*where, key))


def replaced(tree: Any, where: tuple, value: Any) -> Any:
    changed = copy.deepcopy(tree)
    parent = changed
    for key in where[:-1]:
        parent = parent[key]
    parent[where[-1]] = value
    return changed


def removed(tree: Any, where: tuple) -> Any:
    changed = copy.deepcopy(tree)
    parent = changed
    for key in where[:-1]:
        parent = parent[key]
    del parent[where[-1]]
    return changed


def hold(tree: dict[str, Any], use: Callable[[Any], Any]) -> None:
    """`use` each changed tree: whatever it raises is a ValueError of one line, or an OSError."""
    plain = {key: value for key, value in tree.items() if key != SEAL}
    changed = [replaced(plain, where, value) for where in places(plain) for value in OTHERS]
    changed += [removed(plain, where) for where in places(plain)] + [[], "x", 3, None, [plain]]
    for own in changed:
        try:
            use(own)
        except (UserError, OSError) as error:
            assert str(error).strip() and len(str(error)) < 2000, own


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_run(tmp_path_factory.mktemp("runs") / "run", "conditioner=[]")


def test_descriptions_of_weights(run: Path):
    path = run / "weights" / "step_00000001.json"
    text = path.read_text()

    def use(tree: Any) -> None:
        path.write_text(json.dumps(tree))
        load(run)

    hold(json.loads(text), use)
    path.write_text(text)
    load(run)


def test_manifests_of_ensembles(run: Path, tmp_path: Path):
    path = tmp_path / "e.yaml"
    tree = write_manifest(path, [run])

    def use(tree: Any) -> None:
        path.write_text(yaml.safe_dump(tree))
        load_ensemble(path)

    hold(json.loads(json.dumps(tree)), use)


def test_lineages_and_counters(tmp_path: Path):
    tree = compose("config", ["experiment=quickstart/autoencoder", "~logger", f"runs_dir={tmp_path}"])
    parent = open_run(tree, "parent")
    parent.begin()
    checkpoint = resume.save(parent.folder / "checkpoints", 1, {}, {"step": 1, "samples_seen": 4})
    branch = {**tree, "branch": str(checkpoint)}
    child = open_run(branch, "child")
    child.begin()
    child.record(finished_step=1, samples_seen_total=4)
    path = child.folder / "lineage.json"

    def use(content: Any) -> None:
        path.write_text(json.dumps(content))
        found = open_run(branch, "child")
        assert isinstance(found.finished, bool) and found.lineage["wandb_id"]

    hold(json.loads(path.read_text()), use)

    def count(content: Any) -> None:
        (checkpoint / "state.json").write_text(json.dumps(content))
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        manifest["files"]["state.json"] = resume.sha256(checkpoint / "state.json")
        (checkpoint / "manifest.json").write_text(resume._text(manifest))
        open_run(branch, "another")

    hold({"step": 1, "samples_seen": 4}, count)


def test_manifests_of_checkpoints(tmp_path: Path):
    path = resume.save(tmp_path / "checkpoints", 1, {"a": torch.ones(1)}, {}) / "manifest.json"

    def use(content: Any) -> None:
        path.write_text(json.dumps(content, indent=2) + "\n")
        resume.newest(tmp_path / "checkpoints")
        resume.load(path.parent)

    hold(json.loads(path.read_text()), use)


def test_manifests_and_files_of_caches(tmp_path: Path):
    tree = {"image_size": 8, "crop": "centre", "decoder": "pil", "first_stage": "f", "precision": "fp16",
            "codes": False, "flips": True, "encoders": {"text": {"digest": "d", "max_tokens": 3}}}  # fmt: skip

    def use(content: Any) -> None:
        (tmp_path / MANIFEST).write_text(json.dumps(content))
        check(tmp_path, read_manifest(tmp_path), 8, "pil", "f", {"text": {"digest": "d", "max_tokens": 3}})

    hold(tree, use)
    for content in SAFETENSORS.values():
        (tmp_path / "a.safetensors").write_bytes(content)
        with pytest.raises(ShardError, match=r"a\.safetensors is damaged"):
            CacheFile(tmp_path / "a.safetensors", ())


def test_a_tree_that_is_read_back(run: Path):
    path = run / "config.yaml"
    text, tree = path.read_text(), load_tree(path)
    some = {key: tree[key] for key in ("network", "noise", "image_size", "first_stage", "seed")}

    def use(content: Any) -> None:
        path.write_text(yaml.safe_dump({**tree, **content} if isinstance(content, dict) else content))
        load_tree(path)

    hold(some, use)
    path.write_text(text)
