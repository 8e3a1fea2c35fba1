"""A trained model to use: first stage, conditioner, denoiser and schedule, loaded from a run's folder.

A run's files are untrusted: its tree is checked against the registry of ldm.config and its weights, safetensors with a
hash, before it is built.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.build import Parts, check_model, kind_of
from ldm.checkpoint import posthoc_ema
from ldm.checkpoint.weights import Weights, load_strict
from ldm.conditioners.base import Conditioners
from ldm.conditioners.paint import check_painted, takes_paint, without_paint
from ldm.config import load_tree, takes
from ldm.data.module import ShardData
from ldm.device import doubt_bf16
from ldm.diffusion.classifier import NoisyClassifier
from ldm.diffusion.denoiser import Denoise
from ldm.diffusion.guidance import Bound
from ldm.diffusion.schedule import Schedule
from ldm.diffusion.tiles import Tiling
from ldm.editing import Edit
from ldm.errors import UserError
from ldm.first_stage.first_stage import FirstStage, Identity
from ldm.first_stage.spec import LatentSpec
from ldm.generate import Ask, Size, bind, bound_to, check_guidance, drawable, generate, guided
from ldm.networks.compiling import Compile
from ldm.networks.layers import tuned
from ldm.networks.precision import Precision, low_dtype, lower
from ldm.places import first_stage_of, paths_of
from ldm.sampling import Sampling

CLASSIFIER_FREE = {"_target_": "ldm.diffusion.guidance.ClassifierFree", "scale": 1.0}


def lower_denoiser(denoiser: nn.Module, precision: Precision, device: torch.device) -> None:
    """Evaluate the denoiser's network in `precision`, its weights held in it, from now on (networks/precision.py).

    Warns where the device only emulates that.
    """
    if precision == "bf16":
        doubt_bf16(device.type)
    denoiser.low = low_dtype(precision)  # type: ignore[assignment]  # a Denoiser
    lower(denoiser.network, precision)  # type: ignore[arg-type]  # networks are modules


@dataclass
class Model:
    """A first stage, a conditioner and a denoiser under one schedule, from one run: a Drawer."""

    name: str
    first_stage: FirstStage | Identity
    conditioner: Conditioners
    denoiser: nn.Module
    schedule: Schedule
    parts: Parts
    weights: list[Weights] = field(default_factory=list)

    @property
    def image_size(self) -> int:
        """Height and width of the training images, px."""
        return self.parts["window_size"]

    @property
    def data(self) -> ShardData:
        """What it was trained on."""
        return self.parts["data"]

    @property
    def networks(self) -> list[nn.Module]:
        """The network of the denoiser."""
        return [self.denoiser.network]

    @property
    def settings(self) -> Mapping[str, Any]:
        """None: all of its recipe is in its run."""
        return {}

    @property
    def fields(self) -> set[str]:
        """The batch fields that its conditioner reads."""
        return self.conditioner.fields

    @property
    def beside_latent(self) -> set[str]:
        """The batch fields of conditions that are concatenated to the latent, position by position."""
        return {field for part in self.conditioner.parts.values() if "concat" in part.widths for field in part.fields}

    def drawable(self, size: tuple[int, int], sampling: Sampling) -> tuple[int, int]:
        """The least (height, width), px, that holds an image of `size` and that it can draw."""
        return drawable(size, self.first_stage.spec.f, self.denoiser.factor, sampling.tiling)

    def sampling(self, tree: Mapping[str, Any]) -> Sampling:
        """How `tree` says to sample; of a recipe (sampler, sigmas, num_steps, guidance) what is null is the run's own.

        Keys of guidance without a class change the run's guidance, or classifier-free guidance where that has no such
        keys. The run's own is left out where it has nothing to guide by. `loss_guidance`, what it goes by, `tiling`,
        `painting`, `weak_model`, `use_conditions` and `one_call` are only ever the tree's. Raises ValueError for a weak
        model or a classifier that does not fit, or that nothing takes, and for a condition that the model has not.
        """
        use = None if tree.get("use_conditions") is None else tuple(tree["use_conditions"])
        negative = ["caption"] if tree.get("negative_prompt") else []
        chosen = recipe(tree, self.parts.tree, bool(self.conditioner.guidable(negative, use)))
        chosen |= {key: tree.get(key) for key in ("loss_guidance", "operator", "distance", "alignment", "tiling")}
        chosen["painting"] = tree.get("painting") if tree.get("paint") else None
        given: dict[str, Any] = {"schedule": self.schedule, "first_stage": self.first_stage}
        given["tiling"] = Parts({**self.parts.tree, **chosen}, **given)["tiling"]
        if tree.get("weak_model"):
            if not chosen["guidance"] or not takes(chosen["guidance"], "weak_model"):
                raise UserError(f"weak_model={tree['weak_model']}: only guidance=autoguidance takes it")
            given["weak_model"] = self._weaker(Path(tree["weak_model"]), tree.get("first_stage"), given["tiling"], use)
        if tree.get("classifier"):
            if not any(takes(node, "classifier") for node in (tree.get("loss_guidance") or {}).values()):
                raise UserError(f"classifier={tree['classifier']}: only loss_guidance=[classifier] takes it")
            device = next(self.denoiser.parameters()).device
            given["classifier"] = load_classifier(Path(tree["classifier"]), self.first_stage).to(device)
        sampling = Parts({**self.parts.tree, **chosen}, **given)["sampling"]
        return replace(sampling, use_conditions=use, together=tree.get("one_call", False), chosen=chosen)

    def _weaker(
        self, path: Path, first_stage: str | None, tiling: Tiling | None, use: Collection[str] | None
    ) -> Callable[[Bound], Denoise]:
        """The denoiser of another run in the same latent space, its conditions through its own conditioner."""
        try:
            weak = load_model(path, first_stage)
            self.first_stage.spec.check(weak.first_stage.spec)
        except ValueError as error:
            raise UserError(f"weak_model={path}: {error}") from error
        weak.to(next(self.denoiser.parameters()).device)
        if self.denoiser.low:
            weak.tuned(precision="bf16")
        denoiser = tiling(weak.denoiser) if tiling else weak.denoiser
        unused = self.conditioner.parts.keys() - self.conditioner.used(use).keys()
        own = [name for name in weak.conditioner.parts if name not in unused]

        def weaker(bound: Bound) -> Denoise:
            return bind(denoiser, weak.conditioner, without_paint(bound.batch), bound.num_samples, use=own)(own)

        return weaker

    def conditions(self, sampling: Sampling) -> dict[str, set[str]]:
        """The conditions that are used, by name, and the fields that each reads."""
        used = self.conditioner.used(sampling.use_conditions)
        return {name: part.fields.union(part.may_read) for name, part in used.items()}

    def missing(self, batch: Mapping[str, Any], sampling: Sampling) -> dict[str, str]:
        """Name and field of the conditions used that a batch has to give and does not."""
        return self.conditioner.missing(batch, sampling.use_conditions)

    def absent(self, batch: Mapping[str, Any], sampling: Sampling) -> dict[str, str]:
        """Name and field of the conditions used that a batch does not give and need not: they are dropped."""
        absent, used = self.conditioner.absent(batch, sampling.use_conditions), self.conditioner.used()
        return {name: next(field for field in (part.key, *part.also) if field and field not in batch)
                for name, part in used.items() if name in absent}  # fmt: skip

    def check(self, batch: Mapping[str, Any], sampling: Sampling, given: Mapping[str, str]) -> None:
        """Say what of a batch its conditions do not read; ValueError for values that they do not take."""
        self.conditioner.check(batch, sampling.use_conditions, given)

    def paintable(self, batch: Mapping[str, Any], sampling: Sampling) -> bool:
        """Whether it can paint the phrases of a batch. Raises ValueError for one that a condition does not read."""
        used = self.conditioner.used(sampling.use_conditions)
        return takes_paint(self.denoiser.network) and check_painted(used, batch)

    def left_out(self, sampling: Sampling, negative: Collection[str] = ()) -> frozenset[str]:
        """Conditions that guidance leaves out. Raises ValueError for guidance that the model cannot be sampled with."""
        return check_guidance(sampling.guidance, self.conditioner, negative, sampling.use_conditions)

    def decode_in_tiles(self, size: int | None) -> None:
        """Decode larger images in overlapping tiles of this size, px, from now on; None: without tiles."""
        self.first_stage.tile = size

    def to(self, device: torch.device | str) -> "Model":
        """Move all parts."""
        for part in (self.first_stage, self.conditioner, self.denoiser):
            part.to(device)
        return self

    def hollow(self) -> "Model":
        """Without the weights of its network, from now on."""
        for network in self.networks:
            network.to("meta")
        self.weights = [own.without_values() for own in self.weights]
        return self

    def tuned(self, compile: Compile = False, precision: Precision = "fp32") -> "Model":
        """The same model with its networks laid out for its device (layers.tuned); call it after `to`."""
        device = next(self.denoiser.parameters()).device
        lower_denoiser(self.denoiser, precision, device)
        for network in self.networks:
            tuned(network, device, compile)
        return self

    def guided(
        self, sampling: Sampling, batch: Mapping[str, Any], num_samples: int, negative: dict[str, Any] | None = None
    ) -> Denoise:
        """Its denoiser, bound to the conditions of `batch` and guided, as ldm.sampling.draw takes it."""
        bound = bound_to(self.denoiser, self.conditioner, self.first_stage, sampling, batch, num_samples, negative)
        return guided(bound, sampling.guidances)

    def generate(
        self, sampling: Sampling, batch: dict[str, Any], numbers: Tensor, seed: int, size: Size | None = None,
        negative: dict[str, Any] | None = None, edit: Edit | None = None,
    ) -> Tensor:  # fmt: skip
        """Images [B, 3, H, W] in [-1, 1]; see generate.generate. `size` None is that of the training images."""
        size = size or self.image_size
        return generate(
            self.denoiser, self.conditioner, self.first_stage, sampling, batch, numbers, seed, size, negative, edit
        )

    def begun(self, asks: Sequence[Ask], tell: Callable[[str], Any] = lambda words: None) -> list[Callable[[], Tensor]]:
        """Images of each of `asks`, once they are called for; see Drawer.begun."""
        return [partial(self.generate, *ask) for ask in asks]

    @property
    def residency(self) -> dict[str, Any]:
        """Nothing: all of it stays where it is."""
        return {}


def recipe(tree: Mapping[str, Any], run: Mapping[str, Any], guidable: bool) -> dict[str, Any]:
    """The groups sampler, sigmas and guidance that `tree` asks for, each as the `run` has it where it asks for none.

    Raises UserError for a number of steps where the sigmas are not of any number.
    """
    chosen = {key: tree.get(key) or run[key] for key in ("sampler", "sigmas", "guidance")}
    sigmas, num_steps = chosen["sigmas"], tree.get("num_steps")
    if tree.get("sigmas"):
        num_steps = sigmas.get("num_steps") or num_steps or run["num_steps"]
    if num_steps and takes(sigmas, "num_steps"):
        chosen["sigmas"] = {**sigmas, "num_steps": num_steps}
    elif tree.get("num_steps"):
        name = sigmas["_target_"].rpartition(".")[2]
        raise UserError(f"num_steps={num_steps}: sigmas={name} has levels of its own; leave out one of the two")
    if not tree.get("guidance"):
        return chosen if guidable else {**chosen, "guidance": None}
    if "_target_" not in tree["guidance"]:
        own = run["guidance"] or {}
        fits = own and all(takes(own, key) for key in tree["guidance"])
        chosen["guidance"] = changed(own if fits else CLASSIFIER_FREE, tree["guidance"])
    return chosen


def changed(part: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """A part of a tree with the keys that are `asked` for; so are parts within it that stay of the same class."""
    both = {**part, **asked}
    for key, value in asked.items():
        own = part.get(key)
        if isinstance(own, dict) and isinstance(value, dict) and own.get("_target_", 0) == value.get("_target_"):
            both[key] = changed(own, value)
    return both


def load_model(path: Path, first_stage: str | None = None, ema: str = "ema") -> Model:
    """The diffusion model of a run's folder or of one weights file; `first_stage` says where the first stage moved.

    `ema` chooses the average of the weights: ``ema``, ``raw``, or a relative length (posthoc_ema.py).

    Raises ValueError if it is not a diffusion run, or the first stage is not the one it was trained with.
    """
    weights = posthoc_ema.load(path, ema)
    tree = load_tree(weights.run / "config.yaml")
    kind = kind_of(tree)
    if kind != "diffusion":
        raise UserError(f"{path}: a {kind.replace('_', ' ')}, not a diffusion model, which takes it as {kind}={path}")
    tree = {**tree, "conditioner": paths_of(tree.get("conditioner"), weights.run)}
    if first_stage or tree.get("first_stage"):
        tree = {**tree, "first_stage": first_stage or own_first_stage(weights.run, path)}
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
    return Model(weights.run.name, parts["first_stage"], conditioner, denoiser, parts["schedule"], parts, [weights])


def own_first_stage(run: Path, asked: Path) -> str:
    """Where the first stage of a run is. Raises ValueError naming the path that was `asked` for if it is not there."""
    found = first_stage_of(run)
    if not Path(found).exists():
        raise UserError(f"{asked}: its first stage, {found}, is not there; first_stage= says where it is now")
    return found


def load_classifier(path: Path, first_stage: nn.Module, ema: str = "ema") -> NoisyClassifier:
    """The classifier of noisy latents of `first_stage`, from its run's folder or one of its weights files.

    Raises ValueError if it is another kind of run, or was trained on other latents.
    """
    weights = posthoc_ema.load(path, ema)
    tree = load_tree(weights.run / "config.yaml")
    if kind_of(tree) != "classifier":
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
