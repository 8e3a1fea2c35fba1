"""The evaluation of a diffusion model: what its kept points depend on."""

import csv
import io
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from toys import Process, annotated_shard
from untrained import untrained_run

from ldm.config import compose, overriding
from ldm.device import choose
from ldm.ensemble import write_manifest
from ldm.evaluation import evaluate as evaluation
from ldm.evaluation.evaluate import SCALES, _sampling, _usual_scales, evaluate
from ldm.evaluation.points import identity_of
from ldm.evaluation.reference_file import Reference
from ldm.evaluation.table import show
from ldm.evaluation.yardsticks import Yardsticks
from ldm.holding import FolderHeld, held
from ldm.measuring import conditions
from ldm.metrics.frechet import moments
from ldm.model import Model
from ldm.run import Run, load
from scripts import evaluate as script


def test_points_are_kept_for_the_same_guidance_whatever_its_scales(tmp_path: Path):
    run, one, other = (untrained_run(tmp_path / str(seed), seed=seed) for seed in range(3))
    model = load(run)

    def identity(*words: str) -> str:
        return identity_of(model, compose("evaluate", [f"model={run}", *words]))

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


def test_points_whose_samples_or_columns_have_changed_are_of_another_identity():
    def identity(fields: set[str], f: int, *words: str) -> str:
        first_stage = SimpleNamespace(spec=SimpleNamespace(f=f))
        model = SimpleNamespace(weights=[], settings={}, fields=fields, first_stage=first_stage)
        return identity_of(model, compose("evaluate", ["model=x", *words]))

    plain = identity({"label"}, 8)
    assert plain == identity({"image"}, 1), "older points of these stay valid"
    assert identity({"image", "mask"}, 8) != plain, "they keep the known pixels now"
    assert identity({"label"}, 8, "precision=bf16") != plain
    assert identity(set(), 1, "paired=[psnr]") != identity(set(), 8, "paired=[psnr]"), "which has a ceiling now"


@pytest.mark.parametrize("key", ["data", "reference"])
def test_points_of_other_samples_under_the_same_path_are_of_another_identity(tmp_path: Path, key: str):
    first_stage = SimpleNamespace(spec=SimpleNamespace(f=1))
    model = SimpleNamespace(weights=[], settings={}, fields=set(), first_stage=first_stage)
    tree, found = compose("evaluate", ["model=x", f"{key}={tmp_path}/a.tar"]), []
    for skip in (0, 1, 0):
        shutil.copyfile(annotated_shard(skip), tmp_path / "a.tar")
        found.append(identity_of(model, tree))
    assert found[0] == found[2] != found[1]


def test_the_usual_scale_is_that_of_the_runs_own_guidance(tmp_path: Path):
    own, without = (load(untrained_run(tmp_path / name, f"guidance={name}")) for name in ("classifier_free", "null"))

    def scales(model: Model, *words: str) -> list[float]:
        tree = compose("evaluate", ["model=x", *words])
        return _usual_scales(tree, model, _sampling(tree, model))

    limits = "guidance.limits.sigma_lo=0.3"
    assert scales(own) == scales(own, limits) == [3.0]
    assert scales(without) == scales(without, limits) == scales(own, "guidance=classifier_free") == list(SCALES)
    assert scales(own, "use_conditions=[]") == scales(without, "use_conditions=[]") == [1.0]


@pytest.mark.filterwarnings("ignore:Frechet distance from")
def test_what_guides_by_a_likelihood_is_evaluated_too(
    diffusion: Run, classifier: Run, tmp_path: Path, yardsticks: Yardsticks
):
    words = [
        f"model={diffusion.folder}", "guidance.scale=[1]", "num_samples=6", "num_steps=2", "metric.size=32",
        "batch_size=4",
    ]  # fmt: skip
    led = ["loss_guidance=[classifier]", "loss_guidance.classifier.scale=300", f"classifier={classifier.folder}"]
    rows = [
        evaluate(compose("evaluate", [*words, *more, f"out={tmp_path / str(len(more))}"]), yardsticks)[0]
        for more in ([], led)
    ]
    (plain,), (guided,) = rows
    assert plain.keys() == guided.keys() and plain["kid/efficientnet_lite0@32"] != guided["kid/efficientnet_lite0@32"]
    model = load(diffusion.folder)
    identities = {identity_of(model, compose("evaluate", [*words, *more])) for more in ([], led, [*led[:1], led[2]])}
    assert len(identities) == 3


# What is known before anything is sampled


OPTIONS = ["metric.size=32", "num_samples=4", "batch_size=4", "device=cpu"]


def never(*_: object, **__: object) -> None:
    raise AssertionError("sampled")


@pytest.fixture
def sampled_never(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Model, "generate", never)
    monkeypatch.setattr("ldm.evaluation.yardsticks.reference", never)


@pytest.mark.parametrize(
    ("run", "words", "problem"),
    [
        ([], ["guidance.scale=[1,1e200]"], r"guidance\.scale: must be finite"),
        ([], ["guidance.scale=[1,2,nan]"], r"guidance\.scale: must be finite"),
        ([], ["guidance.scale=[]"], "at least one scale"),
        ([], ["image_size=64"], "image_size=64: is of a first stage's images"),
        ([], ["guidance.scale=[1]", "num_samples=3"], "num_samples=3: at least 4"),
        (["conditioner=[]"], ["guidance.scale=[1,2]"], r"guidance\.scale=2: this model has no conditions"),
        (["conditioner.label.drop_prob=0"], ["guidance.scale=[1,2]"], r"guidance\.scale=2: .*label\.drop_prob=0"),
        ([], ["guidance.scale=[1]", "use_conditions=[text]"], "use_conditions: no condition text; .* model: label"),
        ([], ["guidance.scale=[2]", "use_conditions=[]"], r"guidance\.scale=2: this model has no conditions"),
        (["data.fields=null"], ["guidance.scale=[1]"], r"conditioner\.label reads 'label', .*data\.fields"),
        (["data.max_samples=3"], ["guidance.scale=[1]"], r"data\.train: at least 4 training images"),
        ([], ["validation=a.tar"], r"^validation=a\.tar: is of a first stage's images; .* reference="),
        ([], ["turns=3"], "^turns=3: is of experts that come and go"),
        ([], ["operator=blur"], r"^operator: only guidance by a loss takes it, such as loss_guidance=\[image\]"),
        ([], ["sigmas=given", "num_steps=4"], "^num_steps=4: sigmas=given has levels of its own"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_it_is_sampled(tmp_path: Path, sampled_never, run, words, problem):
    model = untrained_run(tmp_path / "run", *run)
    with pytest.raises(ValueError, match=problem):
        evaluate(compose("evaluate", overriding([f"model={model}", f"out={tmp_path}/out", *OPTIONS, *words])))
    assert not (tmp_path / "out").exists()


def test_images_that_are_not_finite_end_the_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        "ldm.evaluation.yardsticks.reference", lambda *_: Reference(torch.rand(4, 8), moments(torch.rand(4, 8)), {})
    )
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
    identities = [identity_of(model, compose("evaluate", ["model=x", *OPTIONS, *more])) for more in words]
    assert len(set(identities)) == 3


def test_kept_points_that_are_none_are_named(tmp_path: Path):
    model = untrained_run(tmp_path / "run")
    (tmp_path / "points.json").write_text('{"identity": 3}')
    with pytest.raises(ValueError, match=r"points\.json: not the points of a curve"):
        evaluate(compose("evaluate", [f"model={model}", f"out={tmp_path}", *OPTIONS]))


# Grids, and several processes


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert choose(name) == torch.device("cuda:3") and choose("cuda:1") == torch.device("cuda:1")
    monkeypatch.delenv("LOCAL_RANK")
    assert choose(name) == torch.device("cuda:0")


def test_ranks_share_the_samples_whatever_their_number(tmp_path: Path):
    data = load(untrained_run(tmp_path / "run", "data.max_samples=5")).data
    data.setup()

    def shared(world_size: int, num_samples: int) -> dict[int, str]:
        pairs = [
            (number, key)
            for rank in range(world_size)
            for batch, numbers in conditions(data, num_samples, 3, rank, world_size)
            for number, key in zip(numbers.tolist(), batch["key"], strict=True)
        ]
        assert len(dict(pairs)) == len(pairs) == num_samples
        return dict(pairs)

    for num_samples in (4, 5, 13):
        alone = shared(1, num_samples)
        assert [alone[number] for number in range(5, num_samples)] == [alone[n % 5] for n in range(5, num_samples)]
        for world_size in (2, 3, 4, 7):
            assert shared(world_size, num_samples) == alone


@pytest.mark.filterwarnings("ignore:Frechet distance from")
def test_a_killed_grid_goes_on_and_its_rows_are_those_of_single_curves(
    tmp_path: Path, monkeypatch, yardsticks: Yardsticks
):
    labelled = ["conditioner.label.num_classes=9", "~data.fields.caption"]  # no alignment, no pictures of curves
    model = untrained_run(tmp_path / "run", "data.max_samples=6", *labelled)
    words = [*OPTIONS, f"model={model}", "guidance.scale=[1,2]"]
    grid = [*words, f"out={tmp_path}/grid", "num_steps=[2,1]", "ema=[ema,raw]"]
    measured: list[float] = []
    measure = evaluation.measure

    def killed(model, sampling, *rest, **more):
        if len(measured) == 3:
            raise KeyboardInterrupt
        measured.append(sampling.guidance.scale)
        return measure(model, sampling, *rest, **more)

    monkeypatch.setattr(evaluation, "measure", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate(compose("evaluate", grid), yardsticks)
    monkeypatch.setattr(
        evaluation,
        "measure",
        lambda *given, **more: measured.append(given[1].guidance.scale) or measure(*given, **more),
    )
    rows, folder = evaluate(compose("evaluate", grid), yardsticks)
    assert measured == [1, 2] * 4, "what was measured was kept"
    assert [(row["ema"], row["num_steps"], row["scale"]) for row in rows] == [
        (ema, steps, scale) for ema in ("ema", "raw") for steps in (2, 1) for scale in (1.0, 2.0)
    ]
    with (folder / "grid.csv").open() as file:
        written = list(csv.DictReader(file))
    kid = next(name for name in rows[0] if name.startswith("kid/"))
    assert [float(row[kid]) for row in written] == [row[kid] for row in rows]
    single, _ = evaluate(compose("evaluate", [*words, f"out={tmp_path}/single", "num_steps=2", "ema=raw"]), yardsticks)
    assert [{**row, "ema": "raw", "num_steps": 2} for row in single] == rows[4:6]
    monkeypatch.setattr(evaluation, "_measure", None)
    assert evaluate(compose("evaluate", grid), yardsticks)[0] == rows


def test_ranks_that_do_not_see_the_disk_ask_for_the_references_that_rank_zero_asks_for(tmp_path: Path, monkeypatch):
    one, other = (untrained_run(tmp_path / name, "data.max_samples=6", "~data.fields.caption") for name in ("a", "b"))
    asked: list[object] = []
    by = SimpleNamespace(
        reference=lambda *given: asked.append(given), backbone=None, alignment=None, device=torch.device("cpu")
    )
    monkeypatch.setattr(evaluation, "broadcast", lambda done: [{"1": {}}, *done[1:]])  # by rank 0: the first is done
    monkeypatch.setattr(evaluation, "measure", lambda *given, **more: never())
    words = [*OPTIONS, f"model=[{one},{other}]", "guidance.scale=[1]", f"out={tmp_path}/out"]
    with pytest.raises(AssertionError, match="sampled"):
        evaluate(compose("evaluate", words), by)
    assert len(asked) == 1


@pytest.mark.filterwarnings("ignore:Frechet distance from")
def test_sets_of_conditions_are_a_grid_too(tmp_path: Path, yardsticks: Yardsticks):
    labelled = ["conditioner.label.num_classes=9", "~data.fields.caption"]
    model = untrained_run(tmp_path / "run", "data.max_samples=6", *labelled)
    words = [*OPTIONS, f"model={model}", "guidance.scale=[1]", "num_steps=1"]
    rows, _ = evaluate(compose("evaluate", [*words, f"out={tmp_path}/both", "use_conditions=[[label],[]]"]), yardsticks)
    assert [row["use_conditions"] for row in rows] == ["label", "none"]
    [[none], _] = evaluate(compose("evaluate", [*words, f"out={tmp_path}/none", "use_conditions=[]"]), yardsticks)
    assert rows[1] == {"use_conditions": "none", **none} != {**rows[0], "use_conditions": "none"}


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["num_steps=[]"], r"num_steps=\[\]: .* at least one"),
        (["num_steps=[2,0]"], r"num_steps=\[2, 0\]: must be at least 1"),
        (["num_steps=[2,many]"], "num_steps=.*: expected"),
        (["ema=[ema,row]"], "ema=row: choose ema, raw"),
        (["ema=[]"], r"ema=\[\]: .* at least one"),
        (["num_steps=[2,3]", "use_conditions=[[label],[text]]"], "use_conditions: no condition text"),
        (["use_conditions=[[label],[]]", "guidance.scale=[2]"], r"guidance\.scale=2: .*no conditions"),
    ],
)
def test_a_grid_is_refused_before_any_of_it_is_sampled(tmp_path: Path, sampled_never, words, problem):
    model = untrained_run(tmp_path / "run")
    with pytest.raises(ValueError, match=problem):
        evaluate(compose("evaluate", overriding([f"model={model}", f"out={tmp_path}/out", *OPTIONS, *words])))
    assert not (tmp_path / "out").exists()


def test_on_a_cpu_what_an_evaluation_frees_is_kept_for_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kept: list[bool] = []
    monkeypatch.setattr("ldm.device.keep_memory", lambda: kept.append(True))
    monkeypatch.setattr("ldm.evaluation.evaluate.evaluate", lambda tree: ([], tmp_path))
    assert script.main([f"model={untrained_run(tmp_path / 'run')}", "device=cpu"]) == 0
    assert kept == [True]


# One rank of two, without a launcher that would end the other; what the second one does comes first.
RANK = """
import os, sys
rank, port, does = sys.argv[1:4]
os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
from ldm.config import guarded
from ldm.errors import UserError
from ldm.model import Model
from scripts.evaluate import main

original, calls = Model.generate, []

def generate(model, sampling, batch, numbers, *rest):
    calls.append(1)
    if rank == "1" and len(calls) == 2 and does == "dies":
        os._exit(9)
    if rank == "1" and len(calls) == 2 and does == "refuses":
        raise UserError("not finite: image number 3")
    return original(model, sampling, batch, numbers, *rest)

Model.generate = generate
sys.argv[1:] = sys.argv[4:]
guarded(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("does", ["nothing", "refuses", "dies"])
def test_two_ranks_measure_what_one_does_and_end_together(tmp_path: Path, does: str):
    model = untrained_run(tmp_path / "run", "conditioner=[text]", "network.attention_factors=[1]", "data.max_samples=6")
    words = [*OPTIONS, "num_samples=9", "batch_size=2", f"model={model}", "guidance.scale=[1,2]", "num_steps=[1,2]"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [
        Process(
            ["-c", RANK, str(rank), str(port), does, *overriding(words), f"out={tmp_path}/two"],
            tmp_path / f"{rank}.txt",
        )
        for rank in range(2)
    ]
    ended = [rank.wait() for rank in ranks]
    said = [rank.said for rank in ranks]
    if does == "refuses":
        assert ended == [2, 2] and all("not finite: image number 3" in text for text in said), said
    if does == "dies":
        assert ended == [2, 9] and "rank 0: another rank ended" in said[0], said
    if does != "nothing":
        return
    assert ended == [0, 0] and "kid/" in said[0] and "kid/" not in said[1], said
    assert (tmp_path / "two" / "grid.png").exists()
    alone, _ = evaluate(compose("evaluate", [*overriding(words), f"out={tmp_path}/one"]))
    with (tmp_path / "two" / "grid.csv").open() as file:
        both = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert both == [pytest.approx(row, rel=1e-6, abs=1e-6) for row in alone]


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
def test_every_kind_of_model_is_evaluated(tmp_path: Path, run: list[str], yardsticks: Yardsticks):
    model = untrained_run(tmp_path / "run", "data.max_samples=6", *run)
    rows, folder = evaluate(compose("evaluate", [f"model={model}", f"out={tmp_path}/out", *OPTIONS]), yardsticks)
    assert [row["scale"] for row in rows] == [1.0], "nothing guides them"
    captioned = "caption" in load(model).data.fields
    assert any(name.startswith("kid/") for name in rows[0]) and (folder / "curve.csv").exists()
    assert any(name.startswith("alignment_score/") for name in rows[0]) == captioned == (folder / "curve.png").exists()


@pytest.mark.filterwarnings("ignore:Frechet distance from")
def test_an_ensemble_is_evaluated_on_other_shards(tmp_path: Path, yardsticks: Yardsticks):
    words = ["data.max_samples=6", "conditioner.label.num_classes=9"]
    members = [untrained_run(tmp_path / f"{n}", f"expert.node=[1,{n}]", *words, shared=n, seed=n) for n in range(2)]
    write_manifest(tmp_path / "e.yaml", members)
    other = annotated_shard()
    options = [*OPTIONS, "guidance.scale=[2]", f"model={tmp_path}/e.yaml"]

    def point(name: str, *more: str) -> dict:
        [row] = evaluate(compose("evaluate", [*options, f"out={tmp_path / name}", *more]), yardsticks)[0]
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
