"""Conditions in a folder of diffusers: the pipeline that takes them and its parts, or weights and code for sample.py.

One function for each conditioner; what has none here has only a pipeline of ours (own_conditions.py).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm.conditioners.base import Conditioner
from ldm.conditioners.caption_encoder import CaptionEncoder
from ldm.conditioners.clip import ClipText
from ldm.conditioners.embeddings import Embeddings
from ldm.conditioners.image import LowResolution, MaskedImage, SemanticMap
from ldm.conditioners.label import Label
from ldm.conditioners.text import FrozenText
from ldm.conditioners.transformer import CaptionTransformer, LayoutTransformer
from ldm.convert import condition_code, encoders
from ldm.convert import export as exports
from ldm.convert.sample_script import Script
from ldm.errors import UserError

PIPELINE_TOKENS = 77  # which the text pipelines pad to
CLIP_TEXT, CAPTIONS = "ldm.conditioners.clip.ClipText", "ldm.conditioners.transformer.CaptionTransformer"


@dataclass(frozen=True)
class Latent:
    """Channels and side of the latents, the downsampling factor, and whether the first stage is a VQ model."""

    channels: int
    side: int
    f: int
    is_vq: bool


@dataclass(frozen=True)
class Written:
    """What a condition has put into the folder: a `pipeline` with its `components`, or a `script`; and its files.

    `first_stage` is the pipeline's name for it, `sample_size` what its U-Net has to say (None: the latent's side).
    With `divides` False the pipeline forgets the scale of the latents, which then has to be in the weights.
    """

    files: list[Path] = field(default_factory=list)
    pipeline: str = ""
    components: dict[str, Any] = field(default_factory=dict)
    first_stage: str = "vqvae"
    sample_size: int | None = None
    divides: bool = True
    script: Script | None = None
    note: str = ""


def has_form(conditioners: Mapping[str, Conditioner], targets: Mapping[str, str], latent: Latent) -> bool:
    """Whether diffusers' own pipelines, or a script, take the conditions; `targets` are their classes in the tree.

    They take a single condition of a known class, in one slot, without a projection, whose null is not zeros.
    """
    if len(conditioners) != 1:
        return not conditioners
    [(name, part)] = conditioners.items()
    if targets[name] not in WRITERS or len(part.widths) > 1 or "project.weight" in part.state_dict():
        return False
    if targets[name] == CLIP_TEXT and "vector" in part.widths:
        return False
    if isinstance(part.frozen, CaptionEncoder) and part.frozen.zero_null:
        return False
    if part.reads_reduced not in (None, latent.f):
        return False  # it makes another picture of the one it reads
    eighths = latent.is_vq if targets[name] == CLIP_TEXT else part.num_tokens == PIPELINE_TOKENS
    return targets[name] not in (CLIP_TEXT, CAPTIONS) or not eighths or 8 * latent.side % latent.f == 0


def write(conditioners: Mapping[str, Conditioner], targets: Mapping[str, str], latent: Latent, out: Path) -> Written:
    """Write into `out` what the conditions of a model need; `has_form` has to hold for them."""
    if not conditioners:
        return Written(pipeline="LDMPipeline")
    [(name, part)] = conditioners.items()
    return WRITERS[targets[name]](part, latent, out)


# ---------------------------------------------------------------------------------------------------------------
# Texts


def _clip_text(part: ClipText, latent: Latent, out: Path) -> Written:
    place = "bert" if latent.is_vq else "text_encoder"
    encoder, tokenizer = encoders.pretrained(part.encoder.model), encoders.pretrained(part.encoder.tokenizer)
    files = encoder.write(out / place) + tokenizer.write(out / "tokenizer")
    components: dict[str, Any] = {place: encoder.index, "tokenizer": tokenizer.index}
    if latent.is_vq:  # StableDiffusionPipeline decodes KL first stages only
        return _eighths(files, components, latent)
    nothing: dict[str, Any] = {name: [None, None] for name in ("safety_checker", "feature_extractor", "image_encoder")}
    components |= {**nothing, "requires_safety_checker": False}
    return Written(files, "StableDiffusionPipeline", components, first_stage="vae")


def _caption_transformer(part: CaptionTransformer, latent: Latent, out: Path) -> Written:
    bert, tokenizer = encoders.bert(part.transformer), encoders.pretrained(part.tokenizer)
    files = bert.write(out / "bert") + tokenizer.write(out / "tokenizer")
    if part.num_tokens != PIPELINE_TOKENS:
        code = condition_code.CAPTIONS.format(max_tokens=part.num_tokens)
        return Written(
            files,
            script=Script(
                f"{condition_code.BERT_IMPORT}\nfrom transformers import AutoTokenizer", code, condition_code.TEXTS
            ),
        )
    return _eighths(files, {"bert": bert.index, "tokenizer": tokenizer.index}, latent)


def _text(part: FrozenText, latent: Latent, out: Path) -> Written:
    encoder = part.frozen.encoder.module
    files = encoders.pretrained(encoder.model).write(out / "text_encoder")
    files += encoders.pretrained(encoder.tokenizer).write(out / "tokenizer")
    code = condition_code.MASKED_TEXTS.format(max_tokens=encoder.max_tokens)
    return Written(
        files, script=Script("from transformers import AutoModel, AutoTokenizer", code, condition_code.TEXTS)
    )


def _eighths(files: list[Path], components: dict[str, list[Any]], latent: Latent) -> Written:
    """LDMTextToImagePipeline takes latents to be an eighth of what it is asked for, whatever f is.

    Its default of height and width is sample_size * f, from the U-Net's config: so much that an eighth is the latent.
    """
    size = 8 * latent.side // latent.f
    note = f"LDMTextToImagePipeline: to ask for height and width, give {8 / latent.f:g} times those of the image"
    return Written(files, "LDMTextToImagePipeline", components, sample_size=size, note="" if latent.f == 8 else note)


# ---------------------------------------------------------------------------------------------------------------
# Classes, layouts, embeddings


def _label(part: Label, latent: Latent, out: Path) -> Written:
    if part.has_null:
        null = f"null = condition(torch.full((2,), {part.num_classes}))  # the row of no class"
    else:
        null = "null = None  # this model knows no null class"
    example = f"given = condition(torch.tensor([0, {min(1, part.num_classes - 1)}]))  # numbers of classes\n{null}"
    script = Script(condition_code.LOAD_IMPORT, condition_code.LABELS, example)
    return Written(_weights(part.state_dict(), out), script=script)


def _layout_transformer(part: LayoutTransformer, latent: Latent, out: Path) -> Written:
    none = part.transformer.token_emb.num_embeddings - 1
    example = f"""\
given = condition(torch.full((2, {part.num_tokens}), {none}))  # {none} is no object, others: data/fields/layout.py
null = None"""
    return Written(
        encoders.bert(part.transformer).write(out / "bert"),
        script=Script(condition_code.BERT_IMPORT, condition_code.LAYOUTS, example),
    )


def _embeddings(part: Embeddings, latent: Latent, out: Path) -> Written:
    example = f"""\
null = condition(torch.zeros(2, {part.num_tokens}, {part.embedding_width}))
given = condition(torch.zeros(2, {part.num_tokens}, {part.embedding_width}))  # CLIP's of texts and neighbours"""
    return Written(script=Script("", condition_code.EMBEDDINGS, example))


# ---------------------------------------------------------------------------------------------------------------
# Images


def _low_resolution(part: LowResolution, latent: Latent, out: Path) -> Written:
    if part.max_noise_level:
        raise UserError(
            "conditioner.low_resolution.max_noise_level: what is made noisy as it is read has no form in diffusers; "
            "sample with sample.py, or export format=safetensors"
        )
    if latent.channels == part.widths["concat"] and part.factor == latent.f:
        return Written(pipeline="LDMSuperResolutionPipeline", divides=False)
    side = latent.side * latent.f // part.factor
    example = f"""\
given = condition(torch.zeros(2, 3, {side}, {side}))  # small images in [-1, 1]
null = None"""
    return Written(script=Script("", condition_code.CONCAT, example))


def _semantic_map(part: SemanticMap, latent: Latent, out: Path) -> Written:
    code = condition_code.MAPS.format(num_classes=part.num_classes, halvings=part.halvings)
    side = latent.side * 2**part.halvings
    example = f"""\
given = condition(torch.zeros(2, {side}, {side}, dtype=torch.long))  # numbers of classes
null = None"""
    script = Script(f"import torch.nn.functional as F\n{condition_code.LOAD_IMPORT}", code, example)
    return Written(_weights(part.state_dict(), out), script=script)


def _masked_image(part: MaskedImage, latent: Latent, out: Path) -> Written:
    code = condition_code.HOLES.format(encoded="latents" if latent.is_vq else "latent_dist.mode()")
    side = latent.side * latent.f
    example = f"""\
mask = torch.zeros(2, 1, {side}, {side})  # 1 where the hole is
mask[..., {side // 4}:{side // 2}, {side // 4}:{side // 2}] = 1
given = condition(torch.zeros(2, 3, {side}, {side}), mask)  # images in [-1, 1]
null = None"""
    return Written(script=Script("import torch.nn.functional as F", code, example))


def _weights(state: Mapping[str, Tensor], out: Path) -> list[Path]:
    path = out / "conditioner" / "model.safetensors"
    exports.write_safetensors(path, state, {"format": "pt"})
    return [path]


WRITERS: dict[str, Callable[[Any, Latent, Path], Written]] = {
    CLIP_TEXT: _clip_text,
    CAPTIONS: _caption_transformer,
    "ldm.conditioners.text.frozen_text": _text,
    "ldm.conditioners.label.Label": _label,
    "ldm.conditioners.transformer.LayoutTransformer": _layout_transformer,
    "ldm.conditioners.embeddings.Embeddings": _embeddings,
    "ldm.conditioners.image.LowResolution": _low_resolution,
    "ldm.conditioners.image.SemanticMap": _semantic_map,
    "ldm.conditioners.image.MaskedImage": _masked_image,
}
