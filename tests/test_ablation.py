"""Ablations: rows that differ in their words alone, equal time, rows that are kept, and diffusers' loop beside them."""

import csv
import importlib
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toys import TINY_RUN, annotated_shard

from ldm.ablation.ablation import Ablation, ablation
from ldm.ablation.cells import Cell, cells, check, row_words, settings_of
from ldm.ablation.page import summary, verdict, write_page
from ldm.ablation.plan import Peer, Plan, Row, read_plan
from ldm.ablation.results import results_at
from ldm.build import Parts
from ldm.config import CONF, compose, overriding
from ldm.errors import UserError
from ldm.files import write_json
from ldm.launching import FINISHED, Job
from ldm.launching.pool import Pool
from ldm.launching.sequences import Sequences
from ldm.results.measured_under import training_of

DATA = " ".join(word for word in TINY_RUN if word.startswith("data."))
SMALL = f"{DATA} image_size=32 max_steps=2 lr.warmup_steps=0 callback.metrics.every_steps=1"
AUTOENCODER = f"{SMALL} autoencoder.channels=4 discriminator.channels=4"
NETWORK = "network.width=8 network.depth=2 network.num_heads=2"
OVERRIDES = f"{SMALL} {NETWORK} num_steps=2"
PLAN = """
experiment: quickstart/diffusion
autoencoder: quickstart/autoencoder
control: theirs
target: 0.8
hypothesis: Ours is better.
rows:
  - {name: ours, says: the quickstart}
  - {name: free, from: ours, overrides: "optimizer=schedule_free lr=constant ema=schedule_free", says: new}
  - {name: plain, from: ours, overrides: "ema=null optimizer=muon", says: no average}
peers:
  - name: theirs
    data_of: ours
    batch_size: 4
    network: {block_out_channels: [8], layers_per_block: 1, attention_head_dim: 2, norm_num_groups: 4,
              down_block_types: [CrossAttnDownBlock2D], up_block_types: [CrossAttnUpBlock2D]}
"""


def plan_file(folder: Path, text: str = PLAN) -> Path:
    path = folder / "toy.yaml"
    path.write_text(text)
    return path


def tree(folder: Path, *more: str) -> dict:
    words = (
        f"plan={folder / 'toy.yaml'}", f"runs_dir={folder / 'runs'}", "num_samples=4", "num_steps=2",
        "batch_size=4", "metric.size=32", "device=cpu", "moments=2", "logger.mode=disabled", *more,
    )  # fmt: skip
    composed = compose("ablation", overriding(words))
    return {**composed, "autoencoder_overrides": AUTOENCODER, "overrides": OVERRIDES}


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Jobs are calls of their scripts' main, in this thread: torch is imported once. Returns the names of those run."""
    done: list[str] = []

    def launch(jobs: Sequence[Job]) -> list[int]:
        for job in jobs:
            done.append(job.name)
            path = Path(job.command()[1])
            monkeypatch.syspath_prepend(path.parent)
            main = importlib.import_module(path.stem).main
            assert main([*job.words]) in (0, None), job.name
        return [FINISHED for _ in jobs]

    monkeypatch.setattr("ldm.ablation.ablation.instantiate", lambda *_: launch)
    monkeypatch.setattr(Pool, "run", lambda self, work: any(one() for one in work))
    return done


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore:Frechet distance from")
def test_the_ablation_is_whole_and_goes_on_from_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("diffusers")
    done = in_this_process(monkeypatch)
    plan_file(tmp_path)
    kept = tmp_path / "kept" / "rows.csv"
    budget = ("device_seconds=0.2", "trial_steps=20", f"results={kept}")
    folder = ablation(tree(tmp_path, *budget)).parent
    chains = {
        name: [f"ablation-toy-{name}-trial", f"ablation-toy-{name}", f"{name}: measure"]
        for name in ("ours-seed0", "free-seed0", "plain-seed0")
    }
    begun = ["theirs-seed0: check", "ablation-toy-autoencoder", "theirs-seed0: encode", "theirs-seed0: peer"]
    assert done == [*begun, *(name for chain in chains.values() for name in chain)]
    rows = {row["row"]: row for row in read(kept)}
    assert set(rows) == {"ours", "free", "plain", "theirs"}
    assert all(float(row["kid/efficientnet_lite0@32"]) and int(row["parameters"]) > 0 for row in rows.values())
    assert float(rows["theirs"]["device_seconds"]) >= 0.2 and rows["theirs"]["sampler"] in ("pndm", "dpmpp_2m")
    points = read(kept.with_name("rows_points.csv"))
    assert {name: sum(point["row"] == name for point in points) for name in rows} == dict.fromkeys(rows, 2)
    assert all((folder / name).exists() for name in ("index.html", "table.csv", "kid.png", "kid_over_time.png"))

    shutil.rmtree(tmp_path / "runs")  # a fresh machine, which has the rows alone
    monkeypatch.setattr(Sequences, "do", None)  # nothing is run
    assert ablation(tree(tmp_path, *budget)).exists()
    assert ablation(tree(tmp_path, *budget, "rows=[ours]", "train=false")).with_name("table.csv").exists()
    with pytest.raises(ValueError, match=r"rows\.csv: its rows theirs-seed0 were measured with"):
        ablation(tree(tmp_path, *budget, "num_samples=5"))


def test_what_could_not_train_is_refused_before_anything_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Ablation, "run", None)
    plan_file(tmp_path)
    for words, said in {
        ("rows=[none]",): "rows=.*different ones of theirs, ours, free, plain", ("rows=[ours,ours]",): "different ones",
        ("seeds=[-1]",): "different numbers", ("seeds=[99999999999]",): "to 42949", ("device_seconds=0",): "above 0",
        ("device_seconds=inf",): "device_seconds=inf", ("scale=nan",): "scale=nan", ("moments=0",): "moments=0",
        ("results=here",): "ends in .csv", ("launcher=submitit",): "launcher.wait", ("reference=typo.npz",): "typo.npz",
        ("train=false",): "none of the 4 cells", ("plan=nowhere",): "nor one of .*emoji",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=said):
            ablation(tree(tmp_path, *words))
    plan_file(tmp_path, PLAN.replace("ema=null", "ema.decy=0"))
    with pytest.raises(ValueError, match=r"row 'plain': ema.decy"):
        ablation(tree(tmp_path))
    plan_file(tmp_path, PLAN.replace("ema=null", "ema=null plugins=[theirs]"))
    with pytest.raises(ValueError, match=r"row 'plain': plugins= is not for a file to say"):
        ablation(tree(tmp_path))
    for old, new, said in (
        ("experiment: quickstart/diffusion", "experiment: quickstart/classifier", "'ours': experiment: trains no diff"),
        (
            "autoencoder: quickstart/auto",
            "autoencoder: quickstart/diffusion #",
            "autoencoder of .* trains no first stage",
        ),
        ("ours, says", "ours, overrides: optimizer.lrr=1, says", r"row 'ours': optimizer\.lrr: no such key"),
        ("ours, says", "ours, overrides: adapter=lora, says", "row 'ours': adapter: adapts .* a trained model"),
        ("ours, says", "ours, overrides: 'callback=[metrics]', says", r"row 'ours': callback\.quality"),
    ):
        assert old in PLAN
        plan_file(tmp_path, PLAN.replace(old, new))
        with pytest.raises(UserError, match=said):
            ablation({**tree(tmp_path), "overrides": DATA, "autoencoder_overrides": DATA})
    plan_file(tmp_path)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.setattr("ldm.ablation.ablation.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="theirs needs diffusers"):
        ablation(tree(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["toy.yaml"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("target: 0.8", "target: high", r"target is 'high'"),
        ("target: 0.8", "target: 2.0", r"target=2\.0"),
        ("control: theirs", "control: nobody", "control: 'nobody'"),
        ("from: ours, overrides: \"ema", "from: later, overrides: \"ema", "row 'plain': from 'later'"),
        ("data_of: ours", "data_of: nothing", "data_of 'nothing'"),
        ("name: free", "name: ours", "names differ"),
        ("name: free", "name: a b", "names differ"),
        ("says: new", "sayz: new", r"rows\[1\]: sayz: no such key"),
        ("hypothesis: Ours is better.\n", "", "hypothesis: has to be given"),
        ("rows:\n", "rows: 3\nwords:\n", "rows: a list"),
        ("batch_size: 4", "batch_size: true", "batch_size is True"),
        ("batch_size: 4", "batch_size: 0", "peer 'theirs': batch_size=0: must be above 0"),
        ("batch_size: 4", "lr: .nan", "peer 'theirs': lr=nan: must be above 0"),
        ("batch_size: 4", "snr_gamma: -1", "peer 'theirs': snr_gamma=-1: must be above 0"),
        ("ema=null", "ema=null ema=default", "row 'plain': ema is given 2 times"),
        ("ema=null", "seed=3", "row 'plain': seed= is the same for all rows"),
        ("target: 0.8", "target: 0.8\ntarget: 0.5", "it has the key 'target' twice"),
    ],
)  # fmt: skip
def test_a_plan_that_is_none_is_named(tmp_path: Path, old: str, new: str, said: str):
    assert old in PLAN
    with pytest.raises(UserError, match=rf"toy\.yaml: .*{said}"):
        read_plan(str(plan_file(tmp_path, PLAN.replace(old, new))))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("layers_per_block: 1", "layers: 1", "unexpected keyword argument 'layers'"),
        ("norm_num_groups: 4", "norm_num_groups: 7", "network: "),
        ("[CrossAttnDownBlock2D]", "[Nothing]", "network: .*Nothing"),
        ("says: the quickstart", "overrides: 'conditioner=[]', says: x", "data_of 'ours': has no tokens"),
    ],
)  # fmt: skip
def test_a_peer_that_cannot_be_built_is_named_before_anything_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, said: str
):
    pytest.importorskip("diffusers")
    plan_file(tmp_path, PLAN.replace(old, new))
    assert old in PLAN
    asked, plan = tree(tmp_path), read_plan(str(tmp_path / "toy.yaml"))
    first = next(Ablation(asked, plan, None, results_at(tmp_path / "rows.csv"), cells(asked, plan))._shared())
    assert first.name == "theirs-seed0: check"
    write_json(tmp_path / "runs" / "ablation-toy" / "ablation.json", asked)
    monkeypatch.syspath_prepend(CONF.parent / "scripts" / "dev")
    with pytest.raises(UserError, match=f"peer 'theirs': .*{said}"):
        importlib.import_module("diffusers_loop").main([*first.words])


def test_a_row_has_the_words_of_what_it_comes_from_but_those_of_an_option_that_it_replaces():
    rows = [
        Row("a", "schedule=scaled_linear schedule.beta_start=0.1 optimizer.lr=1"),
        Row("b", "schedule=edm optimizer.lr=2", origin="a"),
        Row("c", "ema=null", origin="b", experiment="other"),
    ]
    plan = Plan("toy", "some", "first", "a", 0.5, "It is.", rows, overrides="max_steps=3")
    assert plan.words_of("a")[1:] == ["max_steps=3", *rows[0].overrides.split()]
    assert plan.words_of("b") == ["experiment=some", "max_steps=3", "schedule=edm", "optimizer.lr=2"]
    assert plan.words_of("c") == ["experiment=other", *plan.words_of("b")[1:], "ema=null"]


def test_a_cell_is_that_of_its_own_settings(tmp_path: Path):
    plan_file(tmp_path)
    asked, plan = tree(tmp_path), read_plan(str(tmp_path / "toy.yaml"))
    settings = {name: settings_of(asked, plan, Cell(name, 0)) for name in plan.names}
    assert len(set(settings.values())) == len(settings)
    assert settings["ours"] == settings_of(asked, plan, Cell("ours", 1))  # the seed is a column
    for key, value, trains in (("num_samples", 9, False), ("scale", 2.0, False), ("device_seconds", 9, True),
                               ("overrides", "", True), ("first_stage", "runs/other", True)):  # fmt: skip
        other = settings_of({**asked, key: value}, plan, Cell("ours", 0))
        assert other != settings["ours"]
        assert (training_of(other) != training_of(settings["ours"])) == trains
    held_out = [
        settings_of({**asked, "reference": str(annotated_shard(skip))}, plan, Cell("ours", 0)) for skip in (0, 1)
    ]
    assert held_out[0] != held_out[1] and training_of(held_out[0]) == training_of(settings["ours"])
    shorter = replace(plan, peers=[replace(plan.peers[0], lr=1e-3)])
    assert settings_of(asked, shorter, Cell("theirs", 0)) != settings["theirs"]
    assert settings_of(asked, replace(plan, target=0.5), Cell("ours", 0)) == settings["ours"]


def result(row: str, seed: int, kid: float, **more: float) -> dict:
    own = {"row": row, "seed": seed, "settings": "{}", "steps": 10, "device_seconds": 2.0, "parameters": 5}
    return {**own, "batch_size": 4, "kid/x": kid, "kid_low/x": kid - 1, "kid_high/x": kid + 1, "fd/x": 3.0, **more}


def test_rows_are_kept_as_they_were(tmp_path: Path):
    results, other = results_at(tmp_path / "rows.csv"), results_at(tmp_path / "rows.csv")
    settings = {"settings": '{"x": 1}'}
    results.add(Cell("a", 0), {"steps": 7, "device_seconds": 0.1 + 0.2, "sampler": "pndm", "settings": "{}"}, [])
    point = {"steps": 1, "device_seconds": 0.5}
    other.add(Cell("b", 1), {"steps": 3, "device_seconds": 1.0, **settings}, [{**point, **settings}])
    again = results_at(tmp_path / "rows.csv")
    assert [row["device_seconds"] for row in again.cells.find(Cell("a", 0))] == [0.1 + 0.2]
    assert again.cells.find(Cell("b", 0)) == [] and len(again.points.rows) == 1
    with pytest.raises(UserError, match="its rows b-seed1 were measured with"):
        again.cells.check(Cell("b", 1), "{}")
    (tmp_path / "rows.csv").write_text("row,seed,settings,steps,device_seconds\na,0,{},many,1\n")
    with pytest.raises(UserError, match="line 2: steps is 'many'"):
        results_at(tmp_path / "rows.csv")


def plan_of(*names: str) -> Plan:
    rows = [Row(name, says=f"{name}'s choice") for name in names]
    return Plan("toy", "some", "first", "theirs", 0.8, "Written before.", rows, [Peer("theirs", names[0], {})])


def test_intervals_are_over_seeds_or_else_over_samples():
    rows = [result("theirs", 0, 10.0), result("one", 0, 7.0), *(result("two", seed, 4.0 + seed) for seed in range(3))]
    theirs, one, two = summary(rows, plan_of("one", "two"), "kid/x")
    assert (theirs["of the control"], one["of the control"], two["of the control"]) == (1.0, 0.7, 0.5)
    assert (one["kid/x low"], one["kid/x high"]) == (6.0, 8.0)
    assert two["kid/x low"] == pytest.approx(5 - 4.302653 / 3**0.5, rel=1e-6)


@pytest.mark.parametrize(("kid", "said"), [(7.9, "met"), (8.1, "missed")])
def test_the_verdict_is_on_the_best_row_of_ours_against_the_control(kid, said):
    plan = plan_of("one", "two")
    rows = [result("theirs", 0, 10.0), result("one", 0, kid), result("two", 0, 9.0)]
    text = verdict(summary(rows, plan, "kid/x"), plan, "kid/x")
    assert f"Lowest kid/x: one, {kid:g} against 10 of theirs" in text and text.endswith(f"of 0.8 is {said}.")
    for left, why in ((rows[1:], "theirs is not measured yet"), (rows[:1], "theirs is alone")):
        assert verdict(summary(left, plan, "kid/x"), plan, "kid/x") == f"Not judged: {why}."


def test_no_share_is_of_a_control_that_is_not_above_zero():
    plan = plan_of("one")
    table = summary([result("theirs", 0, -0.001), result("one", 0, 0.05)], plan, "kid/x")
    assert [line["of the control"] for line in table] == [None, None]
    assert verdict(table, plan, "kid/x").startswith("Not judged: kid/x of theirs is -0.001, not above 0;")


def test_the_page_has_every_row_with_what_it_is(tmp_path: Path):
    plan, results = plan_of("one", "two"), results_at(tmp_path / "rows.csv")
    for name, kid in (("theirs", 10.0), ("one", 7.0)):
        row = result(name, 0, kid)
        points = [{**row, "steps": step, "device_seconds": float(step)} for step in (5, 10)]
        results.add(Cell(name, 0), row, points)
    asked = [Cell(name, 0) for name in plan.names]
    given = {"device_seconds": 2.0, "logger": {"project": "x", "mode": "disabled"}}
    text = write_page(given, plan, tmp_path / "page", asked, results).read_text()
    assert "Written before." in text and "one&#39;s choice" in text and "2 of 3 cells" in text
    assert "two&#39;s choice" not in text
    table = read(tmp_path / "page" / "table.csv")
    assert [line["row"] for line in table] == ["theirs", "one"]


def test_the_steps_of_a_budget_are_those_of_the_same_training(tmp_path: Path):
    plan_file(tmp_path)
    asked, plan, cell = tree(tmp_path, "device_seconds=4"), read_plan(str(tmp_path / "toy.yaml")), Cell("ours", 0)
    results = results_at(tmp_path / "rows.csv")
    work = Ablation(asked, plan, None, results, [])
    run = work.places.run(cell).with_name("ablation-toy-ours-seed0-trial")
    jobs = work.jobs_of(cell)
    assert next(jobs).name == run.name
    run.mkdir(parents=True)
    (run / "metrics.csv").write_text("".join(f"{step},speed/device_seconds,{step / 10}\n" for step in (5, 10, 15, 20)))
    assert "max_steps=40" in next(jobs).words and "max_steps=40" in next(work.jobs_of(Cell("ours", 3))).words
    longer = Ablation({**asked, "device_seconds": 8}, plan, None, results, [])
    assert next(longer.jobs_of(cell)).name == run.name


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in CONF.glob("ablation/*.yaml")))
def test_every_row_there_is_could_train_and_peers_are_of_its_size(name: str):
    diffusers = pytest.importorskip("diffusers")
    plan = read_plan(name)
    asked = compose("ablation", [f"plan={name}"])
    check(asked, plan, cells(asked, plan))
    size = Parts(compose("config", row_words(asked, plan, "quickstart")), in_channels=4, out_channels=4)
    with torch.device("meta"):
        ours = size["denoiser"].network
        peers = [
            diffusers.UNet2DConditionModel(
                in_channels=4, out_channels=4, cross_attention_dim=384, **json.loads(json.dumps(peer.network))
            )
            for peer in plan.peers
        ]
    count = sum(parameter.numel() for parameter in ours.parameters())
    for peer in peers:
        assert sum(parameter.numel() for parameter in peer.parameters()) == pytest.approx(count, rel=0.05)


def test_a_measurement_counts_under_its_own_settings_alone(tmp_path: Path):
    plan_file(tmp_path)
    asked, plan, cell = tree(tmp_path), read_plan(str(tmp_path / "toy.yaml")), Cell("theirs", 0)
    work = Ablation(asked, plan, None, results_at(tmp_path / "rows.csv"), [cell])
    (job,) = work.jobs_of(cell)
    assert job.script == "dev/diffusers_loop" and "cell=theirs-seed0" in job.words
    assert Path(job.command()[1]).is_file()
    own, found = settings_of(asked, plan, cell), {"row": result("theirs", 0, 1.0), "points": []}
    for settings, count in ((settings_of({**asked, "num_samples": 9}, plan, cell), 1), (own, 0)):
        write_json(work.places.measured(cell) / "measured.json", {**found, "settings": settings})
        assert len(list(work.jobs_of(cell))) == count
    work.keep(cell)
    (row,) = work.results.cells.find(cell)
    assert row["kid/x"] == 1.0 and row["settings"] == own


def test_each_row_is_composed_once_to_be_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plan_file(tmp_path)
    asked, plan, composed = tree(tmp_path), read_plan(str(tmp_path / "toy.yaml")), []
    monkeypatch.setattr("ldm.ablation.cells.compose", lambda *given: composed.append(given) or compose(*given))
    check(asked, plan, cells(asked, plan))
    assert len(composed) == 2 + len(plan.rows), "the first stage, what the cache is of, and the rows"
