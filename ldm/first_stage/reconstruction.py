"""The loss of first stages: L1 + LPIPS, and a patch discriminator with hinge losses and an adaptive weight.

arXiv 2112.10752 section 3.1 and appendix G; the adaptive weight is VQGAN's (arXiv 2012.09841, eq. 7). One forward of
the autoencoder serves both players, and one backward of what this returns trains both.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.networks.layers import Frozen

AllReduce = Callable[[Tensor], Tensor]


class ReconstructionLoss(nn.Module):
    """pixel_weight |x - xhat| + lpips_weight LPIPS with scale exp(logvar), plus regulariser and adversarial terms.

    `lpips` maps two images to [B]; it is frozen and not saved. The discriminator is used from `start_step` on; the
    adversarial loss has `adversarial_weight` times the adaptive weight, which is at most `max_adaptive_weight`.
    `kl_weight` is relative to distances summed over an image's values, `codebook_weight` to their average, as
    published. `sum_over_values` scales the whole by the number of values: the published KL recipe; False: that of VQ.
    """

    def __init__(
        self,
        lpips: nn.Module,
        discriminator: nn.Module,
        pixel_weight: float = 1.0,
        lpips_weight: float = 1.0,
        kl_weight: float = 1e-6,
        codebook_weight: float = 1.0,
        adversarial_weight: float = 0.5,
        start_step: int = 50_000,
        max_adaptive_weight: float = 1e4,
        learn_logvar: bool = False,
        sum_over_values: bool = False,
    ):
        super().__init__()
        self._lpips = Frozen(lpips)
        self.discriminator = discriminator
        self.pixel_weight = pixel_weight
        self.lpips_weight = lpips_weight
        self.kl_weight = kl_weight
        self.codebook_weight = codebook_weight
        self.adversarial_weight = adversarial_weight
        self.start_step = start_step
        self.max_adaptive_weight = max_adaptive_weight
        self.logvar = nn.Parameter(torch.zeros(()), requires_grad=learn_logvar)
        self.sum_over_values = sum_over_values

    @property
    def min_size(self) -> int:
        """The smallest side of an image, px, that LPIPS accepts."""
        return self._lpips.module.min_size

    distance_names = ("l1", "lpips")

    def distances(self, image: Tensor, xhat: Tensor) -> dict[str, Tensor]:
        """L1 and LPIPS of each sample: images [B, C, H, W] in [-1, 1] -> {"l1": [B], "lpips": [B]}."""
        l1 = (image - xhat).abs().flatten(1).mean(1)
        return {"l1": l1, "lpips": self._lpips.on(image.device)(image, xhat).flatten()}

    def forward(
        self,
        image: Tensor,
        xhat: Tensor,
        terms: dict[str, Tensor],
        last_layer: Tensor,
        step: int,
        all_reduce: AllReduce = lambda tensor: tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss whose one backward trains autoencoder and discriminator, and named values to log.

        `xhat` [B, C, H, W] is the autoencoder's answer to `image`, `terms` the regulariser's losses, `last_layer` the
        weight of the last convolution. `all_reduce` averages a tensor over the processes: the adaptive weight is that
        of the global batch.
        """
        num_values = image[0].numel()
        scale = num_values if self.sum_over_values else 1
        y = xhat.detach().float().requires_grad_()  # All distances are differentiated up to here, once.
        distances = {name: value.mean() for name, value in self.distances(image, y).items()}
        rec = self.pixel_weight * distances["l1"] + self.lpips_weight * distances["lpips"]
        gradient = torch.autograd.grad(scale * rec / self.logvar.detach().exp(), y)[0]
        nll = scale * (rec.detach() / self.logvar.exp() + self.logvar)
        penalty = scale * self._penalty(terms, num_values)
        logs = {name: value.detach() for name, value in (distances | terms | {"rec": rec, "nll": nll}).items()}

        if step < self.start_step:
            # Zero gradients rather than none: DDP requires every parameter to take part in every step.
            hinge = 0.0 * sum(p.sum() for p in self.discriminator.parameters())
        else:
            hinge, pull, adversarial = self._adversarial(image, xhat, y, gradient, last_layer, all_reduce)
            gradient = gradient + pull
            logs |= adversarial

        # <xhat, gradient> has the gradient of reconstruction and adversarial loss at xhat; its value has no meaning.
        surrogate = (xhat.float() * gradient).sum()
        loss = nll + penalty + hinge + (surrogate - surrogate.detach())
        return loss, logs | {"loss": loss.detach(), "logvar": self.logvar.detach().clone()}

    def _penalty(self, terms: dict[str, Tensor], num_values: int) -> Tensor | int:
        """The regulariser's weighted losses, relative to distances averaged over an image's values."""
        weights = {"kl": self.kl_weight / num_values, "codebook": self.codebook_weight}
        return sum(weights[name] * value for name, value in terms.items())

    def _adversarial(
        self,
        image: Tensor,
        xhat: Tensor,
        y: Tensor,
        gradient: Tensor,
        last_layer: Tensor,
        all_reduce: AllReduce,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The discriminator's loss, the gradient it gives the autoencoder at xhat, and named values."""
        # One pass over the fakes serves both losses: gradients to y for the autoencoder, to the weights for itself.
        fake = self.discriminator(y).float()
        generator = -fake.mean()
        pull = torch.autograd.grad(generator, y, retain_graph=True)[0]
        real = self.discriminator(image).float()
        hinge = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())

        norms = _last_layer_norms(xhat, last_layer, (gradient, pull), all_reduce)
        weight = (norms[0] / (norms[1] + 1e-4)).clamp(0.0, self.max_adaptive_weight)
        logs = {
            "adaptive_weight": weight,
            "gradient_ratio": norms[1] / norms[0].clamp(min=1e-12),
            "generator": generator.detach(),
            "discriminator": hinge.detach(),
            "logits_real": real.detach().mean(),
            "logits_fake": fake.detach().mean(),
        }
        return hinge, self.adversarial_weight * weight * pull, logs


def _last_layer_norms(xhat: Tensor, last_layer: Tensor, gradients: tuple[Tensor, ...], all_reduce: AllReduce) -> Tensor:
    """Norms of the last layer's gradients that come from these gradients at xhat; only the last layer is walked."""
    at_layer = [
        torch.autograd.grad(xhat, last_layer, g.to(xhat.dtype), retain_graph=True)[0].float().flatten()
        for g in gradients
    ]
    return all_reduce(torch.stack(at_layer)).norm(dim=1)
