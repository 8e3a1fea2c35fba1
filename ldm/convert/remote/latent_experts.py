"""Experts of one diffusion model as one pipeline: each is a folder of its own, for its part of the noise."""

import json
from pathlib import Path

from diffusers import DiffusionPipeline


class LatentExperts:
    """Draws with `experts`, LatentPipelines; the k-th predicts at noise of `boundaries[k]` and above, which decrease.

    Boundaries are in the scheduler's units: timesteps of a chain, sigma, or the time of flow matching. Scheduler and
    first stage are those of the expert for the highest noise.
    """

    def __init__(self, experts, boundaries):
        if not len(experts) == len(boundaries) or boundaries[-1] != 0 or sorted(boundaries, reverse=True) != boundaries:
            raise ValueError("boundaries: one for each expert, decreasing, the last one 0")
        self.experts, self.boundaries = list(experts), list(boundaries)

    @classmethod
    def from_pretrained(cls, folder, boundaries=None, **options):
        """Of a folder with experts.json; `boundaries` in place of those that the experts were trained for."""
        told = json.loads((Path(folder) / "experts.json").read_text())
        opened = {}
        for name in told["experts"]:  # one that is for two parts of the noise is opened once
            if name not in opened:
                place = Path(folder) / name
                opened[name] = DiffusionPipeline.from_pretrained(place, trust_remote_code=True, **options)
        return cls([opened[name] for name in told["experts"]], boundaries or told["boundaries"])

    def __call__(self, *prompt, **options):
        """Images; see LatentPipeline."""
        return self.experts[0](*prompt, experts=self.experts, boundaries=self.boundaries, **options)

    def to(self, *place):
        """Itself, with all experts moved."""
        for expert in self.experts:
            expert.to(*place)
        return self

    def set_progress_bar_config(self, **options):
        """As of any pipeline."""
        self.experts[0].set_progress_bar_config(**options)
