"""Several draws that take turns: all go as far as one expert takes them before the next expert is asked.

A sampler is a pure function of the denoiser's answers. So a draw that was stopped is run again from its beginning with
the answers that it was given before, which are kept on the CPU: nothing is evaluated twice.
"""

from collections.abc import Callable

from torch import Tensor

from ldm.diffusion.denoiser import Denoise


class Waiting(Exception):
    """A draw was stopped where it needs another expert."""


class Turn:
    """The answers that one draw was given so far."""

    def __init__(self) -> None:
        self._answers: list[Tensor] = []

    def stopping(self, denoise: Denoise, owner: Callable[[float], int]) -> Denoise:
        """`denoise` after the answers it gave before; raises Waiting at the second expert it is asked for.

        `owner` says which expert is for a level of noise.
        """
        given, own = iter(self._answers[:]), None

        def answered(x: Tensor, sigma: Tensor) -> Tensor:
            nonlocal own
            known = next(given, None)
            if known is not None:
                return known.to(x.device)
            asked = {owner(level) for level in sigma.tolist()}
            if own not in (None, asked):
                raise Waiting
            own = asked
            answer = denoise(x, sigma)
            self._answers.append(answer.cpu())
            return answer

        return answered

    def ending(self, denoise: Denoise) -> Denoise:
        """`denoise` after the answers it gave before, which are forgotten as they are used."""

        def answered(x: Tensor, sigma: Tensor) -> Tensor:
            return self._answers.pop(0).to(x.device) if self._answers else denoise(x, sigma)

        return answered
