"""Trained models as they are used in Python (`ldm.load`): sample, encode, decode and denoise, with keywords for keys.

sample.py draws by the same `Request`, so that for the same seed and number its files are these images, bit for bit.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.conditioners.paint import on_grid
from ldm.config import use_plugins
from ldm.config.plugins import named
from ldm.data.colours import rgb
from ldm.data.decoding import decode_image
from ldm.data.errors import BadSample
from ldm.data.transforms import to_tensor
from ldm.device import choose
from ldm.diffusion.classifier import NoisyClassifier
from ldm.errors import UserError
from ldm.first_stage.first_stage import FirstStage
from ldm.images import to_uint8
from ldm.loading import load
from ldm.networks.compiling import Compile
from ldm.networks.precision import Precision
from ldm.options import tree_of
from ldm.request import Request

Picture = Image.Image | str | Path | Tensor  # a PIL image, an image file, or a tensor [3, H, W] in [-1, 1]
# Options that mean nothing to a single evaluation.
OF_DRAWING = (
    "sampler", "sigmas", "num_steps", "num_images", "batch_size", "seed", "height", "width", "tile",
    "start", "strength", "start_mask", "canvas", "to_seed",
)  # fmt: skip


class Images(list[Image.Image]):
    """PIL images in RGB; `tensor` [B, 3, H, W] has them as float32 in [-1, 1], on the CPU."""

    def __init__(self, tensor: Tensor):
        pixels = to_uint8(tensor).permute(0, 2, 3, 1).contiguous().cpu().numpy()
        super().__init__(Image.fromarray(image) for image in pixels)
        self.tensor = tensor.detach().float().cpu()


class Codec:
    """A first stage: pictures to latents and back. One in, one out; of several the latents are [B, C, h, w]."""

    def __init__(self, first_stage: Any, device: torch.device):
        self.first_stage, self._device = first_stage, device

    def encode(self, picture: Picture | Sequence[Picture]) -> Tensor:
        """Whitened latents [C, H / f, W / f] of a picture, [B, C, H / f, W / f] of several or of a tensor [B, 3, H, W].

        A PIL image, a file, or a tensor in [-1, 1], of the size it has. Raises ValueError for sides that f does not
        divide.
        """
        one = isinstance(picture, Image.Image | str | Path) or (isinstance(picture, Tensor) and picture.ndim == 3)
        several: Any = [picture] if one else picture
        pictures = torch.stack([_pixels(item) for item in several]).to(self._device)
        f, (height, width) = self.first_stage.spec.f, pictures.shape[-2:]
        if height % f or width % f:
            raise UserError(f"picture of {height} x {width} px: must be a multiple of the first stage's f = {f}")
        z = self.first_stage.encode(pictures)
        return z[0] if one else z

    def decode(self, z: Tensor) -> Image.Image | Images:
        """The picture of whitened latents [C, h, w], or the Images of [B, C, h, w]; f times as high and wide."""
        images = Images(self.first_stage.decode(self._latents(z)).float().clamp(-1, 1))
        return images[0] if z.ndim == 3 else images

    def _latents(self, z: Tensor) -> Tensor:
        channels = self.first_stage.spec.channels
        if z.ndim not in (3, 4) or z.shape[-3] != channels:
            raise UserError(f"latents {list(z.shape)}: expected [{channels}, h, w] or [B, {channels}, h, w]")
        return z.to(self._device).reshape(-1, *z.shape[-3:])


class Pipeline(Codec):
    """A diffusion model, or experts as one, with its first stage; `drawer` has their parts (ldm.drawer).

    Keyword options are the keys of sample.py, and what is left out is as the run says. A group is a name,
    ``sampler="heun"``, or a name with its keys, ``sampler={"ddim": {"eta": 1}}``; guidance is also a scale, or keys
    that change the run's own, ``guidance={"scale": 3, "limits": {"sigma_lo": 0.3}}``. An option that is a file may be a
    PIL image.
    """

    def __init__(self, drawer: Any, device: torch.device, asked: Mapping[str, Any]):
        super().__init__(drawer.first_stage, device)
        self.drawer, self._asked = drawer, dict(asked)

    def sample(self, prompt: str | None = None, **options: Any) -> Images:
        """`num_images` PIL images for each prompt, prompt after prompt; `.tensor` [B, 3, H, W] in [-1, 1].

        `prompts` is a list of texts or a file of lines; `height`, `width` and `image_size` are in px. An image is a
        function of the model, its prompt, the options, `seed` and its number. Raises ValueError for an option that
        there is not or that does not fit the model, NotFinite (a ValueError) for images that are not finite.
        """
        request, tree = self._request(prompt, options)
        pairs = [(row, number) for row in range(len(request.rows)) for number in range(tree["num_images"])]
        size = tree["batch_size"]
        parts = [pairs[start : start + size] for start in range(0, len(pairs), size)]
        return Images(torch.cat([draw().cpu() for draw in request.begun(parts)]))

    def denoise(self, x: Tensor, sigma: float | Tensor, prompt: str | None = None, **options: Any) -> Tensor:
        """The estimate of x0, of the shape of x = x0 + sigma noise, [C, h, w] or [B, C, h, w] of whitened latents.

        `sigma`, a number or [B], is in units of the latents, whose std is about 1; options are those of `sample` that
        do not draw. It is guided as a sample is: guidance=1 is the model's own estimate. Differentiable in x.
        """
        for key in OF_DRAWING:
            if key in options:
                raise UserError(f"{key}: is for sample; denoise evaluates the model once, at sigma")
        latents = self._latents(x)
        levels = torch.as_tensor(sigma, dtype=torch.float32, device=self._device)
        if levels.ndim > 1 or levels.numel() not in (1, len(latents)) or not ((levels > 0) & levels.isfinite()).all():
            raise UserError(f"sigma={sigma}: expected a number above 0, or one for each of {len(latents)} latents")
        request, _ = self._request(prompt, options)
        if len(request.rows) not in (1, len(latents)):
            raise UserError(f"prompts: {len(request.rows)} for {len(latents)} latents; give one, or one for each")
        numbers = torch.arange(len(latents), device=self._device)
        batch, negative = request.batch([place % len(request.rows) for place in range(len(latents))], numbers)
        batch = {**on_grid(batch, latents.shape), "number": numbers}
        guided = self.drawer.guided(request.sampling, batch, len(latents), negative)
        return guided(latents, levels.expand(len(latents))).reshape(x.shape)

    def _request(self, prompt: str | None, options: Mapping[str, Any]) -> tuple[Request, dict[str, Any]]:
        with TemporaryDirectory() as folder:
            tree, words = tree_of({"prompt": prompt, **options}, self._asked, Path(folder))
            return Request(self.drawer, tree, words, self._device), tree


def open_model(
    path: str | Path, first_stage: str | Path | None, ema: str | float, device: str, compile: Compile,
    plugins: Sequence[str] | None, residency: str | None = None, precision: Precision = "fp32",
) -> Any:  # fmt: skip
    """See ldm.load."""
    if plugins is not None:
        use_plugins([plugins] if isinstance(plugins, str) else plugins)
    used = named()
    place, stage = choose(device), None if first_stage is None else str(Path(first_stage).expanduser())
    found = load(path, stage, str(ema), residency).to(place)
    if isinstance(found, FirstStage | NoisyClassifier):
        return Codec(found, place) if isinstance(found, FirstStage) else found
    asked = {"model": str(path), "first_stage": stage, "plugins": used}
    return Pipeline(found.tuned(compile, precision), place, asked)


def _pixels(picture: Picture) -> Tensor:
    """[3, H, W] in [-1, 1]."""
    if isinstance(picture, Tensor):
        return picture.float()
    if isinstance(picture, Image.Image):
        return to_tensor([np.asarray(rgb(picture))])[0]
    try:
        return to_tensor([np.asarray(decode_image(Path(picture).expanduser().read_bytes()))])[0]
    except BadSample as error:
        raise UserError(f"{picture}: {error.kind} ({error})") from error
