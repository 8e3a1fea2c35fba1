"""The quality of an expert, which is for a part of the noise only: others draw outside of it."""

from ldm.measuring import Ranks, Row
from ldm.sampling import Sampling
from ldm.training.judged import Asked, Company, Judged
from ldm.training.sample_quality import SampleQuality

PARENT = "parent/"  # before the name of a metric of what is drawn without the expert


class ExpertQuality(Judged):
    """The quality of what an expert and its `company` draw together; beside it, measured once, that of the company."""

    def __init__(self, asked: Asked, company: Company, sampling: Sampling):
        self.company = company
        self.together = SampleQuality(asked, company.draw, sampling, company.check)
        self.without = SampleQuality(asked, company.draw_without, sampling, company.check)
        self._parent: Row = {}

    def lacks(self) -> str | None:
        return self.company.lacks() or self.together.lacks()

    @property
    def num_images(self) -> int:
        return self.together.num_images

    @property
    def names(self) -> tuple[str, ...]:
        own = self.together.names
        return (*own, *(PARENT + name for name in own))

    def prepare(self, ranks: Ranks) -> None:
        with self.company.on(ranks.device):
            self.together.prepare(ranks)
            self.without.compare_as(self.together)
            row = self.without.measure(ranks)
        own = {name: value for name, value in row.items() if "/" in name or name == "nan_images"}
        self._parent = {PARENT + name: value for name, value in own.items()}

    def measure(self, ranks: Ranks) -> Row:
        with self.company.on(ranks.device):
            row = self.together.measure(ranks)
        return {**row, **self._parent}
