"""Experts averaged into one model: a run as any other, by shares of the noise or given ones, of one network only."""

from pathlib import Path

import pytest
import torch
from untrained import untrained_run

from ldm.checkpoint import weights
from ldm.config import load_tree
from ldm.ensemble import WHOLE, write_manifest
from ldm.files import read_json
from ldm.lineage import branch_point
from ldm.lineage_tree import lineage_of, total
from ldm.loading import load_drawer
from ldm.merging import average, merge
from ldm.model import load_model
from ldm.networks import lora
from scripts import merge_experts


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The upper quarter of the noise, and a base for the rest. Not to be changed."""
    folder = tmp_path_factory.mktemp("experts")
    base = untrained_run(folder / "base")
    top = untrained_run(folder / "top", "expert.node=[2,3]", seed=1, shared=1)
    write_manifest(folder / "e.yaml", [base, top])
    return folder / "e.yaml"


def test_each_counts_by_the_noise_that_it_serves(manifest: Path, tmp_path: Path, capsys):
    assert merge_experts.main([f"model={manifest}", f"out={tmp_path / 'merged'}"]) == 0
    said = capsys.readouterr().out
    assert "base" in said and "0.750000" in said and "0.250000" in said
    base, top, merged = (
        weights.load(run) for run in (manifest.parent / "base", manifest.parent / "top", tmp_path / "merged")
    )
    for name, tensor in merged.state.items():
        torch.testing.assert_close(tensor, 0.75 * base.state[name] + 0.25 * top.state[name])


def test_it_is_a_run_that_samples_and_can_be_branched_from(manifest: Path, tmp_path: Path):
    run, shares = merge(manifest, tmp_path / "merged", [3, 1])
    assert shares == {"base": 0.75, "top": 0.25}
    model = load_drawer(run.folder)
    assert [tuple(i) for i in model.weights[0].metadata["intervals"]] == WHOLE
    images = model.generate(model.sampling({}), {"label": torch.tensor([1])}, torch.tensor([0]), seed=0)
    assert images.shape == (1, 3, 8, 8) and images.isfinite().all()
    lineage = read_json(run.folder / "lineage.json")
    assert [(row["run"], row["share"]) for row in lineage["merged"]] == [("base", 0.75), ("top", 0.25)]
    assert lineage["merged"][1]["sha256"] == load_model(manifest.parent / "top").weights[0].digest
    assert total(lineage_of([run.folder])) == total(lineage_of([manifest]))
    assert load_tree(run.folder / "config.yaml")["expert"]["node"] == [0, 0]
    assert branch_point(str(run.folder)).parent.name == "checkpoints"


def test_one_member_is_that_one(manifest: Path, tmp_path: Path):
    run, _ = merge(manifest, tmp_path / "merged", [0, 1])
    top, merged = weights.load(manifest.parent / "top"), weights.load(run.folder)
    assert all(torch.equal(top.state[name], tensor) for name, tensor in merged.state.items())


@pytest.mark.parametrize("given", [[1], [1, 2, 3], [0, 0], [-1, 2], ["a", 1]])
def test_shares_that_cannot_be_are_refused(manifest: Path, tmp_path: Path, given: list):
    with pytest.raises(ValueError, match=r"^weights=.*: one number of at least 0 for each of base, top"):
        merge(manifest, tmp_path / "merged", given)
    assert not (tmp_path / "merged").exists()


def test_a_run_is_not_written_over(manifest: Path):
    with pytest.raises(ValueError, match="there is a run already"):
        merge(manifest, manifest.parent / "base")


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        ("network.channels=8", r"network\.channels is 4 in low and 8 in other; only weights of one network"),
        ("precond=v", r"precond is 'EDM' in low and 'V' in other"),
        ("noise.mean=0", r"noise\.mean is"),
    ],
)
def test_members_of_other_networks_are_refused_in_one_line(tmp_path: Path, word: str, problem: str):
    low = untrained_run(tmp_path / "low", "expert.interval={sigma:[0,1]}")
    other = untrained_run(tmp_path / "other", "expert.interval={sigma:[1,null]}", word)
    write_manifest(tmp_path / "e.yaml", [low, other])
    with pytest.raises(ValueError, match=f"members: {problem}"):
        merge(tmp_path / "e.yaml", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_adapters_are_averaged_as_the_weights_that_they_make(tmp_path: Path):
    words = ("adapter=lora", "adapter.rank=2", "adapter.targets=['*']")
    low = untrained_run(tmp_path / "low", "expert.interval={sigma:[0,1]}", *words)
    high = untrained_run(tmp_path / "high", "expert.interval={sigma:[1,null]}", *words, seed=1)
    write_manifest(tmp_path / "e.yaml", [low, high])
    run, _ = merge(tmp_path / "e.yaml", tmp_path / "merged", [1, 1])
    one, other = (lora.merged(weights.load(expert).state, scale=1.0) for expert in (low, high))
    average_of_both = load_model(run.folder).weights[0].state
    assert average_of_both.keys() == one.keys()
    for name, tensor in average_of_both.items():
        torch.testing.assert_close(tensor, (one[name] + other[name]) / 2)


def test_whole_numbers_stay_as_they_are():
    states = [
        {"count": torch.tensor(3), "weight": torch.tensor([1.0])},
        {"count": torch.tensor(5), "weight": torch.tensor([3.0])},
    ]
    assert average(states, [0.5, 0.5]) == {"count": torch.tensor(3), "weight": torch.tensor([2.0])}
