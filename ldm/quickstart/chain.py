"""The quickstart's chain as restartable stages: each looks at what its folder holds and does what is missing."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from ldm.checkpoint import weights
from ldm.config import CONF, compose, overriding, run_name
from ldm.device import choose, mixed_precision
from ldm.ensemble import write_manifest
from ldm.evaluation.evaluate import evaluate
from ldm.evaluation.yardsticks import Yardsticks, shared_yardsticks
from ldm.files import read_json, write_json
from ldm.fit import fit
from ldm.installed import spoken
from ldm.quickstart.experts import measure_experts
from ldm.quickstart.reconstructions import reconstruct
from ldm.quickstart.samples import draw_samples

INSTALL_SECONDS = Path(__file__).resolve().parents[2] / ".venv" / ".install-seconds"


@dataclass(frozen=True)
class Stage:
    """One stage: `do` returns whether it is done, `left` is the share of it still to do, `steps` those of training."""

    name: str
    do: Callable[[], bool]
    left: Callable[[], float]
    steps: int = 0


class Chain:
    """Where everything lies and what is run, in order. Seconds of stages add up over restarts in ``times.json``."""

    def __init__(self, tree: dict[str, Any]):
        self.tree = tree
        self.family = tree["family"]
        self.runs = Path(tree["runs_dir"])
        self.folder = self.runs / self.family
        self.precision = tree["precision"] or mixed_precision()
        self.shared = [
            f"runs_dir={self.runs}",
            f"seed={tree['seed']}",
            f"logger.mode={tree['logger']['mode']}",
            f"trainer.precision={tree['precision'] or 'auto'}",
            *tree["overrides"].split(),
        ]
        has_experts = (CONF / "experiment" / self.family / "expert.yaml").exists()
        self.nodes = [tuple(node) for node in tree["nodes"]] if has_experts else []
        self.autoencoder = self._run(tree["first_stage_experiment"])
        self.base = self._run(f"{self.family}/diffusion")
        self.experts = [
            self._run(f"{self.family}/expert", f"expert.node=[{level},{index}]") for level, index in self.nodes
        ]
        self.control = self._run(f"{self.family}/control")
        self.ensemble = self.folder / "ensemble.yaml"

    @cached_property
    def yardsticks(self) -> Yardsticks:
        """What all models are measured by."""
        return shared_yardsticks(choose("auto"))

    @property
    def models(self) -> dict[str, Path]:
        """The models that are compared, by what the report calls them."""
        experts = {"ensemble": self.ensemble, "control": self.control} if self.nodes else {}
        return {"base": self.base, **experts}

    @cached_property
    def commands(self) -> dict[Path, list[str]]:
        """The words after ``train.py`` of each run, in order."""
        found = {self.autoencoder: self._words(self.tree["first_stage_experiment"])}
        found[self.base] = self._words(f"{self.family}/diffusion", f"first_stage={self.autoencoder}")
        for (level, index), run in zip(self.nodes, self.experts, strict=True):
            found[run] = self._words(f"{self.family}/expert", f"branch={self.base}", f"expert.node=[{level},{index}]")
        if self.nodes:
            steps = sum(compose("config", found[run])["max_steps"] for run in self.experts)
            words = self._words(f"{self.family}/control", f"branch={self.base}")
            found[self.control] = overriding([*words, f"max_steps={steps}"])
        return found

    def stages(self) -> Iterator[Stage]:
        """What to do, first to last."""
        names = {self.autoencoder: "first stage", self.base: "diffusion", self.control: "control"}
        names |= {run: f"expert {node}" for node, run in zip(self.nodes, self.experts, strict=True)}
        for run in self.commands:
            yield self._training(names[run], run)
        if self.nodes:
            yield self._stage("ensemble", self._ensemble, self.ensemble)
        yield self._stage("reconstructions", self._reconstructions, self.folder / "reconstructions")
        yield self._stage("samples", self._samples, *[self.samples_folder(path) for path in self.drawn.values()])
        for name, path in self.models.items():
            points = self.curve_folder(path) / "points.json"
            yield self._stage(f"guidance, {name}", partial(self._curve, path), points)
        if self.nodes:
            yield self._stage("experts compared", self._compare, self.expert_losses)

    @property
    def expert_losses(self) -> Path:
        """Where the losses inside the experts' intervals lie."""
        return self.folder / "expert_losses.json"

    def samples_folder(self, model: Path) -> Path:
        """Where a model's samples lie."""
        return self.folder / f"samples-{model.stem}"

    def curve_folder(self, model: Path) -> Path:
        """Where a model's guidance curve lies."""
        return self.folder / f"curve-{model.stem}"

    def curve_command(self, model: Path) -> list[str]:
        """The words after ``evaluate.py`` of a model's guidance curve."""
        scales = ",".join(f"{scale:g}" for scale in self.tree["scales"])
        return [
            f"model={model}",
            f"out={self.curve_folder(model)}",
            f"guidance.scale=[{scales}]",
            *[f"{key}={self.tree[key]}" for key in ("num_samples", "num_steps", "seed")],
        ]

    def times(self) -> dict[str, float]:
        """Seconds of each stage so far."""
        path = self.folder / "times.json"
        return read_json(path) if path.exists() else {}

    def install_seconds(self) -> float | None:
        """How long make took to install, if it did."""
        return float(INSTALL_SECONDS.read_text()) if INSTALL_SECONDS.exists() else None

    @property
    def drawn(self) -> dict[str, Path]:
        """The models that samples are drawn from, by name."""
        return {"base": self.base, **({"ensemble": self.ensemble} if self.nodes else {})}

    def _run(self, experiment: str, *overrides: str) -> Path:
        return self.runs / run_name([f"experiment={experiment}", *overrides])

    def _words(self, experiment: str, *overrides: str) -> list[str]:
        return overriding([f"experiment={experiment}", *overrides, *self.shared])

    def _training(self, name: str, run: Path) -> Stage:
        steps = compose("config", self.commands[run])["max_steps"]

        def do() -> bool:
            print(spoken(f"\n[{name}] python train.py {' '.join(self.commands[run])}"), flush=True)
            with self._timed(name):
                return fit(compose("config", self.commands[run]), run.name).finished

        return Stage(name, do, lambda: max(0.0, 1 - max(weights.steps(run), default=0) / steps), steps)

    def _stage(self, name: str, do: Callable[[], None], *made: Path) -> Stage:
        def timed() -> bool:
            print(f"\n[{name}]", flush=True)
            with self._timed(name):
                do()
            return True

        return Stage(name, timed, lambda: float(not all(path.exists() for path in made)))

    def _ensemble(self) -> None:
        whole = sum(2.0**-level for level, _ in self.nodes) == 1
        write_manifest(self.ensemble, self.experts if whole else [*self.experts, self.base])

    def _reconstructions(self) -> None:
        reconstruct(self.base, self.folder / "reconstructions")

    def _samples(self) -> None:
        for model in self.drawn.values():
            draw_samples(model, self.samples_folder(model), self.tree, self.yardsticks)

    def _curve(self, model: Path) -> None:
        print(spoken(f"python scripts/evaluate.py {' '.join(self.curve_command(model))}"), flush=True)
        evaluate(compose("evaluate", self.curve_command(model)), self.yardsticks)

    def _compare(self) -> None:
        measure_experts(self.base, self.experts, self.control, self.ensemble, self.expert_losses, self.tree["seed"])

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            times = self.times()
            spent = time.monotonic() - began
            times[stage] = times.get(stage, 0.0) + spent
            write_json(self.folder / "times.json", times)
            print(f"[{stage}] {spent:.0f} s", flush=True)
