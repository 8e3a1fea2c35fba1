"""Bad shards and bad samples: every run ends; what is kept and what is skipped make up the index, each skip named by
kind, shard and key; a spoilt shard is refused by name; no picture ever has another's caption.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chaoses import bad_pictures as bad
from chaoses.outcome import Outcome
from ldm.data.errors import ShardError, TooManyBadSamples
from ldm.data.fields import Caption
from ldm.data.module import ShardData
from ldm.data.writing import write_shard

GOAL = "bad inputs of 17 kinds: the run ends, kept + skipped = index, every skip named, no wrong pair"
RUNS = 1000
NUM_SHARDS = 3
SHARD_SAMPLES = 8
BLOCK = 512

# Functions that corrupt one sample of a shard, and the kinds of skip expected; none: the sample has to be kept.
SAMPLES: dict[str, tuple[Callable[..., bad.Sample], set[str]]] = {
    "truncated image": (bad.truncated_image, {"broken image"}),
    "cmyk": (bad.cmyk, set()),
    "sixteen bit": (bad.sixteen_bit, set()),
    "palette": (bad.palette, set()),
    "animation": (bad.animation, set()),
    "exif rotation": (bad.rotated, set()),
    "decompression bomb": (bad.bomb, {"too many pixels"}),
    "bad caption": (bad.bad_caption, {"missing caption", "not utf-8", "broken json"}),
    "long caption": (bad.long_caption, set()),
    "missing member": (bad.missing_member, {"missing member"}),
    "path trick": (bad.path_trick, set()),
}


def run(runs: int, rng: random.Random, folder: Path) -> Outcome:
    """A small data set for each trial, with one fault in it."""
    outcome = Outcome()
    kinds = [*SAMPLES, *SHARDS]
    skips = refusals = 0
    for trial in range(runs):
        kind = kinds[trial % len(kinds)]
        numbers = rng.sample(range(1, 1 << bad.CELLS**2), NUM_SHARDS * SHARD_SAMPLES)
        samples = [bad.sample(number, rng.choice(["jpg", "png", "webp"])) for number in numbers]
        decoder = rng.choice(["pil", "fast"])
        num_workers = 2 if trial % 50 < 2 else 0
        if kind in SHARDS:
            problems = _refused(folder, samples, SHARDS[kind], rng)
            refusals += 1
        else:
            spoil, skip_kinds = SAMPLES[kind]
            place = rng.randrange(len(samples))
            samples[place] = spoil(samples[place], numbers[place], rng)
            problems = _read(folder, samples, samples[place]["__key__"], skip_kinds, decoder, num_workers)
            skips += bool(skip_kinds)
        outcome.note(f"trial {trial}, {kind}, decoder {decoder}", problems)
    outcome.facts.append(f"{len(kinds)} kinds; {skips} samples to be skipped, {refusals} shards to be refused")
    return outcome


def _write(folder: Path, samples: list[bad.Sample]) -> list[Path]:
    paths = [folder / f"train-{place}.tar" for place in range(NUM_SHARDS)]
    for place, path in enumerate(paths):
        write_shard(path, samples[place * SHARD_SAMPLES : (place + 1) * SHARD_SAMPLES])
    return paths


def _data(folder: Path, **options: Any) -> ShardData:
    fields = {"caption": Caption()}
    return ShardData(f"{folder}/train-*.tar", image_size=bad.SIZE, batch_size=6, fields=fields, **options)


def _read(
    folder: Path, samples: list[bad.Sample], key: str, kinds: set[str], decoder: str, num_workers: int
) -> list[str]:
    """Read one epoch in any order and once more in training's order; returns what is wrong with either."""
    _write(folder, samples)
    data = _data(folder, max_bad_fraction=0.1, decoder=decoder, num_workers=num_workers)
    kept: list[str] = []
    problems = []
    for batch in data.statistics_loader():
        problems += _wrong_pairs(batch)
        kept += batch["key"]
    skipped = data.skipped
    if len(kept) + len(skipped) != len(samples) or len(set(kept)) != len(kept):
        problems.append(f"{len(kept)} kept and {len(skipped)} skipped of {len(samples)}")
    if [row["key"] for row in skipped] != ([key] if kinds else []):
        problems.append(f"skipped {skipped}, where {key} was spoilt")
    if any(row["kind"] not in kinds or not row["shard"].startswith("train-") for row in skipped):
        problems.append(f"skipped as {skipped}")
    for number, batch in enumerate(data.train_loader()):
        problems += _wrong_pairs(batch)
        if number == len(samples) // data.batch_size:
            break
    return problems + (_stops(folder, key, decoder) if kinds else [])


def _wrong_pairs(batch: dict[str, Any]) -> list[str]:
    pairs = zip(batch["image"].numpy(), batch["caption"], strict=True)
    return [
        f"{text[:64]} is not its caption" for image, text in pairs if bad.caption_of(bad.number_in(image)) != text[:64]
    ]


def _stops(folder: Path, key: str, decoder: str) -> list[str]:
    """If no bad sample is allowed, the run must end and list them."""
    try:
        list(_data(folder, max_bad_fraction=0.0, decoder=decoder).statistics_loader())
    except TooManyBadSamples as error:
        return [] if key in str(error) else [f"the list does not name {key}: {error}"]
    return ["it did not stop"]


# -- shards ----------------------------------------------------------------------------------------------------------


def _refused(folder: Path, samples: list[bad.Sample], spoil: Callable[..., Path], rng: random.Random) -> list[str]:
    """The corrupt shard must be named before anything is read."""
    path = spoil(_write(folder, samples), samples, rng)
    try:
        _data(folder).setup()
    except ShardError as error:
        return [] if path.name in str(error) else [f"{path.name} is not named: {error}"]
    return [f"{path.name} was taken"]


def _content_blocks(content: bytes) -> int:
    return len(content.rstrip(b"\0")) // BLOCK


def _truncated(paths: list[Path], samples: list[bad.Sample], rng: random.Random) -> Path:
    """Cut at a block's boundary, or anywhere."""
    path = rng.choice(paths)
    content = path.read_bytes()
    size = rng.randrange(1, _content_blocks(content)) * BLOCK
    path.write_bytes(content[: size + (rng.randrange(1, BLOCK) if rng.random() < 0.5 else 0)])
    return path


def _damaged_header(paths: list[Path], samples: list[bad.Sample], rng: random.Random) -> Path:
    """Four bytes of a member's header are changed. (Two errors that cancel in its sum would pass: tar has no more.)"""
    path = rng.choice(paths)
    content = bytearray(path.read_bytes())
    headers = [at for at in range(0, len(content), BLOCK) if content[at + 257 : at + 262] == b"ustar"]
    start = rng.choice(headers) + rng.randrange(0, 148)
    before = sum(content)
    while sum(content) == before:
        content[start : start + 4] = rng.randbytes(4)
    path.write_bytes(content)
    return path


def _zero_blocks(paths: list[Path], samples: list[bad.Sample], rng: random.Random) -> Path:
    """A hole, from a header on: a reader that trusts zeros would believe that the archive ends there."""
    path = rng.choice(paths)
    content = bytearray(path.read_bytes())
    headers = [at for at in range(BLOCK, len(content), BLOCK) if content[at + 257 : at + 262] == b"ustar"]
    start = rng.choice(headers[:-1])
    stop = rng.choice([at for at in headers if at > start])
    content[start:stop] = bytes(stop - start)
    path.write_bytes(content)
    return path


def _empty(paths: list[Path], samples: list[bad.Sample], rng: random.Random) -> Path:
    """No bytes, or zeros that are no end of an archive: that alone would be a shard without samples, passed over."""
    path = rng.choice(paths)
    path.write_bytes(bytes(rng.choice([0, 100, 512])))
    return path


def _cut_before_same_key(paths: list[Path], samples: list[bad.Sample], rng: random.Random) -> Path:
    """A shard ends after the image of its last sample, and the next begins with a sample of the same key."""
    cut = [dict(sample) for sample in samples[:SHARD_SAMPLES]]
    cut[-1]["__key__"] = samples[SHARD_SAMPLES]["__key__"]
    write_shard(paths[0], cut)
    content = paths[0].read_bytes()
    headers = [at for at in range(0, len(content), BLOCK) if content[at + 257 : at + 262] == b"ustar"]
    paths[0].write_bytes(content[: headers[-1]])
    return paths[0]


def _duplicate_key(paths: list[Path], samples: list[bad.Sample], rng: random.Random) -> Path:
    """Two samples of one shard have one key."""
    place = rng.randrange(NUM_SHARDS)
    shard = [dict(sample) for sample in samples[place * SHARD_SAMPLES : (place + 1) * SHARD_SAMPLES]]
    one, other = rng.sample(range(SHARD_SAMPLES), 2)
    shard[one]["__key__"] = shard[other]["__key__"]
    write_shard(paths[place], shard)
    return paths[place]


SHARDS: dict[str, Callable[..., Path]] = {
    "truncated tar": _truncated,
    "damaged header": _damaged_header,
    "zero blocks": _zero_blocks,
    "empty tar": _empty,
    "cut shard before its key": _cut_before_same_key,
    "duplicate key": _duplicate_key,
}
