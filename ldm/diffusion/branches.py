"""What guidance compares, evaluated one after the other or in one batch: the conditions differ, x and sigma do not.

One batch pays where an evaluation waits for memory or for the processor, as those of few images on a GPU do. The last
bits depend on it, as on any batch.
"""

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from ldm.diffusion.cond import Condition
from ldm.diffusion.denoiser import ConditionalDenoise, Denoise

Names = frozenset[str]  # of the conditions that are given: what a branch is known by
Given = Callable[[Names], Condition]


def apart(denoiser: ConditionalDenoise, given: Given) -> Callable[[Collection[str]], Denoise]:
    """The branches of `denoiser`, each evaluated when it is asked."""

    def branch(names: Collection[str]) -> Denoise:
        return lambda x, sigma: denoiser(x, sigma, given(frozenset(names)))

    return branch


class Together:
    """The branches of `denoiser`, all that an x was asked for evaluated when the next x comes to the first of them.

    At the first x they are all that were made. What is asked for beside them is evaluated when it is asked, and those
    whose conditions are not alike in their shapes (phrases painted into one of them) each by itself.
    """

    def __init__(self, denoiser: ConditionalDenoise, given: Given):
        self._denoiser, self._given = denoiser, given
        self._asked: dict[Names, None] = {}  # for the present x, in this order, on which last bits depend
        self._expected: dict[Names, None] = {}  # for it too, by what the one before was asked for
        self._at: tuple[Tensor, int, Tensor, int] | None = None  # x and sigma, with their versions
        self._found: dict[Names, Tensor] = {}

    def __call__(self, names: Collection[str]) -> Denoise:
        own = frozenset(names)
        self._asked[own] = None
        return lambda x, sigma: self._answer(own, x, sigma)

    def _answer(self, own: Names, x: Tensor, sigma: Tensor) -> Tensor:
        if not self._is_at(x, sigma):
            self._expected, self._asked, self._found = self._asked, {}, {}
            self._at = (x, x._version, sigma, sigma._version)
        self._asked[own] = None
        if own not in self._found:
            wanted = [own, *(names for names in self._expected if names != own and names not in self._found)]
            self._found.update(zip(wanted, self._evaluated(x, sigma, wanted), strict=True))
        return self._found[own]

    def _is_at(self, x: Tensor, sigma: Tensor) -> bool:
        """Whether these are the tensors that were last answered for, and nothing was written into them."""
        if self._at is None:
            return False
        last_x, x_version, last_sigma, sigma_version = self._at
        same = x is last_x and sigma is last_sigma
        return same and x._version == x_version and sigma._version == sigma_version

    def _evaluated(self, x: Tensor, sigma: Tensor, wanted: list[Names]) -> list[Tensor]:
        conds = [self._given(names) for names in wanted]
        shapes = [{key: (value.shape, value.dtype) for key, value in cond.items()} for cond in conds]
        if any(own != shapes[0] for own in shapes):
            return [self._denoiser(x, sigma, cond) for cond in conds]
        joined = {key: torch.cat([cond[key] for cond in conds]) for key in conds[0]}
        count = len(conds)
        found = self._denoiser(x.repeat(count, *[1] * (x.ndim - 1)), sigma.repeat(count), joined)
        return list(found.chunk(count))
