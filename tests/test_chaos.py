"""A few trials of each goal of scripts/dev/chaos.py; the command itself runs many."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts" / "dev"))

from chaoses import (  # noqa: E402
    bad_inputs,
    bit_flips,
    damage,
    files,
    full_disk,
    hangs,
    kills,
    kills_while_saving,
    malformed,
    not_finite,
    plan,
    ranks,
    restarts,
    signals,
    soak,
    start_step,
)

FEW = [
    (bad_inputs, 34),
    (bit_flips, 12),
    (damage, 20),
    (files, 200),
    (kills_while_saving, 10),
    (malformed, 50),
    (plan, 6),
    (start_step, 2),
]
SLOW = [(full_disk, 6), (hangs, 2), (kills, 6), (not_finite, 6), (ranks, 1), (restarts, 1), (signals, 6), (soak, 1)]


@pytest.mark.parametrize(("case", "runs"), [*FEW, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)])
def test_a_goal_holds(case, runs: int, tmp_path: Path):
    outcome = case.run(runs, random.Random(0), tmp_path)
    assert outcome.failures == [] and outcome.tried + outcome.skipped == runs


@pytest.mark.parametrize("way", damage.WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("num_ranks", [0, 2], ids=["whole", "in rows"])
def test_each_way_to_damage_a_checkpoint_damages_any(way, num_ranks: int, tmp_path: Path):
    for seed in range(20):
        state = {"w": torch.zeros(10_000), "rows": {"sharded": [4]}}  # zeros in it: what is zeroed must be something
        rows = {"rows": torch.ones(2)}
        digests = [damage.resume.save_rows(tmp_path, seed, rank, num_ranks, rows) for rank in range(num_ranks)]
        checkpoint = damage.resume.save(tmp_path, seed, state, {"step": seed}, digests)
        way(checkpoint, random.Random(seed))
        assert damage.resume.damage(checkpoint)


def test_a_case_that_fails_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bit_flips.resume, "damage", lambda checkpoint: None)  # hashes are not looked at
    assert len(bit_flips.run(6, random.Random(0), tmp_path).failures) == 6


@pytest.mark.parametrize(("words", "named"), [(["case=nothing"], "case=nothing"), (["runs=1.5"], "runs=1.5")])
def test_a_wrong_key_is_named(words: list[str], named: str):
    found = subprocess.run([sys.executable, "scripts/dev/chaos.py", *words], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 2 and named in found.stderr and "Traceback" not in found.stderr
