"""Conditions in a folder of diffusers: the pipeline that takes them and its parts, or weights and code for sample.py.

One function for each conditioner; what has none here cannot be exported so.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm.conditioners.base import Conditioner
from ldm.conditioners.clip import ClipText
from ldm.conditioners.embeddings import Embeddings
from ldm.conditioners.image import LowResolution, MaskedImage, SemanticMap
from ldm.conditioners.label import Label
from ldm.conditioners.text import FrozenText
from ldm.conditioners.transformer import CaptionTransformer, LayoutTransformer
from ldm.convert import export as exports
from ldm.convert import ldm_bert
from ldm.convert.sample_script import Script
from ldm.errors import UserError
from ldm.files import write_json
from ldm.networks.text_transformer import HEAD_WIDTH, NUM_HEADS, TextTransformer

PIPELINE_TOKENS = 77  # which the text pipelines pad to
BERT = ["latent_diffusion", "LDMBertModel"]


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


def write(conditioners: Mapping[str, Conditioner], targets: Mapping[str, str], latent: Latent, out: Path) -> Written:
    """Write what the conditions of a model need into `out`; `targets` are their classes in its tree.

    Raises ValueError for several conditions, and for one that diffusers cannot be told.
    """
    if not conditioners:
        return Written(pipeline="LDMPipeline")
    if len(conditioners) > 1:
        raise UserError(
            f"conditioner: {', '.join(conditioners)} together have no form in diffusers, which takes one at a time; "
            "sample with sample.py, or export format=safetensors"
        )
    [(name, part)] = conditioners.items()
    if targets[name] not in WRITERS or len(part.widths) > 1 or "project.weight" in part.state_dict():
        raise UserError(
            f"conditioner.{name}: has no form in diffusers; sample with sample.py, or export format=safetensors"
        )
    return WRITERS[targets[name]](part, latent, out)


# ---------------------------------------------------------------------------------------------------------------
# Texts


def _clip_text(part: ClipText, latent: Latent, out: Path) -> Written:
    place = "bert" if latent.is_vq else "text_encoder"
    encoder, tokenizer = part.encoder.model, part.encoder.tokenizer
    files = _pretrained(encoder, out / place) + _pretrained(tokenizer, out / "tokenizer")
    components: dict[str, Any] = {place: _of_transformers(encoder), "tokenizer": _of_transformers(tokenizer)}
    if latent.is_vq:  # StableDiffusionPipeline decodes KL first stages only
        return _eighths(files, components, latent)
    nothing: dict[str, Any] = {name: [None, None] for name in ("safety_checker", "feature_extractor", "image_encoder")}
    components |= {**nothing, "requires_safety_checker": False}
    return Written(files, "StableDiffusionPipeline", components, first_stage="vae")


def _caption_transformer(part: CaptionTransformer, latent: Latent, out: Path) -> Written:
    files = _bert(part.transformer, out / "bert") + _pretrained(part.tokenizer, out / "tokenizer")
    if part.num_tokens != PIPELINE_TOKENS:
        code = _CAPTIONS.format(max_tokens=part.num_tokens)
        return Written(files, script=Script(f"{_BERT_IMPORT}\nfrom transformers import AutoTokenizer", code, _TEXTS))
    return _eighths(files, {"bert": BERT, "tokenizer": _of_transformers(part.tokenizer)}, latent)


def _text(part: FrozenText, latent: Latent, out: Path) -> Written:
    encoder = part.frozen.encoder.module
    files = _pretrained(encoder.model, out / "text_encoder") + _pretrained(encoder.tokenizer, out / "tokenizer")
    code = _MASKED_TEXTS.format(max_tokens=encoder.max_tokens)
    return Written(files, script=Script("from transformers import AutoModel, AutoTokenizer", code, _TEXTS))


def _eighths(files: list[Path], components: dict[str, list[Any]], latent: Latent) -> Written:
    """LDMTextToImagePipeline takes latents to be an eighth of what it is asked for, whatever f is.

    Its default of height and width is sample_size * f, from the U-Net's config: so much that an eighth is the latent.
    """
    size, rest = divmod(8 * latent.side, latent.f)
    if rest:
        raise UserError(
            f"image_size: LDMTextToImagePipeline makes no latents of {latent.side} x {latent.side} at f = {latent.f}; "
            "train with a multiple of f * f / 8, or export format=safetensors"
        )
    note = f"LDMTextToImagePipeline: to ask for height and width, give {8 / latent.f:g} times those of the image"
    return Written(files, "LDMTextToImagePipeline", components, sample_size=size, note="" if latent.f == 8 else note)


def _pretrained(part: Any, folder: Path) -> list[Path]:
    """A model or tokenizer of transformers in a folder of its own."""
    part.save_pretrained(folder)
    return sorted(folder.iterdir())


def _of_transformers(part: object) -> list[str]:
    return ["transformers", type(part).__name__]


def _bert(transformer: TextTransformer, folder: Path) -> list[Path]:
    state = transformer.state_dict()
    exports.write_safetensors(folder / "model.safetensors", ldm_bert.names(state), {"format": "pt"})
    write_json(folder / "config.json", ldm_bert.config(state, NUM_HEADS, HEAD_WIDTH))
    return [folder / "config.json", folder / "model.safetensors"]


# ---------------------------------------------------------------------------------------------------------------
# Classes, layouts, embeddings


def _label(part: Label, latent: Latent, out: Path) -> Written:
    if part.has_null:
        null = f"null = condition(torch.full((2,), {part.num_classes}))  # the row of no class"
    else:
        null = "null = None  # this model knows no null class"
    example = f"given = condition(torch.tensor([0, {min(1, part.num_classes - 1)}]))  # numbers of classes\n{null}"
    script = Script(_LOAD_IMPORT, _LABELS, example)
    return Written(_weights(part.state_dict(), out), script=script)


def _layout_transformer(part: LayoutTransformer, latent: Latent, out: Path) -> Written:
    none = part.transformer.token_emb.num_embeddings - 1
    example = f"""\
given = condition(torch.full((2, {part.num_tokens}), {none}))  # {none} is no object, others: data/fields/layout.py
null = None"""
    return Written(_bert(part.transformer, out / "bert"), script=Script(_BERT_IMPORT, _LAYOUTS, example))


def _embeddings(part: Embeddings, latent: Latent, out: Path) -> Written:
    example = f"""\
null = condition(torch.zeros(2, {part.num_tokens}, {part.embedding_width}))
given = condition(torch.zeros(2, {part.num_tokens}, {part.embedding_width}))  # CLIP's of texts and neighbours"""
    return Written(script=Script("", _EMBEDDINGS, example))


# ---------------------------------------------------------------------------------------------------------------
# Images


def _low_resolution(part: LowResolution, latent: Latent, out: Path) -> Written:
    if latent.channels == part.widths["concat"] and part.factor == latent.f:
        return Written(pipeline="LDMSuperResolutionPipeline", divides=False)
    side = latent.side * latent.f // part.factor
    example = f"""\
given = condition(torch.zeros(2, 3, {side}, {side}))  # small images in [-1, 1]
null = None"""
    return Written(script=Script("", _CONCAT, example))


def _semantic_map(part: SemanticMap, latent: Latent, out: Path) -> Written:
    code = _MAPS.format(num_classes=part.num_classes, halvings=part.halvings)
    side = latent.side * 2**part.halvings
    example = f"""\
given = condition(torch.zeros(2, {side}, {side}, dtype=torch.long))  # numbers of classes
null = None"""
    script = Script(f"import torch.nn.functional as F\n{_LOAD_IMPORT}", code, example)
    return Written(_weights(part.state_dict(), out), script=script)


def _masked_image(part: MaskedImage, latent: Latent, out: Path) -> Written:
    code = _HOLES.format(encoded="latents" if latent.is_vq else "latent_dist.mode()")
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
    "ldm.conditioners.clip.ClipText": _clip_text,
    "ldm.conditioners.transformer.CaptionTransformer": _caption_transformer,
    "ldm.conditioners.text.frozen_text": _text,
    "ldm.conditioners.label.Label": _label,
    "ldm.conditioners.transformer.LayoutTransformer": _layout_transformer,
    "ldm.conditioners.embeddings.Embeddings": _embeddings,
    "ldm.conditioners.image.LowResolution": _low_resolution,
    "ldm.conditioners.image.SemanticMap": _semantic_map,
    "ldm.conditioners.image.MaskedImage": _masked_image,
}

# ---------------------------------------------------------------------------------------------------------------
# Code of sample.py

_LOAD_IMPORT = "from safetensors.torch import load_file"
_BERT_IMPORT = "from diffusers.pipelines.latent_diffusion import LDMBertModel"
_TEXTS = """\
given = condition(["a red fox", "a blue house"])
null = condition(["", ""])"""
_LABELS = '''
embedding = load_file(FOLDER / "conditioner" / "model.safetensors")["embedding.weight"]


def condition(label):
    """Numbers of classes [B] -> one token each."""
    return {"encoder_hidden_states": embedding[label][:, None]}
'''
_LAYOUTS = '''
bert = LDMBertModel.from_pretrained(FOLDER / "bert").eval()


@torch.no_grad()
def condition(layout):
    """Numbers of a layout's tokens [B, N] -> tokens."""
    return {"encoder_hidden_states": bert(layout)[0]}
'''
_CAPTIONS = '''
bert = LDMBertModel.from_pretrained(FOLDER / "bert").eval()
tokenizer = AutoTokenizer.from_pretrained(FOLDER / "tokenizer")


@torch.no_grad()
def condition(captions):
    """Texts -> tokens, padding among them."""
    ids = tokenizer(captions, padding="max_length", truncation=True, max_length={max_tokens}, return_tensors="pt")
    return {{"encoder_hidden_states": bert(ids.input_ids)[0]}}
'''
_MASKED_TEXTS = '''
text_encoder = AutoModel.from_pretrained(FOLDER / "text_encoder").eval()
tokenizer = AutoTokenizer.from_pretrained(FOLDER / "tokenizer")


@torch.no_grad()
def condition(captions):
    """Texts -> tokens, and which of them are words."""
    ids = tokenizer(captions, padding=True, truncation=True, max_length={max_tokens}, return_tensors="pt")
    tokens = text_encoder(input_ids=ids.input_ids, attention_mask=ids.attention_mask).last_hidden_state
    return {{"encoder_hidden_states": tokens, "encoder_attention_mask": ids.attention_mask.bool()}}
'''
_EMBEDDINGS = '''

def condition(embeddings):
    """Embeddings [B, N, width] made beforehand are the tokens."""
    return {"encoder_hidden_states": embeddings}
'''
_CONCAT = '''

def condition(image):
    """Small images [B, 3, h, w] in [-1, 1], of the size of the latents."""
    return {"concat": image}
'''
_MAPS = '''
mapper = load_file(FOLDER / "conditioner" / "model.safetensors")["channel_mapper.weight"]


def condition(classes):
    """Maps of numbers of classes [B, H, W]."""
    maps = F.one_hot(classes, {num_classes}).permute(0, 3, 1, 2).float()
    for _ in range({halvings}):
        maps = F.interpolate(maps, scale_factor=0.5, mode="bilinear")
    return {{"concat": F.conv2d(maps, mapper)}}
'''
_HOLES = '''

@torch.no_grad()
def condition(image, mask):
    """Images [B, 3, H, W] in [-1, 1] and masks [B, 1, H, W], 1 where the hole is."""
    latent = vae.encode(image.where(mask < 0.5, -1.0)).{encoded} * vae.config.scaling_factor
    small = F.interpolate(mask, latent.shape[2:], mode="nearest") * 2 - 1
    return {{"concat": torch.cat([latent, small], dim=1)}}
'''
