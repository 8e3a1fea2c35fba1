"""Protocols of the papers by name: what is measured under which, and what was published beside it.

conf/protocol has one each. A row under a protocol says in ``comparable`` why its numbers are not the paper's kind.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ldm.drawer import Drawer
from ldm.errors import UserError
from ldm.evaluation.guidance_curve import LOST
from ldm.evaluation.paired import Subset
from ldm.evaluation.replaced_fields import made_of
from ldm.sampling import Sampling

SAMPLES = 5000  # where neither the command line nor a protocol says how many
BACKBONE = "inception_v3"  # of every FID, Inception score, precision and recall in the papers
COUNTS = ("samples", "reference_images")  # columns of how many each number is made of
Row = dict[str, Any]


class Protocol:
    """How a table of a paper was measured; all but `name` and `reads` is what an evaluation does unless told otherwise.

    `reads`: the fields that the model's conditions read, just these. `reference`: samples are compared with the
    ``training`` images or with those of ``data=``, for whose conditions they are drawn. `image_size`, px; `num_steps`
    of `sampler`; `scale` of classifier-free guidance D_u + scale (D_c - D_u), 1 being none. `paired`: measures against
    the true pictures; `subsets` of samples that have numbers of their own. `reference_images`: how many the paper's
    reference has, any of these, none where that is not stated. `from_files`: fields that the paper reads, and does not
    draw. `published`: {model: {source, scale, METRIC: number}};
    those of a row's scale stand in the row, or where `beside` names one, that one. `notes` are what no program sees.
    Raises ValueError for a `beside` that is not among them.
    """

    def __init__(
        self,
        name: str,
        reads: Sequence[str],
        num_samples: int,
        reference: Literal["training", "data"],
        image_size: int,
        num_steps: int,
        published: Mapping[str, Mapping[str, str | float | None]],
        scale: float = 1.0,
        sampler: str = "ddim",
        paired: Sequence[str] = (),
        subsets: Mapping[str, Subset] | None = None,
        reference_images: Sequence[int] = (),
        from_files: Sequence[str] = (),
        beside: str | None = None,
        notes: str = "",
    ):
        if beside is not None and beside not in published:
            raise UserError(f"protocol.beside={beside}: {name} has no such numbers; there are {', '.join(published)}")
        self.name = name
        self.reads = frozenset(reads)
        self.num_samples = num_samples
        self.reference = reference
        self.image_size = image_size
        self.num_steps = num_steps
        self.published = published
        self.scale = scale
        self.sampler = sampler
        self.paired = list(paired)
        self.subsets = dict(subsets or {})
        self.reference_images = reference_images
        self.from_files = from_files
        self.beside = beside
        self.notes = notes
        own = {"source", "scale"}
        self.metrics = list(dict.fromkeys(key for entry in published.values() for key in entry if key not in own))

    def asked(self, tree: Mapping[str, Any]) -> dict[str, Any]:
        """`tree` (conf/evaluate.yaml) with what the protocol says where it asks for nothing."""
        guidance = {**tree["guidance"]}
        if guidance.get("scale") is None:
            guidance["scale"] = self.scale
        own = {"num_samples": self.num_samples, "num_steps": self.num_steps, "paired": self.paired}
        own["reference"] = tree["data"] if self.reference == "data" else None
        return {**tree, **{key: value for key, value in own.items() if tree[key] is None}, "guidance": guidance}

    def check(self, model: Drawer, sampling: Sampling) -> None:
        """Raises ValueError for another kind of model."""
        read = set().union(*model.conditions(sampling).values()) & model.fields  # without what only a sample may give
        if read != self.reads:
            kinds = [f"conditioned on {' and '.join(sorted(f))}" if f else "unconditional" for f in (self.reads, read)]
            raise UserError(f"protocol={self.name}: is for models that are {kinds[0]}; {model.name} is {kinds[1]}")

    def beside_row(self, row: Mapping[str, Any], model: Drawer, sampling: Sampling, tree: Mapping[str, Any]) -> Row:
        """A `row` of the table with the paper's numbers behind its own, and why they cannot be compared, if so."""
        entries = self._entries(row["scale"])
        paper: Row = {metric: _told(entries, metric) for metric in self.metrics}
        told: Row = {}
        for key, value in row.items():
            told[key] = value
            metric = key.partition("/")[0]
            if metric in paper:
                told[f"paper {metric}"] = paper.pop(metric)
        told |= {f"paper {metric}": value for metric, value in paper.items()}
        sources = dict.fromkeys(str(entry["source"]) for entry in entries.values())
        told |= {"protocol": self.name, "paper": f"{', '.join(entries)}: {', '.join(sources)}" if entries else ""}
        problems = self._problems(row, model, sampling, tree, entries)
        return {**told, "comparable": f"no: {'; '.join(problems)}" if problems else f"yes, {self.notes}"}

    def _entries(self, scale: float) -> dict[str, Mapping[str, Any]]:
        if self.beside is not None:
            return {self.beside: self.published[self.beside]}
        return {name: entry for name, entry in self.published.items() if entry.get("scale", 1.0) == scale}

    def _problems(
        self,
        row: Mapping[str, Any],
        model: Drawer,
        sampling: Sampling,
        tree: Mapping[str, Any],
        entries: Mapping[str, Mapping[str, Any]],
    ) -> list[str]:
        """What is not as the paper has it, in words."""
        backbone = next(key for key in row if key.startswith(("fd/", "fid/", "kid/"))).partition("/")[2]
        taken, theirs = (_name(sampling.sampler), len(sampling.sigmas) - 1), (self.sampler, self.num_steps)
        samples, images = (row[key] for key in COUNTS)
        drawn = model.data.keys.replaced(made_of(tree)).derived.keys() & set(self.from_files)
        known = images is not None  # published moments do not say it
        other_count = known and bool(self.reference_images) and images not in self.reference_images
        scales = [entry.get("scale", 1.0) for entry in entries.values()]
        held_out = self.reference == "data"
        theirs_are = "images of data=" if held_out else "training images"
        # what is compared with, and whose conditions are drawn for; None: the training images
        against, drawn_for = (tree[key] for key in ("reference", "data"))
        found = [
            (backbone != BACKBONE, f"measured by {backbone}, the paper's by {BACKBONE}"),
            (samples != self.num_samples, f"{samples} samples, not {self.num_samples}"),
            (row[LOST] > 0, f"{row[LOST]} were not finite"),
            (model.image_size != self.image_size, f"{model.image_size} px, not {self.image_size}"),
            (taken != theirs, f"{taken[1]} steps of {taken[0]}, not {theirs[1]} of {theirs[0]}"),
            (other_count, f"compared with {images} images, not {' or '.join(map(str, self.reference_images))}"),
            (held_out and drawn_for is None, "drawn for training samples, where data= names held-out ones"),
            (not held_out and drawn_for is not None, "drawn for the samples of data=, not for training samples"),
            (
                against != (drawn_for if held_out else None),
                f"compared with what reference= names, not with the {theirs_are}",
            ),
            (bool(drawn), f"{' and '.join(sorted(drawn))} drawn by derived=, not read"),
            (not entries, f"nothing is published at scale {row['scale']:g}"),
            (any(scale is None for scale in scales), "guided in another way there"),
            (any(scale not in (None, row["scale"]) for scale in scales), f"scale {row['scale']:g} is not the paper's"),
        ]
        return [problem for true, problem in found if true]


def _told(entries: Mapping[str, Mapping[str, Any]], metric: str) -> Any:
    """The published numbers of a metric: one as it is, several with their models' names."""
    numbers = {name: entry[metric] for name, entry in entries.items() if entry.get(metric) is not None}
    if len(numbers) == 1 and len(entries) == 1:
        return next(iter(numbers.values()))
    return ", ".join(f"{value:g} ({name})" for name, value in numbers.items())


def _name(sampler: Any) -> str:
    return getattr(sampler, "func", sampler).__name__
