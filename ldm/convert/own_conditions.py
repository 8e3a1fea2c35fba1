"""The conditions of a model as LatentConditions holds them (remote/latent_conditions.py), with their encoders.

One function for each conditioner says what is written of it; a conditioner that has none here cannot be exported.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldm.conditioners.base import Conditioner, Conditioners
from ldm.conditioners.clip import ClipText
from ldm.conditioners.clip_image import ClipImage
from ldm.conditioners.embeddings import Embeddings
from ldm.conditioners.image import LowResolution, MaskedImage, SemanticMap
from ldm.conditioners.label import Label
from ldm.conditioners.null_token import NullToken
from ldm.conditioners.text import FrozenText
from ldm.conditioners.transformer import CaptionTransformer, LayoutTransformer
from ldm.convert.encoders import Encoder, bert, pretrained
from ldm.convert.export import write_diffusers_model
from ldm.convert.foreign import State
from ldm.errors import UserError

PLACES = (
    "text_encoder",
    "text_encoder_2",
    "bert",
    "image_encoder",
    "tokenizer",
    "tokenizer_2",
)  # of encoders in a folder
TRAINED_ENCODER = "transformer."  # of captions and layouts, which LDMBertModel holds


@dataclass(frozen=True)
class Condition:
    """One entry of LatentConditions' config, without what is the same for all; and its encoder and tokenizer."""

    kind: str
    reads: str | None  # of the fields of a call
    arguments: dict[str, Any]
    encoding: dict[str, Any] = field(default_factory=dict)
    encoder: Encoder | None = None
    tokenizer: Encoder | None = None
    place: str = "text_encoder"


def describe(conditioner: Conditioners, targets: Mapping[str, str]) -> dict[str, Condition]:
    """What is to be written of each condition; `targets` are their classes in the tree.

    Raises ValueError for a conditioner that no exported folder can hold, and for more encoders than it has room for.
    """
    unknown = [name for name in conditioner.parts if targets[name] not in KINDS]
    if unknown:
        raise UserError(
            f"conditioner.{unknown[0]}: has no form in diffusers; sample with sample.py, or export format=safetensors"
        )
    found = {name: KINDS[targets[name]](part) for name, part in conditioner.parts.items()}
    folders = [folder for part in _folders(found).values() for folder in part.values()]
    if not set(folders) <= set(PLACES):
        raise UserError(
            f"conditioner: {', '.join(found)} need the folders {', '.join(folders)}, and a pipeline has but "
            f"{', '.join(PLACES)}; sample with sample.py, or export format=safetensors"
        )
    return found


def _folders(found: Mapping[str, Condition]) -> dict[str, dict[str, str]]:
    """Where the "encoder" and the "tokenizer" of each condition are written."""
    taken: list[str] = []
    folders: dict[str, dict[str, str]] = {}
    for name, condition in found.items():
        folders[name] = {}
        parts = {"encoder": (condition.encoder, condition.place), "tokenizer": (condition.tokenizer, "tokenizer")}
        for key, (part, place) in parts.items():
            if part is not None:
                folders[name][key] = f"{place}_{taken.count(place) + 1}" if place in taken else place
                taken.append(place)
    return folders


def write(conditioner: Conditioners, found: Mapping[str, Condition], out: Path) -> tuple[list[Path], dict[str, Any]]:
    """Write the folder `conditioner` and those of the encoders into `out`: (their files, their model_index.json)."""
    files: list[Path] = []
    index: dict[str, Any] = {}
    config: dict[str, Any] = {}
    folders = _folders(found)
    for name, condition in found.items():
        entry = {"kind": condition.kind, "field": condition.reads, "droppable": conditioner.parts[name].droppable}
        config[name] = entry | {"arguments": condition.arguments} | condition.encoding | folders[name]
        parts = {"encoder": condition.encoder, "tokenizer": condition.tokenizer}
        for key, folder in folders[name].items():
            files += parts[key].write(out / folder)
            index[folder] = parts[key].index
    state: State = {}
    for name, part in conditioner.parts.items():
        own = {key: value for key, value in part.state_dict().items() if not key.startswith(TRAINED_ENCODER)}
        state |= {f"parts.{name}.{key}": value for key, value in own.items()}
    files += write_diffusers_model(
        out / "conditioner", {"_class_name": "LatentConditions", "conditions": config}, state
    )
    return files, index | {"conditioner": ["latent_conditions", "LatentConditions"]}


def _width(part: Conditioner) -> int | None:
    """Of the tokens, where a learned projection brings them to it."""
    weight = part.state_dict().get("project.weight")
    return None if weight is None else len(weight)


def _frozen(part: FrozenText | ClipText) -> Condition:
    encoder = part.frozen.encoder.module
    if encoder.pooled_width:
        raise UserError(
            "conditioner.clip_text.slots: CLIP's vector of the text has no form in diffusers yet; sample with "
            "sample.py, or export format=safetensors"
        )
    arguments = {"slots": list(part.widths), "encoder_width": encoder.width, "max_tokens": encoder.max_tokens,
                 "width": _width(part)}  # fmt: skip
    encoding = {"max_tokens": encoder.max_tokens, "see_padding": encoder.see_padding,
                "null": None if part.frozen.zero_null else ""}  # fmt: skip
    return Condition("Text", "prompt", arguments, encoding, pretrained(encoder.model), pretrained(encoder.tokenizer))


def _caption_transformer(part: CaptionTransformer) -> Condition:
    width = part.widths["tokens"]
    arguments = {"slots": ["tokens"], "encoder_width": width, "max_tokens": part.num_tokens}
    encoding = {"max_tokens": part.num_tokens, "see_padding": True, "null": ""}
    return Condition("Text", "prompt", arguments, encoding, bert(part.transformer), pretrained(part.tokenizer), "bert")


def _layout_transformer(part: LayoutTransformer) -> Condition:
    width = part.widths["tokens"]
    arguments = {"slots": ["tokens"], "encoder_width": width, "max_tokens": part.num_tokens}
    none = part.transformer.token_emb.num_embeddings - 1  # the number of no object
    encoding = {"max_tokens": part.num_tokens, "null": none}
    return Condition("Text", "layout", arguments, encoding, bert(part.transformer), place="bert")


def _label(part: Label) -> Condition:
    arguments = {"rows": part.embedding.num_embeddings, "width": part.embedding.embedding_dim, "slot": part.slot}
    return Condition("Label", "class_labels", arguments)


def _null_token(part: NullToken) -> Condition:
    return Condition("NullToken", None, {"num_tokens": part.num_tokens, "width": part.widths["tokens"]})


def _embeddings(part: Embeddings) -> Condition:
    arguments = {"num_tokens": part.num_tokens, "embedding_width": part.embedding_width, "width": _width(part)}
    return Condition("Embeddings", "embeddings", arguments)


def _clip_image(part: ClipImage) -> Condition:
    arguments = {"slots": list(part.widths), "embedding_width": part.frozen.width, "width": _width(part)}
    encoder = pretrained(part.frozen.model.module)
    return Condition("Picture", "style", arguments, encoder=encoder, place="image_encoder")


def _low_resolution(part: LowResolution) -> Condition:
    if part.max_noise_level:
        raise UserError(
            "conditioner.low_resolution.max_noise_level: what is made noisy as it is read has no form in diffusers; "
            "sample with sample.py, or export format=safetensors"
        )
    if part.factor != part.reduces:
        raise UserError(
            f"conditioner.low_resolution.factor={part.factor}: beside latents {part.reduces} times smaller than the "
            "image it has no form in diffusers; sample with sample.py, or export format=safetensors"
        )
    return Condition("Channels", "low_resolution", {"channels": part.widths["concat"]})


def _masked_image(part: MaskedImage) -> Condition:
    return Condition("Channels", "image", {"channels": part.widths["concat"]})


def _semantic_map(part: SemanticMap) -> Condition:
    arguments = {"num_classes": part.num_classes, "channels": part.widths["concat"], "halvings": part.halvings}
    return Condition("SemanticMap", "segmentation", arguments)


KINDS: dict[str, Callable[[Any], Condition]] = {
    "ldm.conditioners.text.frozen_text": _frozen,
    "ldm.conditioners.t5.t5_tokens": _frozen,
    "ldm.conditioners.clip.ClipText": _frozen,
    "ldm.conditioners.transformer.CaptionTransformer": _caption_transformer,
    "ldm.conditioners.transformer.LayoutTransformer": _layout_transformer,
    "ldm.conditioners.label.Label": _label,
    "ldm.conditioners.null_token.NullToken": _null_token,
    "ldm.conditioners.embeddings.Embeddings": _embeddings,
    "ldm.conditioners.clip_image.clip_image": _clip_image,
    "ldm.conditioners.image.LowResolution": _low_resolution,
    "ldm.conditioners.image.MaskedImage": _masked_image,
    "ldm.conditioners.image.SemanticMap": _semantic_map,
}
