"""Latent diffusion: autoencoders, diffusion models in their latent space, and expert denoisers.

from ldm import load

model = load("runs/quickstart-diffusion")
images = model.sample("red heart", num_images=4, guidance=3.0, seed=0)
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal


def load(
    path: str | Path, first_stage: str | Path | None = None, ema: str | float = "ema", device: str = "auto",
    compile: bool | Literal["blocks", "whole", "graphs"] = False, plugins: Sequence[str] | None = None,
    residency: str | None = None, precision: Literal["fp32", "bf16"] = "fp32",
) -> Any:  # fmt: skip
    """A trained model to use, of a run's folder, one of its weights files, or a manifest (.yaml) of several.

    Of a diffusion run, an ensemble or a cascade what samples, encodes, decodes and denoises (ldm.api.Pipeline); of a
    first stage what encodes and decodes (ldm.api.Codec); of a classifier its network. `first_stage` says where the
    first stage lies now, if it moved. `ema` chooses the average of the weights: ``ema``, ``raw``, or a relative length
    such as 0.05 of a run with ema=power. `device` is ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; `compile` compiles the
    network: ``blocks`` each by itself, ``whole`` as true does, or on a GPU ``graphs``. With a `precision` of ``bf16``
    the network's products and their weights are in it: faster where the device has it. `plugins` names the packages of
    a user's own that it needs, None being those that were named before.
    `residency` says where an ensemble's members are while it samples: ``all`` on the device, ``one`` with the next read
    ahead, or ``disk``; None is what its manifest says. Raises ValueError naming what is wrong with it.
    """
    from ldm.api import open_model  # torch and all else, which `import ldm` does without

    return open_model(path, first_stage, ema, device, compile, plugins, residency, precision)
