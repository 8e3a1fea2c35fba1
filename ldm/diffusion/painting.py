"""Paint-with-words (eDiff-I, arXiv:2211.01324, section 4.3): regions of the image that attend to chosen tokens.

A wrapper of a denoiser, of an ensemble or a tiled one too. The conditioner tells which tokens a phrase has.
"""

from torch import Tensor

from ldm.diffusion.cond import Condition
from ldm.diffusion.denoiser import ConditionalDenoise, expand


def painted(denoiser: ConditionalDenoise, scale: float) -> ConditionalDenoise:
    """`denoiser` whose cond["tokens_bias"] are regions A [B, M, h, w] in [0, 1], one for each token, zero for none.

    Every cross-attention computes softmax((Q K^T + w A) / sqrt(d)) V with w = scale log(1 + sigma) max(Q K^T), the
    maximum being each sample's own (`layers.attention`). Conditions without regions pass as they are.
    """

    def paint(x: Tensor, sigma: Tensor, cond: Condition) -> Tensor:
        if "tokens_bias" not in cond:
            return denoiser(x, sigma, cond)
        regions = cond["tokens_bias"]
        weight = scale * sigma.float().log1p()
        return denoiser(x, sigma, {**cond, "tokens_bias": expand(weight, regions) * regions})

    return paint
