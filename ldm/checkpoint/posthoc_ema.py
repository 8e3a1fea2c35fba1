"""Post-hoc EMA of any relative length, from stored power-function averages (arXiv:2312.02696, 3.2).

The profile of exponent gamma after t updates has the density (gamma + 1) s^gamma / t^(gamma + 1) at update s of t. The
wanted one is approached by the combination of the stored ones that is nearest to it in least squares.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ldm.checkpoint import weights
from ldm.checkpoint.weights import Weights
from ldm.errors import UserError
from ldm.files import read_json

LONGEST = 12**-0.5  # the relative length of the plain mean, gamma = 0
Profile = tuple[float, int]  # relative length, number of updates


def exponent(sigma_rel: float) -> float:
    """gamma >= 0 of a relative length: sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3))."""
    if not 0 < sigma_rel <= LONGEST:
        raise UserError(
            f"ema: a relative length lies above 0 and below {LONGEST:.3f} (the plain mean), got {sigma_rel:g}"
        )
    low, high = 0.0, 1 / sigma_rel
    for _ in range(200):
        gamma = (low + high) / 2
        longer = (gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)) > sigma_rel**2
        low, high = (gamma, high) if longer else (low, gamma)
    return (low + high) / 2


def _norms(profiles: Sequence[Profile]) -> Tensor:
    """Root of the integral of a profile's squared density, [K]."""
    gamma, t = torch.tensor([(exponent(length), n) for length, n in profiles], dtype=torch.float64).T
    return (gamma + 1) / (t * (2 * gamma + 1)).sqrt()


def _products(one: Sequence[Profile], other: Sequence[Profile]) -> Tensor:
    """Integrals [K, L] over the training of the products of two profiles' densities, each scaled to norm 1."""
    (a, t), (b, s) = (torch.tensor([(exponent(r), n) for r, n in own], dtype=torch.float64).T for own in (one, other))
    a, t = a[:, None], t[:, None]
    shorter = torch.minimum(t, s)
    norms = ((2 * a + 1) * (2 * b + 1)).sqrt() / (a + b + 1)
    return norms * (shorter / t) ** (a + 0.5) * (shorter / s) ** (b + 0.5)


def coefficients(stored: Sequence[Profile], wanted: Profile) -> Tensor:
    """What to multiply the `stored` averages [K] with, so that their sum is the `wanted` one, float64.

    They add up to 1, unlike the published ones: what did not change in the training comes out as it is.
    """
    norms, own_norm = _norms(stored), _norms([wanted])
    system = torch.zeros(len(stored) + 1, len(stored) + 1, dtype=torch.float64)
    system[:-1, :-1] = _products(stored, stored)
    system[:-1, -1] = system[-1, :-1] = own_norm / norms  # the multiplier's row and column, in the scaled unknowns
    right = torch.cat([_products(stored, [wanted]), torch.ones(1, 1, dtype=torch.float64)])
    solution = torch.linalg.lstsq(system, right, driver="gelsd").solution[:-1, 0]
    return solution * own_norm / norms


def load(path: Path, ema: str = "ema") -> Weights:
    """Weights of a run as `weights.load`, averaged as `ema` says: ``ema``, ``raw``, or a relative length as ``0.05``.

    A length that was tracked is read, any other is made from the run's snapshots up to the same step.
    """
    if ema in ("ema", "raw"):
        return weights.load(path, ema)
    try:
        sigma_rel = float(ema)
    except ValueError:
        raise UserError(f"ema={ema}: choose ema, raw, or a relative length such as 0.05") from None
    if path.suffix == ".safetensors":
        raise UserError(f"ema={ema}: {path} is one file of weights; name its run to choose another average")
    base = weights.load(path)
    profiles = base.metadata.get("ema_profiles")
    if not profiles:
        raise UserError(f"ema={ema}: {base.run} has no averages of relative lengths; train with ema=power for them")
    num_updates = profiles["num_updates"]
    wanted = (sigma_rel, num_updates)
    exponent(sigma_rel)
    sources = {(length, num_updates): _sibling(base.path, kind) for kind, length in profiles["sigma_rels"].items()}
    if wanted in sources:
        return weights.read(sources[wanted])
    snapshots = sorted((base.run / "snapshots").glob("step_*.json"))
    for description in snapshots:
        own = read_json(description)["ema_profiles"]
        if not 0 < own["num_updates"] < num_updates:
            continue
        for kind, length in own["sigma_rels"].items():
            sources[length, own["num_updates"]] = description.with_suffix(f".{kind}.safetensors")
    if len(sources) == len(profiles["sigma_rels"]):
        raise UserError(
            f"ema={ema}: {base.run} has no snapshots yet (ema.snapshot_every_steps) to make it from; it tracks "
            f"{', '.join(f'{length:g}' for length in profiles['sigma_rels'].values())}"
        )
    return _combine(base, sources, coefficients(list(sources), wanted))


def _sibling(path: Path, kind: str) -> Path:
    return path.with_name(f"{path.name.split('.')[0]}.{kind}.safetensors")


def _combine(base: Weights, sources: dict[Profile, Path], factors: Tensor) -> Weights:
    """Sum of the sources' averages times `factors`, one file in memory at a time; the rest is as in `base`."""
    last = weights.read(list(sources.values())[-1])  # a snapshot: it holds what is averaged and nothing else
    total = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in last.state.items()}
    digest = hashlib.sha256()
    for file, factor in zip(sources.values(), factors.tolist(), strict=True):
        part = weights.read(file)
        digest.update(f"{part.digest} {factor!r}\n".encode())
        for name, tensor in total.items():
            tensor.add_(part.state[name], alpha=factor)
    state = {**base.state, **{name: tensor.float() for name, tensor in total.items()}}
    return replace(base, state=state, digest=digest.hexdigest())
