"""Latents and embeddings made beforehand: training reads the same numbers from them as it makes of the images."""

import itertools
import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import torch
import webdataset as wds
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from toys import (
    QUICKSTART,
    Process,
    assert_equal_runs,
    clip_folder,
    clip_image_folder,
    curve,
    losses,
    t5_folder,
    tiny,
    train,
)

from ldm.build import Parts, load_first_stage
from ldm.conditioners import lazy as unread
from ldm.conditioners import t5
from ldm.conditioners.clip_image import clip_image
from ldm.config import compose
from ldm.data.cache import read_manifest
from ldm.data.decoding import PilDecoder
from ldm.data.errors import ShardError, TooManyBadSamples
from ldm.data.fields import Caption, Picture
from ldm.data.module import ShardData
from ldm.data.shards import listed_shards
from ldm.doctor import examine
from ldm.doctor.verify import verify
from ldm.first_stage.first_stage import moments_of
from ldm.holding import FolderHeld, held
from ldm.latent_cache import encode
from ldm.run import Run

SIZE = 32
MEMO = "memo_captions=100"
TEXT = ("conditioner=[text]", f"conditioner.text.{MEMO}")
# Relative; six steps of a toy run moved by 3e-6 when latents and tokens were rounded to 11 bits.
FP16 = 1e-4


def write_shard(path: Path, source: Path, start: int, count: int, **change: Callable[[dict], None]) -> Path:
    """`count` of the built-in samples from number `start` on; `change` alters the one whose number is its name."""
    with wds.TarWriter(str(path)) as writer:
        dataset = wds.WebDataset(str(source), shardshuffle=False)
        for number, sample in enumerate(itertools.islice(dataset, start, start + count)):
            kept = {name: sample[name] for name in ("__key__", "webp", "json")}
            change.get(f"sample{number}", lambda sample: None)(kept)
            writer.write(kept)
    return path


def cut(sample: dict[str, Any]) -> None:
    sample["webp"] = sample["webp"][:40]


def two_captions(sample: dict[str, Any]) -> None:
    sample["json"] = json.dumps({**json.loads(sample["json"]), "caption": ["a first one", "another"]}).encode()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards for training, with a bad sample and one with two captions, and one for validation."""
    folder = tmp_path_factory.mktemp("shards")
    train_source, validation_source = (QUICKSTART / f"{name}-00000.tar" for name in ("train", "validation"))
    write_shard(folder / "train-0.tar", train_source, 0, 8)
    write_shard(folder / "train-1.tar", train_source, 8, 9, sample8=cut)
    write_shard(folder / "train-2.tar", train_source, 20, 4, sample1=two_captions)
    write_shard(folder / "validation-0.tar", validation_source, 0, 6)
    return folder


def of(shards: Path, *more: str) -> list[str]:
    """The words that name the shards."""
    return [f"data.train={shards}/train-*.tar", f"data.validation={shards}/validation-*.tar",
            "data.max_bad_fraction=0.1", *more]  # fmt: skip


def encoding(first_stage: Run, shards: Path, out: Path, *more: str) -> list[str]:
    """The command line of scripts/encode.py, with the text's encoder unless `more` chooses."""
    given = [f"first_stage={first_stage.folder}", "data=quickstart", f"out={out}", "device=cpu", "batch_size=4"]
    text = () if any(word.startswith("conditioner=") for word in more) else TEXT
    words = [*given, *of(shards, "precision=fp32"), *text, *more]
    return list({word.partition("=")[0]: word for word in words}.values())


@pytest.fixture(scope="module")
def make_cache(first_stage: Run, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``make_cache(*overrides)`` -> a folder."""

    def make(*more: str) -> Path:
        out = tmp_path_factory.mktemp("caches") / "cache"
        encode(compose("encode", encoding(first_stage, shards, out, *more)))
        return out

    return make


@pytest.fixture(scope="module")
def cache(make_cache: Callable[..., Path]) -> Path:
    """In fp32, with text and mirrored latents. Not to be changed."""
    return make_cache("flips=true")


CAPTION = Caption(suffixes=["", " in {style} style"])  # as data=quickstart has it
FLIPPED = ("data.horizontal_flip_prob=0.5",)
STEPS = ("max_steps=6", "callback.validation.every_steps=3")
RUN = ("data.filters.values=null", "task.keep_latents=false", "data.max_samples=null", *STEPS, *FLIPPED)


@pytest.fixture
def train_on(train_diffusion: Callable[..., Run], shards: Path) -> Callable[..., Run]:
    """``train_on(cache, *overrides, run=name)``: six steps over more than an epoch, half of the images mirrored."""

    def start(cache: Path, *more: str, run: str = "cached") -> Run:
        return train_diffusion(*of(shards), *RUN, f"data.cache={cache}", *more, run=run)

    return start


def test_doctor_tries_a_run_on_its_cache(cache: Path, first_stage: Run, shards: Path, tmp_path: Path):
    words = tiny("quickstart/diffusion", tmp_path, f"first_stage={first_stage.folder}", *of(shards), *RUN)
    words.append("conditioner.text.memo_captions=0")  # what another test has asked for would not be encoded again
    flop = []
    for more in ([], [f"data.cache={cache}"]):
        said = {found.check: found.said for found in examine(compose("config", [*words, *more]), "x")}
        flop.append(float(re.search(r"([\d.e+-]+) GFLOP a sample", said["training step"])[1]))
    assert 0 < flop[1] < flop[0], "nothing is encoded"


@pytest.fixture(scope="module")
def from_images(first_stage: Run, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same without a cache. Not to be changed."""
    folder = tmp_path_factory.mktemp("from_images")
    return train("quickstart/diffusion", folder, f"first_stage={first_stage.folder}", *of(shards), *RUN)


def test_training_from_a_cache_in_fp32_is_training_from_images_bit_for_bit(train_on, cache: Path, from_images: Run):
    run = train_on(cache)
    assert_equal_runs(run.folder, from_images.folder, step=6)
    assert run.lineage["skipped_samples"] == from_images.lineage["skipped_samples"]
    assert [row["kind"] for row in run.lineage["skipped_samples"]] == ["broken image"]


def test_training_from_a_cache_in_fp16_differs_by_its_rounding(train_on, make_cache, cache: Path, from_images: Run):
    rounded = make_cache("precision=fp16", "flips=true")
    for path in cache.glob("*.safetensors"):
        halves, wholes = (
            {name: array for name, array in load_file(file).items() if not name.startswith(("sums.", "label"))}
            for file in (rounded / path.name, path)
        )
        assert all(torch.equal(halves[name], value.to(halves[name].dtype)) for name, value in wholes.items())
        assert {halves[name].dtype for name in wholes if name.startswith("moments")} == {torch.float16}
    run = train_on(rounded)
    for name in ("train/loss", "validation/loss"):
        one, other = curve(from_images.folder, name), curve(run.folder, name)
        assert one.keys() == other.keys() and one != other
        assert other == pytest.approx(one, rel=FP16)


def test_a_run_on_a_cache_goes_on_bit_for_bit(train_on, cache: Path, monkeypatch: pytest.MonkeyPatch):
    own = ("network.dropout=0.1", "accumulation=2")
    with monkeypatch.context() as patch:
        read: list[Path] = []
        patch.setattr("ldm.data.module.read_manifest", lambda folder: read.append(folder) or read_manifest(folder))
        patch.setattr("ldm.data.shards.listed_shards", lambda folder: read.append(folder) or listed_shards(folder))
        whole = train_on(cache, *own, run="whole")
        assert read.count(cache) == 1 and len(read) == 3, "one manifest of the cache, one of each set of shards"
    train_on(cache, *own, "max_steps=3", run="parts")
    parts = train_on(cache, *own, "data.num_workers=2", run="parts")
    assert_equal_runs(whole.folder, parts.folder, step=6)


def test_a_classifier_learns_from_a_cache(first_stage: Run, shards: Path, cache: Path, tmp_path: Path):
    given = (f"first_stage={first_stage.folder}", *of(shards), "data.max_samples=null", *FLIPPED)
    images = train("quickstart/classifier", tmp_path, *given, run="images")
    cached = train("quickstart/classifier", tmp_path, *given, f"data.cache={cache}")
    assert_equal_runs(images.folder, cached.folder, step=2)


def test_no_image_is_decoded_for_training_and_validation(train_on, cache: Path, monkeypatch: pytest.MonkeyPatch):
    decoded: list[int] = []
    original = PilDecoder.__call__
    monkeypatch.setattr(PilDecoder, "__call__", lambda *given: decoded.append(1) or original(*given))
    train_on(cache)
    assert len(decoded) == 4  # the panel at the end reads those of two batches: its own and one ahead


def test_a_condition_made_of_the_image_still_gets_it(first_stage: Run, shards: Path, cache: Path, tmp_path: Path):
    given = (f"first_stage={first_stage.folder}", *of(shards), "data.max_samples=null", "data.random_crop=false")
    given += ("crop_size=null", "image_size=32")
    images = train("ldm/superres", tmp_path, *given, run="images")
    cached = train("ldm/superres", tmp_path, *given, f"data.cache={cache}")
    assert_equal_runs(images.folder, cached.folder, step=2)


def t5_and_clip_image() -> list[str]:
    """Of toys, on the command line."""
    words = [
        "conditioner=[t5,clip_image]",
        "conditioner.t5.max_tokens=8",
        "conditioner.t5.dtype=fp32",
        f"conditioner.t5.{MEMO}",
    ]
    folders = [f"conditioner.t5.path={t5_folder()}", f"conditioner.clip_image.path={clip_image_folder()}"]
    return [*words, *folders, "conditioner.clip_image.drop_prob=0.3", "derived=[style]", "derived.style.size=16"]


@pytest.fixture(scope="module")
def both(make_cache: Callable[..., Path]) -> Path:
    """Of T5 and CLIP's image embeddings, in fp32 and mirrored. Not to be changed."""
    return make_cache("flips=true", *t5_and_clip_image())


def test_t5_and_image_embeddings_of_a_cache_train_as_those_made_of_images(
    train_on, both: Path, train_diffusion, shards: Path, monkeypatch: pytest.MonkeyPatch
):
    chosen = (*t5_and_clip_image(), "~conditioner.text")
    images = train_diffusion(*of(shards), *RUN, *chosen, run="images")
    decoded: list[int] = []
    original = PilDecoder.__call__
    monkeypatch.setattr(PilDecoder, "__call__", lambda *given: decoded.append(1) or original(*given))
    cached = train_on(both, *chosen)
    assert_equal_runs(cached.folder, images.folder, step=6)
    assert len(decoded) == 8, "for the panel, at two sizes each"


def test_a_t5_that_is_known_is_not_read_to_train_on_its_tokens(train_on, both: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(unread, "SETTLING_NS", 0)
    chosen = (*t5_and_clip_image(), "~conditioner.text")
    t5._find.cache_clear()
    first = train_on(both, *chosen, run="first")
    t5._find.cache_clear()
    monkeypatch.setattr(t5, "load_model", lambda *_: pytest.fail("it was read"))
    assert_equal_runs(train_on(both, *chosen, run="second").folder, first.folder, step=6)


def test_embeddings_that_a_cache_has_not_are_made_in_training(
    train_on, make_cache, from_images: Run, capsys: pytest.CaptureFixture
):
    run = train_on(make_cache("conditioner=[]", "flips=true"))
    assert_equal_runs(run.folder, from_images.folder, step=6)
    assert "data.cache has nothing of conditioner.text:" in capsys.readouterr().out


# What the data gives


def batches(data: ShardData, count: int, **place: int) -> list[dict[str, Any]]:
    return list(itertools.islice(data.train_loader(**place), count))


@pytest.fixture
def open_data(shards: Path) -> Callable[..., ShardData]:
    """``open_data(cache or None, num_workers)`` with captions, half of the images mirrored."""

    def start(cache: Path | str | None, num_workers: int = 0, images: Collection[str] = (), **more: Any) -> ShardData:
        given = {"fields": {"caption": CAPTION}, "horizontal_flip_prob": 0.5, "max_bad_fraction": 0.1, **more}
        data = ShardData(
            f"{shards}/train-*.tar", SIZE, 4, validation=f"{shards}/validation-*.tar", num_workers=num_workers,
            cache=cache and str(cache), **given,
        )  # fmt: skip
        if cache:
            made = read_manifest(Path(cache))
            data.read_cache(made["first_stage"], made["encoders"], images)
        return data

    return start


@pytest.mark.parametrize(("num_workers", "world_size"), [(0, 1), (2, 1), (0, 2), (2, 2)])
def test_any_rank_and_worker_sees_the_samples_it_sees_without_a_cache(
    open_data, cache: Path, num_workers: int, world_size: int
):
    for rank in range(world_size):
        place = {"start": 8, "rank": rank, "world_size": world_size}
        plain = batches(open_data(None), 8, **place)
        cached = batches(open_data(cache, num_workers), 8, **place)
        for one, other in zip(plain, cached, strict=True):
            assert one.keys() - other.keys() == {"image"}
            for name in ("key", "caption", "skipped"):
                assert one[name] == other[name]
            for name in ("number", "index"):
                assert torch.equal(one[name], other[name])


def test_the_caption_that_is_chosen_is_the_one_that_was_encoded(open_data, cache: Path, first_stage: Run, shards: Path):
    tree = compose("encode", encoding(first_stage, shards, cache))

    encoder = Parts({**tree, "image_size": SIZE})["conditioner"].encoders()["text"]
    seen = set()
    for batch in batches(open_data(cache), 12):
        again = encoder.encode({"caption": batch["caption"]}, torch.device("cpu"))
        seen |= set(batch["caption"])
        assert torch.equal(batch["encoded"][encoder.digest]["tokens"], again["tokens"])
        assert torch.equal(batch["encoded"][encoder.digest]["mask"], again["mask"])
    assert {"a first one", "another"} <= {text.partition(" in ")[0] for text in seen}
    assert 0 < sum(text.endswith(" style") for text in seen) < len(seen)


def test_a_cache_of_other_captions_is_refused(open_data, cache: Path):
    with pytest.raises(ShardError, match=r"2 captions of .*-.*, data\.fields makes 1: encode again"):
        batches(open_data(cache, fields={"caption": Caption()}), 1)
    batches(open_data(cache, fields={}), 1)  # nothing to disagree with


@pytest.mark.parametrize("name", ["text", "clip_text"])
def test_a_condition_of_kept_embeddings_is_that_of_its_captions(name: str, make_cache, open_data):
    own = {"text": "slots=[tokens,vector]", "clip_text": f"path={clip_folder()}"}[name]
    words = [f"conditioner=[{name}]", f"conditioner.{name}.{own}", f"conditioner.{name}.memo_captions=100"]
    given = compose("encode", ["first_stage=x", "out=x", "data=quickstart", f"data.cache={make_cache(*words)}", *words])
    conditioner = Parts({**given, "image_size": SIZE})["conditioner"]
    [batch] = batches(open_data(given["data"]["cache"], horizontal_flip_prob=0.0), 1)
    captions = {"caption": batch["caption"]}
    for drop in ([False] * 4, [True] * 4, [True, False, False, True]):
        kept, made = (conditioner(given, drop={name: torch.tensor(drop)}) for given in (batch, captions))
        assert kept.keys() == made.keys() and all(torch.equal(kept[key], made[key]) for key in made)
    negative = {"caption": ["a negative prompt"] * 4}
    drop = {name: torch.ones(4, dtype=torch.bool)}
    kept, made = (conditioner(given, drop=drop, negative=negative) for given in (batch, captions))
    assert all(torch.equal(kept[key], made[key]) for key in made)


def test_an_image_embedding_is_that_of_the_image_shown_whatever_its_caption(open_data, both: Path):
    encoder = clip_image(str(clip_image_folder())).frozen
    shown = []
    for batch in batches(open_data(both, images=["low_resolution"], derived={"style": Picture(16)}), 12):
        again = encoder.encode(batch, torch.device("cpu"))["embedding"]
        torch.testing.assert_close(batch["encoded"][encoder.digest]["embedding"], again)
        shown += zip(batch["key"], batch["caption"], (tuple(row.tolist()) for row in again), strict=True)
    of_two = [(key, caption, row) for key, caption, row in shown if caption.startswith(("a first one", "another"))]
    assert len({caption for _, caption, _ in of_two}) >= 2 and len({key for key, _, _ in of_two}) == 1
    assert len({row for _, _, row in shown}) > len({key for key, _, _ in shown}), "some were mirrored"


def test_images_have_a_row_for_each_sample_and_texts_one_for_each_choice(both: Path):
    encoders = {name: facts["digest"] for name, facts in read_manifest(both)["encoders"].items()}
    rows = load_file(next(both.glob("train-2-*")))
    plain, mirrored = (rows[f"image.{encoders['clip_image']}.embedding{end}"] for end in ("", ".mirrored"))
    assert plain.shape == mirrored.shape == (4, 6) and not torch.equal(plain, mirrored)
    assert rows[f"{encoders['t5']}.tokens"].shape == (10, 8, 8)  # five captions, each with and without a style


@pytest.mark.parametrize(("has", "read", "needed"), [
    ("both", ["clip_image"], False), ("both", ["clip_image", "low_resolution"], True), ("cache", ["clip_image"], True),
])  # fmt: skip
def test_images_are_needed_where_the_cache_leaves_a_question(has, read, needed, shards: Path, request):
    folder, encoder = request.getfixturevalue(has), clip_image(str(clip_image_folder())).frozen
    data = ShardData(f"{shards}/train-*.tar", SIZE, 4, cache=str(folder))
    facts = {**encoder.describe(), "pixels": 16}
    left = data.read_cache(read_manifest(folder)["first_stage"], {"clip_image": facts}, read)
    assert data.images == needed and left == ([] if has == "both" else ["clip_image"])


def test_captions_need_not_be_read(open_data, cache: Path):
    with_captions = batches(open_data(cache), 4)
    without = batches(open_data(cache, fields={}), 4)
    assert [batch["key"] for batch in with_captions] == [batch["key"] for batch in without]
    assert "caption" not in without[0] and without[0]["encoded"].keys() == with_captions[0]["encoded"].keys()


def test_bad_samples_beyond_the_limit_end_the_run(open_data, cache: Path):
    with pytest.raises(TooManyBadSamples, match=r"broken image: train-1\.tar"):
        batches(open_data(cache, max_bad_fraction=0.0), 20)


def test_a_cut_file_is_named(open_data, make_cache):
    out = make_cache("conditioner=[]", "flips=true")
    file = next(out.glob("train-0-*"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ShardError, match=rf"{file.name} is damaged .*encode again"):
        batches(open_data(out), 12)


def rewritten(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """A file of a cache with other numbers in it, under the label it has."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    arrays = {name: array.clone() for name, array in load_file(path).items()}  # it maps the file
    change(arrays)
    save_file(arrays, path, metadata)


def exchange_rows(arrays: dict[str, torch.Tensor]) -> None:
    arrays["moments"][[0, 1]] = arrays["moments"][[1, 0]]


def exchange_rows_and_sums(arrays: dict[str, torch.Tensor]) -> None:
    exchange_rows(arrays)
    arrays["sums.moments"][[0, 1]] = arrays["sums.moments"][[1, 0]]


def flip_a_bit(arrays: dict[str, torch.Tensor]) -> None:
    for name in ("moments", "moments.mirrored"):
        arrays[name].view(torch.int32)[3, 0, 0, 0] ^= 1


def flip_a_bit_of_a_token(arrays: dict[str, torch.Tensor]) -> None:
    [name] = [name for name in arrays if name.endswith(".tokens") and not name.startswith("sums.")]
    arrays[name].view(torch.int32)[2] ^= 1


@pytest.fixture
def own_cache(cache: Path, tmp_path: Path) -> Path:
    """A copy, for one who changes it."""
    return Path(shutil.copytree(cache, tmp_path / "cache"))


@pytest.mark.parametrize("change", [exchange_rows, exchange_rows_and_sums, flip_a_bit, flip_a_bit_of_a_token])
def test_rows_that_were_exchanged_or_changed_are_noticed_when_they_are_read(open_data, own_cache: Path, change):
    file = next(own_cache.glob("train-0-*"))
    rewritten(file, change)
    data, images = ("tokens" if "token" in change.__name__ else "moments"), open_data(own_cache)
    with pytest.raises(ShardError, match=rf"{file.name}: row \d of .*{data} is not as it was written"):
        batches(images, 12)


def test_a_file_of_another_shard_or_cache_is_noticed(open_data, own_cache: Path, make_cache):
    one, other = (next(own_cache.glob(f"train-{number}-*")) for number in (0, 2))
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    with pytest.raises(ShardError, match=rf"{one.name}: it was written as {other.name}"):
        batches(open_data(own_cache), 12)
    otherwise = next(make_cache("flips=true", "precision=fp16").glob("train-0-*"))
    one.write_bytes(otherwise.read_bytes())
    with pytest.raises(ShardError, match=rf"{one.name}: it is of a cache that was made otherwise"):
        batches(open_data(own_cache), 12)
    one.write_bytes(content)
    batches(open_data(own_cache), 12)


def test_all_of_a_cache_is_read_again_on_demand(cache: Path, own_cache: Path):
    assert not any(verdict.problem or verdict.note for verdict in verify(str(cache)))
    file = next(own_cache.glob("train-0-*"))
    rewritten(file, lambda arrays: arrays["size"].add_(1))
    assert [(v.path, v.problem) for v in verify(str(own_cache)) if v.problem] == [
        (file, f"{file} is not as it was written; delete it and encode again")
    ]


def test_a_cache_from_before_there_were_labels_is_read(open_data, cache: Path, own_cache: Path):
    def forget(arrays: dict[str, torch.Tensor]) -> None:
        for name in [name for name in arrays if name.startswith(("sums.", "label"))]:
            del arrays[name]

    for file in own_cache.glob("*.safetensors"):
        rewritten(file, forget)
    manifest = own_cache / "cache.json"
    manifest.write_text(json.dumps({k: v for k, v in json.loads(manifest.read_text()).items() if k != "seal"}))
    for one, other in zip(batches(open_data(cache), 12), batches(open_data(own_cache), 12), strict=True):
        assert torch.equal(one["moments"], other["moments"])


def test_a_manifest_that_was_edited_or_is_none_is_one_line(open_data, own_cache: Path):
    manifest = own_cache / "cache.json"
    text = manifest.read_text()
    for broken in (text.replace('"flips": true', '"flips": false'), "[" * 100_000, "[1]", "{}", "3", "", text[:-9],
                   text.replace('"crop": "centre"', '"crop": 3'), text.replace('"digest"', '"digits"')):  # fmt: skip
        manifest.write_text(broken)
        with pytest.raises(ValueError, match=r"data\.cache=.*cache\.json is damaged \(.*\); encode again") as error:
            read_manifest(own_cache)
        assert "\n" not in str(error.value)


# What is refused


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("image_size=64",), "made with image_size=32, this run has image_size=64"),
        (("data.random_crop=true",), "data.random_crop=true"),
        (("task.keep_latents=true", "data.horizontal_flip_prob=0.0"), "task.keep_latents keeps .* data.cache has"),
        (("conditioner.text.max_tokens=12",), "conditioner.text: .*max_tokens is 16 there and 12 here"),
    ],
)
def test_a_cache_that_is_not_the_run_s_is_refused_by_what_differs(train_on, cache: Path, change, named: str):
    with pytest.raises(ValueError, match=named):
        train_on(cache, *change)


def test_another_first_stage_is_refused(other_first_stage: Run, shards: Path, cache: Path, tmp_path: Path):
    given = (*of(shards), *RUN, f"data.cache={cache}", f"first_stage={other_first_stage.folder}")
    with pytest.raises(ValueError, match="made with first_stage="):
        train("quickstart/diffusion", tmp_path, *given)


def test_a_first_stage_does_not_train_on_latents(cache: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"data\.cache: a first stage trains on images"):
        train("quickstart/autoencoder", tmp_path, f"data.cache={cache}")


def test_other_data_is_refused(train_on, cache: Path, shards: Path, tmp_path: Path):
    stranger = write_shard(tmp_path / "stranger.tar", QUICKSTART / "train-00000.tar", 40, 8)
    with pytest.raises(ValueError, match=r"nothing of the shard stranger\.tar"):
        train_on(cache, f"data.train={stranger}")
    changed = write_shard(tmp_path / "train-0.tar", QUICKSTART / "train-00000.tar", 40, 8)
    with pytest.raises(ValueError, match=r"another content of the shard train-0\.tar"):
        train_on(cache, f"data.train={changed}")
    with pytest.raises(ValueError, match="no cache there"):
        train_on(tmp_path)


def test_mirror_images_that_are_not_there_are_refused(train_on, make_cache):
    with pytest.raises(ValueError, match=r"data\.horizontal_flip_prob=0\.5: .*flips=true"):
        train_on(make_cache("flips=false"))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("conditioner=[label]", "conditioner=label: has no frozen encoder"),
        ("data.random_crop=true", "data.random_crop=true"),
        ("precision=fp8", "precision=.fp8"),
        ("flips=true", "made with flips=False"),
        ("conditioner=[clip_image] conditioner.clip_image.path=CLIP", r"reads 'style', .*derived=\["),
        ("first_stage=null conditioner=[]", "first_stage: without one there are no latents"),
        ("first_stage=null", "image_size: has to be given"),
    ],
)
def test_what_cannot_be_encoded_is_refused(first_stage: Run, shards: Path, make_cache, change: str, named: str):
    out = make_cache("flips=false", "conditioner=[]") if change.startswith("flips") else shards / "refused"
    nothing = [] if change == "first_stage=null" else ["conditioner=[]"]
    words = encoding(first_stage, shards, out, *nothing, *change.replace("CLIP", str(clip_image_folder())).split())
    with pytest.raises(ValueError, match=named):
        encode(compose("encode", words))


def test_styles_of_another_size_are_others(train_on, both: Path, make_cache):
    chosen = (*t5_and_clip_image(), "~conditioner.text")
    with pytest.raises(ValueError, match=r"conditioner\.clip_image: pixels is 16 there and 24 here"):
        train_on(both, *[word for word in chosen if not word.startswith("derived.style")], "derived.style.size=24")
    shown = [word for word in chosen if not word.startswith("derived")]
    with pytest.raises(ValueError, match=r"conditioner\.clip_image: pixels is 16 there and None here"):
        train_on(both, *shown, "derived=[window]")


def test_a_model_of_pixels_has_its_embeddings_from_a_cache(shards: Path, tmp_path: Path):
    words = ["data=quickstart", f"out={tmp_path}/cache", "device=cpu", f"image_size={SIZE}", "precision=fp32"]
    encode(compose("encode", [*words, *of(shards), *TEXT]))
    [names] = {tuple(load_file(path)) for path in (tmp_path / "cache").glob("train-*")}
    assert not any(name.startswith("moments") for name in names)
    own = (*of(shards), *RUN, "data.random_crop=true")
    images = train("quickstart/diffusion", tmp_path, *own, run="images")
    cached = train("quickstart/diffusion", tmp_path, *own, f"data.cache={tmp_path}/cache", run="cached")
    assert_equal_runs(cached.folder, images.folder, step=6)


# Vector quantisation


@pytest.fixture(scope="module")
def vq_stage(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("vq")
    return train("quickstart/autoencoder", folder, "regularizer=vq", "regularizer.num_codes=32")


def test_features_before_quantisation_are_kept_and_codes_on_demand(vq_stage: Run, shards: Path, tmp_path: Path):
    stage = load_first_stage(vq_stage.folder)
    found = {}
    for codes in ("false", "true"):
        words = encoding(vq_stage, shards, tmp_path / codes, "conditioner=[]", f"codes={codes}")
        encode(compose("encode", words))
        data = ShardData(f"{shards}/train-*.tar", SIZE, 4, cache=str(tmp_path / codes), max_bad_fraction=0.1)
        data.read_cache(stage.spec.fingerprint, {}, images=["low_resolution"])
        found[codes] = next(iter(data.train_loader()))
    features, codes = moments_of(stage, found["false"]), moments_of(stage, found["true"])
    assert torch.equal(features, stage.moments(found["false"]["image"]))
    assert torch.equal(codes, stage.regularizer.quantise(features)) and not torch.equal(codes, features)
    assert found["true"]["codes"].dtype == torch.int16 and "moments" not in found["true"]


def test_a_first_stage_without_codes_is_named(first_stage: Run, shards: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"codes=true: .*regularizer=vq"):
        encode(compose("encode", encoding(first_stage, shards, tmp_path, "codes=true")))


# Stopped and started again


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_folder_that_another_process_encodes_into_is_refused(first_stage: Run, shards: Path, tmp_path: Path):
    with held(tmp_path, "encoding into"), pytest.raises(FolderHeld, match=f"is encoding into {tmp_path}"):
        encode(compose("encode", encoding(first_stage, shards, tmp_path)))
    assert list(tmp_path.iterdir()) == []


def test_it_goes_on_where_it_was(first_stage: Run, shards: Path, make_cache, capsys: pytest.CaptureFixture):
    out = make_cache("flips=false")
    before, times = contents(out), {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    lost = next(out.glob("train-1-*"))
    lost.unlink()
    (out / f".writing-1-{lost.name}").write_bytes(b"half of it")
    capsys.readouterr()
    encode(compose("encode", encoding(first_stage, shards, out, "flips=false")))
    assert contents(out) == before
    assert "27 samples of 4 shards, 1 of them bad" in capsys.readouterr().out
    kept = {name for name, time in times.items() if (out / name).stat().st_mtime_ns == time}
    assert {name for name in before if name.endswith(".safetensors")} - kept == {lost.name}


@pytest.mark.slow
def test_two_processes_and_kills_give_the_same_files(first_stage: Run, shards: Path, make_cache, tmp_path: Path):
    whole = make_cache("flips=false")
    arguments = encoding(first_stage, shards, tmp_path / "cache", "flips=false")
    process = Process(["scripts/encode.py", *arguments], tmp_path / "killed.txt")
    while not list((tmp_path / "cache").glob("*.safetensors")):
        assert process._process.poll() is None, process.said
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) < 4
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    process = Process([*torchrun, "scripts/encode.py", *arguments], tmp_path / "finished.txt")
    assert process.wait() == 0, process.said
    assert contents(tmp_path / "cache") == contents(whole)


@pytest.mark.slow
def test_two_ranks_on_a_cache_are_one_process(train_on, first_stage: Run, shards: Path, cache: Path, tmp_path: Path):
    own = (*RUN, "optimizer.eps=0.1", "trainer.gradient_clip_val=0.1", f"data.cache={cache}", *of(shards))
    one = train_on(cache, *own, run="one")
    two = ("trainer.devices=2", "trainer.strategy=ddp", "run=two", f"first_stage={first_stage.folder}")
    process = Process(["train.py", *tiny("quickstart/diffusion", tmp_path, *own, *two)], tmp_path / "two.txt")
    assert process.wait() == 0, process.said
    assert [row[:2] for row in losses(tmp_path / "two")] == [row[:2] for row in losses(one.folder)]
    for name in ("train/loss", "validation/loss"):
        assert curve(tmp_path / "two", name) == pytest.approx(curve(one.folder, name), abs=1e-6)
