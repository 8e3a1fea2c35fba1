"""What a tree is worth: samples of every system over guidance and sampling seeds, held-out losses, pairings.

A process of its own that keeps each point once it is measured, and goes on from those it has.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.build import Parts
from ldm.config import instantiate
from ldm.device import choose
from ldm.diffusion.boundaries import Interval, equal_shares
from ldm.diffusion.noise import Restricted
from ldm.drawer import Drawer, begun_of
from ldm.ensemble import WHOLE
from ldm.ensemble_model import Ensemble
from ldm.errors import UserError
from ldm.evaluation.interval_loss import gain, held_out, interval_loss
from ldm.files import read_json, write_json
from ldm.loading import load, load_drawer
from ldm.measuring import FEWEST, Ranks, alignment_key, conditions, look_at, make
from ldm.metrics.alignment_score import alignment_score
from ldm.metrics.kid import kernel_distance
from ldm.model import Model
from ldm.ranks import is_rank_zero
from ldm.tasks.probe import Probe
from ldm.trees.schedule import Schedule
from ldm.trees.trainings import Growth

Tree = dict[str, Any]
Row = dict[str, Any]
JUDGED, POINTS = "judged.json", "points.json"
ENSEMBLE = "four"  # the system that is held against the control, and whose experts are replaced
NEEDED = ("base", "control", ENSEMBLE)
log = logging.getLogger(__name__)
LEVELS = 8  # of noise at which a held-out image is measured in an interval
BINS = 16  # of equally likely noise, that losses are shown over


def check_systems(schedule: Schedule) -> None:
    """Raises UserError for a schedule without the systems that are compared."""
    for name in NEEDED:
        if name not in schedule.ensembles:
            raise UserError(f"schedules: {schedule.name} has no ensemble {name!r}; the report compares {NEEDED}")


def judge(tree: Tree, growth: Growth, manifests: Mapping[str, Path], folder: Path, settings: str) -> None:
    """Write the rows of a tree that is grown; of several processes the first does."""
    if not is_rank_zero():
        return
    bench = Bench(tree, growth, manifests, folder, settings)
    write_json(folder / JUDGED, {"rows": [*bench.sampled(), *bench.losses()]})


class Bench:
    """The place where the systems of one tree are measured."""

    def __init__(self, tree: Tree, growth: Growth, manifests: Mapping[str, Path], folder: Path, settings: str):
        self.tree = tree
        self.growth = growth
        self.folder = folder
        self.device = choose(tree["device"])
        self.base: Model = load(growth.run(growth.schedule.ensembles["base"][0]))
        self.data = self.base.data
        self.data.setup()
        self.systems: dict[str, Drawer] = {name: load_drawer(path).to(self.device) for name, path in manifests.items()}
        self.origins: dict[str, Model] = {}
        self.settings = settings
        kept = read_json(folder / POINTS) if (folder / POINTS).exists() else {}
        self.points: dict[str, Row] = kept["points"] if kept.get("settings") == settings else {}

    # -- samples -------------------------------------------------------------------------------------------------

    def sampled(self) -> Iterator[Row]:
        """Rows of every system at every scale and sampling seed; of pairings at the first scale."""
        paired = self.pairings()
        first = self.tree["scales"][0]
        asked = [(name, drawer, scale) for name, drawer in self.systems.items() for scale in self.tree["scales"]]
        asked += [(name, drawer, first) for name, drawer in paired.items()]
        for name, drawer, scale in asked:
            for seed in self.tree["sampling_seeds"]:
                place = {"system": name, "sampling_seed": seed, "scale": scale}
                for quantity, value in self._point(name, drawer, scale, seed).items():
                    yield {**place, "quantity": quantity, "value": value}

    def pairings(self) -> dict[str, Ensemble]:
        """The ensemble with each expert in turn replaced by the model that it was branched from."""
        schedule, ensemble = self.growth.schedule, self.systems[ENSEMBLE]
        assert isinstance(ensemble, Ensemble)  # written by `tell`
        found = {}
        for place, name in enumerate(schedule.ensembles[ENSEMBLE]):
            origin = schedule.row(name).origin
            if origin is None:
                continue
            members = list(ensemble.members)
            members[place] = self._origin(origin)
            label = f"{ENSEMBLE}, {name} by {origin}"
            found[label] = Ensemble(label, members, ensemble.interval_sets)
        return found

    def _origin(self, row: str) -> Model:
        if row not in self.origins:
            self.origins[row] = load(self.growth.run(row)).to(self.device)
        return self.origins[row]

    def _point(self, name: str, drawer: Drawer, scale: float, seed: int) -> Row:
        """What samples of a system are worth, kept once it is measured; systems of the same weights are one."""
        key = f"{' '.join(weights.digest for weights in drawer.weights)} {scale:g} {seed}"
        if key not in self.points:
            self.points[key] = self._measured(drawer, scale, seed)
            write_json(self.folder / POINTS, {"settings": self.settings, "points": self.points})
            print(f"{self.growth.name}: {name}, guidance {scale:g}, sampling seed {seed}", flush=True)
        return self.points[key]

    def _measured(self, drawer: Drawer, scale: float, seed: int) -> Row:
        count, batch_size = self.tree["num_samples"], self.tree["batch_size"]
        said: list[str] = []
        made = make(
            None, self.data, count, batch_size, self.backbone, self.alignment, Ranks(self.device, 0, 1),
            begun=begun_of(drawer, drawer.sampling({}).with_scale(scale), seed, said),
        )  # fmt: skip
        if made.broken and len(made.features) < FEWEST:
            raise UserError(f"{drawer.name}, guidance {scale:g}: {said[0]}")
        if made.broken:
            log.warning("%d of %d samples are not in the metrics; %s", len(made.broken), count, said[0])
        generator = torch.Generator().manual_seed(seed)
        row: Row = {f"kid/{self.backbone.name}": kernel_distance(self.real, made.features, generator)[0]}
        if self.probe is not None:
            finite = torch.isin(torch.arange(count), torch.tensor(made.broken, dtype=torch.int64), invert=True)
            row["accuracy"] = (self.probe(made.features) == self.labels[:count][finite]).double().mean().item()
        if self.alignment is not None:
            row[alignment_key(self.alignment)] = made.alignments.mean().item()
        return row

    @cached_property
    def backbone(self) -> Any:
        return instantiate(self.tree["metric"], Parts(self.tree), "metric").to(self.device)

    @cached_property
    def real(self) -> Tensor:
        """Features of training images, in the order of `labels`."""
        count, ranks = self.tree["num_reference"], Ranks(self.device, 0, 1)
        return look_at(self.data, count, self.tree["batch_size"], self.backbone, ranks)

    @cached_property
    def alignment(self) -> Any:
        """Of images and captions, where the data have these."""
        return alignment_score().to(self.device) if "caption" in self.data.fields else None

    @cached_property
    def labels(self) -> Tensor:
        """Classes of the conditions that are sampled for, and of the real images, which are the same."""
        count = max(self.tree["num_samples"], len(self.real))
        every = conditions(self.data, count, self.tree["batch_size"])
        return torch.cat([batch["label"][: len(numbers)] for batch, numbers in every])

    @cached_property
    def probe(self) -> Probe | None:
        """A classifier of real images, where samples are of a class and not of a caption."""
        if "label" not in self.data.fields or self.alignment is not None:
            return None
        labels = self.labels[: len(self.real)]
        return Probe(self.real, labels, int(labels.max()) + 1)

    # -- losses --------------------------------------------------------------------------------------------------

    def losses(self) -> list[Row]:
        """Held-out losses over all of the noise, in bins of it, and inside each expert's own interval."""
        count = min(self.tree["num_held_out"], self.data.num_validation)
        self.base.to("cpu")
        seen = held_out(self.base, self.data, self.tree["seeds"][0], count).to(self.device)
        self.base.to(self.device)
        noise, rows = self.base.parts["noise"], []

        def loss(drawer: Drawer, intervals: Sequence[Interval]) -> Tensor:
            inside = noise if intervals == WHOLE else Restricted(noise, intervals)
            return interval_loss(drawer, seen, inside, 0, LEVELS)

        def add(quantity: str, intervals: Sequence[Interval], of: Mapping[str, Drawer], against: Sequence[str]) -> None:
            """Mean losses of all, and of the first its differences to those `against`, with intervals over images."""
            found = {name: loss(drawer, intervals) for name, drawer in of.items()}
            for name, values in found.items():
                rows.append({"system": name, "quantity": quantity, "value": values.double().mean().item()})
            first = next(iter(found))
            for other in against:
                own = gain(found[first], found[other], seen.captions)
                value, half = -own["gain"], own["half_interval"]
                place = {"system": f"{first} - {other}", "quantity": f"{quantity}, difference"}
                rows.append({**place, "value": value, "low": value - half, "high": value + half})

        ordered = {ENSEMBLE: self.systems[ENSEMBLE], **self.systems}
        others = [name for name in ordered if name != ENSEMBLE]
        add("loss", WHOLE, ordered, others)
        if {"two", "scratch"} <= set(self.systems):
            pair = {"two": self.systems["two"], "scratch": self.systems["scratch"]}
            add("loss, branched or from nothing", WHOLE, pair, ["scratch"])
        for name in self.growth.schedule.ensembles[ENSEMBLE]:
            row, intervals = self.growth.schedule.row(name), self._origin(name).parts["expert"].intervals(noise)
            parent = self._origin(row.origin) if row.origin else self.base
            of = {"child": self._origin(name), "parent": parent, "control": self.systems["control"]}
            add(f"loss inside {name}", intervals, of, ["parent", "control"])
        for place, interval in enumerate(bins(noise)):
            shown = {name: self.systems[name] for name in NEEDED}
            for name, drawer in shown.items():
                value = loss(drawer, [interval]).double().mean().item()
                rows.append({"system": name, "quantity": f"loss in bin {place}", "value": value})
        return rows


def bins(noise: Any) -> list[Interval]:
    """`BINS` intervals of equally likely noise, lowest first, without those that are empty under a discrete one."""
    return [(low, high) for low, high in equal_shares(noise, BINS) if low < high]
