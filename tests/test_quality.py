"""The quality of a run while it trains: stable rows, and a training that is as if nothing had been measured."""

from pathlib import Path

import pytest
from toys import curve, state, train

from ldm.run import Run

METRICS = ("kid", "fd", "precision", "recall", "is")
OPTIONS = (
    "callback.quality.every_steps=1",
    "callback.quality.num_samples=6",
    "callback.quality.num_reference=8",
    "callback.quality.batch_size=4",
    "callback.quality.max_share=1",
)
pytestmark = pytest.mark.filterwarnings("ignore:Frechet distance from")


def test_a_measured_training_is_the_same_training_with_curves_more(first_stage: Run, tmp_path: Path):
    def start(run: str, *more: str) -> Run:
        return train("quickstart/diffusion", tmp_path, f"first_stage={first_stage.folder}", *more, run=run)

    plain, measured = start("plain"), start("measured", *OPTIONS)
    for part in ("trained", "ema", "optimizer"):
        one, other = (str(state(run.folder, 2)[part]) for run in (plain, measured))
        assert one == other, part
    assert curve(plain.folder) == curve(measured.folder)
    for metric in METRICS:
        assert curve(measured.folder, f"quality/{metric}/efficientnet_lite0@128").keys() == {1, 2}
    print((measured.folder / "metrics.csv").read_text())
