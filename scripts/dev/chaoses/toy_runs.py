"""The runs for fault injection: each kind of training as a toy, and its result without a fault."""

from functools import cache
from pathlib import Path

from toys import tiny

from chaoses.jobs import Job, keys, write_down_keys

MAX_STEPS = 12
# Everything random in it, epochs of 5 steps, means and learning rates that change, a discriminator that comes later.
COMMON = (
    f"max_steps={MAX_STEPS}",
    "data.max_samples=20",
    "data.horizontal_flip_prob=0.5",
    "lr.warmup_steps=20",
    "callback.checkpoint.every_steps=3",
    "callback.metrics.every_steps=5",
    "callback.validation.every_steps=4",
)
OWN = {
    "autoencoder": ("autoencoder.dropout=0.1", "reconstruction.start_step=6"),
    "diffusion": ("network.dropout=0.1", "task.keep_latents=false"),
    "expert": ("network.dropout=0.1", "task.keep_latents=false", "expert.node=[1,1]"),
}
KINDS = tuple(OWN)


class ToyRuns:
    """Command lines of toys in `folder`, where the parents they need are trained when first asked for."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._parents: dict[str, Path] = {}
        self.whole = cache(self._whole)

    def arguments(self, kind: str, run: str, *more: str) -> list[str]:
        """The command line of a `kind` of run with this name."""
        needs = {"diffusion": ("first_stage", "autoencoder"), "expert": ("branch", "diffusion")}
        parent = [f"{needs[kind][0]}={self.parent(needs[kind][1])}"] if kind in needs else []
        return tiny(f"quickstart/{kind}", self.folder, *COMMON, *OWN[kind], *parent, f"run={run}", *more)

    def parent(self, kind: str) -> Path:
        """The run of a `kind` that others start from."""
        if kind not in self._parents:
            self._finish(Job(self.arguments(kind, f"parent-{kind}", "max_steps=2"), self.folder / f"{kind}.txt"))
            self._parents[kind] = self.folder / f"parent-{kind}"
        return self._parents[kind]

    def _whole(self, kind: str, ranks: int = 1, *more: str) -> tuple[Path, dict]:
        """(folder, keys) of a run without a fault."""
        name = "-".join(["whole", kind, str(ranks), *(word.replace("=", "_").replace("/", "_") for word in more)])
        noted = self.folder / f"{name}-keys"
        arguments = self.arguments(kind, name, *more)
        self._finish(Job(arguments, self.folder / f"{name}.txt", ranks, prepare=lambda: write_down_keys(noted)))
        return self.folder / name, keys(noted)

    def _finish(self, job: Job) -> None:
        statuses = job.wait()
        if any(statuses):
            raise RuntimeError(f"a run that nothing was done to ended with {statuses}: {job.said}")
