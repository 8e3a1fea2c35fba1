"""The report on the tasks: its judges on answers that are known, its chain, and the whole at toy length."""

import csv
import json
import math
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
import toys

from ldm.config import CONF, compose, overriding, recipes
from ldm.data.making.canvases import CanvasSettings, canvas
from ldm.errors import UserError
from ldm.launching import FINISHED, STOPPED, Job
from ldm.launching.chain import Chain, Step
from ldm.networks.downloads import locate
from ldm.results.measured_under import SHARDS, same_settings
from ldm.tasks.bench import Bench, Judgement
from ldm.tasks.canvases import boxes, maps, pixels
from ldm.tasks.finding import best_overlaps, found_boxes, overlap, things, things_iou
from ldm.tasks.judges import JUDGES, VERSIONS, image_to_image, painting
from ldm.tasks.judges.inpainting import mean_filled, within
from ldm.tasks.judges.layout import with_boxes
from ldm.tasks.judges.painting import chosen, pair_of
from ldm.tasks.judges.semantic_map import _things, coloured
from ldm.tasks.judging import judge
from ldm.tasks.naming import SIDE, classes_of, named, on_white
from ldm.tasks.page import write_page
from ldm.tasks.probe import Nearest, Probe
from ldm.tasks.report import Chain as UsedChain
from ldm.tasks.report import _keep, settings_of, tasks_report
from ldm.tasks.results import results_at, sheet_of
from ldm.tasks.segmenter import Segmenter, confusion, miou
from ldm.tasks.trainings import CANVASES, TASKS, TRAININGS, Part, needed, parts

# Whose judges are run here, and those of others for which one of these does as well.
MODELS = ("text", "layout", "semantic_map", "canvas_text", "superres_x4", "inpainting")
MODEL_OF = {"unconditional": "text"} | dict.fromkeys(("superres_x4_bsr", *TASKS["superres_x2"]), "superres_x4")


def tree(folder: Path, *more: str) -> dict:
    small = ("num_samples=10", "resamples=20", "batch_size=10", "metric.size=32", "device=cpu", "logger.mode=disabled")
    return compose("tasks_report", overriding([f"runs_dir={folder}", *small, *more]))


# Judges


def test_boxes_of_real_canvases_are_found_by_differencing():
    real = [canvas(CanvasSettings("validation", textured=0.0), number) for number in range(24)]
    overlaps = best_overlaps(pixels(real), [boxes(one) for one in real])
    assert len(overlaps) == sum(len(one.objects) for one in real)
    assert (overlaps >= 0.5).double().mean() > 0.8
    empty = torch.full((1, 3, 64, 64), 0.7)
    assert found_boxes(empty[0]) == [] and best_overlaps(empty, [[(0.0, 0.0, 0.5, 0.5)]]).tolist() == [0.0]


def test_a_box_is_found_where_it_was_painted_and_drawn_where_it_is():
    image = torch.full((3, 32, 32), -0.5)
    image[0, 8:16, 4:20] = 0.9
    assert found_boxes(image) == [(4 / 32, 8 / 32, 20 / 32, 16 / 32)]
    assert overlap((0, 0, 1, 1), (0, 0, 0.5, 1)) == 0.5 and overlap((0, 0, 0.4, 1), (0.5, 0, 1, 1)) == 0
    edge = with_boxes(torch.zeros(1, 3, 32, 32), [[(0.0, 0.0, 1.0, 1.0)]])[0]
    assert (edge[:, 0] == torch.tensor([1.0, -1, -1])[:, None]).all() and edge[:, 1:31, 1:31].eq(0).all()


def test_painted_pairs_are_ellipses_in_boxes_under_a_prompt_that_says_no_places(tmp_path: Path):
    real = chosen([canvas(CanvasSettings("validation", objects=(2, 2), textured=0.0), n) for n in range(40)], 20)
    assert len(real) == 20
    pairs = [pair_of(one, tmp_path, str(place)) for place, one in enumerate(real)]
    for one, pair in zip(real, pairs, strict=True):
        first, second = (own["phrase"] for own in one.objects)
        left = pair.given["prompt"].replace(first, "").replace(second, "")
        assert set(left.replace(",", " ").split()) <= {"a", "an"}
        assert list(json.loads(pair.given["phrases"])) == [own["phrase"] for own in one.objects]
        assert pair.regions.shape == (2, 64, 64) and not pair.regions.all(0).any()
    union = torch.stack([pair.regions.any(0) for pair in pairs])
    assert things_iou(pixels(real), union).mean() > 0.6, "what is painted is about where the emoji are"
    ground = torch.full((20, 3, 64, 64), 0.3)
    assert things_iou(ground.where(~union[:, None], -0.9), union).tolist() == [1.0] * 20
    assert not things_iou(ground, union).any() and things_iou(ground, torch.zeros_like(union)).tolist() == [0.0] * 20


def test_miou_is_of_all_pixels_and_of_classes_that_occur():
    truth = torch.tensor([[[0, 0], [1, 1]], [[0, 0], [0, 0]]])
    assert miou(confusion(truth, truth, 5)) == 1.0
    found = torch.tensor([[[0, 0], [1, 0]], [[0, 0], [0, 0]]])
    assert miou(confusion(found, truth, 5)).item() == pytest.approx((6 / 7 + 1 / 2) / 2)
    swapped = confusion(torch.where(truth == 1, 3, truth), truth, 5)  # the right places, the wrong class
    assert miou(swapped) < 0.5 and miou(_things(swapped)) == 1.0


def test_parts_of_a_thing_are_one_and_specks_are_none():
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[2:12, 2:12] = True
    inside[4:8, 4:8] = False
    inside[5:7, 5:7] = True  # an eye
    inside[20:30, 14:30] = True
    inside[0, 31] = True
    found = things(inside)
    assert [part.sum() for part in found] == [160, 88] and found[1][5, 5] and not found[1][4, 4]
    assert things(torch.zeros(8, 8, dtype=torch.bool)) == []


def test_things_are_cut_out_on_white_and_named_where_they_lie():
    image = torch.full((3, 32, 32), -0.5)
    image[0, 8:16, 4:20] = 0.9
    inside = image[0] > 0
    own = on_white(image, inside)
    assert own.shape == (3, SIDE, SIDE) and own[:, 0, 0].eq(1).all()
    torch.testing.assert_close(own[:, SIDE // 2, SIDE // 2], torch.tensor([0.9, -0.5, -0.5]))
    maps_of = named(image[None], inside[None], lambda x: torch.full((len(x),), 6))
    assert torch.equal(maps_of[0], 7 * inside.long())
    assert named(image[None], torch.zeros_like(inside)[None], lambda x: x).eq(0).all()


def test_a_thing_has_the_class_that_most_of_it_has():
    maps_of = torch.zeros(1, 8, 8, dtype=torch.long)
    maps_of[0, :, 2:5], maps_of[0, :, 5] = 4, 7
    assert classes_of([(0, maps_of[0] > 0), (0, maps_of[0] == 7), (0, maps_of[0] == 0)], maps_of).tolist() == [3, 6, -1]


def test_a_segmenter_takes_any_size_that_8_divides():
    assert Segmenter(4)(torch.zeros(1, 3, 16, 32)).shape == (1, 4, 16, 32)


def test_maps_are_shown_in_colours_of_their_classes():
    real = maps([canvas(CanvasSettings(), 0)])
    shown = coloured(real, 10)
    assert shown.shape == (1, 3, 64, 64) and (shown.permute(0, 2, 3, 1)[real == 0] == 1).all()
    assert len(shown.flatten(2).unique(dim=2)[0].T) == len(real.unique())


def test_a_probe_tells_classes_apart_that_it_was_trained_on():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat(40)
    features = 3 * torch.eye(3, 8)[labels] + 0.3 * torch.randn(120, 8, generator=generator)
    probe = Probe(features[:90], labels[:90], 3)
    assert (probe(features[90:]) == labels[90:]).all()
    known = Nearest(features, labels.roll(1))  # a class that nothing but the picture itself tells
    assert torch.equal(known(features + 1e-3), labels.roll(1))


def test_a_hole_is_filled_and_nothing_else_changed():
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    mask = torch.zeros(2, 1, 8, 8)
    mask[:, :, 2:5, 3:6] = 1
    filled = mean_filled(images, mask)
    assert torch.equal(filled.where(mask < 0.5, 0), images.where(mask < 0.5, 0))
    known = images[0, 0][mask[0, 0] == 0].mean()
    torch.testing.assert_close(filled[0, 0, 3, 4], known)
    assert torch.equal(within(torch.ones_like(images), images, mask)[:, :, 2:5, 3:6], torch.ones(2, 3, 3, 3))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each kind of model that judges look at, hardly trained, at 32 px, on the latents of one first stage."""
    folder = tmp_path_factory.mktemp("tasks")
    made = {"train": 16, "validation": 12}
    canvases = [f"data.{split}=canvases://{split}/size=32/samples={count}" for split, count in made.items()]
    stage = folder / toys.train("tasks/emoji_autoencoder", folder, run="stage").folder.name
    for name in MODELS:
        more = canvases if TRAININGS[name].images == CANVASES else ("data.validation_samples=12",)
        short = (f"first_stage={stage}", "max_steps=1", "num_steps=4")
        toys.train(f"tasks/{name}", folder, *short, *more, run=f"tasks-{name}-seed0")
    return folder


@pytest.mark.filterwarnings("ignore:Frechet distance from")
@pytest.mark.parametrize(
    ("task", "said"),
    {
        "unconditional": "kid/efficientnet_lite0@32, samples",
        "text": "obeyed: mean rank without less with the text, share of held-out captions",
        "layout": "obeyed: IoU less with boxes shuffled",
        "painting": "the same as a multiple of w' = 0",
        "semantic_map": "obeyed: mIoU less with maps shuffled",
        "superres_x4_bsr": "LPIPS of the model of clean pictures less that of samples",
        "superres_x2": "PSNR of guided less that of samples",
        "inpainting": "largest difference outside the hole, of 255",
        "image_to_image": "obeyed: PSNR to the grey picture with less without guidance",
    }.items(),
)
def test_a_judge_has_numbers_within_their_intervals_and_a_sheet(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, said: str
):
    monkeypatch.setattr(Bench, "run", lambda bench, name: runs / f"tasks-{MODEL_OF.get(name, name)}-seed0")
    for name, few in {"SCALES": (0.0, 1.0), "DRAWS": 1, "VARIANTS": ("std",)}.items():
        monkeypatch.setattr(painting, name, few)
    monkeypatch.setattr(image_to_image, "MOST", 4)
    monkeypatch.setattr(image_to_image, "SMALL_STEPS", {**image_to_image.SMALL_STEPS, "num_steps": 2})
    found = JUDGES[task](Bench(tree(tmp_path), Part(task, 0), tmp_path))
    rows = {row["quantity"]: row for row in found.rows}
    assert len(rows) == len(found.rows) and said in rows and found.caption
    assert all(math.isfinite(row["value"]) and row["num"] >= 2 for row in found.rows)
    assert found.sheet.ndim == 3 and len(found.sheet) == 3 and found.sheet.abs().max() <= 1
    if task == "inpainting":  # of all pictures
        assert rows[said]["low"] <= rows[said]["value"] == rows[said]["high"] <= 1
    if task == "image_to_image":  # whatever the model is worth
        exact = [row["value"] for name, row in rows.items() if name.startswith("largest difference")]
        assert len(exact) == 6 and exact == pytest.approx([0.0] * 6, abs=0.51)
        assert rows["LPIPS to the picture, strength 0"]["value"] == pytest.approx(0.0, abs=1e-4)


# What is done when


class Launched:
    """A launcher that notes what it ran, and ends jobs as it is told."""

    def __init__(self, **ends: int):
        self.ran: list[str] = []
        self.ends = ends

    def __call__(self, jobs: list[Job]) -> list[int]:
        self.ran += [job.name for job in jobs]
        return [self.ends.get(job.name, FINISHED) for job in jobs]


def step(name: str, *needs: str, after: list[str] | None = None) -> Step:
    return Step(Job(name, ()), needs, (lambda: after.append(name)) if after is not None else lambda: None)


@pytest.mark.parametrize("jobs", [1, 3])
def test_steps_wait_for_what_they_need_and_a_failure_stops_only_those(jobs: int):
    after: list[str] = []
    launch = Launched(b=1)
    steps = [step("d", "c", after=after), step("c", "a"), step("a", after=after), step("b"), step("e", "b")]
    chain = Chain(steps, launch, jobs)
    assert not chain.run()
    ran = launch.ran
    assert set(ran) == {"a", "b", "c", "d"} and ran.index("a") < ran.index("c") < ran.index("d")
    assert chain.failed == ["b"] and after == ["a", "d"]


def test_nothing_is_begun_once_a_training_was_stopped():
    launch = Launched(a=STOPPED)
    assert Chain([step("a"), step("b")], launch, 1).run() and launch.ran == ["a"]


def test_every_task_has_what_it_needs():
    for task, own in TASKS.items():
        found = needed([task])
        assert found[-len(own) :][-1] == own[-1] and all(
            TRAININGS[name].first_stage in (None, *found) for name in found
        )
    assert needed(["layout", "inpainting"]) == ["canvas_autoencoder", "layout", "inpainting"]
    asked = parts({"tasks": ["text", "layout"], "seeds": [0, 1]})
    assert [part.name for part in asked] == ["text-seed0", "layout-seed0", "text-seed1", "layout-seed1"]


def test_what_could_not_train_is_refused_before_anything_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(UsedChain, "run", None)
    for words, said in {
        ("tasks=[]",): "tasks=", ("tasks=[paint]",): "different ones of unconditional", ("seeds=[]",): "seeds=",
        ("tasks=[class_fashion]",): "fashion=FOLDER", ("num_samples=2",): "num_samples=2: must be at least 10",
        ("tasks=[class_fashion]", f"fashion={tmp_path}"): "has no train-", ("results=here",): "ends in .csv",
        ("overrides_of.paint=x",): "overrides_of.paint", ("train=false",): "none of the 10 tasks",
        ("overrides=max_step=3",): "^overrides: max_step: no such key", ("launcher=submitit",): "launcher.wait",
        ("overrides=run=x",): "overrides: run= says where", ("overrides=lr=constant lr=cosine",): "lr is given 2 times",
        ("overrides_of.text=seed=3",): "overrides_of.text: seed= says where",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=said):
            tasks_report(tree(tmp_path / "runs", *words))
    assert not list(tmp_path.iterdir())


def test_what_only_a_judge_would_miss_is_refused_before_anything_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(UsedChain, "run", None)

    def refused(said: str, *words: str) -> None:
        with pytest.raises(UserError, match=said):
            one = [f"runs_dir={tmp_path / 'runs'}", "device=cpu", "tasks=[layout]", *words]
            tasks_report(compose("tasks_report", overriding(one)))

    for key in ("metric", "logger", "launcher"):
        refused(f"^{key}=null: ", f"{key}=null")
    refused("^metric.path=typo.pth: no such file", "metric=inception", "metric.path=typo.pth")
    refused(r"^data.validation=x.tar, of overrides= .*layout is judged on canvases", "overrides=data.validation=x.tar")
    refused(r"overrides_of.layout=: 'sise=3' is none", "overrides=data.validation=canvases://validation/sise=3")
    for task, option in {"inpainting": "masks", "superres_x2": "holes"}.items():
        refused(rf"overrides_of.{task}=: .* comes from", f"tasks=[{task}]", f"overrides_of.{task}=derived=[{option}]")
    kept = tmp_path / "cache"
    kept.mkdir()
    shutil.copy(locate("efficientnet_lite0"), kept)
    monkeypatch.setenv("LDM_CACHE", str(kept))
    refused("no weights for 'lpips_alex'", "tasks=[superres_x2]")
    monkeypatch.setenv("LDM_CACHE", str(tmp_path))
    refused("no weights for 'efficientnet_lite0'")
    assert not (tmp_path / "runs").exists()


# What is kept


def test_rows_are_kept_as_they_were_and_shown(tmp_path: Path):
    rows = [{"quantity": "IoU, samples", "value": 0.1 + 0.2, "low": 0.25, "high": 0.35, "num": 12}]
    results, other = results_at(tmp_path / "rows.csv"), results_at(tmp_path / "rows.csv")
    asked = [Part("layout", seed) for seed in (0, 1, 2)]
    results.add(asked[0], [{**row, "settings": "{}"} for row in rows])
    other.add(asked[1], [{**rows[0], "value": 0.5, "settings": "{}"}])
    again = results_at(tmp_path / "rows.csv")
    assert again.find(asked[0])[0]["value"] == 0.1 + 0.2 and again.find(asked[2]) == []
    with pytest.raises(UserError, match=r"rows\.csv: its rows layout-seed0 were measured with \{\}"):
        again.check(asked[0], "other")
    page = write_page(tmp_path / "page", asked, again, [0, 1, 2]).read_text()
    assert "0.3 [0.25, 0.35]" in page and "0.4 ± 1.3" in page and "the contact sheet is not beside the rows" in page
    names = "task,seed,quantity,value,low,high,num,settings\n"
    for line, said in {
        "layout,0,IoU,much,0,1,3,{}": "line 2: value is 'much'", "layout,0,IoU,1,,2,3,{}": "line 2: low is None",
        "layout,x,IoU,1,0,2,3,{}": "line 2: not the row of a task", "layout,0,IoU,1,0": "line 2: not the row",
    }.items():  # fmt: skip
        (tmp_path / "rows.csv").write_text(names + line + "\n")
        with pytest.raises(UserError, match=rf"rows\.csv, {said}"):
            results_at(tmp_path / "rows.csv")
    (tmp_path / "rows.csv").write_text("task,seed,quantity,value,settings\nlayout,0,IoU,1,{}\n")
    with pytest.raises(UserError, match="low is None, and not a number"):
        results_at(tmp_path / "rows.csv")


def test_rows_of_another_judge_and_of_another_recipe_are_not_those_of_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked, part = tree(tmp_path), Part("semantic_map", 0)
    before = settings_of(asked, part)
    results = results_at(tmp_path / "rows.csv")
    row = {"quantity": "mIoU", "value": 0.5, "low": 0.4, "high": 0.6, "num": 12}
    results.add(part, [{**row, "settings": before}])
    results.check(part, settings_of(asked, part))
    conf = tmp_path / "conf" / "experiment"
    shutil.copytree(CONF / "experiment", conf)
    with monkeypatch.context() as changing:
        changing.setattr(recipes, "folders", lambda: (conf.parent,))
        file = conf / "quickstart" / "autoencoder.yaml"  # which that of canvases begins with
        file.write_text("# a comment\n" + file.read_text())
        assert settings_of(asked, part) == before
        file.write_text(file.read_text().replace("kl_weight: 1.0e-3", "kl_weight: 1.0e-4"))
        recipe = settings_of(asked, part)
    monkeypatch.setitem(VERSIONS, "semantic_map", 2)
    judge = settings_of(asked, part)
    assert len({before, recipe, judge}) == 3
    for changed in (recipe, judge):
        with pytest.raises(UserError, match="its rows semantic_map-seed0 were measured with"):
            results.check(part, changed)


def test_rows_of_other_shards_are_not_those_of_the_report(tmp_path: Path):
    for name, skip in (("a", 0), ("b", 1)):
        (tmp_path / name).mkdir()
        for split in ("train", "validation"):
            shutil.copyfile(toys.annotated_shard(skip), tmp_path / name / f"{split}-00000.tar")
    part = Part("class_fashion", 0)
    one, other = (settings_of(tree(tmp_path, f"fashion={tmp_path / name}"), part) for name in "ab")
    shutil.copytree(tmp_path / "a", tmp_path / "moved")
    assert settings_of(tree(tmp_path, f"fashion={tmp_path / 'moved'}"), part) == one != other
    assert same_settings(one, one) and not same_settings(one, other)
    without = json.dumps({key: value for key, value in json.loads(one).items() if key != SHARDS}, sort_keys=True)
    assert same_settings(one, without) and same_settings(without, other), "rows of before it was kept"
    assert not same_settings(one, without.replace('"num_samples": ', '"num_samples": 1')) and same_settings(None, None)
    assert settings_of(tree(tmp_path, f"fashion={tmp_path / 'a'}"), Part("layout", 0)) == settings_of(
        tree(tmp_path), Part("layout", 0)
    ), "of a task that is not trained on them"


def test_a_judgement_becomes_rows_and_one_that_cannot_be_kept_stops_only_what_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    rows = [{"quantity": "IoU", "value": 0.5, "low": 0.25, "high": 0.75, "num": 12}]
    monkeypatch.setitem(JUDGES, "layout", lambda bench: Judgement(rows, torch.zeros(3, 8, 8), "Rows: none."))
    asked, part, results = tree(tmp_path), Part("layout", 0), results_at(tmp_path / "kept" / "rows.csv")
    kept = Step(Job("a", ()), (), partial(_keep, asked, part, results))
    chain = Chain([kept, step("b", "a"), step("c")], Launched(), 1)
    assert not chain.run() and chain.failed == ["a"] and chain.pool.launch.ran == ["a", "c"]
    assert "a: " in capsys.readouterr().out
    judge(part, asked)
    assert not Chain([kept], Launched(), 1).run()
    assert results_at(results.path).find(part) == [
        {"task": "layout", "seed": 0, **rows[0], "settings": settings_of(asked, part)}
    ]
    assert sheet_of(results, part).exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)  # processes that each import torch
@pytest.mark.filterwarnings("ignore:Frechet distance from")
def test_the_report_is_whole_and_goes_on_from_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    short = (
        "max_steps=2 lr.warmup_steps=0 data.batch_size=4 data.max_samples=200 data.validation_samples=50 "
        "callback.checkpoint.every_steps=2 callback.validation.every_steps=100 callback.panels.every_steps=100"
    )
    kept = tmp_path / "kept" / "tasks.csv"
    words = ("tasks=[class_emoji]", f"results={kept}")
    asked = {**tree(tmp_path / "runs", *words), "overrides": short}
    asked["overrides_of"] = {"class_emoji": "num_steps=2"}
    page = tasks_report(asked)
    with kept.open() as file:
        found = {(row["task"], row["quantity"]): float(row["value"]) for row in csv.DictReader(file)}
    assert found["class_emoji", "accuracy, real held-out, which it knows"] > 0.2
    assert kept.with_name("tasks_class_emoji-seed0.png").exists() and "A row for each of" in page.read_text()
    shutil.rmtree(tmp_path / "runs")  # another checkout, which has the rows alone
    monkeypatch.setattr(UsedChain, "_do", None)  # nothing is run
    assert "accuracy, guidance 3" in tasks_report(asked).read_text()
    with pytest.raises(UserError, match="its rows class_emoji-seed0 were measured with"):
        tasks_report({**asked, "resamples": 30})
