"""The one module that wires parts together: a resolved tree becomes objects, matched by constructor argument names.

A part is built the first time something asks for it. ``Eps(schedule)`` gets the tree's schedule, a network gets the
widths of the conditions it will see: facts are derived here or stated once at the tree's root, never written twice.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ldm.checkpoint import posthoc_ema, weights
from ldm.conditioners.base import Conditioners, check_network
from ldm.config import instantiate, load_tree, resolve_target
from ldm.diffusion.classifier import NoisyClassifier
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.guidance import ClassifierFree
from ldm.diffusion.loss import Loss, squared
from ldm.diffusion.objective import Objective, denoising
from ldm.errors import UserError
from ldm.first_stage.first_stage import FirstStage, Identity
from ldm.metrics.networks import MetricNetworks
from ldm.networks.bounded import check_described
from ldm.sampling import Sampling

# One config group each; `network` and `conditioner` become parts below, `trainer` and `callback` are built by fit().
GROUPS = (
    "task",
    "autoencoder",
    "regularizer",
    "reconstruction",
    "discriminator",
    "adapter",
    "precond",
    "schedule",
    "noise",
    "resampler",
    "weighting",
    "log_variance",
    "representation",
    "sigmas",
    "sampler",
    "guidance",
    "tiling",
    "painting",
    "operator",
    "distance",
    "alignment",
    "expert",
    "ema",
    "guard",
    "data",
    "optimizer",
    "lr",
    "logger",
)
ROOT_FACTS = ("image_size", "seed", "accumulation", "max_steps")


class Parts:
    """The objects of one resolved tree, built on demand.

    ``parts["denoiser"]`` builds the network, its preconditioning and whatever those ask for.
    """

    def __init__(self, tree: dict[str, Any], **given: Any):
        self.tree = tree
        self._built: dict[str, Any] = dict(given)
        self._asked: list[str] = []  # the parts that are being built, each requested by the one before it

    def __contains__(self, name: str) -> bool:
        """Whether there is a part or fact called `name`; a group without a choice is None."""
        if name in self._built or name in GROUPS:
            return True
        return name in self.tree if name in ROOT_FACTS else name in FACTS and FACTS[name].known(self.tree)

    def __getitem__(self, name: str) -> Any:
        """The part or fact called `name`. KeyError for a name that is neither, and what its constructor raises."""
        if name in self._asked:
            raise UserError(f"{name}: is asked for while it is built ({' -> '.join([*self._asked, name])})")
        if name not in self._built:
            self._asked.append(name)
            try:
                self._built[name] = self._build(name)
            finally:
                self._asked.pop()
        return self._built[name]

    def _build(self, name: str) -> Any:
        if name in GROUPS:
            return instantiate(self.tree.get(name), self, name)
        if name in ROOT_FACTS:
            return self.tree[name]
        return FACTS[name].make(self)

    @cached_property
    def callbacks(self) -> list[Any]:
        """The callbacks of the tree, in its order; one that declares that it comes first, or last, does."""
        found = instantiate(self.tree["callback"] or {}, self, "callback").values()
        return sorted(found, key=lambda own: getattr(own, "comes_last", False) - getattr(own, "comes_first", False))


def _conditioner(parts: Parts) -> Conditioners:
    conditioner = Conditioners(instantiate(parts.tree.get("conditioner") or {}, parts, "conditioner"))
    return conditioner if parts["adapter"] is None else conditioner.requires_grad_(False)


def _network(parts: Parts) -> Any:
    within = partial(torch.device, "meta") if parts["weightless"] else nullcontext
    network = instantiate(parts.tree.get("network"), parts, "network", within)
    adapter = parts["adapter"]
    return network if network is None or adapter is None else adapter(network)


def window_size(tree: Mapping[str, Any]) -> int:
    """Height and width of the images that a run of this tree trains on, px."""
    crop = tree.get("crop_size")
    return crop if isinstance(crop, int) else tree["image_size"]


def _first_stage(parts: Parts) -> Any:
    path = parts.tree.get("first_stage")
    if not _has_latents(parts.tree):
        raise UserError("first_stage: has to be given, a run of the autoencoder that this experiment names")
    return load_first_stage(Path(path)) if path else Identity()


def _latent_width(parts: Parts) -> int:
    """Channels of the latents: of the first stage, or of the one that the tree describes but does not have yet."""
    if parts.tree.get("autoencoder") and not parts.tree.get("first_stage"):
        return parts["regularizer"].latent_channels
    return parts["first_stage"].spec.channels


def _latent_f(parts: Parts) -> int:
    """Sides of an image over those of its latent."""
    described = parts.tree.get("autoencoder") and not parts.tree.get("first_stage")
    return parts["autoencoder"].f if described else parts["first_stage"].spec.f


def load_first_stage(path: Path, ema: str = "ema") -> FirstStage:
    """The frozen first stage of an autoencoder's run (or one of its weights files), with its latent statistics.

    Raises ValueError if the run is of another kind, or has not finished and so has no statistics yet.
    """
    parts, found = load_autoencoder(path, ema)
    if "latent" not in found.metadata:
        raise UserError(f"first_stage={path}: has no latent statistics yet; let it finish (its own command resumes it)")
    mean, std = (torch.tensor(found.metadata["latent"][name]) for name in ("mean", "std"))
    return FirstStage(parts["autoencoder"], parts["regularizer"], mean, std, found.digest)


def kind_of(tree: dict[str, Any]) -> str:
    """The kind of model that a run of a tree yields, declared by its task's class. ValueError if it has no task."""
    if not tree.get("task"):
        raise UserError("task: nothing is chosen; experiment= chooses it")
    return resolve_target(tree["task"]["_target_"], "task").kind  # type: ignore[attr-defined]  # a Task


def is_first_stage(tree: dict[str, Any]) -> bool:
    """Whether a tree trains a first stage."""
    return kind_of(tree) == "first_stage"


def first_stage_model(parts: Parts) -> nn.ModuleDict:
    """The first stage that a tree describes, under the names its run saves it by."""
    return nn.ModuleDict({"autoencoder": parts["autoencoder"], "regularizer": parts["regularizer"]})


def load_autoencoder(path: Path, ema: str = "ema") -> tuple[Parts, weights.Weights]:
    """The parts of an autoencoder's run, its weights averaged as `ema` says, and those weights; finished or not."""
    found = posthoc_ema.load(path, ema)
    parts = Parts(load_tree(found.run / "config.yaml"))
    if not is_first_stage(parts.tree):
        raise UserError(f"first_stage={path}: not an autoencoder's run")
    check_model(lambda: first_stage_model(Parts(parts.tree)), found)
    model = first_stage_model(parts)
    weights.load_strict(model, found.state, str(found.path))
    model.eval().requires_grad_(False)
    return parts, found


def check_model(build: Callable[[], nn.Module], found: weights.Weights) -> None:
    """Raises ValueError unless the model that a saved tree describes, `build()`, is the one its weights belong to.

    It is checked before any memory is allocated: the tree is untrusted.
    """
    shapes = {name: tensor.shape for name, tensor in found.state.items()}
    described = check_described(build, shapes, str(found.run / "config.yaml"))
    weights.check_fit(described, found.state, str(found.path))


def _sampling(parts: Parts) -> Sampling:
    guidance = parts["guidance"] or ClassifierFree(scale=1.0)
    after = instantiate(parts.tree.get("loss_guidance") or {}, parts, "loss_guidance")
    after = tuple(after.values())
    return Sampling(
        parts["sampler"], parts["sigmas"], guidance, parts["schedule"], after, parts["tiling"], parts["painting"]
    )


def _denoiser(parts: Parts) -> Denoiser:
    network = parts["network"]
    if getattr(network, "factor", None) is None:
        name = type(network).__name__
        raise UserError(f"network ({name}): says no factor, of which height and width are multiples (factor = 1: any)")
    check_network(network, parts["conditioner"])
    return Denoiser(network, parts["precond"])


def _loss(parts: Parts) -> Loss:
    return instantiate(parts.tree.get("loss"), parts, "loss") or squared


def _objective(parts: Parts) -> Objective:
    return instantiate(parts.tree.get("objective"), parts, "objective") or denoising


def _metric_networks(parts: Parts) -> MetricNetworks:
    """The metric and the alignment of a tree, to be made when they are needed; the packaged ones where it has none."""

    def maker(group: str) -> Callable[[], Any] | None:
        node = parts.tree.get(group)
        return None if node is None else lambda: instantiate(node, parts, group)

    return MetricNetworks(maker("metric"), maker("alignment"))


def _classifier(parts: Parts) -> NoisyClassifier:
    return NoisyClassifier(parts["network"], parts["schedule"])


class Fact(NamedTuple):
    """A value derived from other parts: how to make it, and whether a tree has what that needs (or it is given)."""

    make: Callable[[Parts], Any]
    known: Callable[[dict[str, Any]], bool] = lambda tree: True


def _has_latents(tree: dict[str, Any]) -> bool:
    return not tree.get("autoencoder") or bool(tree.get("first_stage"))


def _describes_latents(tree: dict[str, Any]) -> bool:
    return _has_latents(tree) or bool(tree.get("regularizer"))


def _is_classifier(tree: dict[str, Any]) -> bool:
    return bool(tree.get("task")) and kind_of(tree) == "classifier"


def _has_regularizer(tree: dict[str, Any]) -> bool:
    return bool(tree.get("regularizer"))


FACTS = {
    "network": Fact(_network),
    "conditioner": Fact(_conditioner),
    "derived": Fact(lambda parts: instantiate(parts.tree.get("derived") or {}, parts, "derived")),
    "crop_size": Fact(lambda parts: parts.tree.get("crop_size")),
    "window_size": Fact(lambda parts: window_size(parts.tree)),
    "first_stage": Fact(_first_stage, _has_latents),
    "company": Fact(lambda parts: lambda manifest, residency: None),  # of an expert; a run that trains is given its own
    "weightless": Fact(lambda parts: False),  # whether another process gives the network its weights
    "samples_before": Fact(lambda parts: 0),  # those that the parents of a run have seen
    "denoiser": Fact(_denoiser, lambda tree: bool(tree.get("network"))),
    "sampling": Fact(_sampling),
    "encode_image": Fact(lambda parts: lambda image: parts["first_stage"].encode(image)),
    "classifier": Fact(_classifier, _is_classifier),
    "loss": Fact(_loss),
    "objective": Fact(_objective),
    "metric_networks": Fact(_metric_networks),
    "latent_f": Fact(_latent_f, _describes_latents),
    "latent_size": Fact(lambda parts: parts["window_size"] // parts["latent_f"], _describes_latents),
    "in_channels": Fact(_latent_width, _describes_latents),
    "out_channels": Fact(_latent_width, _describes_latents),
    "tokens_width": Fact(lambda parts: parts["conditioner"].widths()["tokens_width"]),
    "vector_width": Fact(lambda parts: parts["conditioner"].widths()["vector_width"]),
    "concat_channels": Fact(lambda parts: parts["conditioner"].widths()["concat_channels"]),
    "moment_channels": Fact(lambda parts: parts["regularizer"].moment_channels, _has_regularizer),
    "latent_channels": Fact(lambda parts: parts["regularizer"].latent_channels, _has_regularizer),
}
