"""The one page where parts meet: a resolved tree becomes objects, joined by the names of their constructor arguments.

A part is built the first time something asks for it. ``Eps(schedule)`` gets the tree's schedule, a network gets the
widths of the conditions it will see: facts are derived here or stated once at the tree's root, never written twice.
"""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldm.checkpoint import posthoc_ema, weights
from ldm.conditioners.base import Conditioners, check_network
from ldm.config import instantiate, load_tree, resolve_target
from ldm.diffusion.classifier import NoisyClassifier
from ldm.diffusion.denoiser import Denoiser
from ldm.diffusion.guidance import ClassifierFree
from ldm.diffusion.loss import Loss, squared
from ldm.first_stage.first_stage import FirstStage, Identity
from ldm.networks.bounded import check_described
from ldm.sampling import Sampling

# One config group each; `network` and `conditioner` become parts below, `trainer` and `callback` are built by fit().
GROUPS = (
    "task autoencoder regularizer reconstruction discriminator network precond schedule noise resampler weighting "
    "log_variance sigmas sampler guidance tiling operator distance alignment expert ema guard data optimizer lr logger"
).split()
ROOT_FACTS = ("image_size", "seed", "accumulation", "max_steps")


class Parts:
    """The objects of one resolved tree, built on demand.

    ``parts["denoiser"]`` builds the network, its preconditioning and whatever those ask for.
    """

    def __init__(self, tree: dict[str, Any], **given: Any):
        self.tree = tree
        self._built: dict[str, Any] = dict(given)

    def __getitem__(self, name: str) -> Any:
        """The part or fact called `name`. Raises KeyError for a name that is neither."""
        if name not in self._built:
            self._built[name] = self._build(name)
        return self._built[name]

    def _build(self, name: str) -> Any:
        if name in GROUPS:
            return instantiate(self.tree.get(name), self.__getitem__, name)
        if name in ROOT_FACTS:
            return self.tree[name]
        if name in FACTS:
            return FACTS[name](self)
        raise KeyError(name)

    @cached_property
    def callbacks(self) -> list[Any]:
        """The callbacks of the tree, in its order."""
        return list(instantiate(self.tree["callback"] or {}, self.__getitem__, "callback").values())


def _conditioner(parts: Parts) -> Conditioners:
    return Conditioners(instantiate(parts.tree.get("conditioner") or {}, parts.__getitem__, "conditioner"))


def _first_stage(parts: Parts) -> Any:
    path = parts.tree.get("first_stage")
    if not path and parts.tree.get("autoencoder"):
        raise ValueError("first_stage: has to be given, a run of the autoencoder that this experiment names")
    return load_first_stage(Path(path)) if path else Identity()


def _latent_width(parts: Parts) -> int:
    """Channels of the latents: of the first stage, or of the one that the tree describes but does not have yet."""
    if parts.tree.get("autoencoder") and not parts.tree.get("first_stage"):
        return parts["regularizer"].latent_channels
    return parts["first_stage"].spec.channels


def _latent_size(parts: Parts) -> int:
    """Height and width of the latents of the images a tree trains on."""
    described = parts.tree.get("autoencoder") and not parts.tree.get("first_stage")
    f = parts["autoencoder"].f if described else parts["first_stage"].spec.f
    return parts["image_size"] // f


def load_first_stage(path: Path, ema: str = "ema") -> FirstStage:
    """The frozen first stage of an autoencoder's run (or one of its weights files), with its latent statistics.

    Raises ValueError if the run is of another kind, or has not finished and so has no statistics yet.
    """
    parts, found = load_autoencoder(path, ema)
    if "latent" not in found.metadata:
        raise ValueError(
            f"first_stage={path}: has no latent statistics yet; let it finish (its own command resumes it)"
        )
    mean, std = (torch.tensor(found.metadata["latent"][name]) for name in ("mean", "std"))
    return FirstStage(parts["autoencoder"], parts["regularizer"], mean, std, found.digest)


def kind_of(tree: dict[str, Any]) -> str:
    """What a run of a tree yields, as the class of its task says. Raises ValueError if it has none."""
    if not tree.get("task"):
        raise ValueError("task: nothing is chosen; experiment= chooses it")
    return resolve_target(tree["task"]["_target_"], "task").kind


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
        raise ValueError(f"first_stage={path}: not an autoencoder's run")
    check_model(lambda: first_stage_model(Parts(parts.tree)), found)
    model = first_stage_model(parts)
    weights.load_strict(model, found.state, str(found.path))
    model.eval().requires_grad_(False)
    return parts, found


def check_model(build: Callable[[], nn.Module], found: weights.Weights) -> None:
    """Raises ValueError unless the model that a saved tree describes, `build()`, is the one that its weights are of.

    Before it takes any memory: the tree may come from anyone.
    """
    shapes = {name: tensor.shape for name, tensor in found.state.items()}
    described = check_described(build, shapes, str(found.run / "config.yaml"))
    weights.check_fit(described, found.state, str(found.path))


def _sampling(parts: Parts) -> Sampling:
    guidance = parts["guidance"] or ClassifierFree(scale=1.0)
    after = instantiate(parts.tree.get("loss_guidance") or {}, parts.__getitem__, "loss_guidance")
    after = tuple(after.values())
    return Sampling(parts["sampler"], parts["sigmas"], guidance, parts["schedule"], after, parts["tiling"])


def _weak_model(parts: Parts) -> Any:
    raise ValueError(
        "guidance=autoguidance: compares with a second, worse network; sample.py and scripts/evaluate.py take it as "
        "weak_model=runs/NAME"
    )


def _denoiser(parts: Parts) -> Denoiser:
    network = parts["network"]
    check_network(network, parts["conditioner"])
    return Denoiser(network, parts["precond"])


def _loss(parts: Parts) -> Loss:
    return instantiate(parts.tree.get("loss"), parts.__getitem__, "loss") or squared


def _classifier(parts: Parts) -> NoisyClassifier:
    if kind_of(parts.tree) != "classifier":
        raise ValueError(
            "loss_guidance=[classifier]: goes by a classifier of noisy latents; sample.py and scripts/evaluate.py take "
            "it as classifier=runs/NAME, and experiment=quickstart/classifier trains one"
        )
    return NoisyClassifier(parts["network"], parts["schedule"])


FACTS = {
    "conditioner": _conditioner,
    "first_stage": _first_stage,
    "denoiser": _denoiser,
    "sampling": _sampling,
    "encode_image": lambda parts: lambda image: parts["first_stage"].encode(image),
    "weak_model": _weak_model,
    "classifier": _classifier,
    "loss": _loss,
    "latent_size": _latent_size,
    "in_channels": _latent_width,
    "out_channels": _latent_width,
    "tokens_width": lambda parts: parts["conditioner"].widths()["tokens_width"],
    "vector_width": lambda parts: parts["conditioner"].widths()["vector_width"],
    "concat_channels": lambda parts: parts["conditioner"].widths()["concat_channels"],
    "moment_channels": lambda parts: parts["regularizer"].moment_channels,
    "latent_channels": lambda parts: parts["regularizer"].latent_channels,
}
