"""Recognises a file of weights by its tensors' names, to tell a user who gave the wrong file what it is.

It decides nothing but the wording of an error.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from ldm.errors import UserError


@dataclass(frozen=True)
class Kind:
    """`words` say what a state is in which a name matches `pattern`, `advice` what to do with it."""

    words: str
    pattern: str
    advice: str


FIRST_STAGE = Kind(
    "a first stage alone",
    r"(^|\.)(en|de)coder\.(down|up|mid)(\.|_blocks?\.)",
    "import it with experiment=ldm/first_stage/NAME, as kl_f8 or vq_f4",
)
WHOLE = Kind("a latent diffusion model", r"^model\.diffusion_model\.", "import it with experiment=ldm/NAME")
_PARTS = "import the one published file that holds its first stage and conditioner too (first_stage_model.*)"
_NOT_BUILT = "such a model is not built here"
_NO_MODEL = "there is no model in it that could be imported"
SDXL = Kind(
    "Stable Diffusion XL, or another model of that code",
    r"^conditioner\.embedders\.",
    f"{_NOT_BUILT}; its first stage can be taken from it: experiment=ldm/first_stage/kl_f8 scale_factor=0.13025",
)
SD2 = Kind(
    "Stable Diffusion 2, whose text encoder is OpenCLIP's",
    r"^cond_stage_model\.model\.",
    "import it with experiment=finetune/sd21 (v), or finetune/sd21_base (eps)",
)
OWN = Kind(
    "weights of a run of this project",
    r"^(autoencoder|network|regularizer)\.",
    "they need no import: first_stage=, model= and branch= take the run's folder",
)
# The first that matches counts: from what is added to other models to what is a part of many.
KINDS = (
    Kind(
        "a LoRA or LyCORIS file, which changes the weights of another model",
        r"lora_(up|down|mid|A|B|linear)|(hada|lokr)_w[12]|\.dora_scale|\.oft_(blocks|diag)|\.glora_",
        "merge it into that model first",
    ),
    Kind("a textual inversion, the embedding of a word", r"^(emb_params|<[^>]*>|\*)$", _NO_MODEL),
    Kind("a ControlNet", r"^control_model\.|controlnet_(cond_embedding|down_blocks|mid_block)", _NOT_BUILT),
    OWN,
    SDXL,
    SD2,
    WHOLE,
    Kind("the U-Net of Stable Diffusion XL, as diffusers names it", r"^(unet\.)?add_embedding\.", _NOT_BUILT),
    Kind("a U-Net alone, as diffusers names it", r"^(unet\.)?(down|up)_blocks\.\d+\.(resnets|attentions)\.", _PARTS),
    Kind("a U-Net alone", r"^(diffusion_model\.)?(input|output)_blocks\.\d", _PARTS),
    FIRST_STAGE,
    Kind("an autoencoder of another family", r"^(en|de)coder\.(layers|(down|up)samples|blocks)\.", _NOT_BUILT),
    Kind("a transformer of Stable Diffusion 3, Flux or the like", r"(joint|double|single)_(\w+_)?blocks\.", _NOT_BUILT),
    Kind("a diffusion transformer", r"(^|\.)(transformer_)?blocks\.0\.(adaLN|attn|norm1)|^x_embedder\.", _NOT_BUILT),
    Kind(
        "a CLIP encoder",
        r"(text|vision)_model\.(embeddings|encoder)\.|^logit_scale$|^visual\.|^(transformer\.)?resblocks\.",
        "it is a part of models: conditioner.clip_text.path=FOLDER takes one in the layout of transformers",
    ),
    Kind("a T5 encoder", r"block\.0\.layer\.0\.SelfAttention\.", "it is a part of models: conditioner=[t5]"),
    Kind("a BERT encoder", r"embeddings\.word_embeddings\.|encoder\.layer\.0\.attention\.", "it is a part of models"),
    Kind("a discriminator alone", r"^(discriminator\.)?main\.0\.weight$", _NO_MODEL),
    Kind("a perceptual distance (LPIPS) or its network", r"^(lin0\.model|net\.slice1|features\.0)\.", _NO_MODEL),
    Kind("a network of images such as a ResNet", r"^(layer1\.0\.|conv1\.weight$)", _NO_MODEL),
)


def recognise(names: Iterable[str]) -> Kind | None:
    """The kind of a state dict with these names; None if it is unknown."""
    text = "\n".join(names)
    return next((kind for kind in KINDS if re.search(kind.pattern, text, re.MULTILINE)), None)


def refusal(state: Mapping[str, Tensor], source: str, wanted: str) -> ValueError:
    """The error for a file that is not what is `wanted`, in a line that says what it is."""
    kind = recognise(state)
    if kind is None:
        some = ", ".join(list(state)[:3])
        return UserError(f"{source}: not {wanted}, nor anything known here; its {len(state)} names begin with {some}")
    return UserError(f"{source}: looks like {kind.words}, not {wanted}; {kind.advice}")
