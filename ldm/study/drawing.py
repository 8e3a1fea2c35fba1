"""The pictures of a model for a set of prompts, as files, and their scores; what is there is not made again.

Picture n of prompt p has noise p N + n of the seed, N pictures a prompt, whatever the model and the process.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from ldm.config.registry import root
from ldm.data.transforms import to_tensor
from ldm.drawer import Drawer, batched, turns_of
from ldm.errors import UserError
from ldm.files import discard, read_json, write_json
from ldm.generate import Ask
from ldm.measuring import Ranks, in_rounds
from ldm.networks.precision import precision_told
from ldm.provenance.recipe import Recipes
from ldm.sampling import Sampling
from ldm.study.names import INDEX, file_name
from ldm.study.prompt_set import Prompt
from ldm.training.distributed import broadcast, collect, together

DRAWN = "drawn.json"  # what the pictures of a folder depend on
SCORES = "scores.json"


def sampling_of(model: Drawer, tree: Mapping[str, Any]) -> Sampling:
    """How `tree` (conf/prompt_suite.yaml, of guidance what was asked for) says to sample, with a prompt and no more.

    Raises UserError for a model that reads no text or needs more than that, and for guidance that it does not have.
    """
    sampling = model.sampling(tree)
    read = model.conditions(sampling)
    if not any("caption" in fields for fields in read.values()):
        has = f"its conditions are {', '.join(read)}" if read else "it has no conditions that are used"
        raise UserError(f"models: {model.name} reads no prompt; {has}")
    for name, field in model.missing({"caption": [""]}, sampling).items():
        raise UserError(
            f"models: {model.name} needs {field!r} beside a prompt (conditioner.{name}), which a set of prompts does "
            "not give; use_conditions= names those to sample with"
        )
    model.left_out(sampling)
    return sampling


def identity_of(model: Drawer, tree: Mapping[str, Any], prompts: Sequence[Prompt]) -> str:
    """What the pictures depend on; those of another identity are drawn again."""
    keys = ("sampler", "sigmas", "guidance", "num_steps", "use_conditions", "num_images", "seed")
    facts = {"weights": [weights.digest for weights in model.weights], "prompts": [p.prompt for p in prompts]}
    settings = {"settings": model.settings} if model.settings else {}
    return digest({**facts, **settings, **precision_told(tree["precision"]), **{key: tree[key] for key in keys}})


def begin(suite: Path, name: str, identity: str) -> Path:
    """Make the folder of pictures of this name and identity in `suite`, without any of another; returns it.

    Where there are others, the suite's index goes with them: it has their scores. Raises UserError for files of others.
    """
    folder = suite / "images" / name
    note = folder / DRAWN
    if note.exists() and read_json(note).get("identity") == identity:
        return folder
    if folder.exists() and not note.exists() and any(folder.iterdir()):
        raise UserError(f"out: {folder} has files of another kind, which stay; say another out=")
    if folder.exists():
        (suite / INDEX).unlink(missing_ok=True)
        discard(folder)
    write_json(note, {"identity": identity})
    return folder


def missing(folder: Path, jobs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Those of the `jobs`, (place of a prompt, number of a picture), that have no file."""
    return [job for job in jobs if not (folder / file_name(*job)).exists()]


def draw(
    model: Drawer, path: str, sampling: Sampling, prompts: Sequence[Prompt], jobs: Sequence[tuple[int, int]],
    folder: Path, tree: Mapping[str, Any], device: torch.device,
) -> Iterator[int]:  # fmt: skip
    """Write the pictures of `jobs` by the model at `path`, with their recipes, batch by batch; yields how many are new.

    Raises NotFinite, which names the prompts, for a batch with some that are not.
    """
    rows = [{"caption": prompt.prompt} for prompt in prompts]
    recipes, size = Recipes(model, rows, sampling, _as_sample_py(tree, path, rows), device, folder), tree["batch_size"]

    def ask(part: Sequence[tuple[int, int]]) -> Ask:
        numbers = torch.tensor([place * tree["num_images"] + number for place, number in part], device=device)
        return Ask(sampling, {"caption": [prompts[place].prompt for place, _ in part]}, numbers, tree["seed"])

    for several in batched(list(batched(jobs, size)), turns_of(model)):
        asks = [ask(part) for part in several]
        for part, own, draw in zip(several, asks, model.begun(asks), strict=True):
            images = draw().cpu()
            drawn = list(zip((place for place, _ in part), own.numbers.tolist(), strict=True))
            for at, job in enumerate(part):
                recipes.save(folder / file_name(*job), images[at], drawn, at)
            yield len(part)


def _as_sample_py(tree: Mapping[str, Any], path: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The tree of conf/sample.yaml that draws the same."""
    keys, choices = root("sample")
    shared = {key: tree[key] for key in tree if key in keys or key in choices}
    ema = "ema" if Path(path).suffix == ".yaml" else tree["ema"]
    prompts = [row["caption"] for row in rows]
    return {**keys, **dict.fromkeys(choices), **shared, "model": path, "ema": ema, "prompts": prompts, "given": {}}


@torch.no_grad()
def scores(
    folder: Path, prompts: Sequence[Prompt], num_images: int, alignment: nn.Module, facts: Any, batch_size: int,
    device: torch.device, rank: int = 0, world_size: int = 1,
) -> list[list[float]]:  # fmt: skip
    """[prompts][num_images], the alignment of each file with its prompt; `facts` are what the alignment is made of.

    Kept beside the pictures. Ranks, which call this together, score a share each; only 0 has them.
    """
    kept = folder / SCORES
    with together():
        drawn = read_json(folder / DRAWN)["identity"]
        identity = digest([drawn, [prompt.prompt for prompt in prompts], facts])
        found = read_json(kept) if rank == 0 and kept.exists() else {}
    if broadcast(found.get("identity") == identity):
        return found.get("scores", [])
    jobs = [(place, number) for place in range(len(prompts)) for number in range(num_images)][rank::world_size]
    own: dict[tuple[int, int], float] = {}
    batches = (jobs[start : start + batch_size] for start in range(0, len(jobs), batch_size))
    for part, mine in in_rounds(batches, Ranks(device, rank, world_size)):
        with together():
            if mine:
                images = to_tensor([pixels_of(folder / file_name(*job)) for job in part]).to(device)
                values = alignment(images, [prompts[place].prompt for place, _ in part]).tolist()
                own |= dict(zip(part, values, strict=True))
    with together():
        for (place, number), value in own.items():
            if not math.isfinite(value):
                raise UserError(f"{folder / file_name(place, number)}: its alignment is {value}")
    every = {job: value for share in collect(own) for job, value in share.items()}
    if rank:
        return []
    table = [[every[place, number] for number in range(num_images)] for place in range(len(prompts))]
    write_json(kept, {"identity": identity, "scores": table})
    return table


def pixels_of(file: Path) -> np.ndarray:
    """A picture that was drawn, uint8 [H, W, 3]. Raises UserError naming a file that is none."""
    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB"))
    except OSError as error:
        raise UserError(f"{file}: not a picture; delete it, and the same command draws it again") from error


def digest(facts: Any) -> str:
    """Of plain data."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
