"""Sampling, shared by all callers: bind conditions, guide, draw, decode (walk 2 of docs/architecture.md).

An image is a function of the model, its prompt, the seed and its number: not of the batch or the rank it is made in.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ldm.conditioners.base import Conditioners
from ldm.conditioners.paint import on_grid, without_paint
from ldm.diffusion.branches import Together, apart
from ldm.diffusion.denoiser import ConditionalDenoise, Denoise
from ldm.diffusion.guidance import Bound, Guidance, ScaledGuidance
from ldm.diffusion.tiles import Tiling
from ldm.editing import Edit
from ldm.errors import UserError
from ldm.sampling import Sampling, draw

# Of an image, px: its side, or (height, width).
Size = int | tuple[int, int]


class Ask(NamedTuple):
    """What a Drawer's `generate` is asked for: one batch."""

    sampling: Sampling
    batch: dict[str, Any]
    numbers: Tensor
    seed: int
    size: Size | None = None
    negative: dict[str, Any] | None = None
    edit: Edit | None = None


class NotFinite(UserError):
    """Some of the `images` [B, 3, H, W] that were made are not finite (`finite` [B]); these are NaN throughout."""

    def __init__(self, message: str, images: Tensor, finite: Tensor):
        super().__init__(message)
        self.images = images
        self.finite = finite


@torch.no_grad()
def generate(
    denoiser: nn.Module,
    conditioner: Conditioners,
    first_stage: nn.Module,
    sampling: Sampling,
    batch: dict[str, Any],
    numbers: Tensor,
    seed: int,
    size: Size,
    negative: Mapping[str, Any] | None = None,
    edit: Edit | None = None,
) -> Tensor:
    """Images [B, 3, H, W] of `size` in [-1, 1] for the conditions in `batch`; `numbers` [B] address all that is drawn.

    Guidance is against the conditioner's null, or where a field is in `negative` against that. They are drawn from
    noise, or as `edit` says from a picture of that size, and keep the pixels that a condition gives. Raises NotFinite
    for images that are not, ValueError for guidance that would need a null which no training saw.
    """
    shape = latent_shape(first_stage, size, denoiser.factor, sampling.tiling)
    batch = addressed(batch, shape, sampling, numbers, seed)
    bound = bound_to(denoiser, conditioner, first_stage, sampling, batch, len(numbers), negative)
    denoise = guided(bound, sampling.guidances)
    return finished(
        lambda: drawn(denoise, first_stage, sampling, shape, batch, numbers, seed, edit),
        lambda images: conditioner.kept(images, batch, sampling.use_conditions),
    )


def addressed(
    batch: Mapping[str, Any], shape: tuple[int, ...], sampling: Sampling, numbers: Tensor, seed: int
) -> dict[str, Any]:
    """A batch for latents of `shape`, with what conditions draw by: the `numbers` [B] of the samples, and the normals
    of the sample's seed in the place of the training's.
    """
    return {**on_grid(batch, shape), "number": numbers, "normal": partial(sampling.normal, seed)}


def finished(draw: Callable[[], Tensor], finish: Callable[[Tensor], Tensor]) -> Tensor:
    """What `finish` makes of the images [B, 3, H, W] that `draw` makes; of those that NotFinite carries alike."""
    try:
        images = draw()
    except NotFinite as error:
        images = finish(error.images).where(error.finite[:, None, None, None], torch.nan)
        raise NotFinite(str(error), images, error.finite) from None
    return finish(images)


def latent_shape(first_stage: nn.Module, size: Size, factor: int = 1, tiling: Tiling | None = None) -> tuple[int, ...]:
    """The latent's shape for one image of `size`. Raises ValueError for an invalid size; see check_size."""
    spec = first_stage.spec
    height, width = (size, size) if isinstance(size, int) else size
    check_size(height, width, spec.f, factor, tiling)
    return spec.shape((height // spec.f, width // spec.f))


def bound_to(
    denoiser: nn.Module,
    conditioner: Conditioners,
    first_stage: nn.Module,
    sampling: Sampling,
    batch: Mapping[str, Any],
    num_samples: int,
    negative: Mapping[str, Any] | None = None,
) -> Bound:
    """A denoiser bound to the conditions of `batch`, as `sampling` uses them, paints them and cuts windows; not guided.

    Raises ValueError for guidance that would need a null which no training saw.
    """
    negative, use = negative or {}, sampling.use_conditions
    painted = sampling.painting(denoiser) if sampling.painting else denoiser
    batch = batch if sampling.painting else without_paint(batch)
    tiled = sampling.tiling(painted) if sampling.tiling else painted
    given = bind(tiled, conditioner, batch, num_samples, negative, use, sampling.together)
    check_guidance(sampling.guidance, conditioner, negative, use)
    names = conditioner.guidable(negative, use)
    return Bound(given(names), given, names, batch, num_samples, first_stage.decode)


def guided(bound: Bound, guidances: Iterable[Guidance]) -> Denoise:
    """The bound denoiser under `guidances`, each applied to the result of those before it."""
    for guidance in guidances:
        bound = replace(bound, denoise=guidance.guide(bound))
    return bound.denoise


def drawn(
    denoise: Denoise,
    first_stage: nn.Module,
    sampling: Sampling,
    shape: tuple[int, ...],
    batch: Mapping[str, Any],
    numbers: Tensor,
    seed: int,
    edit: Edit | None = None,
) -> Tensor:
    """Images [B, 3, H, W] in [-1, 1] by a guided `denoise`, of latents of `shape`, from noise or as `edit` says.

    Raises NotFinite for images that are not.
    """
    start, known = edit.begin(first_stage, sampling.sigmas, numbers.device) if edit else (None, None)
    z = draw(denoise, sampling, shape, numbers, seed, start, known)
    images = first_stage.decode(z).float()
    return finished(
        lambda: checked(z, images, batch, numbers).clamp(-1, 1),
        lambda images: images if edit is None else edit.put(images),
    )


def checked(z: Tensor, images: Tensor, batch: Mapping[str, Any], numbers: Tensor) -> Tensor:
    """The images [B, 3, H, W] of latents z. Raises NotFinite naming those that are not, before a clamp hides it."""
    finite = z.isfinite().flatten(1).all(1) & images.isfinite().flatten(1).all(1)  # VQ decodes NaN to some code
    if bool(finite.all()):
        return images
    places = (~finite).nonzero()[:, 0].tolist()
    captions = batch.get("caption")
    named = [f"number {numbers[place]}" + (f" of {captions[place]!r}" if captions else "") for place in places[:3]]
    more = [f"{len(places) - 3} more"] if len(places) > 3 else []
    raise NotFinite(
        f"not finite: image {', '.join([*named, *more])}; lower guidance.scale or the scale of loss_guidance, sample "
        "in 32 bits, or look at the weights of the model",
        images.where(finite[:, None, None, None], torch.nan).clamp(-1, 1), finite,
    )  # fmt: skip


def check_guidance(
    guidance: ScaledGuidance,
    conditioner: Conditioners,
    negative: Collection[str] = (),
    use: Collection[str] | None = None,
) -> frozenset:
    """Which conditions, of those in `use`, guidance leaves out. Raises ValueError if it needs a null that no training
    saw.
    """
    guidance.left_out(tuple(conditioner.used(use)))
    guidable = conditioner.guidable(negative, use)
    try:
        return guidance.left_out(guidable)
    except ValueError as error:
        fixed = [name for name in conditioner.used(use) if name not in guidable]
        keys = ", ".join(f"conditioner.{name}.drop_prob=0" for name in fixed)
        way = f"{{{','.join(f'{name}:3' for name in guidable)}}}"
        raise UserError(
            f"{str(error).partition(':')[0]}: the training never left out {' or '.join(fixed)} ({keys}), so there is "
            f"no null to guide by; sample with guidance.{f'scales={way}' if guidable else 'scale=1'}"
        ) from error


def check_size(
    height: int, width: int, f: int, factor: int = 1, tiling: Tiling | None = None, key: str = "image_size"
) -> None:
    """Raises ValueError for an image, px, that the first stage's `f` does not divide, or its latent the network's.

    What the network must find divisible by its `factor` are the windows of a `tiling`, where there are several. `key`
    says where the side of a square image stands.
    """
    named = f"{key}={height}" if height == width else f"height={height}, width={width}"
    if height % f or width % f:
        raise UserError(f"{named}: must be a multiple of the first stage's f = {f}")
    for side in (height // f, width // f):
        windows = 1 if tiling is None else len(tiling.starts(side))
        if windows == 1 and side % factor:
            raise UserError(
                f"{named}: must be a multiple of {f * factor}, the first stage's f = {f} times the network's {factor}"
            )
        if windows > 1 and tiling.size % factor:
            raise UserError(f"tiling.size={tiling.size}: must be a multiple of the network's {factor}")


def drawable(size: tuple[int, int], f: int, factor: int, tiling: Tiling | None = None) -> tuple[int, int]:
    """The least (height, width), px, that holds an image of `size` and passes `check_size`."""

    def least(side: int) -> int:
        positions = -(-side // f)
        if tiling is None or len(tiling.starts(positions)) == 1:
            positions = -(-positions // factor) * factor
        return positions * f

    return least(size[0]), least(size[1])


def bind(
    denoiser: ConditionalDenoise,
    conditioner: Conditioners,
    batch: Mapping[str, Any],
    num_samples: int,
    negative: Mapping[str, Any] | None = None,
    use: Collection[str] | None = None,
    together: bool = False,
) -> Callable[[Collection[str]], Denoise]:
    """`given` of a `Bound`: names of conditions of `batch` -> the denoiser with them; encoded once, when it is used.

    Those that are not in `use` (None: all) are never given, what cannot be guided by is always. `together`: what is
    asked of one x is evaluated in one batch (diffusion/branches.py).
    """

    @cache
    def cond(names: frozenset[str]) -> dict[str, Tensor]:
        given = (names & conditioner.used(use).keys()) - conditioner.absent(batch, use)
        drop = conditioner.drop_all_but(given, num_samples, negative or ())
        return conditioner(batch, drop=drop, negative=negative, use=use)

    return Together(denoiser, cond) if together else apart(denoiser, cond)
