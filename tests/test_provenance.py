"""Recipes of pictures: what they hold, pictures made anew bit for bit, and recipes of anyone."""

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from untrained import untrained_run

import sample
from ldm.checkpoint import weights
from ldm.data.seals import sealed
from ldm.ensemble import write_manifest
from ldm.files import sha256
from ldm.images import save_image
from ldm.provenance import again, recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of labels, a worse one, one of text and two experts, in pixel space at 8 px; a picture, a hole, prompts."""
    folder = tmp_path_factory.mktemp("provenance")
    untrained_run(folder / "toy")
    untrained_run(folder / "weak", "network.channels=8", "network.norm_groups=4", seed=1)
    untrained_run(folder / "text", "conditioner=[text]", "network.attention_factors=[1]")
    write_manifest(
        folder / "experts.yaml",
        [untrained_run(folder / f"expert{n}", f"expert.node=[1,{n}]", shared=n, seed=n) for n in range(2)],
    )
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "start, a=b.png")
    Image.fromarray(np.pad(np.full((4, 4), 255, np.uint8), 2)).save(folder / "hole.png")
    (folder / "prompts.txt").write_text("a cat\na dog, ${oc.env:HOME} 'x'\nkäse\n")
    return folder


@pytest.fixture(scope="module")
def one(folder: Path) -> Path:
    """A picture of the run of labels."""
    [picture] = draw(folder / "one", f"model={folder}/toy", "label=1", "num_images=1")
    return picture


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def draw(out: Path, *words: str) -> list[Path]:
    assert sample.main([*words, f"out={out}"]) == 0
    return sorted(path for path in out.glob("*.png") if path.name != "grid.png")


def recipe_in(picture: Path) -> dict[str, Any]:
    return json.loads(Image.open(picture).text["recipe"])


def with_recipe(picture: Path, edit: Callable[[dict[str, Any]], Any], seal: bool = True) -> Path:
    """The picture with another recipe inside, whose seal goes with it as anyone can do."""
    content = recipe_in(picture)
    edit(content)
    text = PngImagePlugin.PngInfo()
    text.add_itxt("recipe", json.dumps(sealed(content) if seal else content))
    place = picture.with_name("edited.png")
    Image.open(picture).save(place, pnginfo=text)
    return place


def made_anew(capsys: pytest.CaptureFixture[str], picture: Path, *words: str) -> str:
    capsys.readouterr()
    assert sample.main([f"again={picture}", *words]) == 0
    return capsys.readouterr().out


def test_a_picture_has_all_that_it_is_a_function_of(here, tmp_path, monkeypatch):
    hashed = []
    monkeypatch.setattr(recipe, "sha256", lambda path: hashed.append(Path(path)) or sha256(path))
    words = [
        "model=toy",
        "label=3",
        "num_images=2",
        "seed=5",
        "sampler=heun",
        "guidance.scale=2",
        "start=start, a=b.png",
    ]
    _, picture = draw(tmp_path / "out", *words, "num_steps=4")
    found = recipe_in(picture)
    assert found == json.loads(picture.with_suffix(".json").read_text())
    assert found["condition"] == {"label": 3} and found["seed"] == 5 and found["drawn"]["number"] == 1
    [used] = found["model"]["weights"]
    assert used["sha256"] == weights.load(here / "toy").digest and used["file"] == "step_00000001.ema.safetensors"
    assert found["sampler"] == {"heun": {}} and found["guidance"]["classifier_free"]["scale"] == 2
    assert found["sigmas"]["karras"]["num_steps"] == 4 and len(found["levels"]) == 5, "the run's own schedule"
    assert found["files"]["start"]["sha256"] == sha256(here / "start, a=b.png")
    assert found["made_with"]["device"] == "cpu" and found["made_with"]["precision"] == "float32"
    assert "_target_" not in json.dumps(found)
    assert {path.name for path in hashed} == {"config.yaml", "start, a=b.png"}, (
        "weights were hashed when they were read"
    )
    grid = recipe_in(tmp_path / "out" / "grid.png")
    assert {**grid, **{key: found[key] for key in ("drawn", "pixels", "seal", "condition")}} == found


@pytest.mark.parametrize(
    "words",
    [
        "model=toy label=1 num_images=5 batch_size=3 sampler=euler_ancestral enlarge=3 precision=bf16",
        "model=toy label=animals-nature num_images=1 width=16 tiling=blended tiling.size=8 seed=12",
        "model=toy label=1 ema=raw guidance.scale=3 guidance.limits.profile=[[0.1,1],[80,0]] sigmas=exponential",
        "model=toy label=1 guidance=autoguidance weak_model=weak guidance.limits.sigma_lo=0.1 precision=bf16",
        "model=toy label=1 guidance=per_condition guidance.scales={label:3} guidance.limits=null",
        "model=toy/weights/step_00000001.raw.safetensors label=1 sigmas=given sigmas.levels=[9,1,0]",
        "model=experts.yaml label=1 num_images=4 batch_size=3 use_conditions=[label]",
        "model=text prompts=prompts.txt num_images=2 batch_size=3 negative_prompt=a=b guidance.scale=5",
        "model=text prompt= num_images=1",
        "model=toy label=1 to_seed=3 num_images=3 batch_size=2",
        "model=toy label=[1,3] num_images=2 batch_size=3",
        "model=toy label=[animals-nature,1] num_images=1",
        "model=toy label=1|start=start, a=b.png canvas=[0,8,0,0] num_steps=2",
        "model=toy label=1|start=start, a=b.png strength=0.5 num_steps=6",
        "model=toy label=1|start=start, a=b.png start_mask=hole.png sampler=ddpm",
        "model=toy label=1|target=start, a=b.png loss_guidance=[image] operator=bicubic operator.factor=4",
    ],
)
def test_a_picture_is_made_anew_bit_for_bit(here, tmp_path, capsys, monkeypatch, words):
    first, _, files = words.partition("|")
    given = [
        *first.split(),
        *([files.partition(".png")[0] + ".png", *files.partition(".png")[2].split()] if files else []),
    ]
    pictures = draw(tmp_path / "out", *given)
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    for picture in (pictures[-1], tmp_path / "out" / "grid.png"):
        said = made_anew(capsys, picture, "out=new")
        new = tmp_path / "new" / f"{picture.stem}-again.png"
        assert said == f"new/{new.name}: made anew, bit for bit as {picture} was\n"
        assert np.array_equal(*map(np.asarray, map(Image.open, (picture, new))))
        assert recipe_in(new)["pixels"] == recipe_in(picture)["pixels"]
        assert torch.get_num_threads() == threads
    if "batch_size" in words:
        assert "bit for bit" in made_anew(capsys, new, "out=newer"), "what was made anew has a recipe too"


def test_threads_are_as_many_as_they_were(here, one, tmp_path, capsys, monkeypatch):
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    for count in (1, os.cpu_count(), os.cpu_count() + 1, "many", -1):
        made_anew(capsys, with_recipe(one, lambda r, n=count: r["made_with"].update(threads=n)), f"out={tmp_path}")
    assert asked == [1, os.cpu_count()], "no more than there are cores"


def test_what_moved_or_was_trained_on_is_found(here, tmp_path, capsys):
    run = untrained_run(tmp_path / "runs" / "toy")
    shutil.copy("start, a=b.png", tmp_path / "start.png")
    words = ["label=1", "num_images=1", f"start={tmp_path}/start.png", f"model={run}"]
    [picture] = draw(tmp_path / "runs" / "out", *words)
    before = weights.load(run)
    facts = {key: before.metadata[key] for key in ("latent", "intervals", "samples_seen")}
    weights.save(run / "weights", 2, {"ema": {name: tensor + 1 for name, tensor in before.state.items()}}, facts)
    assert "bit for bit" in made_anew(capsys, picture, f"out={tmp_path}/1"), "the run has newer weights by now"
    moved = (tmp_path / "runs").rename(tmp_path / "moved") / "out" / picture.name
    assert "bit for bit" in made_anew(capsys, moved, f"out={tmp_path}/2"), "folders that moved together"
    alone = shutil.copy(moved, tmp_path / "alone.png")
    with pytest.raises(ValueError, match=r"made with model=.*toy, which is not there; model= says where it is now"):
        made_anew(capsys, alone)
    where = [f"model={tmp_path}/moved/toy", f"start={tmp_path}/start.png", f"out={tmp_path}/3"]
    assert "bit for bit" in made_anew(capsys, alone, *where)
    for file in (tmp_path / "moved" / "toy" / "weights").glob("step_00000001.*"):
        file.unlink()
    with pytest.raises(
        ValueError, match=r"model=.*moved/toy has other weights than it was made with \(sha256 \w{12}, not"
    ):
        made_anew(capsys, alone, *where)
    (tmp_path / "start.png").write_bytes((tmp_path / "start.png").read_bytes() + b"x")
    with pytest.raises(ValueError, match=r"start=.*start\.png has changed since"):
        made_anew(capsys, alone, *where)


def test_a_picture_that_comes_out_otherwise_is_an_error_that_says_why(here, tmp_path, capsys, monkeypatch, caplog):
    [picture] = draw(tmp_path / "out", "model=toy", "label=1", "num_images=1")
    inside = recipe.surroundings
    monkeypatch.setattr(again, "surroundings", lambda *given: {**inside(*given), "torch": "9.9"})
    said = made_anew(capsys, picture, f"out={tmp_path}/new")
    assert f"bit for bit as {picture} was, though torch was {torch.__version__} and is 9.9" in said
    other = with_recipe(picture, lambda r: r["options"].update(seed=1))
    with pytest.raises(
        ValueError, match=r"edited-again\.png: made anew, and not as .*edited\.png was .*others, by at .* is 9\.9"
    ) as caught:
        made_anew(capsys, other, f"out={tmp_path}/new")
    assert "\n" not in str(caught.value)
    pixels = np.asarray(Image.open(picture)).copy()
    pixels[0, 0, 0] ^= 1
    text = PngImagePlugin.PngInfo()
    text.add_itxt("recipe", Image.open(picture).text["recipe"])
    Image.fromarray(pixels).save(tmp_path / "edited.png", pnginfo=text)
    assert "bit for bit" in made_anew(capsys, tmp_path / "edited.png", f"model={here}/toy", f"out={tmp_path}/new")
    assert "has other pixels than it was written with" in caplog.text


def test_a_recipe_that_a_picture_lost_is_read_beside_it(here, tmp_path, capsys):
    [picture] = draw(tmp_path / "out", "model=toy", "label=1", "num_images=1")
    Image.fromarray(np.asarray(Image.open(picture))).save(picture)
    assert "bit for bit" in made_anew(capsys, picture, f"out={tmp_path}/new")
    picture.with_suffix(".json").unlink()
    with pytest.raises(ValueError, match=r"again=.*1_0000\.png: has no recipe"):
        made_anew(capsys, picture)


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda r: r["options"].update(seed=1) or r.pop("seal"), "is not one of sample.py"),
        (lambda r: r.update(format=2), "of the form 2, not 1"),
        (lambda r: r.update(sampler={"_target_": "os.system"}), r"sampler\._target_: names code"),
        (lambda r: r["guidance"]["classifier_free"].update(_target_="os.system"), "names code"),
        (lambda r: r["guidance"]["classifier_free"]["limits"].update(_target_="os.system"), "names code"),
        (lambda r: r["sampler"]["euler"].update(x={"_target_": "os.system"}), "names code"),
        (lambda r: r["options"].update(use_conditions=[{"_target_": "os.system"}]), "names code"),
        (lambda r: r["sampler"]["euler"].update(wide=1), r"sampler\.wide: no such key"),
        (lambda r: r.update(sampler={"eular": {}}), "sampler=eular: no such option; did you mean 'euler'"),
        (lambda r: r.update(sampler={"../sampler/euler": {}}), "no such option"),
        (lambda r: r.update(sampler=["euler"]), "not an option of sampler"),
        (lambda r: r.update(loss_guidance={"x": {"os.system": {}}}), "no such option"),
        (lambda r: r["options"].update(plugins=["os"]), "plugins: no such key"),
        (lambda r: r["options"].update(model="x"), "model: no such key"),
        (lambda r: r["options"].update(image="/etc/passwd"), "image: no such key"),
        (lambda r: r["options"].update(num_steps=10**9), "num_steps=1000000000: must be at most"),
        (lambda r: r["options"].update(compile="yes"), "compile='yes': expected bool"),
        (lambda r: r["options"].update(ema="../../x"), "ema=../../x: choose ema, raw"),
        (lambda r: r["files"].update(weak_model={"path": "toy"}), "weak_model: no such file"),
        (lambda r: r["files"].update(image={"path": "/dev/zero", "bytes": 0, "sha256": ""}), "has changed since"),
        (lambda r: r["files"].update(image=3), "image: no such file"),
        (lambda r: r["runs"].update(weak_model={"path": "toy", "sha256": []}), "weak_model=.*toy"),
        (lambda r: r["made_with"].update(plugins={"os": "1"}), r"the package os; if you know it, say plugins"),
        (lambda r: r.update(loss_guidance={"a": {"alignment": {}}}, alignment={"open_clip": {"model": "x"}}),
         r"made with alignment\.model=x; if you know it, say that here too"),
        (lambda r: r.update(loss_guidance={"image": {"image": {}}}, distance={"lpips": {"net": "vgg", "path": "x"}}),
         r"made with distance\.path=x"),
        (lambda r: r["drawn"].update(rows=[{"label": "1"}]), "rows are not those"),
        (lambda r: r["drawn"].update(rows=[{"caption": "a"}]), "rows are not those"),
        (lambda r: r["drawn"].update(rows=[]), "rows are not those"),
        (lambda r: r["drawn"].update(places=[[0, 0, 1 << 40]]), "places are no images"),
        (lambda r: r["drawn"].update(places=[[1, 0, 1]]), "places are no images"),
        (lambda r: r["drawn"].update(at=7), "at is none of its images"),
        (lambda r: r["model"].update(path=["x"]), r"which is not there; model= says where it is now"),
        (lambda r: r["options"].update(prompts="/etc/passwd"), "prompts: a file, which no recipe names"),
        (lambda r: r["options"].update(prompts=["a", 3]), "prompts: a file, which no recipe names"),
        (lambda r: r["model"].update(path="~nobody-at-all/x"), r"which is not there; model= says where it is now"),
        (lambda r: r["model"].update(path="x\n" * 999), r"which is not there; model= says where it is now"),
        (lambda r: r["files"].update(start={"path": "~/x"}), r"with start=.*/~/x, which is not there"),
        (lambda r: r["drawn"].update(at=None, shown=1, columns=1 << 40, batch_size=1), "at is none of its images"),
        (lambda r: r["model"]["weights"].append(3), r"has other weights than it was made with"),
        (lambda r: r["model"].update(weights="x"), r"has other weights than it was made with"),
    ],
)  # fmt: skip
def test_recipes_of_anyone_are_data(here, one, tmp_path, capsys, edit, problem):
    with pytest.raises((ValueError, OSError), match=problem) as caught:
        made_anew(capsys, with_recipe(one, edit, seal="not one of" not in problem), f"out={tmp_path}/new")
    assert "\n" not in str(caught.value) and not (tmp_path / "new").exists()


def test_what_is_no_picture_of_ours_and_what_would_be_another_picture_is_refused(here, tmp_path, capsys):
    [picture] = draw(tmp_path / "out", "model=toy", "label=1", "num_images=1")
    edited = with_recipe(picture, lambda r: r["options"].update(seed=1), seal=False)
    (tmp_path / "no.png").write_bytes(b"x")
    save_image(tmp_path / "none.png", torch.zeros(3, 8, 8))
    Image.new("1", (20000, 10000)).save(tmp_path / "huge.png")
    jpeg = io.BytesIO()
    Image.open(picture).save(jpeg, "JPEG")
    (tmp_path / "a.jpg").write_bytes(jpeg.getvalue())
    for words, problem in (
        ([f"again={edited}"], r"edited\.png: edited or damaged since it was written \(its seal is another\)"),
        ([f"again={tmp_path}/nowhere.png"], "no such picture"),
        (["again=/dev/zero"], "no such picture"),
        ([f"again={tmp_path}/no.png"], r"no\.png: not a picture"),
        ([f"again={tmp_path}/none.png"], r"none\.png: has no recipe"),
        ([f"again={tmp_path}/a.jpg"], r"a\.jpg: has no recipe"),
        (["again="], "again=: nothing is given"),
        ([f"again={picture}", "seed=1"], "seed: again= makes a picture as its recipe says"),
        ([f"again={tmp_path}/huge.png"], r"huge\.png: .*too many pixels"),
        ([f"again={picture}", f"start={picture}"], r"start: .*1_0000\.png was made without it; leave it out"),
        ([f"again={picture}", f"given.style={picture}"], r"given\.style: .*1_0000\.png was made without it"),
        ([f"again={picture}", f"weak_model={here}/weak"], r"weak_model: .*1_0000\.png was made without it"),
        (["again=null"], "model: has to be given"),
        ([f"again={picture}", "guidance.scale=1"], r"guidance\.scale: again= makes"),
        ([f"again={picture}", f"model={here}/weak"], "has other weights than it was made with"),
        ([f"again={picture}", "device=warp9"], "device=warp9: not a device"),
    ):
        with pytest.raises(ValueError, match=problem) as caught:
            sample.main([*words, f"out={tmp_path}/new"])
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()
