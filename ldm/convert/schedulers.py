"""The scheduler of diffusers that steps as a model was trained and is sampled: its scheduler_config.json.

A chain of steps has DDIM, x0 + sigma noise EDM's or Euler's, flow matching its own. What a model tells its network of
the noise is a multiple of what these give, which a pipeline of our own is told too.
"""

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from ldm.build import Parts
from ldm.convert.diffusers_unet import VERSION
from ldm.diffusion.schedule import VE, Discrete, Flow
from ldm.errors import UserError

log = logging.getLogger(__name__)
PRECONDS = "ldm.diffusion.precond."
PREDICTIONS = {f"{PRECONDS}Eps": "epsilon", f"{PRECONDS}V": "v_prediction", f"{PRECONDS}X0": "sample"}
NAMED_SCHEDULES = {"ldm.diffusion.schedule.scaled_linear": "scaled_linear", "ldm.diffusion.schedule.linear": "linear"}
LEADING, TRAILING = "ldm.diffusion.sigmas.ddim_sigmas", "ldm.diffusion.sigmas.trailing"
FLOW = "ldm.diffusion.sigmas.flow"
LADDERS = {"ldm.diffusion.sigmas.karras": "karras", "ldm.diffusion.sigmas.exponential": "exponential"}
DPMPP_2M = "ldm.diffusion.samplers.dpmpp_2m"
INSTEAD = "sample it with sample.py, or export format=safetensors"


class Scheduler(NamedTuple):
    """scheduler_config.json; `process` and `noise_scale` as LatentPipeline takes them (remote/latent_pipeline.py)."""

    config: dict[str, Any]
    process: str = "chain"
    noise_scale: float = 1.0


def scheduler(tree: Mapping[str, Any], parts: Parts) -> Scheduler:
    """The scheduler of a tree; a warning says so if it replaces the tree's sampler or levels.

    Raises ValueError for a precond that no scheduler supports under the tree's schedule.
    """
    found = _scheduler(tree, parts)
    sampler = tree["sampler"] or {}
    name = sampler.get("_target_", "euler").rpartition(".")[2]
    kind = found.config["_class_name"]
    same = name == "dpmpp_2m" if kind.startswith("EDMDPM") else name in ("euler", "ddim") and not sampler.get("eta")
    if not same:
        way = "DDIM with eta=0" if found.process == "chain" else "Euler's method"
        log.warning("sampler=%s: %s steps by %s instead", name, kind, way)
    return found


def _scheduler(tree: Mapping[str, Any], parts: Parts) -> Scheduler:
    schedule, precond = parts["schedule"], tree["precond"]["_target_"]
    if isinstance(schedule, Discrete) and precond in PREDICTIONS:
        return Scheduler(_ddim(tree, schedule, PREDICTIONS[precond]))
    if isinstance(schedule, Flow) and precond == f"{PRECONDS}Flow":
        return Scheduler(_flow(tree), "flow", schedule.c_noise_scale / 1000)
    if isinstance(schedule, VE) and precond != f"{PRECONDS}Flow" and precond.startswith(PRECONDS):
        edm = precond in (f"{PRECONDS}EDM", f"{PRECONDS}V")
        return Scheduler((_edm if edm else _euler)(tree, parts), "sigma", schedule.c_noise_scale)
    raise UserError(
        f"precond: diffusers has no scheduler for {precond.rpartition('.')[2]} under this schedule, but for eps, v and "
        f"x0 under chains of steps and schedule=edm, edm under schedule=edm, flow under schedule=flow; {INSTEAD}"
    )


def is_chain(tree: Mapping[str, Any], parts: Parts) -> bool:
    """Whether it is the DDIMScheduler, which diffusers' own pipelines of latents take."""
    return isinstance(parts["schedule"], Discrete) and tree["precond"]["_target_"] in PREDICTIONS


def _ddim(tree: Mapping[str, Any], schedule: Discrete, prediction: str) -> dict[str, Any]:
    """With the levels of sigmas=ddim, or sigmas=trailing if that is the run's.

    They are the same where num_steps divides the number of timesteps.
    """
    levels = (tree["sigmas"] or {}).get("_target_", LEADING)
    if levels not in (LEADING, TRAILING):
        log.warning("sigmas: DDIMScheduler has those of ddim and trailing, not this run's; ddim's are written")
    trailing = levels == TRAILING
    return {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": VERSION,
        "num_train_timesteps": schedule.num_timesteps,
        **_betas(tree["schedule"], tree["schedule"]["_target_"], schedule),
        "prediction_type": prediction,
        "timestep_spacing": "trailing" if trailing else "leading",
        "steps_offset": 1,
        "set_alpha_to_one": trailing,
        "clip_sample": False,
        "thresholding": False,
        "rescale_betas_zero_snr": False,
    }


def _betas(own: Mapping[str, Any], target: str, schedule: Discrete) -> dict[str, Any]:
    if target in NAMED_SCHEDULES and not own.get("zero_terminal_snr"):
        ends = {name: own[name] for name in ("beta_start", "beta_end")}
        return {"beta_schedule": NAMED_SCHEDULES[target], **ends, "trained_betas": None}
    alpha_bar = 1 / (1 + schedule.sigmas**2)
    betas = 1 - alpha_bar / torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
    return {"trained_betas": betas.tolist()}


def _flow(tree: Mapping[str, Any]) -> dict[str, Any]:
    sigmas = tree["sigmas"] or {}
    if sigmas.get("_target_", FLOW) != FLOW:
        log.warning("sigmas: FlowMatchEulerDiscreteScheduler has those of flow, not this run's; its are written")
    return {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "_diffusers_version": VERSION,
        "num_train_timesteps": 1000,
        "shift": float(sigmas.get("shift", 1.0)),
    }


def _edm(tree: Mapping[str, Any], parts: Parts) -> dict[str, Any]:
    """EDM's preconditioning with steps of Euler, or of DPM-Solver++(2M) where the run is sampled so.

    v-prediction is it with sigma_data 1 and the opposite sign.
    """
    ladder, low, high = _ladder(tree, parts)
    is_v = tree["precond"]["_target_"] == f"{PRECONDS}V"
    multistep = (tree["sampler"] or {}).get("_target_") == DPMPP_2M
    return {
        "_class_name": "EDMDPMSolverMultistepScheduler" if multistep else "EDMEulerScheduler",
        "_diffusers_version": VERSION,
        "sigma_min": low,
        "sigma_max": high,
        "sigma_data": 1.0 if is_v else float(parts["precond"].sigma_data),
        "sigma_schedule": ladder,
        "rho": float((tree["sigmas"] or {}).get("rho", 7.0)),
        "prediction_type": "v_prediction" if is_v else "epsilon",
        "final_sigmas_type": "zero",
    }


def _euler(tree: Mapping[str, Any], parts: Parts) -> dict[str, Any]:
    ladder, low, high = _ladder(tree, parts)
    return {
        "_class_name": "EulerDiscreteScheduler",
        "_diffusers_version": VERSION,
        "prediction_type": PREDICTIONS[tree["precond"]["_target_"]],
        "sigma_min": low,
        "sigma_max": high,
        "use_karras_sigmas": ladder == "karras",
        "use_exponential_sigmas": ladder == "exponential",
        "final_sigmas_type": "zero",
    }


def _ladder(tree: Mapping[str, Any], parts: Parts) -> tuple[str, float, float]:
    """(karras or exponential, lowest and highest sigma) of the run's sigmas; warns if another kind is replaced."""
    schedule, levels = parts["schedule"], parts["sigmas"]
    ends = (schedule.sigma_min, schedule.sigma_max)
    if levels is not None:
        ends = (levels[levels > 0].min().item(), levels.max().item())
    ladder = LADDERS.get((tree["sigmas"] or {}).get("_target_", ""))
    if ladder is None:
        log.warning("sigmas: diffusers has karras and exponential, not this run's; karras is written, %g to %g", *ends)
    return (ladder or "karras", *ends)
