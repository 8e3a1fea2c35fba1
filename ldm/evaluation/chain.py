"""The quickstart's chain as restartable stages: each looks at what its folder holds and does what is missing."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ldm.config import compose, overriding, run_name
from ldm.device import mixed_precision
from ldm.ensemble import write_manifest
from ldm.evaluation.chain_report import write_chain_report
from ldm.evaluation.chain_samples import draw_samples
from ldm.evaluation.evaluate import evaluate
from ldm.files import write_json
from ldm.fit import fit

NODES = ((1, 0), (1, 1))
INSTALL_SECONDS = Path(__file__).resolve().parents[2] / ".venv" / ".install-seconds"


class Chain:
    """Stages in order; each returns whether it is done. Their seconds add up over restarts in ``times.json``."""

    def __init__(self, tree: dict[str, Any]):
        self.tree = tree
        self.runs = Path(tree["runs_dir"])
        self.folder = self.runs / tree["family"]
        self.shared = [
            f"runs_dir={self.runs}",
            f"seed={tree['seed']}",
            f"logger.mode={tree['logger']['mode']}",
            f"trainer.precision={tree['precision'] or mixed_precision()}",
            *tree["overrides"].split(),
        ]
        self.autoencoder = self.runs / self._name("autoencoder")
        self.base = self.runs / self._name("diffusion")
        self.experts = [self.runs / self._name("expert", f"expert.node=[{level},{i}]") for level, i in NODES]
        self.ensemble = self.folder / "ensemble.yaml"

    def stages(self) -> Iterator[Callable[[], bool]]:
        """What to do, first to last."""
        yield lambda: self._train("first stage", self.autoencoder, "autoencoder")
        yield lambda: self._train("diffusion", self.base, "diffusion", f"first_stage={self.autoencoder}")
        for (level, index), run in zip(NODES, self.experts, strict=True):
            overrides = (f"branch={self.base}", f"expert.node=[{level},{index}]")
            stage = f"expert ({level}, {index})"
            yield lambda run=run, stage=stage, overrides=overrides: self._train(stage, run, "expert", *overrides)
        yield self._ensemble
        yield self._samples
        yield lambda: self._curve("guidance curve, base", self.base)
        yield lambda: self._curve("guidance curve, ensemble", self.ensemble)

    def report(self) -> Path:
        """Write ``report/index.html`` from what the stages left. Returns its path."""
        return write_chain_report(self)

    def curve_folder(self, model: Path) -> Path:
        """Where a model's guidance curve lies."""
        return self.folder / f"curve-{model.stem}"

    def times(self) -> dict[str, float]:
        """Seconds of each stage so far, the installation first if make did it."""
        install = {"installation": float(INSTALL_SECONDS.read_text())} if INSTALL_SECONDS.exists() else {}
        path = self.folder / "times.json"
        return {**install, **(json.loads(path.read_text()) if path.exists() else {})}

    def _name(self, kind: str, *overrides: str) -> str:
        return run_name([f"experiment={self.tree['family']}/{kind}", *overrides])

    def _train(self, stage: str, run: Path, kind: str, *overrides: str) -> bool:
        arguments = overriding([f"experiment={self.tree['family']}/{kind}", *overrides, *self.shared])
        print(f"\n[{stage}] python train.py {' '.join(arguments)}", flush=True)
        with self._timed(stage):
            return fit(compose("config", arguments), run.name).finished

    def _ensemble(self) -> bool:
        with self._timed("ensemble"):
            write_manifest(self.ensemble, self.experts)
        return True

    def _samples(self) -> bool:
        print("\n[samples]", flush=True)
        with self._timed("samples"):
            for model in (self.base, self.ensemble):
                draw_samples(model, self.folder / f"samples-{model.stem}", self.tree)
        return True

    def _curve(self, stage: str, model: Path) -> bool:
        scales = ",".join(f"{scale:g}" for scale in self.tree["scales"])
        arguments = [
            f"model={model}",
            f"out={self.curve_folder(model)}",
            f"guidance.scale=[{scales}]",
            *[f"{key}={self.tree[key]}" for key in ("num_samples", "num_steps", "seed")],
        ]
        print(f"\n[{stage}] python scripts/evaluate.py {' '.join(arguments)}", flush=True)
        with self._timed(stage):
            evaluate(compose("evaluate", arguments))
        return True

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            times = self.times()
            times.pop("installation", None)
            spent = time.monotonic() - began
            times[stage] = times.get(stage, 0.0) + spent
            write_json(self.folder / "times.json", times)
            print(f"[{stage}] {spent:.0f} s", flush=True)
