"""Style transfer (eDiff-I, arXiv 2211.01324, figure 16) as a sheet and in numbers: samples of a text with a picture for
their style, beside the same samples without it.

"The same" is from the same noise, under the same guidance; only the condition that reads the picture is dropped.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn

from ldm.build import Parts
from ldm.config import instantiate
from ldm.data.decoding import read_picture
from ldm.data.module import ShardData
from ldm.data.transforms import View
from ldm.device import choose
from ldm.drawer import Drawer, batched, turns_of
from ldm.errors import UserError
from ldm.evaluation.intervals import mean_interval
from ldm.evaluation.samples_of import samples_of
from ldm.evaluation.stand_ins import said_of
from ldm.evaluation.table import write_csv
from ldm.generate import Ask
from ldm.given_files import content_of, naming, reader_of
from ldm.holding import held
from ldm.loading import load_drawer
from ldm.measuring import alignment_key, conditions
from ldm.prompts import read_prompts
from ldm.report.sheet import labelled_sheet
from ldm.request import asked_guidance
from ldm.sampling import Sampling
from ldm.training.loggers import log_summary

Row = dict[str, Any]
STYLE, CAPTION = "style", "caption"  # the fields of a batch
MOST = 8  # rows of the sheet, and columns of styles


class Made(NamedTuple):
    """Samples of N prompts, K of each: plain [N, K, 3, H, W], and under M styles [N, M, K, 3, H, W]; in [-1, 1]."""

    plain: Tensor
    styled: Tensor


@torch.no_grad()
def style_sheet(tree: dict[str, Any], words: Sequence[str] = ()) -> tuple[list[Row], Path]:
    """Sample the model of `tree` (conf/style_sheet.yaml, which `words` made): rows of the table, and their folder.

    The rows are `similarity/...` of samples to their own reference and `alignment.../...` with their own text: under
    the style, without it, the difference, each a mean over all pairs with its 95 % interval over prompts; and what they
    are of the other references and of another text.
    """
    for key in ("num_images", "num_prompts", "num_styles", "batch_size"):
        if tree[key] is not None and tree[key] < 1:
            raise UserError(f"{key}={tree[key]}: must be at least 1")
    files = [tree["styles"]] if isinstance(tree["styles"], str) else tree["styles"] or []
    contents = {file: content_of("styles", file) for file in files}
    prompts = read_prompts(tree["prompts"]) if tree["prompts"] else []
    device, path = choose(tree["device"]), Path(tree["model"]).expanduser()
    model = load_drawer(path, tree["first_stage"], tree["ema"], tree["residency"]).to(device)
    model = model.tuned(tree["compile"], tree["precision"])
    sampling = model.sampling({**tree, "guidance": asked_guidance(words, tree["guidance"])})
    reads = _checked(model, sampling, tree["model"])
    prompts, styles = _asked(model, tree, prompts, contents)
    parts = Parts(tree)
    similarity = instantiate(tree["similarity"], parts, "similarity").to(device)
    alignment = instantiate(tree["alignment"], parts, "alignment").to(device)
    folder = Path(tree["out"]) if tree["out"] else (path if path.is_dir() else path.parent) / f"style-{model.name}"
    with held(folder, "evaluating into"):
        made = _draw(model, sampling, prompts, styles.to(device), tree)
        columns = _measured(made, prompts, styles.to(device), similarity, alignment)
        rows = [
            _row(f"similarity/{similarity.name}", columns, "similarity", tree),
            _row(alignment_key(alignment), columns, "alignment", tree),
        ]
        write_csv(folder / "style.csv", rows)
        write_csv(folder / "pairs.csv", _pairs(columns, prompts))
        told = f"{model.name}: style by {reads}; similarity by {similarity.name}, alignment by {alignment.name}"
        told = "; ".join(filter(None, (told, said_of(model))))
        _sheet(folder / "sheet.png", made, styles, prompts, told)
        if tree["logger"]:
            metrics = {f"{row['metric']}/{name}": row[name] for row in rows for name in ("styled", "plain", "gain")}
            project, mode = tree["logger"]["project"], tree["logger"]["mode"]
            log_summary(folder, folder.name, project, mode, metrics, {}, {"style_sheet": folder / "sheet.png"})
    return rows, folder


def _sheet(path: Path, made: Made, styles: Tensor, prompts: Sequence[str], told: str) -> None:
    """The first sample of each prompt, without a style and under each, below the pictures [M, 3, h, w] of these."""
    shown = torch.cat([made.plain[:MOST, None, 0], made.styled[:MOST, :MOST, 0]], dim=1).cpu()
    above = F.interpolate(styles[:MOST].cpu().float(), shown.shape[-2:], mode="bicubic", antialias=True).clamp(-1, 1)
    images = torch.cat([torch.cat([torch.ones_like(above[:1]), above])[None], shown])
    names = ["without", *(f"style {place}" for place in range(len(above)))]
    labelled_sheet(path, images, names, ["styles", *prompts[:MOST]], told)


def _checked(model: Drawer, sampling: Sampling, named: str) -> str:
    """The condition that reads a style. Raises UserError unless the model takes one beside a text, or goes without."""
    model.left_out(sampling)
    used = model.conditions(sampling)
    reads = [name for name, fields in used.items() if STYLE in fields]
    if not reads or not any(CAPTION in fields for fields in used.values()):
        raise UserError(
            f"model={named}: takes no style beside a text, it is conditioned on {', '.join(used) or 'nothing'}; "
            "experiment=ediffi/conditions_tiny trains one that does"
        )
    for given in ((CAPTION, STYLE), (CAPTION,)):
        for name, field in model.missing(dict.fromkeys(given), sampling).items():
            raise UserError(f"model={named}: conditioner.{name} needs {field!r} too, which a style sheet has not")
    return ", ".join(reads)


def _asked(
    model: Drawer, tree: Mapping[str, Any], prompts: list[str], contents: Mapping[str, bytes]
) -> tuple[list[str], Tensor]:
    """Prompts and reference pictures [M, 3, h, w] as the run's own field reads them: those given, or what is not of
    held-out samples.
    """
    data = samples_of(model.data, tree["data"])
    given = _read(model, contents)
    if prompts and given:
        return prompts, torch.cat(given)
    if data is None:
        raise UserError(f"model={tree['model']}: it has no held-out samples; name prompts= and styles=, or data=")
    data.setup()
    captions, pictures = _held_out(data, tree["num_prompts"], tree["num_styles"])
    return prompts or captions, torch.cat(given) if given else pictures


def _read(model: Drawer, contents: Mapping[str, bytes]) -> list[Tensor]:
    """Pictures [1, 3, h, w] of {file: its bytes}."""
    reader, side, found = reader_of(model.data, STYLE, "styles"), model.image_size, []
    for file, content in contents.items():
        with naming("styles", file):
            found.append(reader.collate([reader.read(content, read_picture(content, side))], [View()], side))
    return found


def _held_out(data: ShardData, num_prompts: int, num_styles: int) -> tuple[list[str], Tensor]:
    """The first `num_styles` pictures in the fixed random order of the data, and `num_prompts` other captions."""
    pictures: list[Tensor] = []
    shown: set[str] = set()
    captions: dict[str, None] = {}
    for batch, _ in conditions(data, data.num_train, 64):
        for caption, picture in zip(batch[CAPTION], batch[STYLE], strict=True):
            if len(pictures) < num_styles:
                pictures.append(picture)
                shown.add(caption)
            elif caption not in shown:
                captions[caption] = None
        if len(captions) >= num_prompts:
            break
    if len(captions) < num_prompts:
        raise UserError(f"num_prompts={num_prompts}: there are {len(captions)} captions beside the pictures")
    return list(captions)[:num_prompts], torch.stack(pictures)


def _draw(
    model: Drawer, sampling: Sampling, prompts: Sequence[str], styles: Tensor, tree: Mapping[str, Any]
) -> Made:  # fmt: skip
    """All samples; number k of prompt n has the same noise under every style and without one."""
    count, size = tree["num_images"], tree["batch_size"]
    jobs = [(n, m, k) for n in range(len(prompts)) for m in range(-1, len(styles)) for k in range(count)]
    found: dict[tuple[int, int, int], Tensor] = {}

    def ask(part: Sequence[tuple[int, int, int]]) -> Ask:
        batch: dict[str, Any] = {CAPTION: [prompts[n] for n, _, _ in part]}
        if part[0][1] >= 0:
            batch[STYLE] = styles[[m for _, m, _ in part]]
        numbers = torch.tensor([n * count + k for n, _, k in part], device=styles.device)
        return Ask(sampling, batch, numbers, tree["seed"])

    for styled in (False, True):
        own = list(batched([job for job in jobs if (job[1] >= 0) == styled], size))
        several = list(batched(own, turns_of(model)))
        for parts in track(several, "with styles" if styled else "without", transient=True):
            for part, draw in zip(parts, model.begun([ask(part) for part in parts]), strict=True):
                found |= dict(zip(part, draw().float(), strict=True))
    plain, under = (torch.stack([found[job] for job in jobs if (job[1] >= 0) == styled]) for styled in (False, True))
    shape = (len(prompts), len(styles), count)
    return Made(plain.unflatten(0, (shape[0], count)), under.unflatten(0, shape))


def _measured(
    made: Made, prompts: Sequence[str], styles: Tensor, similarity: nn.Module, alignment: nn.Module
) -> dict[str, Tensor]:
    """Columns [N, M]: means over the K samples of a prompt, under a style and, `_plain`, without it."""
    count, (num_styles, num_images) = len(prompts), made.styled.shape[1:3]
    references = similarity(styles)
    near = torch.stack([similarity(each.flatten(0, 1)) @ references.T for each in made.styled])  # [N, M K, M]
    near = near.unflatten(1, (num_styles, num_images)).mean(2)  # of a sample under one style to each reference
    plain = torch.stack([similarity(each) @ references.T for each in made.plain]).mean(1)
    columns = {"similarity": near.diagonal(dim1=1, dim2=2), "similarity_plain": plain}
    if num_styles > 1:
        columns["similarity_other"] = (near.sum(2) - columns["similarity"]) / (num_styles - 1)
    texts = {"alignment": prompts, "alignment_other": [*prompts[1:], prompts[0]]}
    for name, own in texts.items() if count > 1 else [("alignment", prompts)]:
        each = [
            alignment(images.flatten(0, 1), [text] * (num_styles * num_images))
            for images, text in zip(made.styled, own, strict=True)
        ]
        columns[name] = torch.stack(each).unflatten(1, (num_styles, num_images)).mean(2)
    bare = [alignment(images, [text] * num_images) for images, text in zip(made.plain, prompts, strict=True)]
    columns["alignment_plain"] = torch.stack(bare).mean(1, keepdim=True).expand(-1, num_styles)
    return {name: values.cpu().double() for name, values in columns.items()}


def _row(metric: str, columns: Mapping[str, Tensor], name: str, tree: Mapping[str, Any]) -> Row:
    """A metric's means, and their intervals over prompts: what is of one text is one value of the bootstrap."""
    styled, plain = columns[name], columns[f"{name}_plain"]
    row: Row = {"metric": metric, "prompts": styled.shape[0], "styles": styled.shape[1]}
    for column, values in {
        "styled": styled, "plain": plain, "gain": styled - plain, "styled_other": columns.get(f"{name}_other"),
    }.items():  # fmt: skip
        if values is not None:
            row[column] = values.mean().item()
            if tree["resamples"] and len(values) > 1:
                row |= mean_interval(column, values.mean(1), tree["resamples"], tree["seed"])
    return row


def _pairs(columns: Mapping[str, Tensor], prompts: Sequence[str]) -> list[Row]:
    """A row for each prompt under each style."""
    num_styles = columns["similarity"].shape[1]
    return [
        {"prompt": prompt, "style": m, **{name: values[n, m].item() for name, values in columns.items()}}
        for n, prompt in enumerate(prompts)
        for m in range(num_styles)
    ]
