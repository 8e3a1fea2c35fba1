"""Local order: still every sample once an epoch, still a pure function, and how well it mixes, in figures."""

import numpy as np
import pytest

from ldm.data.plan import WINDOW_BLOCKS, Plan, permute_blocks

OLD_ORDER = [951, 504, 434, 918, 934]  # positions 0, 1, 999, 1000, 54321 of the first release
NUM, BLOCK, BATCH = 100_000, 500, 256


@pytest.mark.parametrize("block", [1, 2, 7, 64, 1000])
@pytest.mark.parametrize("num", [1, 2, 3, 16, 63, 64, 65, 1000, 4097])
def test_blocks_are_a_bijection(num: int, block: int) -> None:
    assert sorted(permute_blocks(np.arange(num), num, block, "key").tolist()) == list(range(num))


def test_epochs_differ_and_hold_every_sample_once() -> None:
    epochs = Plan(1003, 5, shuffle_block=20).indices(np.arange(1003 * 3)).reshape(3, 1003)
    assert (np.sort(epochs) == np.arange(1003)).all()
    assert (epochs[0] != epochs[1]).mean() > 0.99 and (epochs[1] != epochs[2]).mean() > 0.99
    assert (Plan(1003, 6, shuffle_block=20).indices(np.arange(1003)) != epochs[0]).mean() > 0.99


def test_an_order_does_not_depend_on_how_it_is_asked_for() -> None:
    plan = Plan(12_345, 0, shuffle_block=100)
    numbers = np.arange(5 * 12_345)
    whole = plan.indices(numbers)
    picked = np.random.default_rng(0).choice(numbers, 500)
    assert (plan.indices(picked) == whole[picked]).all()
    far = 10**12 + np.arange(64)
    assert (plan.indices(far) == [plan.indices(np.array([n]))[0] for n in far]).all()


def test_orders_without_blocks_are_those_of_old_runs() -> None:
    assert Plan(1000, 0).indices(np.array([0, 1, 999, 1000, 54321])).tolist() == OLD_ORDER


def places(epoch: int) -> np.ndarray:
    """Where in an epoch each of 100,000 samples comes, in blocks of 500."""
    order = Plan(NUM, 0, shuffle_block=BLOCK).indices(np.arange(epoch * NUM, (epoch + 1) * NUM))
    place = np.empty(NUM, np.int64)
    place[order] = np.arange(NUM)
    return place


def test_reads_stay_local() -> None:
    order = Plan(NUM, 0, shuffle_block=BLOCK).indices(np.arange(NUM))
    batches = order[: NUM // BATCH * BATCH].reshape(-1, BATCH)
    touched = [len(np.unique(own // BLOCK)) for own in batches]
    assert max(touched) <= 2 * WINDOW_BLOCKS and np.mean(touched) > 0.9 * WINDOW_BLOCKS  # of 200 blocks


def test_samples_are_mixed_well_within_that() -> None:
    window, blocks = WINDOW_BLOCKS * BLOCK, NUM // BLOCK
    found = [places(epoch) for epoch in range(20)]
    # neighbours in a shard meet in one batch as seldom as a draw from a window of 8,000 makes them, 3 %
    together = np.mean([place[:-1] // BATCH == place[1:] // BATCH for place in found])
    assert abs(together - BATCH / window) < 0.005
    # within a block they are a third of a window apart on average, as independent places are
    inside = np.arange(1, NUM) % BLOCK != 0
    assert abs(np.mean([np.abs(np.diff(place))[inside] for place in found]) / window - 1 / 3) < 0.01
    # far parts of the data set are a third of an epoch apart, and a sample's place says nothing about where it lies
    apart = np.mean([np.abs(place[:-40_000] - place[40_000:]).mean() for place in found]) / NUM
    assert abs(apart - 1 / 3) < 0.02
    assert abs(np.mean([np.corrcoef(place, np.arange(NUM))[0, 1] for place in found])) < 3 / np.sqrt(20 * blocks)
    # two blocks share a window in one epoch of twelve or so, not always
    shared = [(place[0] // window == place[BLOCK] // window) for place in found]
    assert sum(shared) < 8
