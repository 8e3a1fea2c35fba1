"""A run goes on where its data is the same, wherever it lies, and nowhere else; a repaired shard is a way on."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from range_server import serving
from test_data_module import NUM, make, sample, spoil, take, write

from ldm.data.errors import TooManyBadSamples
from ldm.data.module import ShardData
from ldm.data_places import bad_shards, check_data, with_saved_places
from ldm.run import check_unchanged

FOLDER = Path("runs/x")


def begun(data: Any) -> dict[str, Any]:
    """The lineage of a run that began with this data, as it is read back."""
    lineage: dict[str, Any] = {}
    assert check_data(lineage, FOLDER, data) == []
    return json.loads(json.dumps(lineage))


def test_the_same_shards_elsewhere_are_the_same_and_others_are_refused(tmp_path: Path) -> None:
    for name in ("one", "two", "other"):
        (tmp_path / name).mkdir()
    shards = write(tmp_path / "one", [sample(i) for i in range(NUM)])
    moved = write(tmp_path / "two", [sample(i) for i in range(NUM)])
    for path in (tmp_path / "two").glob("*.tar"):
        os.utime(path, (1e9, 1e9))
        path.rename(path.with_name(f"renamed-{path.name}"))
    other = write(tmp_path / "other", [sample(i) for i in range(NUM)][::-1])
    lineage = begun(make(shards, validation=shards))
    with serving(tmp_path) as server:
        for place in (str(Path(moved).parent / "renamed-*.tar"), f"{server.url}/one/train-{{0..2}}.tar?sig=123"):
            assert check_data(dict(lineage), FOLDER, make(place, validation=shards)) == []
            assert check_data(dict(lineage), FOLDER, make(shards, validation=place)) == []
    with pytest.raises(ValueError, match=r"^data\.train: .* run in runs/x began"):
        check_data(dict(lineage), FOLDER, make(other, validation=shards))
    with pytest.raises(ValueError, match=r"^data\.validation: "):
        check_data(dict(lineage), FOLDER, make(shards, validation=other))


def test_places_may_be_spelt_anew_only_where_the_lineage_says_what_is_there() -> None:
    saved = {"data": {"train": "/a/*.tar", "validation": "/v.tar", "cache": None, "batch_size": 4}}
    now = {"data": {"train": ["/b/0.tar"], "validation": "/w.tar", "cache": None, "batch_size": 4}}
    lineage = {"train_layout": "x", "validation_layout": "y"}
    check_unchanged(saved, with_saved_places(now, saved, lineage), FOLDER)
    for known, key in ((["train_layout"], "validation"), (["validation_layout"], "train"), ([], "train")):
        with pytest.raises(ValueError, match=rf"^data\.{key} is "):
            check_unchanged(saved, with_saved_places(now, saved, dict.fromkeys(known, "x")), FOLDER)
    for key, value in {"validation": None, "batch_size": 8, "cache": "/c"}.items():
        changed = {"data": {**now["data"], key: value}}
        with pytest.raises(ValueError, match=rf"^data\.{key} is "):
            check_unchanged(saved, with_saved_places(changed, saved, {**lineage, "cache_made": "z"}), FOLDER)
    mixed = {"data": {"mixture": {"a": {"shards": "/a", "weight": 1}}}}
    check_unchanged(
        mixed, with_saved_places({"data": {"mixture": {"a": {"shards": ["/b"], "weight": 1}}}}, mixed, lineage), FOLDER
    )
    with pytest.raises(ValueError, match=r"^data\.mixture\.a\.weight is "):
        heavier = {"data": {"mixture": {"a": {"shards": "/a", "weight": 2}}}}
        check_unchanged(mixed, with_saved_places(heavier, mixed, lineage), FOLDER)
    check_unchanged({"data": {"max_bad_fraction": 0.0}}, {"data": {"max_bad_fraction": 0.5}}, FOLDER)


def test_the_same_shards_in_other_sets_of_a_mixture_are_refused(tmp_path: Path) -> None:
    write(tmp_path, [sample(i) for i in range(NUM)])

    def mixed(*sets: str) -> ShardData:
        places = {name: f"{tmp_path}/train-{own}.tar" for name, own in zip("xy", sets, strict=True)}
        return make(None, mixture={name: {"shards": place, "weight": 1} for name, place in places.items()})

    lineage = begun(mixed("{0,1}", "2"))
    assert check_data(dict(lineage), FOLDER, mixed("[01]", "2")) == []
    with pytest.raises(ValueError, match=r"^data\.mixture: its sets begin at other samples"):
        check_data(dict(lineage), FOLDER, mixed("0", "{1,2}"))


def test_another_list_to_exclude_is_refused_though_its_path_is_the_same(tmp_path: Path) -> None:
    shards = write(tmp_path, [sample(i) for i in range(NUM)])
    (tmp_path / "list.txt").write_text("k001\n")
    options = {"filters": {"exclude": str(tmp_path / "list.txt")}}
    lineage = begun(make(shards, **options))
    assert check_data(dict(lineage), FOLDER, make(shards, **options)) == []
    (tmp_path / "list.txt").write_text("k002\n")
    with pytest.raises(ValueError, match=r"^data\.filters: other samples pass"):
        check_data(dict(lineage), FOLDER, make(shards, **options))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_shard_that_stopped_a_run_may_be_repaired_and_no_other(tmp_path: Path, num_workers: int) -> None:
    sound, spoilt = ([sample(i) for i in range(NUM)] for _ in range(2))
    kinds = spoil(spoilt)
    data = make(write(tmp_path, spoilt), num_workers=num_workers, max_bad_fraction=0.0)
    lineage = begun(data)
    with pytest.raises(TooManyBadSamples, match=r"raise it to skip them, or repair them .* the same command goes on"):
        take(data, NUM)
    assert {row["key"] for row in data.skipped} <= set(kinds)
    stopped = {**lineage, "stopped_by": json.loads(json.dumps(bad_shards(data)))}
    touched = sorted(int(number) for number in stopped["stopped_by"]["train_layout"])
    (tmp_path / "sound").mkdir()
    write(tmp_path / "sound", sound)
    for number in touched:
        (tmp_path / "sound" / f"train-{number}.tar").rename(tmp_path / f"train-{number}.tar")
    mended = make(str(tmp_path / "train-*.tar"))
    with pytest.raises(ValueError, match=r"^data\.train: "):
        check_data(dict(lineage), FOLDER, mended)  # nothing stopped this one
    again = dict(stopped)
    assert check_data(again, FOLDER, mended) == [f"train-{number}.tar" for number in touched]
    assert "stopped_by" not in again and again["repaired"] and check_data(again, FOLDER, mended) == []
    fewer = [row for row in sound if row["__key__"] not in kinds]
    for path in tmp_path.glob("train-*.tar"):
        path.unlink()
    with pytest.raises(ValueError, match=r"^data\.train: "):
        check_data(dict(stopped), FOLDER, make(write(tmp_path, fewer)))
