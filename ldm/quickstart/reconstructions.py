"""What the quickstart's first stage keeps of the held-out images, against bicubic down and up by the same factor."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.files import read_json, write_json
from ldm.images import save_image
from ldm.loading import load
from ldm.metrics.reconstruction import bicubic, reconstruction_errors
from ldm.networks.lpips import pretrained_lpips

NUM_SHOWN = 12


@torch.no_grad()
def reconstruct(base: Path, folder: Path) -> dict[str, Any]:
    """Mean errors over all held-out images and PNG files of the first few; what is there for this first stage is kept.

    The first stage is that of the diffusion run `base`.
    """
    model = load(base)
    index = folder / "reconstructions.json"
    fingerprint = model.first_stage.spec.fingerprint
    if index.exists() and (kept := read_json(index))["first_stage"] == fingerprint:
        return kept
    lpips, f = pretrained_lpips("alex"), model.first_stage.spec.f
    errors: dict[str, dict[str, list[Tensor]]] = {"first stage": {}, "bicubic": {}}
    captions: list[str] = []
    for batch in model.parts["data"].validation_loader(batch_size=64):
        image = batch["image"]
        outputs = {
            "first stage": model.first_stage.decode(model.first_stage.encode(image)).clamp(-1, 1),
            "bicubic": bicubic(image, f),
        }
        for name, output in outputs.items():
            for metric, values in reconstruction_errors(output, image, lpips).items():
                errors[name].setdefault(metric, []).append(values)
        for place in range(min(len(image), NUM_SHOWN - len(captions))):
            for name, version in {"original": image, **outputs}.items():
                save_image(folder / picture(len(captions), name), version[place])
            captions.append(batch["caption"][place])
    means = {name: {metric: torch.cat(v).mean().item() for metric, v in of.items()} for name, of in errors.items()}
    content = {"first_stage": fingerprint, "f": f, "errors": means, "captions": captions}
    write_json(index, content)
    return content


def picture(number: int, name: str) -> str:
    """The file of an image's version: ``original``, ``first stage`` or ``bicubic``."""
    return f"{number:02d}-{name.replace(' ', '-')}.png"
