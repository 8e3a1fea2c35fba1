"""Quality on a run's W&B page, read back from what the client wrote; experts in company; first stages."""

import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image
from toys import curve, differences, tiny, train

from ldm.config import compose
from ldm.ensemble import write_manifest
from ldm.errors import UserError
from ldm.fit import fit
from ldm.metrics import networks
from ldm.quickstart.quality import over, quality
from ldm.run import Run
from ldm.training.loggers import curves, read_metrics
from ldm.training.offline_log import OfflineLog, read_offline
from ldm.training.quality_page import axes_of, trade_off

pytestmark = pytest.mark.filterwarnings("ignore:Frechet distance from")
SMALL = (
    "callback.quality.every_steps=2", "callback.quality.num_samples=6", "callback.quality.num_reference=8",
    "callback.quality.batch_size=4", "callback.quality.max_share=1.0",
)  # fmt: skip
BACKBONE = "efficientnet_lite0@128"
KID, ALIGNED = f"quality/kid/{BACKBONE}", f"quality/alignment_score/{BACKBONE}+minilm"


@pytest.fixture(scope="module", autouse=True)
def loaded_once() -> Iterator[None]:
    """All runs of this file are judged by the same networks."""
    with (
        patch.object(networks, "efficientnet_features", cache(networks.efficientnet_features)),
        patch.object(networks, "alignment_score", cache(networks.alignment_score)),
    ):
        yield


def logged(experiment: str, runs_dir: Path, *more: str, run: str) -> Run:
    """A toy with its W&B log, offline."""
    words = [word for word in tiny(experiment, runs_dir, *SMALL, *more) if word != "~logger"]
    return fit(compose("config", words), run)


@pytest.fixture(scope="module")
def root(first_stage: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A diffusion model that was stopped after two of its four steps, and went on; two scales of guidance a point."""
    folder, run = tmp_path_factory.mktemp("root"), None
    for steps in (2, 4):
        time.sleep(1.1 * (steps > 2))  # the client names its folder by the second
        run = logged(
            "quickstart/diffusion", folder, f"first_stage={first_stage.folder}", f"max_steps={steps}",
            "callback.quality.scales=[1,2]", "callback.panels.every_steps=2", "ema.decay=0.0", run="root",
        )  # fmt: skip
    return run


@pytest.fixture(scope="module")
def page(root: Run) -> OfflineLog:
    return read_offline(root.folder)


def test_every_curve_of_quality_is_on_the_page_at_its_step(root: Run, page: OfflineLog):
    expected = {name: own for name, own in curves(root.folder / "metrics.csv").items() if name.startswith("quality/")}
    assert {f"{KID}@scale_1", f"{KID}@scale_2", f"{ALIGNED}@scale_2", "quality/device_hours"} <= expected.keys()
    for name, (steps, values) in expected.items():
        assert page.curve(name) == (steps, values), name
        assert steps == [2, 4]
    steps = [row["_step"] for row in page.rows]
    assert steps == sorted(steps) and len(page.folders) == 2, "one run, in two parts, never back"
    assert page.run_id == root.lineage["wandb_id"] and page.group == "root"
    assert page.curve(f"{KID}@scale_1", page.axes[f"{KID}@scale_1"])[0] == [8, 16], "over the samples seen"


def test_a_panel_of_the_same_prompts_stands_at_each_point(page: OfflineLog):
    panels = page.media("panels/samples")
    assert [step for step, _ in panels] == [2, 4] and all(path.suffix == ".png" for _, path in panels)
    captions = {row["panels/samples.caption"] for row in page.rows if "panels/samples.path" in row}
    assert len(captions) == 1 and " | " in captions.pop()


def test_quality_against_alignment_is_a_table_and_a_plot(root: Run, page: OfflineLog):
    found = curves(root.folder / "metrics.csv")
    for name, line in (("over_steps", "scale"), ("over_scales", "step")):
        columns, rows = page.table(f"trade_off/{name}_table")
        assert columns == ["step", "scale", ALIGNED.removeprefix("quality/"), KID.removeprefix("quality/")]
        assert [row[:2] for row in rows] == [[step, scale] for scale in ("1", "2") for step in (2, 4)]
        for step, scale, alignment, kid in rows:
            at = found[f"{KID}@scale_{scale}"], found[f"{ALIGNED}@scale_{scale}"]
            assert (kid, alignment) == tuple(values[steps.index(step)] for steps, values in at)
        fields = page.charts[f"trade_off/{name}"]["panel_config"]["fieldSettings"]
        assert fields == {"x": columns[2], "y": columns[3], "stroke": line}


def test_the_summary_has_the_best_and_the_last(root: Run, page: OfflineLog):
    for name, (_, values) in curves(root.folder / "metrics.csv").items():
        if name.startswith(("quality/kid/", "quality/recall/", "quality/alignment_score/")):
            value = (min if "/kid/" in name else max)(values)
            assert page.summary[f"best/{name}"] == value and page.summary[name] == values[-1]
    assert not [name for name in page.summary if name.startswith("best/") and "seconds" in name]


def test_axes_are_taken_by_what_there_is():
    assert axes_of(["kid/a", "fd/a"]) is None
    assert axes_of(["fd/a", "kid/a@128@scale_2", "alignment_score/b@scale_2"]) == ("alignment_score/b", "kid/a@128")
    found = {"quality/kid/a": ([1, 2, 3], [5.0, 4.0, 3.0]), "quality/clip_score/b": ([1, 3], [0.1, 0.2])}
    assert list(trade_off(found, axes_of(["kid/a", "clip_score/b"]))) == [[1, "own", 0.1, 5.0], [3, "own", 0.2, 3.0]]


# Experts

NODES = ("expert.node=[1,1]", "expert.node=[2,2]")


@pytest.fixture(scope="module")
def tree(root: Run, tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Two experts that never move, each branched from the one before it: the first from `root`."""
    folder, parent, found = tmp_path_factory.mktemp("tree"), root, []
    for place, node in enumerate(NODES):
        parent = logged(
            "quickstart/expert", folder, f"first_stage={root.tree['first_stage']}", f"branch={parent.folder}", node,
            "optimizer.lr=0", "max_steps=2", "callback.quality.scales=[1,2]", run=f"expert-{place}",
        )  # fmt: skip
        found.append(parent)
    return found


def row(run: Run, step: int, prefix: str = "quality/") -> dict[str, float]:
    """The metrics of samples at a step of a run, by METRIC/BACKBONE."""
    found = {name.removeprefix(prefix): value for at, name, value in read_metrics(run.folder / "metrics.csv")
             if at == step and name.startswith(prefix)}  # fmt: skip
    return {name: value for name, value in found.items() if "/" in name and not name.startswith("parent/")}


def test_an_expert_that_is_its_parent_draws_what_the_parent_draws(root: Run, tree: list[Run]):
    whole = row(root, 4)
    assert len(whole) == 2 * 7
    for run in tree:
        for prefix in ("quality/", "quality/parent/"):
            assert row(run, 2, prefix) == pytest.approx(whole, rel=1e-4, abs=1e-5), f"{run.name}, {prefix}"


def test_the_panel_of_an_expert_is_drawn_in_company(root: Run, tree: list[Run]):
    of_root, of_last = (
        np.asarray(Image.open(run.folder / "samples" / f"step_{step:08d}_samples.png")).astype(int)
        for run, step in ((root, 4), (tree[-1], 2))
    )
    assert np.abs(of_root - of_last).max() <= 1


def test_a_tree_is_one_plot_over_the_samples_of_its_lineage(root: Run, tree: list[Run]):
    pages = [read_offline(run.folder) for run in (root, *tree)]
    assert [page.curve(f"{KID}@scale_1", "quality/samples_seen")[0] for page in pages] == [[8, 16], [24], [32]]
    assert {page.group for page in pages} == {"root"} and len({page.run_id for page in pages}) == 3
    for page in pages[1:]:
        assert page.axes[KID.replace("quality/", "quality/parent/") + "@scale_1"] == "quality/samples_seen"


def test_an_expert_trains_as_if_it_had_not_been_measured_with_others_that_are_named(
    root: Run, tree: list[Run], tmp_path: Path
):
    write_manifest(tmp_path / "all.yaml", [tree[0].folder, root.folder])
    more = [f"first_stage={root.tree['first_stage']}", f"branch={root.folder}", "expert.node=[1,0]"]
    named = [f"callback.quality.ensemble={tmp_path / 'all.yaml'}", "callback.quality.scales=[1]"]
    named += ["callback.quality.residency=one"]  # and that come and go while it draws
    measured = train("quickstart/expert", tmp_path, *SMALL, *more, *named, run="measured")
    plain = train("quickstart/expert", tmp_path, *more, "callback.quality.every_steps=null", run="plain")
    whole = {name: value for name, value in row(root, 4).items() if name.endswith("_1")}
    assert row(measured, 2, "quality/parent/") == pytest.approx(whole, rel=1e-4, abs=1e-5)
    kid = f"{KID.removeprefix('quality/')}@scale_1"
    assert row(measured, 2).keys() == whole.keys() and row(measured, 2)[kid] != whole[kid]
    assert curve(measured.folder, "quality/parent/nan_images") == {2: 0}
    assert_same_training(measured, plain)


def assert_same_training(measured: Run, plain: Run) -> None:
    """All but what callbacks keep and log."""
    found = differences(measured.folder, plain.folder, 2)
    assert not [what for what in found if not what.startswith(("metrics.csv", "callbacks"))]
    assert curve(measured.folder) == curve(plain.folder)


def test_company_that_is_not_there_is_refused_where_it_was_named(root: Run, tmp_path: Path):
    more = [f"first_stage={root.tree['first_stage']}", f"branch={root.folder}", "expert.node=[1,0]"]
    with pytest.raises(UserError, match=r"callback\.quality\.ensemble=.*none\.yaml"):
        train("quickstart/expert", tmp_path, *SMALL, *more, "callback.quality.ensemble=none.yaml")
    with pytest.raises(UserError, match=r"callback\.quality\.ensemble=.*only an expert"):
        train("quickstart/diffusion", tmp_path, *SMALL, *more[:1], "callback.quality.ensemble=none.yaml")
    assert not list(tmp_path.iterdir())


def test_the_quickstarts_report_shows_the_curves_of_what_was_measured(root: Run, tmp_path: Path):
    chain = SimpleNamespace(base=root.folder, experts=[], nodes=[], family="quickstart")
    log = curves(root.folder / "metrics.csv")
    found = SimpleNamespace(chain=chain, folder=tmp_path, logs={root.folder: log}, trees={root.folder: root.tree})
    [section] = quality(found)
    assert [figure.path.name for figure in section.items] == ["quality-kid.png", "quality-alignment-score.png"]
    assert all(figure.path.exists() for figure in section.items)
    assert over(log["quality/samples_seen"], ([4], [0.5])) == ([16], [0.5])
    assert quality(SimpleNamespace(chain=chain, logs={root.folder: {}})) == []


# First stages


def test_a_first_stage_is_measured_by_its_reconstructions(first_stage: Run, tmp_path: Path):
    measured = train("quickstart/autoencoder", tmp_path, "callback_add=[quality]", *SMALL)
    assert_same_training(measured, first_stage)
    found = {name: value for step, name, value in read_metrics(measured.folder / "metrics.csv") if step == 2}
    names = ("psnr", "ssim", "l1", "lpips_alex", f"rfd/{BACKBONE}", f"rkid/{BACKBONE}", f"is/{BACKBONE}")
    assert all(f"quality/{name}" in found for name in names)
    assert found["quality/psnr"] == pytest.approx(found["validation/psnr"], rel=1e-4)
