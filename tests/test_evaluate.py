"""The evaluation of a diffusion model: what its kept points depend on."""

from pathlib import Path

from untrained import untrained_run

from ldm.config import compose
from ldm.evaluation.evaluate import _identity
from ldm.run import load


def test_points_are_kept_for_the_same_guidance_whatever_its_scales(tmp_path: Path):
    run, one, other = (untrained_run(tmp_path / str(seed), seed=seed) for seed in range(3))
    model = load(run)

    def identity(*words: str) -> str:
        return _identity(model, compose("evaluate", [f"model={run}", *words]))

    auto = ["guidance=autoguidance", f"weak_model={one}"]
    assert identity() == identity("guidance.scale=[7]")
    assert identity(*auto) == identity(*auto, "guidance.scale=[1,7]")
    others = [
        [], ["guidance=classifier_free"], ["guidance=classifier_free", "guidance.sigma_lo=1"], auto,
        ["guidance=autoguidance", f"weak_model={other}"], [*auto, "guidance.channels=[0]"],
    ]  # fmt: skip
    assert len({identity(*words) for words in others}) == len(others)
