"""Several data sets in one order: exact shares, epochs of their own, the same samples however ranks share them out."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_data_module import merged, picture, same
from toys import QUICKSTART, annotated_shard, train

from ldm.data.mixture import PERIOD, Mixture, slots
from ldm.data.module import ShardData
from ldm.data.writing import write_shard

SIZES = {"photos": 700, "drawings": 90, "icons": 13}
WEIGHTS = {"photos": 5, "drawings": 2, "icons": 1}


@pytest.mark.parametrize(
    ("weights", "parts"),
    [
        ([3, 1], [750, 250]),
        ([0.7, 0.3], [700, 300]),
        ([1, 1, 1], [333, 333, 333]),
        ([2.5, 0.5, 1], [625, 125, 250]),
        ([7], [1000]),
        ([1e-9, 1], [1, 999]),
        ([0.123456, 0.876544], [123, 877]),
        ([1e-4, 1e-4, 1], [1, 1, 998]),
        ([1, 1e-5, 1e-5, 1e-5, 3], [249, 1, 1, 1, 748]),
    ],
)
def test_shares_are_exact_or_to_the_nearest_thousandth(weights: list[float], parts: list[int]) -> None:
    assert slots(weights) == parts and sum(parts) <= PERIOD


def test_every_period_has_each_sets_share_in_an_order_of_its_own() -> None:
    mixture = Mixture(SIZES, WEIGHTS, seed=0)
    sets, _ = mixture.places(np.arange(20 * mixture.period))
    periods = sets.reshape(20, mixture.period)
    counts = [np.bincount(period).tolist() for period in periods]
    assert counts == [[625, 250, 125]] * 20
    assert len({period.tobytes() for period in periods}) == 20
    # within a period they are spread out: any 80 numbers have about their share
    share = np.lib.stride_tricks.sliding_window_view(sets == 1, 80).mean(1)
    assert share.min() > 0.05 and share.max() < 0.5


def test_each_set_goes_through_its_own_epochs() -> None:
    mixture = Mixture(SIZES, WEIGHTS, seed=1)
    numbers = np.arange(12 * mixture.period)
    sets, places = mixture.places(numbers)
    indices = mixture.indices(numbers)
    start = 0
    for own, size in enumerate(SIZES.values()):
        assert places[sets == own].tolist() == list(range((sets == own).sum()))  # in order, none left out
        mine = indices[sets == own]
        whole = mine[: len(mine) // size * size].reshape(-1, size)
        assert len(whole) >= 4 and (np.sort(whole) == start + np.arange(size)).all()
        assert len({epoch.tobytes() for epoch in whole}) == len(whole)
        start += size


def test_it_does_not_depend_on_how_it_is_asked_for() -> None:
    mixture = Mixture(SIZES, WEIGHTS, seed=2, shuffle_block=10)
    numbers = np.arange(5000)
    whole = mixture.indices(numbers)
    picked = np.random.default_rng(0).choice(numbers, 300)
    assert (mixture.indices(picked) == whole[picked]).all()
    far = 10**12 + np.arange(40)
    assert mixture.indices(far).tolist() == [int(mixture.indices(np.array([n]))[0]) for n in far]
    assert (Mixture(SIZES, WEIGHTS, seed=3).indices(numbers) != whole).mean() > 0.9


def test_a_bad_sample_is_followed_by_one_of_its_own_set() -> None:
    mixture = Mixture(SIZES, WEIGHTS, seed=0)
    bounds = np.cumsum([0, *SIZES.values()])
    for number in range(0, 3000, 37):
        index = int(mixture.indices(np.array([number]))[0])
        following = [mixture.successor(number, steps) for steps in range(1, 13)]
        own = np.searchsorted(bounds, index, side="right")
        assert set(np.searchsorted(bounds, following, side="right")) == {own}
        assert len({index, *following}) == 13


# -- from shards ----------------------------------------------------------------------------------------------------


@pytest.fixture
def mixture(tmp_path: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for name, count, weight in (("photos", 30, 3), ("icons", 8, 1)):
        for shard, keys in enumerate(np.array_split(np.arange(count), 2)):
            samples = [{"__key__": f"{name}{i:02d}", "png": picture(int(i))} for i in keys]
            write_shard(tmp_path / f"{name}-{shard}.tar", samples)
        found[name] = {"shards": f"{tmp_path}/{name}-*.tar", "weight": weight}
    return found


def make(mixture: dict[str, dict[str, Any]], **options: Any) -> ShardData:
    return ShardData(None, image_size=8, batch_size=12, mixture=mixture, **options)


def test_a_batch_says_which_set_each_sample_is_from(mixture: dict[str, dict[str, Any]]) -> None:
    data = make(mixture)
    assert data.num_train == 38 and "source" in data.batch_spec
    batches = list(islice(data.train_loader(), 1000 // 12 + 1))
    rows = [(source, key) for batch in batches for source, key in zip(batch["source"], batch["key"], strict=True)]
    assert all(key.startswith(source) for source, key in rows)
    assert sum(source == "photos" for source, _ in rows[:1000]) == 750
    first = [key for source, key in rows if source == "icons"][:8]
    assert sorted(first) == [f"icons{i:02d}" for i in range(8)]
    everything = [key for batch in data.statistics_loader() for key in batch["key"]]
    assert len(everything) == len(set(everything)) == 38


@pytest.mark.parametrize(("world_size", "accumulation", "num_workers"), [(2, 1, 0), (3, 2, 2)])
def test_however_a_step_is_shared_out_its_samples_are_the_same(
    mixture: dict[str, dict[str, Any]], world_size: int, accumulation: int, num_workers: int
) -> None:
    whole = list(islice(make(mixture).train_loader(), 5))
    data = make(mixture, accumulation=accumulation, num_workers=num_workers)
    ranks = [list(islice(data.train_loader(0, r, world_size), 5 * accumulation)) for r in range(world_size)]
    for step in range(5):
        parts = [batch for share in ranks for batch in share[step * accumulation : (step + 1) * accumulation]]
        assert same(merged(parts), whole[step])
    rest = list(islice(data.train_loader(36, 0, 1), 2 * accumulation))
    assert torch.cat([batch["index"] for batch in rest]).equal(torch.cat([batch["index"] for batch in whole[3:]]))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"mixture": {"a": {"shards": "a.tar"}}}, r"data\.mixture\.a: expected \{shards: \.\.\., weight"),
        ({"mixture": {"a": {"shards": "a.tar", "weight": 1, "wait": 2}}}, r"data\.mixture\.a: expected"),
        ({"mixture": {"a": {"shards": "a.tar", "weight": 0}}}, r"data\.mixture\.a\.weight=0"),
        ({"mixture": {"a": {"shards": "a.tar", "weight": True}}}, r"data\.mixture\.a\.weight=True"),
        ({"mixture": {"a": {"shards": None, "weight": 1}}}, r"data\.mixture\.a\.shards=None"),
        ({"mixture": {}}, r"data\.train=null goes with data\.mixture"),
        ({"mixture": None}, r"data\.train=null goes with data\.mixture"),
        ({"mixture": {"a": {"shards": "a.tar", "weight": 1}}, "train": "b.tar"}, r"data\.train=null goes with"),
        ({"mixture": {"a": {"shards": "a.tar", "weight": 1}}, "max_samples": 3}, r"data\.max_samples"),
        ({"train": "b.tar", "shuffle_block": 0}, r"data\.shuffle_block=0"),
    ],
)
def test_what_makes_no_sense_names_its_key(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ShardData(options.pop("train", None), image_size=8, batch_size=12, **options)


def test_missing_shards_of_a_set_are_named_by_their_key(mixture: dict[str, dict[str, Any]]) -> None:
    mixture["icons"]["shards"] = "gone-*.tar"
    with pytest.raises(ValueError, match=r"data\.mixture\.icons\.shards: no shard gone-"):
        make(mixture).setup()


def test_a_run_trains_on_a_mixture_that_is_filtered(tmp_path: Path) -> None:
    sets = [f"a: {{shards: {QUICKSTART}/train-00000.tar, weight: 3}}", f"b: {{shards: {annotated_shard()}, weight: 1}}"]
    words = ["data.train=null", "data.max_samples=null", f"data.mixture={{{', '.join(sets)}}}", "data.shuffle_block=8"]
    run = train("quickstart/autoencoder", tmp_path, *words, "data.filters.ranges={label: [0, 3]}", "max_steps=1")
    removed = json.loads((run.folder / "lineage.json").read_text())["removed_samples"]
    assert removed.keys() == {"ranges.label"} and 0 < removed["ranges.label"] < 876
