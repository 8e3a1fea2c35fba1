"""Scores of samples as fields of their json, for data.filters: CLIP score and aesthetics, as eDiff-I chose its data by.

A sample keeps all of its members; a shard is written whole, or not yet. Stopped and started again, it goes on.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn

from ldm.build import Parts
from ldm.config import instantiate
from ldm.data.classes import class_names
from ldm.data.decoding import PilDecoder
from ldm.data.errors import BadSample
from ldm.data.image_names import IMAGE_EXTENSIONS
from ldm.data.index import ShardIndex, read_index
from ldm.data.members import read_object, read_text
from ldm.data.paths import expand
from ldm.data.shards import MemberReader
from ldm.data.transforms import View, to_tensor
from ldm.data.writing import write_manifest, write_shard
from ldm.device import choose
from ldm.errors import UserError
from ldm.files import read_json, write_json
from ldm.holding import held
from ldm.measuring import Ranks
from ldm.training.distributed import gather_objects, process_group, together

Score = Callable[[Tensor, list[str]], Tensor]
PARTS = ".scored"  # of a shard that is done: its row of the manifest
NOTE = "scores.json"


def score_shards(tree: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Write the shards of `tree` (conf/score_shards.yaml) with scores; their folder, and its manifest (on rank 0)."""
    named = expand(tree["shards"], "shards")
    shards = [path for path in named if isinstance(path, Path)]
    if len(shards) < len(named):
        raise UserError(f"shards={tree['shards']}: have to be local files, of which others are written")
    if len({path.name for path in shards}) < len(shards):
        raise UserError(f"shards={tree['shards']}: two are called the same, and would be written into one file")
    out = Path(tree["out"]).expanduser()
    if out.resolve() in {path.parent.resolve() for path in shards}:
        raise UserError(f"out={out}: the shards lie there themselves; name another folder")
    device = choose(tree["device"])
    with process_group(device) as (rank, world_size), ExitStack() as stack:
        with together():
            scores, names = _scores(tree, device)
            made = {"scores": names, "image_size": tree["image_size"], "caption": tree["caption"]}
            if rank == 0:
                stack.enter_context(held(out, "writing into"))
                _begin(out, made)
        with together():
            mine = shards[rank::world_size]
            with Progress(disable=rank != 0) as bars:
                for path in bars.track(mine, description="scoring"):
                    if not _is_done(out, path):
                        row = write_shard(out / path.name, _scored(read_index(path), scores, tree, Ranks(device)))
                        write_json(out / f"{path.name}{PARTS}", {"of": str(path.resolve()), "row": row})
        gather_objects(None)  # rank zero holds the folder until all have written
        if rank:
            return out, {}
        rows = [read_json(out / f"{path.name}{PARTS}")["row"] for path in shards]
        manifest = {
            "samples": sum(row["samples"] for row in rows),
            "class_names": class_names([str(path) for path in shards]),
            "splits": {"all": {"samples": sum(row["samples"] for row in rows), "shards": rows}},
            "made_with": made,
        }
        write_manifest(out, manifest)
        return out, manifest


def _is_done(out: Path, path: Path) -> bool:
    """Whether a shard has its scores in the folder. Raises UserError for another shard of its name that has."""
    part = out / f"{path.name}{PARTS}"
    if not part.exists():
        return False
    scored = read_json(part)["of"]
    if scored != str(path.resolve()):
        raise UserError(f"out={out}: {path.name} there is {scored} with scores, and not {path}; name another folder")
    return True


def _scores(tree: dict[str, Any], device: torch.device) -> tuple[dict[str, Score], dict[str, str]]:
    """{field: what gives [B] of images and captions}, and the networks' names."""
    parts = Parts(tree)
    scores: dict[str, Score] = {}
    names: dict[str, str] = {}
    if tree["alignment"] is not None:
        alignment: nn.Module = instantiate(tree["alignment"], parts, "alignment").to(device)
        scores[alignment.metric], names[alignment.metric] = alignment, alignment.name
    if tree["aesthetic"] is not None:
        aesthetic: nn.Module = instantiate(tree["aesthetic"], parts, "aesthetic").to(device)
        scores[aesthetic.metric] = lambda images, captions: aesthetic(images)
        names[aesthetic.metric] = aesthetic.name
    return scores, names


def _begin(out: Path, made: Mapping[str, Any]) -> None:
    """Note what the scores are made with. Raises UserError where the folder holds other scores."""
    there = read_json(out / NOTE) if (out / NOTE).exists() else made
    if there != made:
        raise UserError(f"out={out}: holds scores made with {there}, these are with {made}; name another folder")
    write_json(out / NOTE, made)


@torch.no_grad()
def _scored(shard: ShardIndex, scores: Mapping[str, Score], tree: Mapping[str, Any], ranks: Ranks) -> Iterator[dict]:
    """The samples of a shard in their order, with scores where there are an image and what else these need."""
    reader, size = MemberReader(), tree["batch_size"]
    for first in range(0, len(shard), size):
        samples = [_sample(reader, shard, place) for place in range(first, min(first + size, len(shard)))]
        seen = [(sample, *_shown(sample, tree)) for sample in samples]
        good = [(sample, image, caption) for sample, image, caption in seen if image is not None]
        if good:
            images = to_tensor([image for _, image, _ in good]).to(ranks.device)
            captions = [caption for _, _, caption in good]
            found = {name: score(images, captions).float().cpu().tolist() for name, score in scores.items()}
            for place, (sample, _, _) in enumerate(good):
                facts = {**_facts(sample), **{name: round(values[place], 6) for name, values in found.items()}}
                sample["json"] = json.dumps(facts, ensure_ascii=False).encode("utf-8", "backslashreplace")
        yield from samples


def _sample(reader: MemberReader, shard: ShardIndex, place: int) -> dict[str, Any]:
    return {"__key__": shard.keys[place], **reader.read(shard, place, shard.members(place))}


def _shown(sample: Mapping[str, Any], tree: Mapping[str, Any]) -> tuple[Any, str]:
    """The square uint8 [H, W, 3] that is scored, and the caption; no square for a sample that has not both."""
    side = tree["image_size"]
    try:
        image = next(sample[name] for name in IMAGE_EXTENSIONS if name in sample)
        facts, caption = _facts(sample), ""
        if tree["alignment"] is not None:
            said: Any = read_text(sample["txt"]) if tree["caption"] is None else facts[tree["caption"]]
            caption = str(said[0] if isinstance(said, list) else said).strip()
        return View().crop(PilDecoder()(image, side), side), caption
    except (BadSample, StopIteration, KeyError, IndexError):
        return None, ""


def _facts(sample: Mapping[str, Any]) -> Mapping[str, Any]:
    """The json's entries. BadSample for what could not be written as it was: no object, or a key twice."""
    return read_object(sample["json"]) if "json" in sample else {}
