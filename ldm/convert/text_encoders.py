"""The CLIP text encoder that comes with a published model, as the folder that conditioner=[clip_text] reads."""

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from torch import Tensor

from ldm.checkpoint.weights import check_fit
from ldm.conditioners import clip
from ldm.convert import foreign, open_clip_text
from ldm.convert.clip_encoder import write_encoder
from ldm.errors import UserError
from ldm.networks.huggingface import TOKENIZER_FILES

Write = Callable[[Path], None]
CLIP = f"{foreign.CONDITIONER}transformer."
PARTS = ("text_encoder", "tokenizer")
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def of_state(state: Mapping[str, Tensor], source: str) -> Write:
    """A function that writes the encoder of a published state into a folder. ValueError if it has no complete one."""
    if any(name.startswith(open_clip_text.PREFIX) for name in state):
        config, own = open_clip_text.encoder(foreign.below(state, open_clip_text.PREFIX), source)
    else:
        config, own = clip.CONFIG, foreign.below(state, CLIP)
    if not own:
        raise UserError(
            f"{source}: holds no text encoder ({foreign.CONDITIONER}*); conditioner.clip_text.path=FOLDER gives one"
        )
    check_fit(clip.layout(config), {clip.published_name(name): value for name, value in own.items()}, source)
    return lambda folder: write_encoder(folder, config, clip.encoder_state(own, config))


def of_folder(folder: Path, source: str) -> Write:
    """A function that copies text_encoder/ and tokenizer/ of a diffusers pipeline into one folder.

    Raises ValueError if one is not there, or has no weights in safetensors.
    """
    for part in PARTS:
        if not (folder / part).is_dir():
            raise UserError(f"{source}: no {part} there; conditioner.clip_text.path=FOLDER gives one that has both")
    encoder, tokenizer = (folder / part for part in PARTS)
    found = [encoder / name for name in ("model.safetensors", "model.fp16.safetensors")]
    weights = next((path for path in found if path.is_file()), None)
    if weights is None or not (encoder / "config.json").is_file():
        raise UserError(f"{source}: {encoder} has no config.json with model.safetensors, and pickles are not read")
    files = {"config.json": encoder / "config.json", "model.safetensors": weights}
    files |= {name: tokenizer / name for name in (*TOKENIZER_FILES, *SETTINGS) if (tokenizer / name).is_file()}
    return partial(_copy, files)


def _copy(files: Mapping[str, Path], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in files.items():
        shutil.copyfile(source, folder / name)
