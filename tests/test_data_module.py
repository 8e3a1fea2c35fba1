"""ShardData: each sample once an epoch however it is shared out, resumable anywhere, honest about bad samples."""

import io
import json
import tracemalloc
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from ldm.data.errors import ShardError, TooManyBadSamples
from ldm.data.fields import Caption, Label, Mask, Picture
from ldm.data.fields.holes import Holes
from ldm.data.fields.low_resolution import LowResolution
from ldm.data.fields.window import Window
from ldm.data.framing import framing
from ldm.data.module import ShardData
from ldm.data.plan import permute
from ldm.data.streams import PassStream
from ldm.data.writing import write_shard

NUM = 45


def picture(index: int) -> bytes:
    """A picture whose colour tells its index, brighter on the left, so that flips and mix-ups show."""
    pixels = np.full((12, 16, 3), index, dtype=np.uint8)
    pixels[:, :8] += 100
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def sample(index: int) -> dict[str, Any]:
    mask = io.BytesIO()
    Image.fromarray(np.repeat([[255, 0]], 8, axis=1).repeat(12, axis=0).astype(np.uint8)).save(mask, "PNG")
    facts = json.dumps({"caption": f"picture {index}", "label": index})
    return {"__key__": f"k{index:03d}", "png": picture(index), "json": facts.encode(), "mask.png": mask.getvalue()}


def write(folder: Path, samples: list[dict[str, Any]], num_shards: int = 3) -> str:
    for i, chunk in enumerate(np.array_split(np.arange(len(samples)), num_shards)):
        write_shard(folder / f"train-{i}.tar", [samples[j] for j in chunk])
    return f"{folder}/train-*.tar"


@pytest.fixture
def shards(tmp_path: Path) -> str:
    return write(tmp_path, [sample(i) for i in range(NUM)])


def make(shards: str, batch_size: int = 12, **options: Any) -> ShardData:
    fields = {"caption": Caption(), "label": Label(), "mask": Mask()}
    return ShardData(shards, image_size=8, batch_size=batch_size, fields=fields, **options)


def take(data: ShardData, count: int, start: int = 0, rank: int = 0, world_size: int = 1) -> list[dict[str, Any]]:
    return list(islice(data.train_loader(start, rank, world_size), count))


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[key], b[key]) if isinstance(a[key], torch.Tensor) else a[key] == b[key] for key in a
    )


def merged(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The batches of several ranks or micro-batches as one, in order of their numbers."""
    order = torch.cat([part["number"] for part in parts]).argsort()
    whole: dict[str, Any] = {}
    for key, value in parts[0].items():
        if isinstance(value, torch.Tensor):
            whole[key] = torch.cat([part[key] for part in parts])[order]
        else:
            rows = [row for part in parts for row in part[key]]
            whole[key] = [rows[i] for i in order] if key != "skipped" else rows
    return whole


def test_a_batch_holds_what_its_specification_says(shards: str) -> None:
    data = make(shards, batch_size=9)
    batch = take(data, 1)[0]
    assert set(data.batch_spec) | {"skipped"} == set(batch)
    assert batch["image"].shape == (9, 3, 8, 8) and batch["image"].dtype == torch.float32
    assert batch["image"].min() >= -1 and batch["image"].max() <= 1
    assert batch["mask"].shape == (9, 1, 8, 8) and batch["mask"].dtype == torch.float32
    for key in ("label", "number", "index"):
        assert batch[key].shape == (9,) and batch[key].dtype == torch.int64
    assert all(type(text) is str for text in batch["caption"] + batch["key"])


def test_image_text_class_and_mask_of_one_sample_stay_together(shards: str) -> None:
    data = make(shards, horizontal_flip_prob=0.5, random_crop=True, seed=5)
    flips = 0
    for batch in take(data, 8):
        colour = ((batch["image"] + 1) * 127.5).round().long()
        assert batch["caption"] == [f"picture {i}" for i in batch["label"].tolist()]
        assert batch["key"] == [f"k{i:03d}" for i in batch["label"].tolist()]
        assert batch["index"].equal(batch["label"])
        ends = torch.minimum(colour[..., 0], colour[..., -1])  # away from the edge, where bicubic rings
        assert ends.eq(batch["label"][:, None, None]).all()
        bright = (colour - batch["label"][:, None, None, None] > 50).all(1, keepdim=True)
        assert (bright.float() != batch["mask"]).float().mean() < 0.13  # at most the edge's column
        flips += int((batch["mask"][..., 0] < batch["mask"][..., -1]).all(-1).sum())
    assert 20 < flips < 76


CROPPED = {"horizontal_flip_prob": 0.5, "random_crop": True, "seed": 3}


@pytest.mark.parametrize("crop_size", [4, [0.5, 1]])
def test_windows_of_another_size_show_the_image_and_all_that_lies_on_it(shards: str, crop_size: Any) -> None:
    data = make(shards, batch_size=9, crop_size=crop_size, derived={"again": Window(), "style": Picture(6)}, **CROPPED)
    side = 4 if crop_size == 4 else 8
    bright = 0
    for batch in take(data, 5):
        assert batch["image"].shape == (9, 3, side, side) and batch["mask"].shape == (9, 1, side, side)
        assert batch["style"].shape == (9, 3, 6, 6) and torch.equal(batch["again"], batch["image"])
        colour = ((batch["image"] + 1) * 127.5 - batch["label"][:, None, None, None]).mean(1, keepdim=True) > 50
        assert (colour.float() != batch["mask"]).float().mean() < 0.26  # at most the edge's column
        bright += int(colour.flatten(1).all(1).sum())
    assert bright > 0, "a window may lie beside the edge"
    assert set(data.batch_spec) | {"skipped"} == set(batch)
    held = next(iter(data.statistics_loader(batch_size=4)))
    assert held["image"].shape == (4, 3, side, side) and not held["mask"].flatten(1).all(1).any()


def test_what_is_derived_is_the_same_on_every_rank_worker_and_restart(shards: str) -> None:
    derived = {"holes": Holes(seed=3), "small": LowResolution(2)}
    whole = take(make(shards, crop_size=[0.5, 1], derived=derived, **CROPPED), 4)
    again = take(make(shards, crop_size=[0.5, 1], derived=derived, num_workers=2, **CROPPED), 3, start=12)
    assert all(same(one, other) for one, other in zip(whole[1:], again, strict=True))
    ranks = [take(make(shards, crop_size=[0.5, 1], derived=derived, **CROPPED), 4, 0, rank, 2) for rank in range(2)]
    for one, *parts in zip(whole, *ranks, strict=True):
        assert same(one, merged(parts))
    assert whole[0]["holes"].shape == (12, 1, 8, 8) and whole[0]["small"].shape == (12, 3, 4, 4)


@pytest.mark.filterwarnings("ignore:.*worker processes")  # more than this machine may have cores for
@pytest.mark.parametrize("num_workers", [0, 1, 3])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_an_epoch_holds_every_sample_once(shards: str, world_size: int, num_workers: int) -> None:
    # three steps of 60 are four epochs of 45
    data = make(shards, batch_size=60, num_workers=num_workers)
    ranks = [take(data, 3, rank=rank, world_size=world_size) for rank in range(world_size)]
    batch = merged([batch for share in ranks for batch in share])
    assert batch["number"].tolist() == list(range(180))
    epochs = batch["index"].reshape(4, NUM)
    assert epochs.sort(dim=1).values.equal(torch.arange(NUM).expand(4, NUM))


@pytest.mark.parametrize(("world_size", "accumulation", "num_workers"), [(2, 1, 0), (3, 2, 0), (1, 4, 2), (2, 3, 2)])
def test_however_a_step_is_shared_out_its_samples_are_the_same(
    shards: str, world_size: int, accumulation: int, num_workers: int
) -> None:
    options = {"horizontal_flip_prob": 0.5, "random_crop": True}
    whole = take(make(shards, **options), 5)
    data = make(shards, accumulation=accumulation, num_workers=num_workers, **options)
    ranks = [take(data, 5 * accumulation, rank=rank, world_size=world_size) for rank in range(world_size)]
    for step in range(5):
        parts = [batch for share in ranks for batch in share[step * accumulation : (step + 1) * accumulation]]
        assert same(merged(parts), whole[step])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_starting_later_gives_what_would_have_come(shards: str, num_workers: int) -> None:
    options = {"horizontal_flip_prob": 0.5, "memo_samples": 10}
    whole = take(make(shards, **options), 9)
    for step in (1, 4, 8):
        data = make(shards, num_workers=num_workers, **options)
        data.start(step * 12)
        rest = list(islice(data.train_dataloader(), 9 - step))
        assert all(same(a, b) for a, b in zip(rest, whole[step:], strict=True))
    far = take(make(shards), 1, start=12 * 10**9)[0]
    assert far["number"][0] == 12 * 10**9


def test_a_memo_changes_nothing_but_time(shards: str) -> None:
    options = {"horizontal_flip_prob": 0.5, "random_crop": True}
    plain, kept = make(shards, **options), make(shards, memo_samples=20, **options)
    assert all(same(a, b) for a, b in zip(take(plain, 10), take(kept, 10), strict=True))


def test_seeds_give_other_orders_and_epochs_other_views(shards: str) -> None:
    assert not take(make(shards), 1)[0]["index"].equal(take(make(shards, seed=1), 1)[0]["index"])
    numbers = merged(take(make(shards, batch_size=45, horizontal_flip_prob=0.5), 2))
    flips = [
        dict(zip(k, m, strict=True))
        for k, m in (
            (numbers["key"][:45], numbers["mask"][:45, 0, 0, 0].tolist()),
            (numbers["key"][45:], numbers["mask"][45:, 0, 0, 0].tolist()),
        )
    ]
    assert flips[0].keys() == flips[1].keys() and flips[0] != flips[1]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2, 7])
def test_validation_is_one_pass_in_order(shards: str, world_size: int, num_workers: int) -> None:
    data = make(shards, validation=shards, horizontal_flip_prob=1.0, num_workers=num_workers)
    keys = []
    for rank in range(world_size):
        loader = data.validation_loader(rank, world_size, batch_size=4)
        batches = list(loader)
        assert len(batches) == len(loader)
        indices = torch.cat([batch["index"] for batch in batches])
        assert indices.equal(torch.arange(NUM)[rank::world_size])
        assert all((batch["mask"][..., 0] == 1).all() for batch in batches)  # never flipped
        keys += [key for batch in batches for key in batch["key"]]
    assert sorted(keys) == [f"k{i:03d}" for i in range(NUM)]
    assert all(same(a, b) for a, b in zip(data.validation_loader(), data.validation_loader(), strict=True))


def test_statistics_are_one_unaugmented_pass_in_mixed_order(shards: str) -> None:
    data = make(shards, horizontal_flip_prob=1.0, batch_size=10)
    batches = list(data.statistics_loader())
    indices = torch.cat([batch["index"] for batch in batches]).tolist()
    assert sorted(indices) == list(range(NUM)) and indices != sorted(indices)
    assert [len(batch["key"]) for batch in batches] == [10, 10, 10, 10, 5]
    assert all((batch["mask"][..., 0] == 1).all() for batch in batches)
    few = [index for batch in data.statistics_loader(num_samples=20) for index in batch["index"].tolist()]
    assert few == indices[:20]
    shared = [batch["index"] for rank in (0, 1) for batch in data.statistics_loader(rank, 2)]
    assert sorted(torch.cat(shared).tolist()) == list(range(NUM))


def test_a_pass_over_a_billion_samples_takes_no_memory() -> None:
    class Every:  # samples of any index
        framing = framing(8, None)

        def get_all(self, indices: list[int]) -> list[Any]:
            return [SimpleNamespace(index=index) for index in indices]

        def batch(self, found: Any, views: Any, numbers: list[int], skipped: list) -> dict[str, Any]:
            return {"number": numbers, "skipped": skipped}

    num, share = 10**9, range(5, 10**9, 1024)
    tracemalloc.start()
    stream = PassStream(Every(), share, 64, partial(permute, num=num, key="statistics"))  # type: ignore[arg-type]
    found = [number for batch in islice(stream, 3) for number in batch["number"]]
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 1 << 20 and len(stream) == -(-len(share) // 64)
    assert found == permute(np.array(share[:192]), num, "statistics").tolist()


def test_sizes_can_be_limited(shards: str) -> None:
    data = make(shards, validation=shards, max_samples=10, validation_samples=7)
    assert (data.num_train, data.num_validation) == (10, 7)
    assert set(merged(take(data, 4))["index"].tolist()) == set(range(10))
    assert make(shards).num_validation == 0


def test_a_fingerprint_names_the_data_not_the_options(shards: str, tmp_path: Path) -> None:
    first = make(shards).fingerprint
    assert make(shards, batch_size=3, seed=9).fingerprint == first
    assert make(shards, validation=shards).fingerprint != first
    write(tmp_path, [sample(i) for i in range(NUM - 1)])
    assert make(shards).fingerprint != first


# -- bad samples ---------------------------------------------------------------------------------------------------


def spoil(samples: list[dict[str, Any]]) -> dict[str, str]:
    """Break four samples in four ways; key -> kind."""
    samples[3]["png"] = samples[3]["png"][:60]
    samples[20]["json"] = json.dumps({"label": 20}).encode()
    del samples[21]["json"]
    del samples[40]["png"]
    return {"k003": "broken image", "k020": "missing caption", "k021": "missing member", "k040": "missing member"}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_samples_are_replaced_counted_and_named(tmp_path: Path, num_workers: int) -> None:
    samples = [sample(i) for i in range(NUM)]
    kinds = spoil(samples)
    data = make(write(tmp_path, samples), batch_size=45, num_workers=num_workers, max_bad_fraction=0.1)
    first, second = take(data, 2)
    for batch in (first, second):
        assert len(batch["key"]) == 45 and {row["key"]: row["kind"] for row in batch["skipped"]} == kinds
        assert set(batch["key"]) == {f"k{i:03d}" for i in range(NUM)} - set(kinds)
        assert batch["caption"] == [f"picture {i}" for i in batch["index"].tolist()]
    assert first["number"].tolist() == list(range(45))
    assert {row["key"] for row in data.skipped} == set(kinds) and len(data.skipped) == 4
    assert {row["shard"] for row in data.skipped} == {"train-0.tar", "train-1.tar", "train-2.tar"}


def test_the_place_of_a_bad_sample_goes_to_its_successor(tmp_path: Path) -> None:
    samples = [sample(i) for i in range(NUM)]
    order = take(make(write(tmp_path, samples), batch_size=NUM), 1)[0]["index"].tolist()
    for bad in (order[4], order[5], order[44]):
        del samples[bad]["png"]
    shards = write(tmp_path, samples)
    found = take(make(shards, batch_size=NUM, max_bad_fraction=0.1), 1)[0]["index"].tolist()
    assert found == [*order[:4], order[6], order[6], *order[6:44], order[0]]
    # ranks that meet the bad samples apart choose the same successors
    shared = make(shards, batch_size=NUM, max_bad_fraction=0.1)
    parts = [take(shared, 1, rank=rank, world_size=5)[0] for rank in range(5)]
    assert merged(parts)["index"].tolist() == found


def test_validation_leaves_bad_samples_out(tmp_path: Path) -> None:
    samples = [sample(i) for i in range(NUM)]
    kinds = spoil(samples)
    shards = write(tmp_path, samples)
    data = make(shards, validation=shards, max_bad_fraction=0.1)
    batches = list(data.validation_loader(batch_size=1))
    assert len(batches) == NUM - len(kinds)
    assert {row["key"] for batch in batches for row in batch["skipped"]} == set(kinds)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_too_many_bad_samples_end_the_run_with_their_list(tmp_path: Path, num_workers: int) -> None:
    samples = [sample(i) for i in range(NUM)]
    spoil(samples)
    data = make(write(tmp_path, samples), num_workers=num_workers, max_bad_fraction=0.02)  # one allowed
    with pytest.raises(TooManyBadSamples, match=r"data.max_bad_fraction=0.02(.|\n)*(k003|k020|k021|k040)"):
        take(data, 8)


def test_nothing_usable_is_an_error_not_a_hang(tmp_path: Path) -> None:
    shards = write(tmp_path, [{"__key__": f"k{i}", "txt": b"x"} for i in range(9)])
    data = make(shards, validation=shards, max_bad_fraction=1.0)
    with pytest.raises(TooManyBadSamples, match="9 of 9 samples are bad"):
        take(data, 1)
    with pytest.raises(TooManyBadSamples, match="no image"):
        list(data.validation_loader())


# -- refusals ------------------------------------------------------------------------------------------------------


def test_missing_and_cut_shards_stop_setup(shards: str, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"data\.validation: no shard .*gone\.tar"):
        make(shards, validation=f"{tmp_path}/gone.tar").setup()
    cut = tmp_path / "train-1.tar"
    cut.write_bytes(cut.read_bytes()[:5000])
    with pytest.raises(ShardError, match=r"train-1\.tar: .*cut short"):
        make(shards).setup()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"horizontal_flip_prob": 2.0}, "data.horizontal_flip_prob=2.0"),
        ({"max_bad_fraction": -1.0}, "data.max_bad_fraction=-1.0"),
        ({"accumulation": 0}, "data.accumulation=0"),
    ],
)
def test_impossible_values_name_their_key(shards: str, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make(shards, **options)


def test_fields_may_not_hide_what_a_batch_has(shards: str) -> None:
    with pytest.raises(ValueError, match=r"data\.fields"):
        ShardData(shards, image_size=8, batch_size=4, fields={"image": Caption()})


def test_an_indivisible_batch_is_refused(shards: str) -> None:
    with pytest.raises(ValueError, match=r"data\.batch_size=12 is not divisible by 5 ranks x accumulation=1 = 5"):
        make(shards).train_loader(rank=0, world_size=5)


# -- Lightning -----------------------------------------------------------------------------------------------------


class Recorder(pl.LightningModule):
    """Remembers the numbers it was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained: list[int] = []

    def training_step(self, batch: dict[str, Any]) -> torch.Tensor:
        self.trained += batch["number"].tolist()
        return self.weight * batch["image"].mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def test_lightning_takes_the_endless_loader(shards: str) -> None:
    data = make(shards)
    data.start(24)
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=6, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    module = Recorder()
    state = torch.get_rng_state()
    trainer.fit(module, data)
    assert module.trained == list(range(24, 24 + 6 * 12))
    assert torch.get_rng_state().equal(state)  # loading draws nothing from the global generator


@pytest.mark.parametrize(("device", "pinned"), [("cuda", True), ("cpu", False)])
def test_training_batches_for_a_gpu_are_pinned(shards: str, device: str, pinned: bool):
    data = make(shards)
    assert data.train_loader().loader.pin_memory is False  # of no trainer
    data.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)), num_devices=1)
    assert data.train_loader().loader.pin_memory is pinned
