"""A trained model to use: first stage, conditioner, denoiser and schedule, loaded from a run's folder.

What comes with a run is data: its tree is held to the registry of ldm.config and to its weights, safetensors with a
hash, before it is built.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.build import Parts, check_model, is_classifier
from ldm.checkpoint import posthoc_ema
from ldm.checkpoint.weights import Weights, load_strict
from ldm.conditioners.base import Conditioners
from ldm.config import load_tree, takes
from ldm.diffusion.classifier import NoisyClassifier
from ldm.diffusion.denoiser import Denoise
from ldm.diffusion.guidance import Bound
from ldm.diffusion.schedule import Schedule
from ldm.diffusion.tiles import Tiling
from ldm.errors import UserError
from ldm.first_stage.spec import LatentSpec
from ldm.generate import Sampling, Size, bind, check_size, generate
from ldm.networks.layers import tuned
from ldm.places import first_stage_of, paths_of


@dataclass
class Model:
    """What sampling and evaluation need; an ensemble of experts is one too, its denoiser routing by sigma."""

    name: str
    first_stage: nn.Module
    conditioner: Conditioners
    denoiser: nn.Module
    schedule: Schedule
    parts: Parts
    networks: list[nn.Module]  # of the denoiser, or of each expert
    weights: list[Weights] = field(default_factory=list)

    @property
    def image_size(self) -> int:
        return self.parts["image_size"]

    def sampling(self, tree: dict[str, Any]) -> Sampling:
        """How `tree` says to sample, in `num_steps`; a group sampler, sigmas or guidance that is null is the run's.

        `loss_guidance`, what it goes by, `tiling` and `weak_model` are only ever the tree's. Raises ValueError for a
        weak model or a classifier that does not fit, or that nothing takes.
        """
        chosen = {key: tree[key] or self.parts.tree[key] for key in ("sampler", "sigmas", "guidance")}
        if not tree["sigmas"] and "num_steps" in tree and "num_steps" in chosen["sigmas"]:
            chosen["sigmas"] = {**chosen["sigmas"], "num_steps": tree["num_steps"]}
        chosen |= {key: tree.get(key) for key in ("loss_guidance", "operator", "distance", "alignment", "tiling")}
        given = {"schedule": self.schedule, "first_stage": self.first_stage}
        given["tiling"] = Parts({**self.parts.tree, **chosen}, **given)["tiling"]
        if tree.get("weak_model"):
            if not chosen["guidance"] or not takes(chosen["guidance"], "weak_model"):
                raise UserError(f"weak_model={tree['weak_model']}: only guidance=autoguidance takes it")
            given["weak_model"] = self._weaker(Path(tree["weak_model"]), tree.get("first_stage"), given["tiling"])
        if tree.get("classifier"):
            if not any(takes(node, "classifier") for node in (tree.get("loss_guidance") or {}).values()):
                raise UserError(f"classifier={tree['classifier']}: only loss_guidance=[classifier] takes it")
            device = next(self.denoiser.parameters()).device
            given["classifier"] = load_classifier(Path(tree["classifier"]), self.first_stage).to(device)
        return Parts({**self.parts.tree, **chosen}, **given)["sampling"]

    def _weaker(self, path: Path, first_stage: str | None, tiling: Tiling | None) -> Callable[[Bound], Denoise]:
        """The denoiser of another run in the same latent space, its conditions through its own conditioner."""
        try:
            weak = load_model(path, first_stage)
            self.first_stage.spec.check(weak.first_stage.spec)
        except ValueError as error:
            raise UserError(f"weak_model={path}: {error}") from error
        weak.to(next(self.denoiser.parameters()).device)
        denoiser = tiling(weak.denoiser) if tiling else weak.denoiser
        conditioner = weak.conditioner

        def bound_to(bound: Bound) -> Denoise:
            return bind(denoiser, conditioner, bound.batch, bound.num_samples)(conditioner.names)

        return bound_to

    def to(self, device: torch.device | str) -> "Model":
        """Move all parts."""
        for part in (self.first_stage, self.conditioner, self.denoiser):
            part.to(device)
        return self

    def tuned(self, compile: bool = False) -> "Model":
        """The same model with its networks as its device likes them (layers.tuned); after `to`."""
        for network in self.networks:
            tuned(network, next(network.parameters()).device, compile)
        return self

    def generate(
        self, sampling: Sampling, batch: dict[str, Any], numbers: Tensor, seed: int, size: Size | None = None,
        negative: dict[str, Any] | None = None,
    ) -> Tensor:  # fmt: skip
        """Images [B, 3, H, W] in [-1, 1]; see generate.generate. `size` None is that of the training images."""
        size = size or self.image_size
        height, width = (size, size) if isinstance(size, int) else size
        check_size(height, width, self.first_stage.spec.f, self.denoiser.factor, sampling.tiling)
        return generate(
            self.denoiser, self.conditioner, self.first_stage, sampling, batch, numbers, seed, size, negative
        )


def load_model(path: Path, first_stage: str | None = None, ema: str = "ema") -> Model:
    """The diffusion model of a run's folder or of one weights file; `first_stage` says where the first stage moved.

    `ema` chooses the average of the weights: ``ema``, ``raw``, or a relative length (posthoc_ema.py).

    Raises ValueError if it is not a diffusion run, or the first stage is not the one it was trained with.
    """
    weights = posthoc_ema.load(path, ema)
    tree = load_tree(weights.run / "config.yaml")
    if not tree.get("network"):
        raise UserError(f"{path}: a first stage, not a diffusion model; train one with first_stage={path}")
    if is_classifier(tree):
        raise UserError(f"{path}: a classifier, not a diffusion model; it guides one, given as classifier={path}")
    tree = {**tree, "conditioner": paths_of(tree.get("conditioner"), weights.run)}
    if first_stage or tree.get("first_stage"):
        tree = {**tree, "first_stage": first_stage or _own_first_stage(weights.run, path)}
    parts = Parts(tree)
    counted = Parts(tree, first_stage=parts["first_stage"])
    check_model(lambda: nn.ModuleDict({name: counted[name] for name in ("network", "conditioner")}), weights)
    denoiser, conditioner = parts["denoiser"], parts["conditioner"]
    load_strict(
        nn.ModuleDict({"network": denoiser.network, "conditioner": conditioner}), weights.state, str(weights.path)
    )
    trained_with = weights.metadata.get("latent")
    if trained_with:
        LatentSpec.from_dict(trained_with).check(parts["first_stage"].spec)
    denoiser.eval().requires_grad_(False)
    conditioner.eval().requires_grad_(False)
    return Model(
        weights.run.name, parts["first_stage"], conditioner, denoiser, parts["schedule"], parts, [denoiser.network],
        [weights],
    )  # fmt: skip


def _own_first_stage(run: Path, asked: Path) -> str:
    found = first_stage_of(run)
    if not Path(found).exists():
        raise UserError(f"{asked}: its first stage, {found}, is not there; first_stage= says where it is now")
    return found


def load_classifier(path: Path, first_stage: nn.Module) -> NoisyClassifier:
    """The classifier of noisy latents of `first_stage`, from its run's folder or one of its weights files.

    Raises ValueError if it is another kind of run, or was trained on other latents.
    """
    weights = posthoc_ema.load(path)
    tree = load_tree(weights.run / "config.yaml")
    if not is_classifier(tree):
        raise UserError(f"classifier={path}: not a classifier's run; experiment=quickstart/classifier trains one")
    try:
        LatentSpec.from_dict(weights.metadata["latent"]).check(first_stage.spec)
    except ValueError as error:
        raise UserError(f"classifier={path}: made for other latents than the model's; {error}") from error
    counted = Parts(tree, first_stage=first_stage)
    check_model(lambda: nn.ModuleDict({"network": counted["network"]}), weights)
    classifier = Parts(tree, first_stage=first_stage)["classifier"]
    load_strict(nn.ModuleDict({"network": classifier.network}), weights.state, str(weights.path))
    return classifier.eval().requires_grad_(False)
