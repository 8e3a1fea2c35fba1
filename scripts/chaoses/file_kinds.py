"""What files.py spoils: each kind of file that comes from outside, as it should be, and the code that reads it.

A kind's `read` returns what is wrong with what was read; what it may raise is a ValueError or an OSError of one line.
"""

import io
import json
import random
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import make_shards
import numpy as np
import torch
import yaml
from safetensors.torch import save as tensors_of
from untrained import untrained_run

import sample
from chaoses import bad_pictures as bad
from chaoses import mutations as spoil
from data.cache import CacheFile
from data.cache import check as check_cache
from data.decoding import DECODERS
from data.errors import BadSample
from data.fields import Caption, Embeddings, Field, Label, Layout, Mask, SemanticMap
from data.filters import Filters
from data.module import ShardData
from data.shards import ShardSet
from data.writing import write_shard
from ldm.checkpoint import foreign_file, resume
from ldm.config import compose
from ldm.ensemble import load_ensemble, write_manifest
from ldm.files import sha256
from ldm.run import load, open_run

NUMBERS = (11, 222, 3333, 4444, 55555, 60606)  # what the pictures of a shard show


@dataclass(frozen=True)
class Kind:
    """`whole` makes the file as it should be, in a folder that is empty; `read(folder, content, how)` reads it spoilt.

    `how` is the mutation that spoilt it.
    """

    whole: Callable[[random.Random], bytes]
    mutations: Sequence[spoil.Mutation]
    read: Callable[[Path, bytes, spoil.Mutation], list[str]]


# -- shards and their members ----------------------------------------------------------------------------------------


def _samples() -> list[dict[str, Any]]:
    return [bad.sample(number, ("jpg", "png", "webp")[place % 3]) for place, number in enumerate(NUMBERS)]


@cache
def _shard() -> bytes:
    path = _scratch("shard") / "x.tar"
    write_shard(path, _samples())
    return path.read_bytes()


def _data(train: str, **fields: Field) -> ShardData:
    return ShardData(train, image_size=bad.SIZE, batch_size=2, fields=fields, max_bad_fraction=1.0)


def _mispaired(data: ShardData) -> list[str]:
    """Pictures that stand with the caption of another one; a picture that was changed itself shows no number."""
    captions = {bad.caption_of(number): number for number in NUMBERS}
    wrong = []
    for batch in data.statistics_loader():
        for image, text in zip(batch["image"].numpy(), batch["caption"], strict=True):
            shown, said = bad.number_in(image), captions.get(text[:64])
            if shown in NUMBERS and said is not None and shown != said:
                wrong.append(f"the picture {shown} has the caption of {said}")
    return wrong


def _read_shard(folder: Path, content: bytes, how: spoil.Mutation) -> list[str]:
    (folder / "train-0.tar").write_bytes(content)
    wrong = _mispaired(_data(f"{folder}/train-0.tar", caption=Caption()))
    return wrong if how in spoil.IN_PLACE else []  # a member moved, or renamed with its sum, is another's in truth


def _read_member(name: str, field: Field, folder: Path, content: bytes, how: spoil.Mutation) -> list[str]:
    """The member of one sample is spoilt; the other sample has to be as it was."""
    good, spoilt = _samples()[:2]
    rest = {key: value for key, value in spoilt.items() if name not in ("jpg", "png", "webp") or key[:2] == "__"}
    write_shard(folder / "train-0.tar", [{**good, name: MEMBERS[name][0](random.Random(0))}, {**rest, name: content}])
    data = _data(f"{folder}/train-0.tar", x=field)
    kept = [key for batch in data.statistics_loader() for key in batch["key"]]
    known = {row["key"] for row in data.skipped}
    if good["__key__"] not in kept:
        return [f"{good['__key__']} was lost: {data.skipped}"]
    if len(kept) + len(known) != 2:
        return [f"{len(kept)} kept and {len(known)} skipped of 2"]
    return _told([row["reason"] for row in data.skipped])


def _told(reasons: Sequence[str]) -> list[str]:
    return [f"a memory address in {reason!r}" for reason in reasons if " at 0x" in reason]


def _picture(kind: str) -> Callable[[random.Random], bytes]:
    def make(rng: random.Random) -> bytes:
        image = bad.Image.fromarray(bad.pixels(rng.choice(NUMBERS))).convert(rng.choice(("RGB", "L")))
        options = {"progressive": True} if kind == "JPEG" and rng.random() < 0.3 else {}
        return bad.encoded(image, kind, **options)

    return make


def _label_image(rng: random.Random) -> bytes:
    values = np.kron(np.eye(4, dtype=np.uint8), np.ones((12, 12), dtype=np.uint8)) * rng.choice((1, 255))
    return bad.encoded(bad.Image.fromarray(values).convert(rng.choice(("L", "P", "1", "I;16"))))


def _objects(rng: random.Random) -> bytes:
    objects = [{"category": place, "box": [0.1 * place, 0.1, 0.5, 0.9]} for place in range(4)]
    return json.dumps({"caption": ["one", "two"], "label": 3, "objects": objects}).encode()


def _array(rng: random.Random) -> bytes:
    file = io.BytesIO()
    np.save(file, np.ones((3, 4), np.float16))
    return file.getvalue()


TEXT_FIELD = Caption(key=None, extension="txt")
# name of the member -> what it holds, how that is spoilt, the field that reads it
MEMBERS: dict[str, tuple[Callable[[random.Random], bytes], Sequence[spoil.Mutation], Field]] = {
    "mask.png": (_label_image, spoil.PNG, Mask()),
    "segmentation.png": (_label_image, spoil.PNG, SemanticMap()),
    "json": (_objects, spoil.JSON, Layout(num_classes=8)),
    "txt": (lambda rng: "ein grünes Herz\n".encode(), spoil.TEXT, TEXT_FIELD),
    "cls": (lambda rng: b"7\n", spoil.TEXT, Label(key=None, extension="cls")),
    "npy": (_array, spoil.BYTES, Embeddings(num_tokens=4)),
}


def _read_picture(folder: Path, content: bytes, how: spoil.Mutation) -> list[str]:
    wrong = []
    for name, decoder in DECODERS.items():
        try:
            pixels = decoder()(content, bad.SIZE)
        except BadSample as error:
            wrong += _told([str(error)])
        else:
            if pixels.dtype != np.uint8 or min(pixels.shape[:2]) != bad.SIZE or pixels.shape[2] != 3:
                wrong.append(f"{name}: {pixels.dtype} {pixels.shape}")
    return wrong


def _read_index(folder: Path, content: bytes, how: spoil.Mutation) -> list[str]:
    """The kept index of a shard is spoilt: it must be made anew, or be the right one."""
    path = folder / "train-0.tar"
    path.write_bytes(_shard())
    ShardSet.open([path])
    [kept] = (_cache() / "index").iterdir()
    kept.write_bytes(how(kept.read_bytes(), random.Random(content)))
    data = _data(str(path), caption=Caption())
    wrong = _mispaired(data)
    kept.unlink(missing_ok=True)
    return wrong


def _read_listing(folder: Path, content: bytes, how: spoil.Mutation) -> list[str]:
    (folder / "train-0.tar").write_bytes(_shard())
    (folder / "manifest.json").write_bytes(content)
    data = _data(f"{folder}/train-0.tar", caption=Caption())
    data.setup()
    return [] if len(data.fingerprint) == 64 else [f"the fingerprint {data.fingerprint}"]


def _listing(rng: random.Random) -> bytes:
    row = {"name": "train-0.tar", "samples": 6, "bytes": len(_shard()), "sha256": "0" * 64}
    return json.dumps(
        {"name": "x", "class_names": ["a"], "splits": {"train": {"samples": 6, "shards": [row]}}}
    ).encode()


# -- what make_shards reads ------------------------------------------------------------------------------------------

TABLE = 'image,caption,n\na.png,a red heart,1\nb.png,"two, words",2\n'


def _made(folder: Path, words: list[str]) -> list[str]:
    """Run make_shards; its own line is raised as the error it is."""
    quiet = io.StringIO()
    try:
        with redirect_stdout(quiet), redirect_stderr(quiet):
            make_shards.main([*words, f"out={folder}/out", "workers=1", "validation=0"])
    except SystemExit as stop:
        raise ValueError(str(stop)) from None
    manifest = json.loads((folder / "out" / "manifest.json").read_text())
    return _told([row["reason"] for row in manifest["skipped"]])


def _images(folder: Path) -> Path:
    images = folder / "images"
    images.mkdir()
    for name, number in (("a.png", 11), ("b.png", 222)):
        (images / name).write_bytes(bad.encoded(bad.Image.fromarray(bad.pixels(number))))
    return images


def _read_table(suffix: str, folder: Path, content: bytes, how: spoil.Mutation) -> list[str]:
    (folder / f"table{suffix}").write_bytes(content)
    return _made(folder, [f"source={folder}/table{suffix}", f"images={_images(folder)}"])


def _read_annotations(folder: Path, content: bytes, how: spoil.Mutation) -> list[str]:
    (folder / "a.json").write_bytes(content)
    return _made(folder, [f"source={_images(folder)}", f"annotations={folder}/a.json"])


def _read_folder(folder: Path, content: bytes, how: spoil.Mutation) -> list[str]:
    images = _images(folder)
    (images / "b.txt").write_bytes(b"good")
    (images / "a.txt").write_bytes(content)
    return _made(folder, [f"source={images}"])


def _jsonl(rng: random.Random) -> bytes:
    rows = [{"image": "a.png", "caption": "x", "n": [1, {"y": 2.5}]}, {"image": "b.png", "caption": ["x", "y"]}]
    return b"\n".join(json.dumps(row).encode() for row in rows)


@cache
def _parquet() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pq.write_table(pa.table({"image": ["a.png", "b.png"], "caption": ["x", "y"], "n": [1, 2]}), file)
    return file.getvalue()


def _annotations(rng: random.Random) -> bytes:
    images = [{"id": n, "file_name": f"{name}.png", "width": 48, "height": 48} for n, name in enumerate("ab", 1)]
    boxes = [{"id": n, "image_id": n, "category_id": 7, "bbox": [4, 4, 20, 20.5], "iscrowd": 0} for n in (1, 2)]
    return json.dumps({"images": images, "annotations": boxes, "categories": [{"id": 7, "name": "cat"}]}).encode()


# -- what comes with a model -----------------------------------------------------------------------------------------


@cache
def _run() -> Path:
    return untrained_run(_scratch("run") / "run")


def _copied(folder: Path, name: str, content: bytes) -> Path:
    """The untrained run with one file spoilt; hashes of weights are made right again."""
    run = folder / "run"
    for path in _run().rglob("*"):
        if path.is_file():
            copy = run / path.relative_to(_run())
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(content if path.name == name else path.read_bytes())
    if name.endswith(".safetensors"):
        description = run / "weights" / "step_00000001.json"
        told = json.loads(description.read_text())
        kind = name.split(".")[1]
        told["sha256"][kind] = sha256(run / "weights" / name)
        description.write_text(json.dumps(told))
    return run


def _read_run(name: str, folder: Path, content: bytes, how: spoil.Mutation) -> list[str]:
    model = load(_copied(folder, name, content))
    sums = [float(value.sum()) for network in model.networks for value in network.state_dict().values()]
    return [] if np.isfinite(sums).all() else ["weights that are not finite were taken"]


def _of_run(name: str) -> Callable[[random.Random], bytes]:
    return lambda rng: next(_run().rglob(name)).read_bytes()


def _read_ensemble(folder: Path, content: bytes, how: spoil.Mutation) -> list[str]:
    (folder / "e.yaml").write_bytes(content)
    load_ensemble(folder / "e.yaml")
    return []


@cache
def _ensemble() -> bytes:
    path = _scratch("ensemble") / "e.yaml"
    write_manifest(path, [_run()])
    return path.read_bytes()


def yaml_tree(content: bytes, rng: random.Random) -> bytes:
    """YAML that is still YAML, of another shape."""
    return yaml.safe_dump(spoil.tree(yaml.safe_load(content), rng)).encode()


YAML = (*spoil.TEXT, yaml_tree, yaml_tree, yaml_tree, yaml_tree)


@cache
def _checkpoint() -> Path:
    state = {"trained": {"w": torch.ones(50)}, "step": 1, "names": ["a", {"b": 2}]}
    return resume.save(_scratch("checkpoint"), 1, state, {"step": 1, "samples_seen": 4})


def _read_checkpoint(name: str, folder: Path, content: bytes, how: spoil.Mutation) -> list[str]:
    """Under hashes that are right, as an attacker would write them; a manifest is taken as it is."""
    target = folder / _checkpoint().name
    target.mkdir()
    for path in _checkpoint().iterdir():
        (target / path.name).write_bytes(content if path.name == name else path.read_bytes())
    if name != "manifest.json":
        manifest = json.loads((target / "manifest.json").read_text())
        manifest["files"][name] = sha256(target / name)
        (target / "manifest.json").write_text(resume._text(manifest))
    resume.load(target)
    return []


def _read_lineage(folder: Path, content: bytes, how: spoil.Mutation) -> list[str]:
    tree = _tree()
    run = folder / "r"
    run.mkdir()
    (run / "lineage.json").write_bytes(content)
    (run / "config.yaml").write_bytes(_of_run("config.yaml")(random.Random(0)))
    open_run({**tree, "runs_dir": str(folder), "overwrite": False}, "r")
    return []


@cache
def _tree() -> dict[str, Any]:
    from ldm.config import load_tree

    return load_tree(_run() / "config.yaml")


def _lineage(rng: random.Random) -> bytes:
    parent = {"run": "p", "checkpoint": "runs/p/checkpoints/step_00000001.ckpt", "sha256": "0", "samples_seen_total": 4}
    return json.dumps({"run": "r", "wandb_id": "r-0", "parent": parent, "finished_step": 1}).encode()


def _read_foreign(name: str, folder: Path, content: bytes, how: spoil.Mutation) -> list[str]:
    (folder / name).write_bytes(content)
    foreign_file.read(folder / name)
    return []


@cache
def _pickled() -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": {"encoder.w": torch.ones(3, 3)}, "global_step": 3}, file)
    return file.getvalue()


def _tensors(rng: random.Random) -> bytes:
    return tensors_of({"encoder.w": torch.ones(3, 3), "b": torch.zeros(2, dtype=torch.float16)}, {"format": "pt"})


# -- caches and lists ------------------------------------------------------------------------------------------------


def _cache_json(rng: random.Random) -> bytes:
    encoders = {"text": {"model": "x", "digest": "0" * 64}}
    facts = {"image_size": 48, "crop": "centre", "decoder": "pil", "first_stage": "f", "flips": True}
    return json.dumps({**facts, "encoders": encoders}).encode()


def _read_cache_json(folder: Path, content: bytes, how: spoil.Mutation) -> list[str]:
    (folder / "cache.json").write_bytes(content)
    check_cache(folder, 48, "pil", "f", {"text": {"model": "x", "digest": "0" * 64}})
    return []


def _cached_rows(rng: random.Random) -> bytes:
    rows = {"moments": torch.ones(6, 8, 6, 6), "size": torch.full((6, 2), 48, dtype=torch.int32)}
    return tensors_of(rows, {"bad": json.dumps({"2": ["broken image", "x"]})})


def _read_cached_rows(folder: Path, content: bytes, how: spoil.Mutation) -> list[str]:
    (folder / "x.safetensors").write_bytes(content)
    CacheFile(folder / "x.safetensors", [])
    return []


def _read_prompts(folder: Path, content: bytes, how: spoil.Mutation) -> list[str]:
    (folder / "p.txt").write_bytes(content)
    asked = {"prompt": None, "prompts": f"{folder}/p.txt", "num_images": 1, "batch_size": 1, "label": None}
    sample.read_conditions(asked)
    return []


def _read_excluded(folder: Path, content: bytes, how: spoil.Mutation) -> list[str]:
    (folder / "x.txt").write_bytes(content)
    _ = Filters(exclude=f"{folder}/x.txt").hashes
    return []


def _read_words(folder: Path, content: bytes, how: spoil.Mutation) -> list[str]:
    """A word of the command line."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return []
    compose("config", ["experiment=quickstart/autoencoder", text.strip("\n")])
    return []


# -- where things lie ------------------------------------------------------------------------------------------------

_folder: Path | None = None  # of what is made once, set by files.py before it forks


def begin(folder: Path) -> None:
    """Make in `folder` whatever is made once."""
    global _folder
    _folder = folder
    for make in (_shard, _parquet, _ensemble, _checkpoint, _pickled, _tree):
        make()


def _scratch(name: str) -> Path:
    path = _folder / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def _cache() -> Path:
    from data.derived import cache_folder

    return cache_folder()


KINDS: dict[str, Kind] = {
    "shard": Kind(lambda rng: _shard(), spoil.TAR, _read_shard),
    "index of a shard": Kind(lambda rng: rng.randbytes(8), spoil.BYTES, _read_index),
    "manifest of shards": Kind(_listing, spoil.JSON, _read_listing),
    "jpeg": Kind(_picture("JPEG"), spoil.JPEG, _read_picture),
    "png": Kind(_picture("PNG"), spoil.PNG, _read_picture),
    **{name.lower(): Kind(_picture(name), spoil.BYTES, _read_picture) for name in ("WEBP", "GIF", "TIFF", "BMP")},
    **{
        f"member {name}": Kind(whole, mutations, partial(_read_member, name, field))
        for name, (whole, mutations, field) in MEMBERS.items()
    },
    "csv": Kind(lambda rng: TABLE.encode(), spoil.TEXT, partial(_read_table, ".csv")),
    "jsonl": Kind(_jsonl, spoil.TEXT, partial(_read_table, ".jsonl")),
    "parquet": Kind(lambda rng: _parquet(), spoil.BYTES, partial(_read_table, ".parquet")),
    "annotations": Kind(_annotations, spoil.JSON, _read_annotations),
    "caption file": Kind(lambda rng: b"a red heart\n", spoil.TEXT, _read_folder),
    "config.yaml": Kind(_of_run("config.yaml"), YAML, partial(_read_run, "config.yaml")),
    "ensemble": Kind(lambda rng: _ensemble(), YAML, _read_ensemble),
    "description of weights": Kind(_of_run("step_00000001.json"), spoil.JSON, partial(_read_run, "step_00000001.json")),
    "weights": Kind(
        _of_run("step_00000001.ema.safetensors"), spoil.TENSORS, partial(_read_run, "step_00000001.ema.safetensors")
    ),
    "lineage": Kind(_lineage, spoil.JSON, _read_lineage),
    **{
        f"checkpoint's {name}": Kind(
            lambda rng, name=name: (_checkpoint() / name).read_bytes(), mutations, partial(_read_checkpoint, name)
        )
        for name, mutations in (("state.pt", spoil.BYTES), ("state.json", spoil.JSON), ("manifest.json", spoil.JSON))
    },
    "published pickle": Kind(lambda rng: _pickled(), spoil.BYTES, partial(_read_foreign, "x.ckpt")),
    "published tensors": Kind(_tensors, spoil.TENSORS, partial(_read_foreign, "x.safetensors")),
    "cache.json": Kind(_cache_json, spoil.JSON, _read_cache_json),
    "rows of a cache": Kind(_cached_rows, spoil.TENSORS, _read_cached_rows),
    "prompts": Kind(lambda rng: "a red heart\nein grünes Herz\n".encode(), spoil.TEXT, _read_prompts),
    "excluded": Kind(lambda rng: b"key1\n" + b"a" * 64 + b"\n", spoil.TEXT, _read_excluded),
    "word": Kind(
        lambda rng: rng.choice((b"data.train={a,b}.tar", b"optimizer.lr=1e-4", b"autoencoder.multipliers=[1,2]")),
        spoil.TEXT,
        _read_words,
    ),
}
