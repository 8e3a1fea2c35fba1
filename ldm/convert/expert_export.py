"""An ensemble as folders of diffusers, one for each expert, and a pipeline of ours that goes from one to the next.

Cuts are sigma here; the pipeline is told them as its scheduler counts: timesteps of a chain, sigma, the time of flow.
"""

from pathlib import Path
from typing import Any

import torch

from ldm.build import Parts
from ldm.checkpoint import weights
from ldm.config import load_tree
from ldm.convert import diffusion_export, lora
from ldm.convert.exported_network import remote_code
from ldm.convert.pipelines import into
from ldm.diffusion.schedule import Discrete, Flow, Schedule
from ldm.ensemble import Member, check_member, read_members
from ldm.errors import UserError
from ldm.files import read_json, write_json, write_text
from ldm.places import first_stage_of, paths_of

MODULE, NOTE, SCHEDULER = "latent_experts", "experts.json", "scheduler/scheduler_config.json"


def export(manifest: Path, form: str, out: Path) -> list[Path]:
    """Write the experts of a manifest into folders of `out`, and latent_experts.py with experts.json; the files made.

    Raises ValueError for another format, and for experts whose schedulers differ, before anything is in `out`.
    """
    if form != "diffusers":
        raise UserError(f"format={form}: an ensemble is exported as format=diffusers; export its members one by one")
    members, names, schedules = read_members(manifest), [], []
    with into(out) as folder:
        files: list[Path] = []
        for place, member in enumerate(members):
            names.append(f"expert_{place}")
            own, schedule = _expert(manifest, member, folder / names[-1])
            files += own
            schedules.append(schedule)
        _check_schedulers([folder / name for name in names], members)
        cuts = [(low, place) for place, member in enumerate(members) for low, _ in member.intervals]
        cuts.sort(reverse=True)
        facts: dict[str, Any] = {
            "experts": [names[place] for _, place in cuts],
            "boundaries": [boundary(low, schedules[cuts[0][1]]) for low, _ in cuts],
            "sigmas": [low for low, _ in cuts],
        }
        files.append(write_json(folder / NOTE, facts))
        files.append(write_text(folder / f"{MODULE}.py", remote_code(MODULE)))
    return [out / path.relative_to(folder) for path in files]


def boundary(sigma: float, schedule: Schedule) -> float:
    """A cut as the scheduler of a schedule counts: of a chain the first timestep at sigma or above it."""
    if isinstance(schedule, Discrete):
        seen = torch.tensor(sigma, dtype=torch.float32)
        return int((schedule.sigmas.float() < seen).sum())
    if isinstance(schedule, Flow):
        return sigma / (1 + sigma)
    return sigma


def _expert(manifest: Path, member: Member, out: Path) -> tuple[list[Path], Schedule]:
    found = weights.load(member.file)
    check_member(member, found, manifest)
    tree, [found] = lora.merged(load_tree(found.run / "config.yaml"), found)
    moved = {"first_stage": first_stage_of(found.run), "conditioner": paths_of(tree.get("conditioner"), found.run)}
    files = diffusion_export.as_pipeline({**tree, **moved}, found, out, is_expert=True)
    return files, Parts({**tree, "first_stage": None})["schedule"]


def _check_schedulers(folders: list[Path], members: list[Member]) -> None:
    first, *others = [read_json(folder / SCHEDULER) for folder in folders]
    for member, other in zip(members[1:], others, strict=True):
        for key in first.keys() | other.keys():
            if first.get(key) != other.get(key):
                raise UserError(
                    f"{member.file}: its scheduler has {key}={other.get(key)!r}, and that of {members[0].file} "
                    f"{first.get(key)!r}; one pipeline has one scheduler"
                )
