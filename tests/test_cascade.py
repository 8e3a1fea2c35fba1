"""Cascades: stages meet, each is sampled by its own recipe, and pictures are a function of seed and number alone."""

import json
import logging
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from PIL import Image
from toys import ROOT, train
from untrained import untrained_run

import sample
from ldm import load
from ldm.config import compose
from ldm.demo.drawing import pictures
from ldm.demo.inputs import inputs_of, tree_of
from ldm.diffusion.counter_random import normal
from ldm.doctor.verify import report
from ldm.ensemble import write_manifest as write_ensemble
from ldm.errors import UserError
from ldm.evaluation.replaced_fields import with_fields_of
from ldm.loading import load_drawer, trained_on
from scripts import cascade, evaluate, lineage

LABEL = ["conditioner=[label]", "conditioner.label.num_classes=64", "conditioner.label.width=4"]
SMALL = ["conditioner.low_resolution.factor=2", "derived.low_resolution.factor=2"]
STAGES = {
    "base": LABEL,
    "sr16": ["image_size=16", "conditioner=[label,low_resolution]", *LABEL[1:], "derived=[degraded]", *SMALL],
    "sr32": ["image_size=32", "conditioner=[low_resolution]", "derived=[degraded]", *SMALL, "sampler=ddpm"],
    "clean16": ["image_size=16", "conditioner=[low_resolution]", "derived=[low_resolution]", *SMALL],
    "noisy16": ["image_size=16", "conditioner=[low_resolution]", "derived=[low_resolution]", *SMALL,
                "conditioner.low_resolution.max_noise_level=0.5"],
    "text16": ["image_size=16", "conditioner=[label,low_resolution]", *LABEL[1:], "conditioner.label.drop_prob=0",
               "derived=[degraded]", *SMALL],
    "plain": ["conditioner=[]"],
}  # fmt: skip
LABELS, NUMBERS = {"label": torch.tensor([0, 3, 1])}, torch.tensor([0, 1, 5])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained runs: a base of 8 px under labels, and what makes 16 and 32 px of it. Not to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    for place, (name, words) in enumerate(STAGES.items()):
        untrained_run(folder / name, *words, seed=place)
    for place, node in enumerate(("[1,0]", "[1,1]")):
        untrained_run(folder / f"half{place}", *STAGES["sr16"], f"expert.node={node}", seed=10 + place)
    write_ensemble(folder / "halves.yaml", [folder / "half0", folder / "half1"])
    write(folder, "three.yaml", ["base", "sr16", "sr32"], "base.num_steps=4", "sr16.sampler=heun", "sr16.num_steps=2",
          "sr16.guidance.scale=2", "sr32.batch_size=2")  # fmt: skip
    return folder


def write(folder: Path, out: str, stages: list[str], *words: str) -> Path:
    named = ",".join(str(folder / stage) for stage in stages)
    assert cascade.main([f"out={folder / out}", f"stages=[{named}]", *words]) == 0
    return folder / out


def draw(model, numbers=NUMBERS, tree=None, batch=LABELS, **more):
    return model.generate(model.sampling(tree or {}), batch, numbers, 0, **more)


# The manifest


def test_a_manifest_says_of_each_stage_what_it_is_and_how_it_is_sampled(runs):
    manifest = yaml.safe_load((runs / "three.yaml").read_text())
    assert manifest["kind"] == "cascade" and "_target_" not in json.dumps(manifest)
    base, sr16, sr32 = manifest["stages"]
    assert [(s["name"], s["image_size"], s["factor"]) for s in manifest["stages"]] == [
        ("base", 8, 1), ("sr16", 16, 2), ("sr32", 32, 2)
    ]  # fmt: skip
    assert base["sampler"] == {"euler": {}} and base["sigmas"]["karras"]["num_steps"] == 4
    assert "heun" in sr16["sampler"] and sr16["guidance"]["classifier_free"]["scale"] == 2.0
    assert "ddpm" in sr32["sampler"] and sr32["sigmas"]["karras"]["num_steps"] == 3 and sr32["batch_size"] == 2
    assert not Path(base["model"]).is_absolute() and all(len(s["sha256"][0]) == 64 for s in manifest["stages"])


def test_it_may_be_moved_with_its_runs_and_its_recipes_edited_and_nothing_else(runs, tmp_path):
    moved = shutil.copytree(runs, tmp_path / "moved") / "three.yaml"
    text = moved.read_text()
    manifest = yaml.safe_load(text)
    manifest["stages"][2]["sigmas"]["karras"]["num_steps"] = 5
    manifest["stages"][1]["sampler"] = None
    manifest["resident"] = "one"
    moved.write_text(yaml.safe_dump(manifest))
    model = load_drawer(moved)
    first, second, third = [model.sampling({}), *model.sampling({}).later]
    assert [len(own.sigmas) - 1 for own in (first, second, third)] == [4, 2, 5]
    assert second.sampler.func.__name__ == "euler", "null is as its run says"
    for key, value, problem in [
        ("factor", 4, "edited or damaged since it was written"),
        ("num_stepz", 4, r"sr16\.num_stepz: no such key; there are sampler, "),
        ("sampler", {"hoin": {}}, r"three\.yaml: sr16: sampler=hoin: no such option; did you mean 'heun'"),
        ("sampler", {"heun": {"_target_": "os.system"}}, "names code"),
        ("sigmas", {"karras": {"num_steps": "many"}}, r"three\.yaml: sr16: sigmas\.num_steps='many'"),
        ("use_conditions", ["t5"], r"sr16\.use_conditions: no condition t5; the conditions of sr16: label, low"),
        ("batch_size", 0, "batch_size=0: expected a number above 0"),
    ]:
        damaged = yaml.safe_load(text)
        damaged["stages"][1][key] = value
        moved.write_text(yaml.safe_dump(damaged))
        with pytest.raises(ValueError, match=problem):
            load_drawer(moved)
    shutil.rmtree(moved.parent / "sr16")
    moved.write_text(text)
    with pytest.raises((ValueError, OSError), match="its stage sr16 is not there"):
        load_drawer(moved)


@pytest.mark.parametrize(
    ("stages", "words", "problem"),
    [
        (["base", "plain"], [], "plain is no super-resolution model: it has no conditions, and a stage after"),
        (["base", "sr32"], [], r"sizes do not meet: base draws 8 px, and sr32 makes 32 px of 16 px \(2 times\)"),
        (["plain", "text16"], [], r"text16 always reads 'label' \(conditioner\.label\), which plain is not given"),
        (["base", "nowhere"], [], "no such run"),
        (["base", "sr16", "sr16"], [], "two are called sr16"),
        (["base", "sr16", "three.yaml"], [], "is a cascade itself"),
        (["base", "sr16"], ["sr16.num_stepz=4"], r"sr16\.num_stepz: is not of a stage, which has sampler, "),
        (["base", "sr16"], ["sr32.num_steps=4"], r"sr32\.num_steps: no such key.* NAME being base or sr16"),
        (["base", "sr16"], ["sr16.use_conditions=[text]"], "sr16: use_conditions: no condition text"),
        (["plain", "clean16"], ["clean16.guidance.scale=2"], r"clean16: guidance\.scale=2.*no conditions to guide by|"
         r"clean16: guidance\.scale=2: the training never left out low_resolution"),
        (["base", "sr16"], ["resident=two"], "resident='two'"),
    ],
)  # fmt: skip
def test_what_is_no_cascade_is_refused_in_a_line_before_anything_is_written(runs, tmp_path, stages, words, problem):
    named = ",".join(str(runs / stage) for stage in stages)
    with pytest.raises((ValueError, OSError), match=problem) as refused:
        cascade.main([f"out={tmp_path / 'c.yaml'}", f"stages=[{named}]", *words])
    assert "\n" not in str(refused.value) and not list(tmp_path.iterdir())


def test_a_stage_that_makes_its_pictures_noisy_takes_low_noise_and_is_no_doubt(runs, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        cascade.main([f"out={tmp_path / 'c.yaml'}", f"stages=[{runs / 'base'},{runs / 'noisy16'}]"])
    assert "clean small pictures" not in caplog.text
    model = load_drawer(tmp_path / "c.yaml")
    sampling = model.sampling({})
    assert model.conditions(sampling) == {"label": {"label"}, "low_resolution": {"low_noise"}}
    drawn = [
        model.generate(sampling, {**LABELS, **level}, NUMBERS, seed=0)
        for level in ({}, {"low_noise": torch.full((3,), 0.1)}, {"low_noise": torch.full((3,), 0.5)})
    ]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_a_stage_has_a_level_of_noise_of_its_own(runs, tmp_path):
    stages = f"stages=[{runs / 'base'},{runs / 'noisy16'}]"
    for name, level in (("own", "0.5"), ("usual", "null")):
        assert cascade.main([f"out={tmp_path / name}.yaml", stages, f"noisy16.low_noise={level}"]) == 0
    own, usual = (load_drawer(tmp_path / f"{name}.yaml") for name in ("own", "usual"))
    asked = {**LABELS, "low_noise": torch.full((3,), 0.5)}
    assert torch.equal(draw(own), draw(usual, batch=asked)) and not torch.equal(draw(own), draw(usual))
    asked = {**LABELS, "low_noise": torch.full((3,), 0.1)}
    assert torch.equal(draw(own, batch=asked), draw(usual, batch=asked)), "a command line's is for all stages"
    assert own.settings["noisy16"]["low_noise"] == 0.5 and "low_noise" not in usual.settings["noisy16"]
    manifest = yaml.safe_load((tmp_path / "own.yaml").read_text())
    for level, problem in {
        0.6: r"noisy16\.low_noise=0\.6: must lie in \[0, 0\.5\]", 2: r"noisy16: low_noise=2: expected a number",
        "much": "noisy16: low_noise=much", True: "noisy16: low_noise=True",
    }.items():  # fmt: skip
        manifest["stages"][1]["low_noise"] = level
        (tmp_path / "edited.yaml").write_text(yaml.safe_dump(manifest))
        with pytest.raises(UserError, match=problem):
            load_drawer(tmp_path / "edited.yaml")
    with pytest.raises(UserError, match=r"^sr16\.low_noise=0\.2: sr16 was trained without noise"):
        cascade.main([f"out={tmp_path / 'c.yaml'}", f"stages=[{runs / 'base'},{runs / 'sr16'}]", "sr16.low_noise=0.2"])
    assert not (tmp_path / "c.yaml").exists()


def test_noise_on_small_pictures_follows_the_seed_of_the_sample_and_not_of_the_training(tmp_path):
    own = [load_drawer(untrained_run(tmp_path / str(seed), *STAGES["noisy16"], f"seed={seed}")) for seed in (0, 7)]
    assert [model.parts.tree["seed"] for model in own] == [0, 7]
    low, numbers = {"low_resolution": torch.zeros(2, 3, 8, 8), "low_noise": torch.full((2,), 0.5)}, torch.tensor([0, 1])

    def drawn(model, seed, places=slice(None)):
        """From one noise, so that only that on the small pictures may differ."""

        def fixed(seed, purpose, *more, **stream):
            return normal(seed if purpose == "low resolution noise" else 0, purpose, *more, **stream)

        sampling = replace(model.sampling({}), normal=fixed)
        return model.generate(sampling, {name: value[places] for name, value in low.items()}, numbers[places], seed)

    assert torch.equal(drawn(own[0], 3), drawn(own[1], 3)), "of one seed, whatever that of the training was"
    assert not torch.equal(drawn(own[0], 3), drawn(own[0], 4))
    torch.testing.assert_close(drawn(own[0], 3)[1:], drawn(own[0], 3, slice(1, 2)))


def test_the_lineage_of_a_cascade_has_every_stage_and_its_members(runs, tmp_path, capsys):
    folder = tmp_path / "own"
    for name in ("base", "half0", "half1"):
        shutil.copytree(runs / name, folder / name)
    shutil.copy(runs / "halves.yaml", folder)
    write(folder, "c.yaml", ["base", "halves.yaml"])
    capsys.readouterr()
    assert lineage.main([f"models={folder / 'c.yaml'}"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == ["base", "half0", "half1", "3"]
    assert said[-1].split() == ["3", "runs", "3", "steps", "192", "samples"]
    with pytest.raises(ValueError, match=r"models=\[\]: names no model"):
        lineage.main(["models=[]"])


def test_a_stage_that_saw_clean_pictures_only_is_told(runs, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        cascade.main([f"out={tmp_path / 'c.yaml'}", f"stages=[{runs / 'base'},{runs / 'clean16'}]"])
    assert "clean16 was trained on clean small pictures, and what base draws is not as clean" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        load_drawer(runs / "three.yaml")
    assert not caplog.text


def test_other_weights_than_it_was_written_for_are_refused(runs, tmp_path):
    for name in ("base", "sr16"):
        shutil.copytree(runs / name, tmp_path / name)
    manifest = write(tmp_path, "c.yaml", ["base", "sr16"])
    shutil.rmtree(tmp_path / "sr16")
    untrained_run(tmp_path / "sr16", *STAGES["sr16"], seed=77)
    with pytest.raises(ValueError, match=r"c\.yaml: the weights of sr16 are not those it was written for"):
        load_drawer(manifest)


# Drawing


def test_each_stage_enlarges_what_the_one_before_it_drew_by_its_own_recipe(runs):
    model, seen = load_drawer(runs / "three.yaml"), {}
    sampling = replace(model.sampling({}), seen=seen.__setitem__)
    images = model.generate(sampling, LABELS, NUMBERS, 0)
    assert images.shape == (3, 3, 32, 32) and model.image_size == 32 and images.abs().max() <= 1
    assert {name: drawn.shape[-1] for name, drawn in seen.items()} == {"base": 8, "sr16": 16}
    alone = load_drawer(runs / "base")
    assert torch.equal(seen["base"], alone.generate(alone.sampling({"num_steps": 4}), LABELS, NUMBERS, 0))
    sr16, sr32 = (load_drawer(runs / name) for name in ("sr16", "sr32"))
    second, third = (own for _, own in model._each(sampling)[1:])
    labels = {"label": LABELS["label"].flip(0), "low_resolution": seen["base"]}
    of_others = sr16.generate(second, labels, NUMBERS, 0)
    torch.testing.assert_close(sr16.generate(second, {**labels, **LABELS}, NUMBERS, 0), seen["sr16"])
    assert not torch.isclose(of_others[0], seen["sr16"][0]).all(), "the class is given to each stage that reads it"
    again = sr32.generate(third, {"low_resolution": seen["sr16"]}, NUMBERS, 0)
    torch.testing.assert_close(images, again, rtol=1e-4, atol=1e-4)
    first, later = model._each(sampling)[0][1], model._each(sampling)[1][1]
    draws = [one.normal(0, "first noise", NUMBERS, (3, 8, 8)) for one in (first, later)]
    assert not torch.isclose(*draws).any(), "stages of one seed do not share their noise"


def test_a_picture_does_not_depend_on_its_batch_or_on_what_stays_in_memory(runs):
    model = load_drawer(runs / "three.yaml").to("cpu").tuned()
    together = draw(model)
    for place in range(3):
        alone = draw(model, NUMBERS[place : place + 1], batch={"label": LABELS["label"][place : place + 1]})
        torch.testing.assert_close(alone[0], together[place], rtol=1e-4, atol=1e-4)
    manifest = yaml.safe_load((runs / "three.yaml").read_text())
    manifest["resident"] = "one"
    (runs / "one.yaml").write_text(yaml.safe_dump(manifest))
    one = load_drawer(runs / "one.yaml").to("cpu").tuned()
    assert all(p.is_meta for network in one.networks for p in network.parameters()), "none waits in memory"
    assert torch.equal(draw(one), together)
    assert [w.digest for w in one.weights] == [w.digest for w in model.weights]


def test_what_a_command_line_asks_is_for_the_first_that_draws_and_its_conditions_are_for_all(runs):
    model = load_drawer(runs / "three.yaml")
    asked = model.sampling(compose("sample", ["model=x", "num_steps=7"]) | {"guidance": {"scale": 3.0}})
    assert [len(own.sigmas) - 1 for own in (asked, *asked.later)] == [7, 2, 3]
    assert (asked.guidance.scale, asked.later[0].guidance.scale) == (3.0, 2.0)
    assert model.conditions(asked) == {"label": {"label"}} and model.missing({}, asked) == {"label": "label"}
    assert model.left_out(asked) == {"label"} and asked.with_scale(5.0).later[0].guidance.scale == 2.0
    without = model.sampling({"use_conditions": []})
    assert not model.conditions(without) and not model.missing({}, without)
    assert draw(model, tree={"use_conditions": []}, batch={}).isfinite().all()
    with pytest.raises(ValueError, match="use_conditions: no condition text; the conditions of this model: label, low"):
        model.sampling({"use_conditions": ["text"]})
    with pytest.raises(ValueError, match="a cascade has no denoiser of its own; name one of its stages"):
        model.guided(asked, LABELS, 3)


def test_what_guidance_compares_is_one_batch_in_every_stage_that_is_guided(runs):
    model, counts, found = load_drawer(runs / "three.yaml"), [], []
    for network in model.networks:
        network.register_forward_pre_hook(lambda own, given: counts.append((own, len(given[0]))))
    for one_call in (False, True):
        counts.clear()
        images = draw(model, tree={"guidance": {"scale": 3.0}, "one_call": one_call})
        found.append((images, [[size for own, size in counts if own is network] for network in model.networks]))
    (apart, each), (together, once) = found
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-3)
    assert each[:2] == [[3] * 8, [3] * 6] and once == [[6] * 4, [6] * 3, each[2]]


def test_a_picture_of_another_shape_is_drawn_by_convolution(runs):
    model = load_drawer(runs / "three.yaml")
    assert draw(model, size=(32, 48)).shape == (3, 3, 32, 48)
    assert model.drawable((30, 41), model.sampling({})) == (32, 48)
    with pytest.raises(ValueError, match=r"height=30, width=41: the stages of three do not draw that; 48 x 32 px"):
        draw(model, size=(30, 41))


def test_an_ensemble_is_a_stage(runs, tmp_path):
    manifest = write(runs, "with_halves.yaml", ["base", "halves.yaml", "sr32"], "halves.num_steps=2")
    model = load_drawer(manifest)
    assert len(model.weights) == 4 and [len(own.sigmas) - 1 for own in model.sampling({}).later] == [2, 3]
    assert draw(model).shape == (3, 3, 32, 32)
    text = manifest.read_text()
    manifest.write_text(text.replace("resident: all", "resident: one"))
    assert torch.equal(draw(load_drawer(manifest)), draw(model))


def test_a_small_picture_begins_at_the_second_stage(runs):
    model = load_drawer(runs / "three.yaml")
    tree = {"low": "small.png"}
    sampling = model.sampling({**tree, "num_steps": 6})
    assert [len(own.sigmas) - 1 for own in (sampling, *sampling.later)] == [6, 3]
    assert set(model.conditions(sampling)) == {"label", "low_resolution"}
    low = torch.zeros(3, 3, 6, 10)
    made = model.generate(sampling, {**LABELS, "low_resolution": low}, NUMBERS, 0, (24, 40))
    assert made.shape == (3, 3, 24, 40)
    with pytest.raises(ValueError, match="low_resolution of 10 x 6 px: three makes images of 32 x 32 of 8 x 8"):
        model.generate(sampling, {**LABELS, "low_resolution": low}, NUMBERS, 0)
    enlarging = load_drawer(write(runs, "enlarge.yaml", ["sr16", "sr32"]))
    assert enlarging.missing(LABELS, enlarging.sampling({})) == {"low_resolution": "low_resolution"}
    same = enlarging.generate(enlarging.sampling({}), {"low_resolution": torch.zeros(3, 3, 8, 8)}, NUMBERS, 0)
    assert same.shape == (3, 3, 32, 32)


def test_pictures_that_are_not_finite_are_named_and_the_others_drawn(runs):
    model = load_drawer(runs / "three.yaml")
    whole, seen = draw(model), []
    stage = model.stages[1]

    def broken(*asked):
        images, finite, _ = type(stage).draw(stage, *asked)
        finite[1], images[1] = False, math.nan
        return images, finite, "not finite: image number 1"

    stage.draw = broken
    with pytest.raises(ValueError, match="not finite: image number 1") as refused:
        draw(model)
    assert refused.value.finite.tolist() == [True, False, True] and seen == []
    torch.testing.assert_close(refused.value.images[2], whole[2], rtol=1e-4, atol=1e-4)


# As others use it


@pytest.fixture
def here(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return SimpleNamespace(model=f"model={runs / 'three.yaml'}", runs=runs, folder=tmp_path)


def test_sample_py_writes_the_last_stages_pictures_and_on_request_all(here, capsys):
    words = [here.model, "label=[0,3]", "num_images=1", "device=cpu", "keep_stages=true", "out=s"]
    assert sample.main(words) == 0
    [first, second] = sorted(Path("s").glob("*_0000.png"))
    assert Image.open(first).size == (32, 32) == Image.open(second).size
    sizes = {path.parent.name: Image.open(path).size for path in Path("s/stages").rglob("*.png")}
    assert sizes == {"base": (8, 8), "sr16": (16, 16)}
    recipe = json.loads(first.with_suffix(".json").read_text())
    assert len(recipe["model"]["weights"]) == 3 and set(recipe["model"]["settings"]) == {"base", "sr16", "sr32"}
    assert sample.main([f"again={first}", "out=anew"]) == 0
    assert "made anew, bit for bit" in capsys.readouterr().out
    assert (Path("anew") / f"{first.stem}-again.png").exists()


def test_again_says_that_a_manifest_was_edited(here, tmp_path, capsys):
    folder = shutil.copytree(here.runs, tmp_path / "runs")
    manifest = folder / "three.yaml"
    assert sample.main([f"model={manifest}", "label=0", "num_images=1", "device=cpu", "out=s"]) == 0
    edited = yaml.safe_load(manifest.read_text())
    edited["stages"][1]["sigmas"]["karras"]["num_steps"] = 3
    manifest.write_text(yaml.safe_dump(edited))
    [picture] = Path("s").glob("*_0000.png")
    with pytest.raises(ValueError, match=r"made anew, and not as .*: its manifest says to sample in another way"):
        sample.main([f"again={picture}", "out=anew"])


def test_sample_py_enlarges_a_file_with_the_later_stages(here, caplog):
    Image.new("RGB", (10, 6), "red").save("small.png")
    assert sample.main([here.model, "low=small.png", "label=0", "num_images=1", "device=cpu", "out=s"]) == 0
    assert {Image.open(path).size for path in Path("s").glob("*_0000.png")} == {(40, 24)}
    with pytest.raises(ValueError, match="keep_stages: base draws in one stage"):
        sample.main([f"model={here.runs / 'base'}", "label=0", "device=cpu", "keep_stages=true"])
    assert trained_on(here.runs / "three.yaml").keys.reader("low_resolution").reduces == 4


def test_sample_py_begins_at_a_picture_and_holds_what_is_kept(here):
    Image.new("RGB", (32, 32), "red").save("start.png")
    mask = Image.new("L", (32, 32))
    mask.paste(255, (8, 8, 24, 24))
    mask.save("mask.png")
    words = ["start=start.png", "start_mask=mask.png", "label=0", "num_images=1", "device=cpu", "out=s"]
    assert sample.main([here.model, *words]) == 0
    [picture] = Path("s").glob("*_0000.png")
    pixels = Image.open(picture)
    assert pixels.getpixel((0, 0)) == (255, 0, 0) != pixels.getpixel((16, 16))


def test_a_page_and_python_draw_with_it_and_its_files_are_verified(here, capsys):
    manifest = here.runs / "three.yaml"
    model = load_drawer(manifest)
    inputs = {each.key: each for each in inputs_of(model)}
    assert {"label", "low", "start"} <= inputs.keys() and inputs["low"].sets_size
    told: list[float] = []
    tree = tree_of(str(manifest), "ema", ["label=0", "num_images=2"], 2, "cpu", here.folder / "page")
    folder = here.folder / "page"
    [files] = pictures(model, tree, ["label=0"], torch.device("cpu"), folder, lambda s, w: told.append(s), print)
    assert len(files) == 2 and told == sorted(told) and told[0] < 1 / 3 and told[-1] > 2 / 3
    own = load(manifest, device="cpu")
    [image] = own.sample(label=0, num_images=1)
    assert image.size == (32, 32)
    with pytest.raises(ValueError, match="keep_stages: is for the files of sample"):
        own.sample(label=0, keep_stages=True)
    with pytest.raises(ValueError, match="a cascade has no denoiser of its own"):
        own.denoise(torch.zeros(3, 32, 32), 1.0, label=0)
    assert report(str(manifest)) == 0 and capsys.readouterr().out.count("ok  ") == 4


@pytest.mark.slow
def test_evaluate_py_measures_it_and_knows_when_its_manifest_was_edited(here, tmp_path, capsys):
    folder = shutil.copytree(here.runs, tmp_path / "runs")
    words = [f"model={folder / 'three.yaml'}", "num_samples=4", "batch_size=4", "device=cpu", "guidance.scale=[1,2]",
             "metric.size=32", f"out={tmp_path / 'e'}"]  # fmt: skip
    assert evaluate.main(words) == 0
    first = json.loads((tmp_path / "e" / "points.json").read_text())
    assert set(first["points"]) == {"1", "2"}
    manifest = folder / "three.yaml"
    manifest.write_text(manifest.read_text().replace("num_steps: 4", "num_steps: 2"))
    assert evaluate.main(words) == 0
    assert json.loads((tmp_path / "e" / "points.json").read_text())["identity"] != first["identity"]


def test_spoiled_pictures_for_a_model_of_clean_ones_are_told(here, caplog):
    Image.new("RGB", (8, 8), "red").save("small.jpg")
    words = ["low=small.jpg", "label=0", "num_images=1", "device=cpu", "out=s"]
    with caplog.at_level(logging.WARNING):
        sample.main([here.model, *words])
    assert "compressed" not in caplog.text, "its second stage was trained on spoiled ones"
    clean = f"model={here.runs / 'clean16'}"
    with caplog.at_level(logging.WARNING):
        sample.main([clean, *[word for word in words if word != "label=0"]])
    assert "low=small.jpg: is compressed as a JPEG is, and clean16 was trained on clean small pictures" in caplog.text
    tree = compose("evaluate", [clean, "derived=[degraded]", "derived.low_resolution.factor=2"])
    model, other = load_drawer(here.runs / "clean16"), load_drawer(here.runs / "three.yaml")
    with caplog.at_level(logging.WARNING):
        with_fields_of(tree, model.data, model, model.sampling({}))
    assert "clean16 was trained on clean pictures alone (derived.low_resolution=LowResolution)" in caplog.text
    with pytest.raises(ValueError, match="derived: three reads no low_resolution; it reads label"):
        with_fields_of(tree, other.data, other, other.sampling({}))


@pytest.mark.slow
def test_a_stage_in_latents_has_its_own_first_stage(runs, tmp_path):
    first_stage = train("quickstart/autoencoder", tmp_path).folder
    words = ["image_size=32", "conditioner=[low_resolution]", "conditioner.low_resolution.factor=4",
             "derived=[degraded]", "derived.low_resolution.factor=4", f"first_stage={first_stage}"]  # fmt: skip
    untrained_run(tmp_path / "latents", *words)
    manifest = tmp_path / "c.yaml"
    assert cascade.main([f"out={manifest}", f"stages=[{runs / 'base'},{tmp_path / 'latents'}]"]) == 0
    model = load_drawer(manifest)
    assert model.first_stage.spec.f > 1 and draw(model).shape == (3, 3, 32, 32)
    with pytest.raises(ValueError, match=r"first_stage=x: the stages of .* have their own"):
        load_drawer(manifest, "x")


PEAK = """
import resource, sys
import sample
sample.main(sys.argv[1:])
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.slow
def test_a_picture_of_1024_px_is_drawn_in_bounded_memory(tmp_path):
    """64 -> 256 -> 1024 px by eDiff-I's Efficient U-Nets with 4 channels for 128, the last trained on crops of 256."""
    both = ["conditioner=[label,low_resolution]", *LABEL[1:], "derived=[degraded]", "network=efficient_unet"]

    def enlarging(name: str) -> list[str]:
        """What a stage of conf/experiment/ediffi is, but for its width, its texts and its steps."""
        tree = compose("config", [f"experiment=ediffi/{name}"], complete=False)
        keys = ("multipliers", "num_blocks", "block_multipliers", "self_attention_factors", "cross_attention_factors")
        network = [f"network.{key}={tree['network'][key]}".replace(" ", "") for key in keys]
        crop = [f"crop_size={tree['crop_size']}"] if tree["crop_size"] else []
        return [*both, *network, f"image_size={tree['image_size']}", *crop, "num_steps=1"]

    untrained_run(tmp_path / "base", *LABEL, "image_size=64", "num_steps=2")
    untrained_run(tmp_path / "sr256", *enlarging("sr256"))
    untrained_run(tmp_path / "sr1024", *enlarging("sr1024"))
    write(tmp_path, "c.yaml", ["base", "sr256", "sr1024"], "sr1024.batch_size=1", "resident=one")

    def peak(model: str, count: int, *words: str) -> float:
        """MB of a process that draws so many."""
        asked = [f"model={tmp_path / model}", "label=0", f"num_images={count}", "device=cpu", *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", PEAK, *asked, f"out={tmp_path / f'{model}{count}'}"],
                              cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        return float(done.stdout.rpartition("peak")[2])

    small, one, several = peak("base", 1), peak("c.yaml", 1), peak("c.yaml", 2)
    [picture] = (tmp_path / "c.yaml1").glob("*_0000.png")
    assert Image.open(picture).size == (1024, 1024)
    print(f"peak: {small:.0f} MB to draw 64 px, {one:.0f} MB for one of 1024 px, {several:.0f} MB for two")
    assert one - small < 900 and several - one < 200
