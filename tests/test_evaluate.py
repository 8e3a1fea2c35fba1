"""The evaluation of a diffusion model: what its kept points depend on."""

from pathlib import Path

import pytest
from untrained import untrained_run

from ldm.config import compose
from ldm.evaluation.evaluate import _identity, evaluate
from ldm.holding import FolderHeld, held
from ldm.run import Run, load


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
        ["tiling=blended"], ["tiling=blended", "tiling.size=4"],
    ]  # fmt: skip
    assert len({identity(*words) for words in others}) == len(others)
    with held(tmp_path / "out", "evaluating into"), pytest.raises(FolderHeld, match="is evaluating into"):
        evaluate(compose("evaluate", [f"model={run}", f"out={tmp_path / 'out'}", "device=cpu"]))


@pytest.mark.filterwarnings("ignore:Frechet distance from")
def test_what_guides_by_a_likelihood_is_evaluated_too(diffusion: Run, classifier: Run, tmp_path: Path):
    words = [
        f"model={diffusion.folder}", "guidance.scale=[1]", "num_samples=6", "num_steps=2", "metric.size=32",
        "batch_size=4",
    ]  # fmt: skip
    led = ["loss_guidance=[classifier]", "loss_guidance.classifier.scale=300", f"classifier={classifier.folder}"]
    rows = [evaluate(compose("evaluate", [*words, *more, f"out={tmp_path / str(len(more))}"]))[0] for more in ([], led)]
    (plain,), (guided,) = rows
    assert plain.keys() == guided.keys() and plain["kid/efficientnet_lite0@32"] != guided["kid/efficientnet_lite0@32"]
    model = load(diffusion.folder)
    identities = {_identity(model, compose("evaluate", [*words, *more])) for more in ([], led, [*led[:1], led[2]])}
    assert len(identities) == 3
