"""The evaluation of a diffusion model: what its kept points depend on."""

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console
from toys import annotated_shard
from untrained import untrained_run

from ldm.config import compose, overriding
from ldm.ensemble import write_manifest
from ldm.evaluation.evaluate import _identity, evaluate
from ldm.evaluation.reference import Reference
from ldm.evaluation.table import show
from ldm.holding import FolderHeld, held
from ldm.model import Model
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
        [], ["guidance=classifier_free"], ["guidance=classifier_free", "guidance.limits.sigma_lo=1"], auto,
        ["guidance=autoguidance", f"weak_model={other}"], [*auto, "guidance.limits.channels=[0]"],
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


# What is known before anything is sampled


OPTIONS = ["metric.size=32", "num_samples=4", "batch_size=4", "device=cpu"]


@pytest.fixture
def sampled_never(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("sampled")

    monkeypatch.setattr(Model, "generate", never)
    monkeypatch.setattr("ldm.evaluation.yardsticks.reference", never)


@pytest.mark.parametrize(
    ("run", "words", "problem"),
    [
        ([], ["guidance.scale=[1,1e200]"], r"guidance\.scale: must be finite"),
        ([], ["guidance.scale=[1,2,nan]"], r"guidance\.scale: must be finite"),
        ([], ["guidance.scale=[]"], "at least one scale"),
        ([], ["guidance.scale=[1]", "num_samples=3"], "num_samples at least 4"),
        (["conditioner=[]"], ["guidance.scale=[1,2]"], r"guidance\.scale=2: this model has no conditions"),
        (["conditioner.label.drop_prob=0"], ["guidance.scale=[1,2]"], r"guidance\.scale=2: .*label\.drop_prob=0"),
        ([], ["guidance.scale=[1]", "use_conditions=[text]"], "use_conditions: no condition text; .* model: label"),
        ([], ["guidance.scale=[2]", "use_conditions=[]"], r"guidance\.scale=2: this model has no conditions"),
        (["data.fields=null"], ["guidance.scale=[1]"], r"conditioner\.label reads 'label', .*data\.fields"),
        (["data.max_samples=3"], ["guidance.scale=[1]"], r"data\.train: at least 4 training images"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_it_is_sampled(tmp_path: Path, sampled_never, run, words, problem):
    model = untrained_run(tmp_path / "run", *run)
    with pytest.raises(ValueError, match=problem):
        evaluate(compose("evaluate", overriding([f"model={model}", f"out={tmp_path}/out", *OPTIONS, *words])))
    assert not (tmp_path / "out").exists()


def test_images_that_are_not_finite_end_the_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ldm.evaluation.yardsticks.reference", lambda *_: Reference(torch.rand(4, 8), ["a"] * 4))
    model = untrained_run(tmp_path / "run", "conditioner=[text]", "network.attention_factors=[1]")
    with pytest.raises(ValueError, match=r"not finite: image number 0 of '.*', .*guidance\.scale"):
        evaluate(
            compose(
                "evaluate", [f"model={model}", f"out={tmp_path}/o", *OPTIONS, "num_steps=5", "guidance.scale=[1e37]"]
            )
        )


def test_points_of_other_conditions_are_measured_anew(tmp_path: Path):
    model = load(untrained_run(tmp_path / "run"))
    words = [[], ["use_conditions=[label]"], ["use_conditions=[]"]]
    identities = [_identity(model, compose("evaluate", ["model=x", *OPTIONS, *more])) for more in words]
    assert len(set(identities)) == 3


def test_kept_points_that_are_none_are_named(tmp_path: Path):
    model = untrained_run(tmp_path / "run")
    (tmp_path / "points.json").write_text('{"identity": 3}')
    with pytest.raises(ValueError, match=r"points\.json: not the points of a curve"):
        evaluate(compose("evaluate", [f"model={model}", f"out={tmp_path}", *OPTIONS]))


# Whatever draws


@pytest.mark.filterwarnings("ignore:Frechet distance from")
@pytest.mark.parametrize(
    "run",
    [
        ["conditioner=[]", "data.fields=null"],
        ["conditioner.label.drop_prob=0", "conditioner.label.num_classes=9"],
        ["conditioner=[masked_image]"],
        ["conditioner=[low_resolution]", "conditioner.low_resolution.factor=1"],
    ],
    ids=["unconditional", "label", "masked_image", "low_resolution"],
)
def test_every_kind_of_model_is_evaluated(tmp_path: Path, run: list[str]):
    model = untrained_run(tmp_path / "run", "data.max_samples=6", *run)
    rows, folder = evaluate(compose("evaluate", [f"model={model}", f"out={tmp_path}/out", *OPTIONS]))
    assert [row["scale"] for row in rows] == [1.0], "nothing guides them"
    captioned = "caption" in load(model).data.fields
    assert any(name.startswith("kid/") for name in rows[0]) and (folder / "curve.csv").exists()
    assert any(name.startswith("alignment_score/") for name in rows[0]) == captioned == (folder / "curve.png").exists()


@pytest.mark.filterwarnings("ignore:Frechet distance from")
def test_an_ensemble_is_evaluated_on_other_shards(tmp_path: Path):
    words = ["data.max_samples=6", "conditioner.label.num_classes=9"]
    members = [untrained_run(tmp_path / f"{n}", f"expert.node=[1,{n}]", *words, shared=n, seed=n) for n in range(2)]
    write_manifest(tmp_path / "e.yaml", members)
    other = annotated_shard()
    options = [*OPTIONS, "guidance.scale=[2]", f"model={tmp_path}/e.yaml"]

    def point(name: str, *more: str) -> dict:
        [row] = evaluate(compose("evaluate", [*options, f"out={tmp_path / name}", *more]))[0]
        return row

    own = point("own")
    conditions, against = point("data", f"data={other}"), point("reference", f"reference={other}")
    assert own.keys() == conditions.keys() == against.keys()
    kid = next(name for name in own if name.startswith("kid/"))
    assert len({row[kid] for row in (own, conditions, against)}) == 3
    alignment = next(name for name in own if name.startswith("alignment_score/"))
    assert own[alignment] == against[alignment] != conditions[alignment]


# The table


@pytest.mark.parametrize("width", [40, 80, 120, 400])
def test_a_table_is_shown_whole_whatever_the_terminal(width: int):
    names = [
        "scale",
        *[f"{metric}/efficientnet_lite0@32" for metric in ("fd", "kid", "kid_std", "precision", "recall")],
    ]
    rows = [{name: 1000 * place + number + 0.25 for number, name in enumerate(names)} for place in range(5)]
    console = Console(file=io.StringIO(), width=width)
    show(rows, console)
    said = console.file.getvalue()
    assert "…" not in said and max(map(len, said.splitlines())) <= width
    for name in names:
        assert name in said
    for row in rows:
        for value in row.values():
            assert f"{value:.4g}" in said


@pytest.mark.parametrize("width", [30, 400])
def test_a_row_that_lacks_a_value_has_an_empty_cell(width: int):
    rows = [{"metric": "psnr", "value": 20.5, "std": 0.25}, {"metric": "rfd/efficientnet_lite0", "value": 3.5}]
    console = Console(file=io.StringIO(), width=width)
    show(rows, console)
    assert "3.5" in console.file.getvalue() and "0.25" in console.file.getvalue()


@pytest.mark.parametrize("scale", ["a", "[1,b]", "[true]", "[null]"])
def test_a_scale_that_is_no_number_is_named(scale: str, tmp_path: Path):
    with pytest.raises(ValueError, match=r"^guidance\.scale"):
        evaluate(compose("evaluate", [f"model={tmp_path}", f"guidance.scale={scale}"]))
