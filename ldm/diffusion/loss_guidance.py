"""Guidance by the gradient of a likelihood p(y | x): of a class, of an image to resemble, of a caption.

D' = D + scale sigma^2 grad_x log p(y | x; sigma): Bayes' rule for the score, at scale 1 (arXiv:2105.05233, section 4.1;
arXiv:2112.10752, appendix C). It comes after the guidance that compares, and no model is trained for it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.diffusion.classifier import NoisyClassifier
from ldm.diffusion.denoiser import Denoise, expand
from ldm.diffusion.guidance import Bound, finite
from ldm.diffusion.limits import Limits
from ldm.errors import UserError

Distance = Callable[[Tensor, Tensor], Tensor]


class ClassifierGuidance:
    """Towards batch["label"] [B], by a `classifier` of latents at all noise levels (arXiv:2105.05233, Algorithm 2).

    On a conditional model as on an unconditional one.
    """

    fields = ("label",)

    def __init__(self, scale: float, classifier: NoisyClassifier, limits: Limits | None = None):
        self.scale = finite(scale, "loss_guidance.classifier.scale")
        self.classifier = classifier
        self.limits = limits or Limits()

    def guide(self, bound: Bound) -> Denoise:
        """Raises ValueError if the batch has no labels, or a label that is not a class of the classifier."""
        label = _field(bound.batch, "label", "classifier")
        count = self.classifier.network.num_classes  # type: ignore[attr-defined]  # of a classifier, by its contract
        if label.min() < 0 or label.max() >= count:
            raise UserError(f"label={label.max().item()}: the classifier tells {count} classes apart, 0..{count - 1}")
        if self.scale == 0:
            return bound.denoise

        def guided(x: Tensor, sigma: Tensor, plain: Tensor) -> Tensor:
            with torch.enable_grad():
                place = x.detach().requires_grad_()
                log_prob = self.classifier.log_prob(place, sigma, label).sum()
                (gradient,) = torch.autograd.grad(log_prob, place)
            return plain + self.scale * expand(sigma.square(), x) * gradient

        return self.limits.apply(bound.denoise, guided)


class ImageGuidance:
    """Towards images whose `operator` T gives batch[`target`]: log p = -distance(T(decode(D(x))), target).

    arXiv:2112.10752, appendix C and D.6: with half the squared error a Gaussian of unit variance, or with LPIPS in its
    place; T is any differentiable map of images [B, 3, H, W] in [-1, 1], as a reduction in size. A target of another
    size than T gives is cropped to its shape at the centre, and resized.
    """

    def __init__(
        self,
        scale: float,
        operator: Callable[[Tensor], Tensor],
        distance: Distance,
        limits: Limits | None = None,
        target: str = "target",
    ):
        self.fields = (target,)
        self.scale = finite(scale, "loss_guidance.image.scale")
        self.operator = operator
        self.distance = distance
        self.limits = limits or Limits()

    def guide(self, bound: Bound) -> Denoise:
        """Raises ValueError if the batch has no target."""
        (name,) = self.fields
        target = _field(bound.batch, name, "image").float()

        def log_prob(x0: Tensor) -> Tensor:
            seen = self.operator(bound.decode(x0))
            return -self.distance(seen, fitted(target.to(seen.device), seen.shape[-2:]))

        return _steered(bound.denoise, log_prob, self.scale, self.limits)


class AlignmentGuidance:
    """Towards agreement of the decoded D(x) with batch["caption"]: log p = cosine of the two under `alignment`.

    With `alignment=open_clip` it is CLIP guidance. A cosine moves little, so that scales are in the hundreds.
    """

    fields = ("caption",)

    def __init__(self, scale: float, alignment: nn.Module, limits: Limits | None = None):
        self.scale = finite(scale, "loss_guidance.alignment.scale")
        self.alignment = alignment
        self.limits = limits or Limits()

    def guide(self, bound: Bound) -> Denoise:
        """Raises ValueError if the batch has no captions."""
        captions = _field(bound.batch, "caption", "alignment")

        def log_prob(x0: Tensor) -> Tensor:
            return self.alignment.to(x0.device)(bound.decode(x0), captions)

        return _steered(bound.denoise, log_prob, self.scale, self.limits)


class HalfSquaredError(nn.Module):
    """|a - b|^2 / 2, summed over an image: minus the logarithm of a Gaussian of unit variance."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Images a and b [B, ...] -> [B]."""
        return 0.5 * (a - b).square().flatten(1).sum(1)


def _steered(denoise: Denoise, log_prob: Callable[[Tensor], Tensor], scale: float, limits: Limits) -> Denoise:
    """`denoise` with scale sigma^2 times the gradient in x of log_prob(D(x)) [B] added, through the network.

    Differentiating the result gives D's own dependence on x; the gradient that was added counts as constant.
    """
    if scale == 0:
        return denoise

    def guided(x: Tensor, sigma: Tensor) -> Tensor:
        onward = torch.is_grad_enabled() and x.requires_grad
        with torch.enable_grad():
            place = x if onward else x.detach().requires_grad_()
            x0 = denoise(place, sigma)
            (gradient,) = torch.autograd.grad(log_prob(x0).sum(), place, retain_graph=onward)
        x0 = x0 if onward else x0.detach()
        return limits.limit(x, sigma, x0, x0 + scale * expand(sigma.square(), x) * gradient)

    return limits.within(denoise, guided)


def _field(batch: Mapping[str, Any], name: str, asked_by: str) -> Any:
    if name not in batch:
        raise UserError(f"loss_guidance={asked_by} needs {name!r}; give {'prompt' if name == 'caption' else name}=...")
    return batch[name]


def fitted(image: Tensor, size: Sequence[int]) -> Tensor:
    """[B, C, H, W] -> [B, C, *size]: cropped at the centre to the shape of `size`, and resized; as it is if it fits."""
    height, width = image.shape[-2:]
    if (height, width) == tuple(size):
        return image
    unit = min(height / size[0], width / size[1])
    rows, columns = (max(1, round(side * unit)) for side in size)
    top, left = (height - rows) // 2, (width - columns) // 2
    crop = image[..., top : top + rows, left : left + columns]
    return F.interpolate(crop, tuple(size), mode="bicubic", antialias=True).clamp(-1, 1)
