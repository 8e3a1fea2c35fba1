"""Small pictures as they are found: blurred, resized, noisy and compressed in random order, by BSRGAN's recipe.

arXiv 2103.14006, section 3, with the numbers of its public code; derived=bsrgan_light has those that LDM's
super-resolution of photographs was trained with. What each step does: data/degradations.py.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from ldm.data import degradations as spoil
from ldm.data.counter_random import generator
from ldm.data.fields.derived import Derived
from ldm.data.fields.low_resolution import reduced_size
from ldm.data.fields.picture import Picture
from ldm.data.user_error import UserError

Step = Callable[[np.ndarray], np.ndarray]
INTERPOLATIONS = (spoil.bilinear, spoil.bicubic, spoil.area)


class Bsrgan(Derived):
    """float32 [B, 3, H / factor, W / factor] in [-1, 1]: the window, spoiled and reduced.

    For each sample, in random order: `num_blurs` blurs (half of them isotropic; `sinc_prob`: sinc in their place), one
    resize to between 1 / (2 factor) and all of the size (`nearest_prob`: by dropping pixels; else bilinear, bicubic or
    area, equally often), Gaussian noise, `poisson_prob` and `speckle_prob` of those, and `jpeg_prob` of JPEG. The one
    to the final size comes anywhere after the first. At the end JPEG, with `final_sinc_prob` of a sinc before or after.
    `halve_prob`: it begins by halving the size, where `factor` is a multiple of 4. Blurs are `blur_scale` times as wide
    as published, kernels an odd number of px in `kernel_size`; `noise` counts in 1 / 255; `quality` is JPEG's.

    Two faults of the public code are not here: it swaps height and width where it cuts to whole multiples, and its
    kernels of even size move the picture by half a pixel. More than ten arguments: each is a key of the YAML.
    """

    yields = "float32 [B, 3, h, w]"
    degrades = True

    def __init__(
        self,
        seed: int,
        factor: int = 4,
        num_blurs: int = 2,
        blur_scale: float = 1.0,
        kernel_size: Sequence[int] = (7, 25),
        sinc_prob: float = 0.1,
        nearest_prob: float = 0.25,
        noise: Sequence[int] = (2, 25),
        poisson_prob: float = 0.1,
        speckle_prob: float = 0.1,
        quality: Sequence[int] = (30, 95),
        jpeg_prob: float = 0.9,
        halve_prob: float = 0.25,
        final_sinc_prob: float = 0.8,
    ):
        probs = {"sinc_prob": sinc_prob, "nearest_prob": nearest_prob, "poisson_prob": poisson_prob,
                 "speckle_prob": speckle_prob, "jpeg_prob": jpeg_prob, "halve_prob": halve_prob,
                 "final_sinc_prob": final_sinc_prob}  # fmt: skip
        for name, value in probs.items():
            if not 0 <= value <= 1:
                raise UserError(f"Bsrgan: {name}={value} is not a probability")
        for name, ends, least, most in (("kernel_size", kernel_size, 3, 99), ("noise", noise, 0, 255),
                                        ("quality", quality, 1, 95)):  # fmt: skip
            if len(ends) != 2 or not least <= ends[0] <= ends[1] <= most:
                raise UserError(f"Bsrgan: {name}={list(ends)} has to be two numbers of {least} to {most}, least first")
        if kernel_size[0] // 2 > (kernel_size[1] - 1) // 2:
            raise UserError(f"Bsrgan: kernel_size={list(kernel_size)} has to have an odd number in it")
        if num_blurs < 0 or blur_scale < 0:
            raise UserError(f"Bsrgan: num_blurs={num_blurs} and blur_scale={blur_scale} have to be at least 0")
        self.given = Picture(factor=factor)
        self.reduces = factor
        self.seed = seed
        self.num_blurs = num_blurs
        self.blur_scale = blur_scale
        self.kernel_size = kernel_size
        self.sinc_prob = sinc_prob
        self.nearest_prob = nearest_prob
        self.noise = noise
        self.poisson_prob = poisson_prob
        self.speckle_prob = speckle_prob
        self.quality = quality
        self.jpeg_prob = jpeg_prob
        self.halve_prob = halve_prob
        self.final_sinc_prob = final_sinc_prob

    def make(self, windows: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """Drawn by (seed, sample number). Raises ValueError for windows whose sides are not multiples of `factor`."""
        size = reduced_size(windows, self.reduces)
        made = []
        for window, number in zip(windows, numbers.tolist(), strict=True):
            image = (window.numpy() + 1) / 2
            for step in self.steps(generator(self.seed, "bsrgan", number), image.shape[1:], size):
                image = step(image)
            made.append(torch.from_numpy(image))
        return torch.stack(made) * 2 - 1

    def steps(self, draws: np.random.Generator, size: spoil.Size, final: spoil.Size) -> list[Step]:
        """What one picture of `size` goes through to `final`, in order; noise is drawn when they are applied."""
        first, factor = [], self.reduces
        if factor % 4 == 0 and draws.random() < self.halve_prob:
            size, factor = (size[0] // 2, size[1] // 2), factor // 2
            antialiased = (spoil.bicubic_antialiased,) * len(INTERPOLATIONS)  # as often as all others together
            first = [partial(_any(draws, antialiased + INTERPOLATIONS), size=size)]
        steps = [self._blur(draws, factor) for _ in range(self.num_blurs)]
        steps += [self._noise(draws, spoil.gaussian_noise)]
        steps += [self._poisson(draws)] if draws.random() < self.poisson_prob else []
        steps += [self._noise(draws, spoil.speckle_noise)] if draws.random() < self.speckle_prob else []
        steps += [self._jpeg(draws)] if draws.random() < self.jpeg_prob else []
        resizes: list[Step] = [self._resize(draws, size, factor), partial(_any(draws, INTERPOLATIONS), size=final)]
        places, next_resize = draws.permutation(len(steps) + len(resizes)), iter(resizes)
        shuffled: list[Step] = [steps[place] if place < len(steps) else next(next_resize) for place in places]
        last: list[Step] = [self._jpeg(draws)]
        if draws.random() < self.final_sinc_prob:
            last.insert(draws.integers(2), self._sinc(draws))
        return [*first, *shuffled, *last]

    def _blur(self, draws: np.random.Generator, factor: int) -> Step:
        if draws.random() < self.sinc_prob:
            return self._sinc(draws)
        size = self._kernel_size(draws)
        if draws.random() < 0.5:
            return partial(spoil.isotropic_blur, size=size, std=(2 + 0.2 * factor) * self.blur_scale * draws.random())
        variances = tuple((4 + factor) * self.blur_scale * draws.random(2))
        return partial(spoil.anisotropic_blur, size=size, variances=variances, angle=np.pi * draws.random())

    def _sinc(self, draws: np.random.Generator) -> Step:
        size = self._kernel_size(draws)
        slowest = np.pi / 5 if size < 13 else np.pi / 3  # radians a px, as published
        return partial(spoil.sinc_filter, size=size, cutoff=draws.uniform(slowest, np.pi))

    def _kernel_size(self, draws: np.random.Generator) -> int:
        least, most = self.kernel_size
        return 2 * int(draws.integers(least // 2, (most - 1) // 2 + 1)) + 1

    def _resize(self, draws: np.random.Generator, size: spoil.Size, factor: int) -> Step:
        if draws.random() < self.nearest_prob:
            return partial(spoil.nearest, factor=factor, std=draws.uniform(0.1, 0.6 * factor))
        by = draws.uniform(1, 2 * factor)
        return partial(_any(draws, INTERPOLATIONS), size=tuple(max(1, int(side / by)) for side in size))

    def _noise(self, draws: np.random.Generator, kind: Callable) -> Step:
        least, most = self.noise
        level, how = draws.integers(least, most + 1), draws.random()
        if how < 0.4:
            return partial(kind, draws=draws, std=level / 255, channels=spoil.INDEPENDENT)
        if how < 0.8:
            return partial(kind, draws=draws, std=level / 255, channels=spoil.GREY)
        return partial(kind, draws=draws, std=most / 255, channels=spoil.correlated(draws))

    def _poisson(self, draws: np.random.Generator) -> Step:
        photons = 10 ** draws.uniform(2, 4)
        return partial(spoil.poisson_noise, draws=draws, photons=photons, grey=draws.random() < 0.5)

    def _jpeg(self, draws: np.random.Generator) -> Step:
        least, most = self.quality
        return partial(spoil.jpeg, quality=int(draws.integers(least, most + 1)))


def _any(draws: np.random.Generator, kinds: Sequence[Callable]) -> Callable:
    return kinds[int(draws.integers(len(kinds)))]
