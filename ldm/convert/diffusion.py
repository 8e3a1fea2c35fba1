"""Whole latent diffusion models in and out of the formats of others; the package says which.

A published file holds twelve buffers of the schedule, the network, perhaps its average, the first stage, perhaps a
conditioner and a scale factor. The first stage becomes a run of its own inside the run.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm.build import Parts, load_first_stage
from ldm.checkpoint import kinds, weights
from ldm.conditioners.base import Conditioners
from ldm.config import completed
from ldm.convert import first_stage as first_stages
from ldm.convert import first_stage_layouts, foreign, text_encoders
from ldm.convert.schedule_buffers import compare_schedule, discrete, with_schedule
from ldm.errors import UserError
from ldm.files import replace
from ldm.run import Run, code_version

log = logging.getLogger(__name__)
FIRST_STAGE_TASK = "ldm.training.autoencoder.AutoencoderTask"
FIRST_STAGE_RUN = "first_stage"  # folder of the imported first stage in the run's
KEPT = "published.safetensors"  # what a published file holds and no model needs; it is exported as it was imported
TEXT = "clip_text"  # the conditioner whose encoder a published file holds, and a run has a folder of
TEXT_ENCODER = "text_encoder"
# Stable Diffusion's versions by the width of the tokens that their U-Nets attend to.
VERSIONS = {
    768: "Stable Diffusion 1: experiment=finetune/sd15",
    1024: "Stable Diffusion 2: experiment=finetune/sd21 (v) or finetune/sd21_base (eps)",
    2048: "Stable Diffusion XL, which is not built here",
}


def published(tree: dict[str, Any], text_encoder: bool = True) -> foreign.State:
    """The published state of a tree's whole latent diffusion model, on the meta device; perhaps without CLIP."""
    if not tree.get("network") or not tree.get("autoencoder"):
        raise UserError("experiment: only first stages and latent diffusion models are published")
    parts = Parts({**tree, "first_stage": None})  # described by the tree, whether it is there or not
    length = len(discrete(parts).sigmas)
    with torch.device("meta"):
        names = network_names(parts)
        state = {name: torch.empty(length) for name in foreign.SCHEDULE}
        if tree["task"]["single_factor"]:
            state[foreign.SCALE_FACTOR] = torch.empty(())
        held = _held(parts)
        state |= {f"{foreign.NETWORK}{theirs}": held[name] for name, theirs in names.items()}
        if averages_beside(tree):
            state |= {name: torch.empty(()) for name in foreign.AVERAGE_COUNTERS}
            trained = {theirs: held[name] for name, theirs in names.items() if isinstance(held[name], nn.Parameter)}
            state |= {foreign.average_name(f"diffusion_model.{theirs}"): p for theirs, p in trained.items()}
        first_stage = first_stages.published(tree)
        state |= {f"{foreign.LATENT}{name}": value for name, value in first_stage.items()}
        held = condition(parts, first_stage, text_encoder)
        state |= {f"{foreign.CONDITIONER}{name}": value for name, value in held.items()}
    return state


def averages_beside(tree: Mapping[str, Any]) -> bool:
    """Whether published files of a tree's model hold averages beside the weights, and not in their place."""
    return bool(tree["ema"]) and completed(tree["ema"]).get("beside_weights", True)


def _held(parts: Parts) -> dict[str, Tensor]:
    """The model's state under the names of our weights, with parameters as such."""
    with torch.device("meta"):
        model = nn.ModuleDict({"network": parts["network"], "conditioner": parts["conditioner"]})
    return {**model.state_dict(keep_vars=True)}


def network_names(parts: Parts) -> dict[str, str]:
    """Ours -> theirs, below `NETWORK` and in their order, of what their network holds: ours and perhaps the classes."""
    with torch.device("meta"):
        names = {f"network.{name}": name for name in parts["network"].state_dict()}
    classes = _classes(parts)
    if classes is None:
        return names
    first = {name: theirs for name, theirs in names.items() if theirs.startswith("time_embed.")}
    return {**first, f"conditioner.parts.{classes}.embedding.weight": foreign.CLASSES, **names}


def _classes(parts: Parts) -> str | None:
    """The conditioner whose vectors the network adds as they are: in the published layout it is a part of it."""
    if parts.tree["network"].get("project_vector", True):
        return None
    return next((name for name, part in parts["conditioner"].parts.items() if "vector" in part.widths), None)


def condition(parts: Parts, first_stage: Mapping[str, Tensor], text_encoder: bool = True) -> foreign.State:
    """What published files hold of the one conditioner that has anything to hold."""
    held: foreign.State = {}
    for name, part in parts["conditioner"].parts.items():
        if name == _classes(parts) or (name == TEXT and not text_encoder):
            continue
        own = dict(first_stage) if part.shares_first_stage else part.published_state()
        if own and held:
            raise UserError("conditioner: the published layout holds one conditioner with weights, not several")
        held = held or own
    return held


def import_state(
    state: foreign.State, step: int, tree: dict[str, Any], out: Path, scale_factor: float | None, source: str,
    text: text_encoders.Write | None = None,
) -> Run:  # fmt: skip
    """A diffusion model's run in `out`, its first stage in `out/first_stage`; see convert.import_checkpoint.

    Whether there is an average and a scale factor is the file's word, not the tree's. `text` writes the folder of its
    text encoder, which else is the state's own, or where the tree says.
    """
    described = published(tree, text_encoder=False)  # first: a tree that is none of a latent diffusion model is refused
    kind = kinds.recognise(state)
    network = (foreign.NETWORK, foreign.average_name("diffusion_model"))
    known = [kinds.WHOLE, kinds.FIRST_STAGE, None] + [kinds.SD2] * (TEXT in (tree["conditioner"] or {}))
    if kind not in known or not any(name.startswith(network) for name in state):
        raise kinds.refusal(state, source, "a latent diffusion model")
    state = {_regular(name): value for name, value in state.items() if not name.startswith(foreign.IRREGULAR)}
    state = first_stage_layouts.weights_of_average(state, described, "model.", source)
    state = with_schedule(state, Parts(tree), source)
    tree = _as_the_file(tree, state)
    expected = published(tree, text_encoder=False)
    _check_version(expected, state, source)
    parts = Parts(tree)
    with torch.device("meta"):
        conditioner = parts["conditioner"]
    if any(part.shares_first_stage for part in conditioner.parts.values()):
        state, expected = _without_repeated(state, source), _without(expected, foreign.CONDITIONER)
    if TEXT in conditioner.parts:
        if text is None and not has_encoder(tree["conditioner"][TEXT]):
            text = text_encoders.of_state(state, source)
        state = _without(state, foreign.CONDITIONER)
    if foreign.LOG_VARIANCE in state:
        log.warning("%s: logvar, the learned scale of the loss at each step, is kept for export alone", source)
        expected = {foreign.LOG_VARIANCE: state["betas"], **expected}
    _check_classes(expected, state, source)
    weights.check_fit(expected, _without(state, f"{foreign.LATENT}{foreign.LOSS}"), source)
    compare_schedule(discrete(parts), state, source)

    task = {"_target_": FIRST_STAGE_TASK, "single_factor": tree["task"]["single_factor"]}
    fs_tree = {**tree, **dict.fromkeys(_STAGE_TWO), "conditioner": {}, "first_stage": None, "task": task}
    factor = scale_factor or state.get(foreign.SCALE_FACTOR)
    factor = first_stages.known_factor(Parts(fs_tree)) if factor is None else float(factor)
    folder = out / FIRST_STAGE_RUN
    first_stage = first_stages.import_state(foreign.below(state, foreign.LATENT), step, fs_tree, folder, factor, source)
    first_stage.record(finished_step=first_stage.tree["max_steps"])
    tree = {**tree, "first_stage": str(folder)}
    if text:
        text(out / TEXT_ENCODER)
        held = {**tree["conditioner"][TEXT], "path": str(out / TEXT_ENCODER)}
        tree = {**tree, "conditioner": {**tree["conditioner"], TEXT: held}}

    own, ema = _ours(parts, state)
    about = {
        "intervals": parts["expert"].intervals(parts["noise"]),
        "latent": load_first_stage(folder).spec.to_dict(),
    }
    run = Run(out, {**tree, "run": out.name, "runs_dir": str(out.parent), "max_steps": max(step, 1)})
    run.lineage = {"run": out.name, "parent": None, "code_version": code_version()}
    run.begin()
    kept = {name: value.contiguous() for name, value in state.items() if name in _UNUSED}
    replace(out / KEPT, lambda path: save_file(kept, path))
    states = {"raw": own} | ({"ema": {**own, **ema}} if ema else {})
    weights.save(out / "weights", step, states, {"step": step, "samples_seen": 0, **about})
    updates = int(state.get("model_ema.num_updates", step))
    averages = {"num_updates": updates, "averages": _all_trained(conditioner, own, ema)} if ema else None
    first_stages.save_branch_point(out, step, about, own, averages)
    return run


_STAGE_TWO = (
    "network",
    "schedule",
    "precond",
    "noise",
    "weighting",
    "expert",
    "sigmas",
    "sampler",
    "guidance",
    "ema",
)
_UNUSED = {*foreign.SCHEDULE, *foreign.AVERAGE_COUNTERS, foreign.SCALE_FACTOR, foreign.LOG_VARIANCE}


def _without(state: Mapping[str, Tensor], prefix: str) -> foreign.State:
    return {name: value for name, value in state.items() if not name.startswith(prefix)}


def _regular(name: str) -> str:
    """CLIP's names as they were published; files saved with transformers from 5.6 on lack a part of them."""
    found = re.fullmatch(r"(cond_stage_model\.transformer\.)((?:embeddings|encoder|final_layer_norm)\..*)", name)
    return f"{found[1]}text_model.{found[2]}" if found else name


def _as_the_file(tree: dict[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    """`tree` with an average and a scale factor if, and only if, `state` has them."""
    averaged = any(name.startswith(foreign.AVERAGE) for name in state)
    default = {"_target_": "ldm.training.ema.EMA", "_partial_": True, "decay": 0.9999}
    task = {**tree["task"], "single_factor": foreign.SCALE_FACTOR in state}
    ema = (tree["ema"] if averages_beside(tree) else default) if averaged else None
    return {**tree, "ema": ema, "task": task}


def _without_repeated(state: foreign.State, source: str) -> foreign.State:
    """`state` without the first stage's second copy. Raises ValueError if the two differ."""
    repeated = _without(foreign.below(state, foreign.CONDITIONER), foreign.LOSS)
    first_stage = _without(foreign.below(state, foreign.LATENT), foreign.LOSS)
    if repeated:
        weights.check_fit(first_stage, repeated, f"{source}, {foreign.CONDITIONER}*,")
        differing = [name for name, value in repeated.items() if not torch.equal(value, first_stage[name])]
        if differing:
            raise UserError(
                f"{source}: {foreign.CONDITIONER}{differing[0]} differs from {foreign.LATENT}{differing[0]}; the "
                "conditioner of this model is its own first stage"
            )
    return _without(state, foreign.CONDITIONER)


def has_encoder(node: Mapping[str, Any]) -> bool:
    """Whether a tree's CLIP conditioner gives the path of its encoder."""
    return node.get("path") not in (None, "???")


def _check_version(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str) -> None:
    """Raises ValueError if the network attends to tokens of another width, as one of another version does."""
    for name, described in expected.items():
        if name.endswith("attn2.to_k.weight") and name in state and described.shape[1] != state[name].shape[-1]:
            width = state[name].shape[-1]
            raise UserError(
                f"{source}: its U-Net attends to tokens {width} wide, and the experiment's to {described.shape[1]}"
                f"; the file's is {VERSIONS.get(width, 'another model')}"
            )


def _check_classes(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str) -> None:
    """Raises ValueError, naming the overrides to import with, if the file has num_classes and the tree does not."""
    name = f"{foreign.NETWORK}{foreign.CLASSES}"
    if name in state and name not in expected:
        rows, width = state[name].shape
        raise UserError(
            f"{source}: a model of num_classes, whose classes are added to the noise embedding; import it with "
            "network.project_vector=false conditioner=[label] conditioner.label.slot=vector "
            f"conditioner.label.num_classes={rows} conditioner.label.width={width} conditioner.label.has_null=false "
            "conditioner.label.drop_prob=0"
        )


def _ours(parts: Parts, state: Mapping[str, Tensor]) -> tuple[foreign.State, foreign.State]:
    """(our state of the model, the averages in it) from a published state, fp32."""
    names = network_names(parts)
    own = {name: state[f"{foreign.NETWORK}{theirs}"].float() for name, theirs in names.items()}
    for name, part in parts["conditioner"].parts.items():
        if part.state_dict() and name != _classes(parts):
            given = foreign.below(state, foreign.CONDITIONER)
            own |= {f"conditioner.parts.{name}.{key}": value.float() for key, value in given.items()}
    places = {name: foreign.average_name(f"diffusion_model.{theirs}") for name, theirs in names.items()}
    return own, {name: state[place].float() for name, place in places.items() if place in state}


def _all_trained(conditioner: Conditioners, own: foreign.State, ema: foreign.State) -> foreign.State:
    """Averages of all that is trained: published ones leave the conditioner out, which is its own average then."""
    trained = [f"conditioner.{name}" for name, parameter in conditioner.named_parameters() if parameter.requires_grad]
    return {**{name: own[name] for name in trained}, **ema}
