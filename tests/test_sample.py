"""sample.py: what to draw, file names, and images that depend on seed and number but not on the batch."""

import gc
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from untrained import untrained_run

import sample
from ldm.checkpoint import weights
from ldm.config import compose, overriding
from ldm.data.decoding import MAX_PIXELS, read_picture
from ldm.data.rasters import framed
from ldm.data.transforms import View
from ldm.diffusion.denoiser import Denoiser
from ldm.errors import UserError
from ldm.given import collate
from ldm.images import grid_size
from ldm.loading import load
from sample import file_names, main, read_conditions


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained run conditioned on 5 labels, in pixel space at 8 px. Not to be changed."""
    return untrained_run(tmp_path_factory.mktemp("model") / "toy")


def tree(**given) -> dict:
    return {"prompt": None, "prompts": None, "label": None, "num_images": 1, "batch_size": 1, **given}


def pixels(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(Image.open(path)).astype(int) for path in sorted(folder.glob("*.png"))}


# What to draw


def test_one_prompt_or_a_file_of_them_or_a_label(tmp_path):
    (tmp_path / "prompts.txt").write_text("a red, fox\n\n  käse = 3  \n")
    assert read_conditions(tree(prompt="a, b")) == [{"caption": "a, b"}]
    assert read_conditions(tree(prompts=str(tmp_path / "prompts.txt"))) == [
        {"caption": "a red, fox"}, {"caption": "käse = 3"},
    ]  # fmt: skip
    assert read_conditions(tree(label=0)) == [{"label": 0}]
    assert read_conditions(tree(label=0, prompt="a")) == [{"caption": "a", "label": 0}]
    assert read_conditions(tree(label=[3, "cat"])) == [{"label": 3}, {"label": "cat"}]
    both = read_conditions(tree(label=[3, 7], prompts=str(tmp_path / "prompts.txt")))
    assert [(row["caption"], row["label"]) for row in both] == [
        ("a red, fox", 3), ("a red, fox", 7), ("käse = 3", 3), ("käse = 3", 7),
    ]  # fmt: skip
    assert read_conditions(tree()) == [{"caption": ""}]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"prompt": "", "prompts": "x"}, "prompt and prompts exclude each other"),
        ({"num_images": 0}, "num_images and batch_size must be at least 1"),
        ({"label": []}, r"label=\[\]: no class in it"),
    ],
)
def test_nothing_or_two_things_at_once_are_refused(given, problem):
    with pytest.raises(ValueError, match=problem):
        read_conditions(tree(**given))


def test_a_file_without_prompts_is_refused(tmp_path):
    (tmp_path / "prompts.txt").write_text("\n \n")
    with pytest.raises(ValueError, match="no prompt in it"):
        read_conditions(tree(prompts=str(tmp_path / "prompts.txt")))
    with pytest.raises(OSError, match=r"nowhere\.txt"):
        read_conditions(tree(prompts=str(tmp_path / "nowhere.txt")))


def test_a_file_of_prompts_is_named_where_it_cannot_be_read(tmp_path, monkeypatch):
    (tmp_path / "latin.txt").write_bytes("käse".encode("latin-1"))
    with pytest.raises(ValueError, match=r"prompts=.*latin\.txt: .*utf-8"):
        read_conditions(tree(prompts=str(tmp_path / "latin.txt")))
    with pytest.raises(ValueError, match=r"prompts=/dev/null: not a file"):
        read_conditions(tree(prompts="/dev/null"))
    monkeypatch.setattr("ldm.prompts.MAX_PROMPT_BYTES", 3)
    with pytest.raises(ValueError, match=r"latin\.txt: larger than"):
        read_conditions(tree(prompts=str(tmp_path / "latin.txt")))


def test_a_home_of_nobody_is_a_file_that_is_not_there():
    with pytest.raises(OSError, match=r"prompts=~nobody-of-that-name/x\.txt: no such file"):
        read_conditions(tree(prompts="~nobody-of-that-name/x.txt"))


def test_a_place_where_no_image_can_be_written_is_named_before_the_model_is_loaded(model, tmp_path, monkeypatch):
    monkeypatch.setattr("ldm.loading.load_drawer", None)
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "gone").symlink_to(tmp_path / "not mounted")
    (tmp_path / "locked").mkdir()
    for out, said in (("mine", "mine is a file"), ("mine/deep", "mine is a file"), ("loop", "link that leads nowhere"),
                      ("gone/x", "gone is a link that leads nowhere")):  # fmt: skip
        with pytest.raises(UserError, match=f"out=.*{said}; name a"):
            main([f"model={model}", f"out={tmp_path}/{out}"])
    monkeypatch.setattr("os.access", lambda place, mode: Path(place).name != "locked")  # root may write everywhere
    with pytest.raises(UserError, match=r"out=.*no permission to write into .*locked"):
        main([f"model={model}", f"out={tmp_path}/locked/a/b"])


def test_captions_stay_texts_and_labels_become_a_tensor():
    assert collate([{"caption": "a"}, {"caption": "b"}], "cpu") == {"caption": ["a", "b"]}
    assert collate([{"label": 3}, {"label": 1}], "cpu")["label"].tolist() == [3, 1]


# File names


@pytest.mark.parametrize(
    ("text", "name"),
    [("A red, FOX!", "a-red-fox"), ("../../etc/passwd", "etc-passwd"), ("火", "image"), ("", "image"), ("-", "image"),
     ("x" * 100, "x" * 60), ("a" * 59 + " b", "a" * 59)],
)  # fmt: skip
def test_file_names_are_short_and_safe(text, name):
    assert file_names([{"caption": text}]) == [name]


def test_file_names_are_never_the_same():
    captions = ["cat", "Cat!", "dog", "火", "水", "x" * 70, "x" * 80]
    names = file_names([{"caption": caption} for caption in captions])
    assert len(set(names)) == len(captions)
    assert names[:3] == ["0000-cat", "0001-cat", "dog"]


# Whole


def test_images_carry_their_facts_and_a_grid_shows_all(model, tmp_path, capsys):
    assert main([f"model={model}", "label=3", "num_images=3", "seed=5", "enlarge=2", f"out={tmp_path}/out, a=b"]) == 0
    out = tmp_path / "out, a=b"
    names = ["3_0000", "3_0001", "3_0002", "grid"]
    assert sorted(path.name for path in out.iterdir()) == [
        f"{name}.{kind}" for name in names for kind in ("json", "png")
    ]
    picture = Image.open(out / "3_0001.png")
    assert picture.size == (16, 16)
    recipe = json.loads(picture.text.pop("recipe"))
    assert picture.text == {"label": "3", "seed": "5", "number": "1", "model": "toy"}
    assert recipe == json.loads((out / "3_0001.json").read_text())
    assert "3 images in" in capsys.readouterr().out


def test_on_a_cpu_what_an_evaluation_frees_is_kept_for_the_next(model, tmp_path, monkeypatch):
    asked: list[bool] = []
    monkeypatch.setattr("ldm.device.keep_memory", lambda: asked.append(True))
    assert main([f"model={model}", "label=3", "num_images=1", "device=cpu", f"out={tmp_path}"]) == 0
    assert asked == [True]


def test_several_classes_are_rows_of_one_sheet_each_as_alone(model, tmp_path):
    assert main([f"model={model}", "label=[3,animals-nature]", "num_images=3", f"out={tmp_path}/both"]) == 0
    both = pixels(tmp_path / "both")
    for label, name in ((3, "3"), (2, "animals-nature")):
        main([f"model={model}", f"label={label}", "num_images=3", f"out={tmp_path}/{label}"])
        for number, image in enumerate(list(pixels(tmp_path / str(label)).values())[:3]):
            assert np.abs(image - both[f"{name}_{number:04d}.png"]).max() <= 1
    assert both["grid.png"].shape == (2 * 10 + 2, 3 * 10 + 2, 3) and len(both) == 7


def test_of_images_that_the_grid_does_not_show_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "MAX_SHOWN", 3)
    alive: list[int] = []  # bytes of the images in memory when each batch is begun

    class Saved:
        def save(self, *_):
            pass

        def save_sheet(self, path, sheet, made, shown, *_):
            assert shown == 3
            return path

    def begun(parts, tell):
        def draw():
            gc.collect()
            found = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in gc.get_objects()
                     if isinstance(x, torch.Tensor) and x.shape[1:] == (3, 64, 64)}  # fmt: skip
            alive.append(sum(found.values()))
            return torch.zeros(2, 3, 64, 64)

        return [draw] * len(parts)

    given = {"out": tmp_path, "num_images": 20, "batch_size": 2, "enlarge": 1}
    sample.write_images(given, [{"caption": "x"}], Saved(), begun)
    assert alive[4:] == [alive[4]] * 6


def test_the_grid_is_no_larger_than_a_picture_that_can_be_made_anew(model, tmp_path, monkeypatch, capsys):
    assert sample.in_grid(50_000, 1, (256, 256), 1) == sample.in_grid(50_000, 1000, (256, 256), 1) == 1000
    assert sample.in_grid(7, 7, (32, 32), 4) == 7 and sample.in_grid(9, 4, (1 << 13, 1 << 13), 4) == 1
    for columns in (1, 7, 1000):
        shown = sample.in_grid(3000, columns, (512, 768), 2)
        sizes = [4 * math.prod(grid_size(n, min(columns, n), (512, 768))) for n in (shown, shown + 1)]
        assert sizes[0] <= MAX_PIXELS < sizes[1]

    monkeypatch.setattr("ldm.data.decoding.MAX_PIXELS", 4 * 12 * 32)  # two rows of three pictures of 8 px, enlarged
    words = [f"model={model}", "label=[3,1,2]", "num_images=3", "batch_size=2", "enlarge=2", "device=cpu"]
    assert main([*words, f"out={tmp_path}/out"]) == 0
    assert f"9 images in {tmp_path}/out/, the first 3 together in" in capsys.readouterr().out
    assert Image.open(tmp_path / "out" / "grid.png").size == (64, 24)
    assert main([f"again={tmp_path}/out/grid.png", f"out={tmp_path}"]) == 0
    assert "bit for bit" in capsys.readouterr().out


def test_an_image_does_not_depend_on_the_batch_it_is_made_in(model, tmp_path):
    for batch_size in (2, 5):
        arguments = [f"model={model}", "label=1", "num_images=5", f"batch_size={batch_size}", "sampler=euler_ancestral"]
        main([*arguments, f"out={tmp_path / str(batch_size)}"])
    two, five = (pixels(tmp_path / str(batch_size)) for batch_size in (2, 5))
    assert two.keys() == five.keys() and len(two) == 6
    for name in two:
        assert np.abs(two[name] - five[name]).max() <= 1
    assert np.abs(two["1_0000.png"] - two["1_0001.png"]).mean() > 5, "other numbers are other images"


def test_seed_and_settings_matter_and_the_same_command_gives_the_same_bits(model, tmp_path):
    changes = [
        "seed=0",
        "seed=0 ",
        "seed=1",
        "num_steps=9",
        "guidance.scale=1",
        "label=2",
        "sampler=heun",
    ]
    images = []
    for place, change in enumerate(changes):
        arguments = {"label": "label=1", "num_images": "num_images=1", "sigmas": "sigmas=karras"}
        arguments[change.partition("=")[0]] = change.strip()
        main([f"model={model}", *arguments.values(), f"out={tmp_path / str(place)}"])
        (image,) = [v for name, v in pixels(tmp_path / str(place)).items() if name != "grid.png"]
        images.append(image)
    assert np.array_equal(images[0], images[1])
    for change, image in zip(changes[2:], images[2:], strict=True):
        assert not np.array_equal(image, images[0]), change


def test_the_number_of_steps_counts_also_on_the_models_own_ladder(model):
    loaded = load(model)
    chosen = compose("sample", [f"model={model}", "num_steps=7"])
    assert len(loaded.sampling(chosen).sigmas) == 8
    assert len(loaded.sampling({"sampler": None, "sigmas": None, "guidance": None}).sigmas) == 4, "as it was trained"


def test_a_size_the_model_was_not_trained_at(model, tmp_path):
    main([f"model={model}", "label=1", "num_images=1", "image_size=16", f"out={tmp_path}"])
    assert Image.open(tmp_path / "1_0000.png").size == (16, 16)


def test_height_and_width_are_asked_for_one_by_one(model, tmp_path):
    words = {"wide": ["width=16"], "tall": ["image_size=12", "height=20"], "both": ["height=6", "width=10"]}
    sizes = {"wide": (16, 8), "tall": (12, 20), "both": (10, 6)}
    for name, given in words.items():
        assert first_image(model, tmp_path / name, "label=1", *given).shape == (*sizes[name][::-1], 3)


def test_denoising_in_windows(model, tmp_path):
    def drawn(name: str, *words: str) -> np.ndarray:
        return first_image(model, tmp_path / name, "label=1", "sampler=euler_ancestral", *words)

    whole = drawn("whole", "width=16", "num_steps=5")
    words = ["width=16", "num_steps=5", "tiling=blended"]
    tiled = drawn("tiled", *words)
    assert not np.array_equal(tiled, whole) and np.abs(tiled - whole).mean() < np.abs(whole[::-1] - whole).mean()
    assert np.array_equal(tiled, drawn("again", *words)), "the same command gives the same bits"
    assert np.array_equal(tiled, drawn("given", *words, "tiling.size=8", "tiling.stride=4")), "its training size"
    assert np.abs(tiled - drawn("one_by_one", *words, "tiling.num_parallel=1")).max() <= 1
    assert np.array_equal(drawn("small", "tiling=blended"), drawn("plain")), "one window is no tiling"


def test_a_weak_model_works_in_the_same_windows(model, tmp_path):
    words = ["label=1", "width=16", "tiling=blended"]
    plain = first_image(model, tmp_path / "plain", *words, "guidance.scale=1")
    same = first_image(model, tmp_path / "same", *words, "guidance=autoguidance", f"weak_model={model}")
    assert np.abs(same - plain).max() <= 1


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["label=9"], r"label 9\.\.9"),
        ([], "conditioner label needs 'label': give label=N"),
        (["prompt=cat"], "prompt: this model reads no caption; it is conditioned on label"),
        (["label=1", "negative_prompt=cat"], "negative_prompt: this model reads no caption"),
        (["label=1", "guidance=per_condition"], r"guidance\.scales: has to be given"),
        (["label=1", "guidance=per_condition", "guidance.scales={text:2}"], "no condition text; .* label"),
        (["label=1", "guidance=autoguidance"], "second, worse network; .* weak_model=runs/NAME"),
        (["label=1", "weak_model=runs/nowhere"], "weak_model=runs/nowhere: only guidance=autoguidance takes it"),
        (["label=1", "guidance=autoguidance", "weak_model=runs/no, where"], "weak_model=runs/no, where: .*no weights"),
        (["label=1", "guidance.limits.channels=[0,3]"], r"limits\.channels=\[0, 3\]: .* channels 0\.\.2"),
        (["label=x"], "label='x': expected int"),
        (["label=[1,x]"], "label='x': expected int"),
        (["label=[1,1.5]"], r"label=\[1, 1\.5\]: expected"),
        (["label=[1,9]"], "label 1..9: .*asks for 0..4"),
        (["label=1", "image_size=9"], "image_size=9: must be a multiple of 2, .* f = 1 times the network's 2"),
        (["label=1", "height=12", "width=7"], "height=12, width=7: must be a multiple of 2"),
        (["label=1", "width=0"], "width=0: must be at least 1"),
        (["label=1", "width=20", "tiling=blended", "tiling.size=5"], r"tiling\.size=5: .* multiple of the network's 2"),
        (["label=1", "width=19", "tiling=published", "tiling.size=4", "tiling.stride=2"], "stride=2: leave the last 1"),
        (["label=1", "tiling=blended", "tiling.stride=0"], r"tiling\.size, tiling\.stride"),
        (["label=1", "tiling.size=8"], "tiling: its keys are set but it is not chosen|tiling"),
        (["label=1", "num_steps=0"], "num_steps=0: must be at least 1"),
        (["label=1", "num_steps=-5"], "num_steps=-5: must be at least 1"),
        (["label=1", "sigmas=ddim"], "schedule=edm: has no steps; sigmas=ddim"),
        (["label=1", "sigmas=given", "sigmas.levels=[1,2,0]"], r"sigmas\.levels: .* strictly decreasing"),
        (["label=1", "sampler=ddim", "sampler.eta=2.0"], "eta: must lie in"),
        (["label=1", "device=warp9"], "device=warp9: not a device"),
        (["label=1", "sigmas=given", "num_steps=4"], "^num_steps=4: sigmas=given has levels of its own"),
        (["label=1", "operator=blur"], r"^operator: only guidance by a loss takes it, .*=\[image\]"),
        (["label=1", "distance=l2"], "^distance: only guidance by a loss takes it"),
        (["label=1", "alignment=minilm"], r"^alignment: only guidance by a loss takes it, .*=\[alignment\]"),
        (["label=1", "first_stage=runs/nowhere"], "runs/nowhere"),
    ],
)
def test_mistakes_are_value_errors(model, tmp_path, arguments, problem):
    with pytest.raises(ValueError, match=problem):
        main(overriding([f"model={model}", "num_images=1", f"out={tmp_path}", *arguments]))
    assert not list(tmp_path.iterdir())


# Guidance


def first_image(model: Path, out: Path, *arguments: str) -> np.ndarray:
    assert main(overriding([f"model={model}", "num_images=1", f"out={out}", *arguments])) == 0
    (image,) = [value for name, value in pixels(out).items() if name not in ("grid.png", "conditions.png")]
    return image


def test_every_guidance_of_one_model(tmp_path):
    model = untrained_run(tmp_path / "model", "conditioner.label.slot=vector")  # hears labels, though faintly
    words = {
        "plain": ["guidance.scale=1"],
        "free": ["guidance.scale=41"],
        "per_condition": ["guidance=per_condition", "guidance.scales={label:41}"],
        "profile": ["guidance.scale=41", "guidance.limits.profile=[[0.1,1],[80,0]]"],
        "channels": ["guidance.scale=41", "guidance.limits.channels=[0]"],
        "constant": ["guidance.scale=21", "guidance.limits.profile=[[0.1,2],[80,2]]"],
    }
    images = {name: first_image(model, tmp_path / name, "label=1", *given) for name, given in words.items()}
    assert np.abs(images["free"] - images["per_condition"]).max() <= 1
    assert np.abs(images["free"] - images["constant"]).max() <= 1
    for name in ("plain", "profile", "channels"):
        assert np.abs(images["free"] - images[name]).max() > 5, name


def test_autoguidance_compares_with_another_run_under_the_same_label(model, tmp_path):
    other = untrained_run(tmp_path / "weak, a=b", "network.channels=8", "network.norm_groups=4", seed=1)
    words = ["label=1", "guidance=autoguidance"]
    plain = first_image(model, tmp_path / "plain", "label=1", "guidance.scale=1")
    one = first_image(model, tmp_path / "one", *words, f"weak_model={other}", "guidance.scale=1")
    same = first_image(model, tmp_path / "same", *words, f"weak_model={model}")
    led = first_image(model, tmp_path / "led", *words, f"weak_model={other}")
    weak = first_image(model, tmp_path / "zero", *words, f"weak_model={other}", "guidance.scale=0")
    assert np.array_equal(one, plain)
    assert np.abs(same - plain).max() <= 1
    assert np.abs(led - plain).max() > 5
    assert np.abs(weak - first_image(other, tmp_path / "weak", "label=1", "guidance.scale=1")).max() <= 1


def test_a_weak_model_of_another_latent_space_is_refused(model, tmp_path):
    other = untrained_run(tmp_path / "other")
    latent = weights.load(other).metadata["latent"]
    weights.amend(other / "weights", {"latent": {**latent, "fingerprint": "another"}})
    with pytest.raises(ValueError, match=r"weak_model=.*/other: first_stage: not the latent space .*: fingerprint"):
        main([f"model={model}", "label=1", "guidance=autoguidance", f"weak_model={other}", f"out={tmp_path}/out"])


def test_a_model_without_conditions_or_without_null_is_not_guided(tmp_path, capsys):
    free = untrained_run(tmp_path / "free", "conditioner=[]")
    with pytest.raises(ValueError, match=r"no conditions to guide by; sample with guidance\.scale=1"):
        main([f"model={free}", f"out={tmp_path}/out", "guidance.scale=3"])
    with pytest.raises(ValueError, match="label: this model reads no label; it has no conditions"):
        main([f"model={free}", "label=1", "guidance.scale=1", f"out={tmp_path}/out"])
    first_image(free, tmp_path / "out", "guidance.scale=1")
    without = untrained_run(tmp_path / "w", "conditioner.label.has_null=false", "conditioner.label.drop_prob=0.0")
    never = untrained_run(tmp_path / "n", "conditioner.label.drop_prob=0.0")
    for model in (without, never):
        with pytest.raises(ValueError, match=r"label\.drop_prob=0\), .* no null .*guidance\.scale=1"):
            main([f"model={model}", "label=1", "guidance.scale=3", f"out={tmp_path}/out"])
        with pytest.raises(ValueError, match=r"label\.drop_prob=0\), .* no null .*guidance\.scale=1"):
            main([f"model={model}", "label=1", "guidance=per_condition", "guidance.scales={label:2}"])
        first_image(model, tmp_path / "w_out", "label=1", "guidance.scale=1")
    capsys.readouterr()


def test_a_sample_is_by_the_recipe_of_the_run_unless_another_is_asked_for(tmp_path):
    lowest = "guidance.limits.sigma_lo=0.01"
    own = ["guidance.scale=41", lowest, "guidance.limits.rescale=0.5"]
    run = untrained_run(tmp_path / "run", *own, "num_steps=4", "sampler=heun", "sigmas=exponential")
    recipe = ["sampler=heun", "sigmas=exponential", "num_steps=4"]
    plain = first_image(run, tmp_path / "plain", "label=1")
    assert np.array_equal(plain, first_image(run, tmp_path / "asked", "label=1", *own, *recipe))
    assert np.array_equal(plain, first_image(run, tmp_path / "named", "label=1", "guidance=classifier_free", *own))
    for place, words in enumerate(([lowest], ["guidance.sigma_lo=0.01"], ["guidance.limits={sigma_lo:0.01}"])):
        one = first_image(run, tmp_path / f"one {place}", "label=1", *words)
        assert np.array_equal(plain, one), "the other limits are the run's own"
    none = ["guidance.limits=null"]
    named = ["guidance=classifier_free", "guidance.scale=41"]
    unlimited = [first_image(run, tmp_path / f"free {len(words)}", "label=1", *words) for words in (none, named)]
    assert np.array_equal(*unlimited) and not np.array_equal(plain, unlimited[0])
    lo = ["guidance.limits.sigma_lo=1"]
    others = [["guidance.scale=1"], lo, ["num_steps=5"], ["sampler=euler"], ["sigmas=karras"]]
    drawn = [plain, *(first_image(run, tmp_path / f"{place}", "label=1", *more) for place, more in enumerate(others))]
    assert len({image.tobytes() for image in drawn}) == len(drawn)
    steps = [len(load(run).sampling(compose("sample", [f"model={run}", *more])).sigmas) for more in others]
    assert steps == [5, 5, 6, 5, 5]


def test_a_run_that_nothing_guides_is_sampled_without_a_word(tmp_path, capsys):
    free = untrained_run(tmp_path / "free", "conditioner=[]")
    never = untrained_run(tmp_path / "never", "conditioner.label.drop_prob=0.0")
    for model, label in ((free, []), (never, ["label=1"])):
        asked = first_image(model, tmp_path / f"asked {model.name}", *label, "guidance.scale=1")
        plain = first_image(model, tmp_path / f"plain {model.name}", *label)
        assert np.array_equal(asked, plain) and "guidance" not in capsys.readouterr().out


def test_what_was_never_left_out_is_given_to_the_reference_too(tmp_path):
    both = untrained_run(
        tmp_path / "both", "conditioner=[text,label]", "conditioner.label.slot=vector", "network.attention_factors=[1]",
        "conditioner.label.drop_prob=0.0",
    )  # fmt: skip

    def drawn(name: str, *words: str) -> np.ndarray:
        return first_image(both, tmp_path / name, "prompt=a cat", "label=1", *words)

    joint = drawn("joint", "guidance.scale=40")
    text = drawn("text", "guidance=per_condition", "guidance.scales={text:40}")
    assert np.array_equal(joint, text), "the label stands on both sides"
    with pytest.raises(ValueError, match=r"never left out label .*sample with guidance\.scales=\{text:3\}"):
        drawn("label", "guidance=per_condition", "guidance.scales={text:3,label:2}")
    with pytest.raises(ValueError, match=r"conditioner label needs 'label': give label=N"):
        main([f"model={both}", "prompt=a cat", f"out={tmp_path}/out"])


def test_conditions_that_are_not_given_are_null_beside_one_that_is_and_told(tmp_path, caplog):
    both = untrained_run(
        tmp_path / "both", "conditioner=[text,label]", "conditioner.label.slot=vector", "network.attention_factors=[1]"
    )
    prompted = first_image(both, tmp_path / "prompted", "prompt=a cat")
    assert caplog.messages == ["both: sampled without label, as if dropped in training; to give it: label=N"]
    caplog.clear()
    assert not np.array_equal(prompted, first_image(both, tmp_path / "joint", "prompt=a cat", "label=1"))
    assert np.array_equal(prompted, first_image(both, tmp_path / "used", "prompt=a cat", "use_conditions=[text]"))
    assert not caplog.messages, "all is given, or left out on purpose"
    assert not np.array_equal(prompted, first_image(both, tmp_path / "labelled", "label=1"))
    assert caplog.messages == ["both: sampled without text, as if dropped in training; to give it: prompt=TEXT"]


def test_a_sample_uses_the_conditions_it_is_told_to(tmp_path, monkeypatch):
    both = untrained_run(
        tmp_path / "both", "conditioner=[text,label]", "conditioner.label.slot=vector", "network.attention_factors=[1]"
    )
    weak = untrained_run(tmp_path / "weak", "conditioner=[text]", "network.attention_factors=[1]", seed=1)
    calls, forward = [], Denoiser.forward
    monkeypatch.setattr(Denoiser, "forward", lambda *given: calls.append(1) or forward(*given))

    def drawn(name: str, *words: str) -> tuple[np.ndarray, int]:
        calls.clear()
        return first_image(both, tmp_path / name, *words), len(calls)

    prompt, label = ["prompt=a cat"], ["label=1"]
    for given, use in ((prompt, "text"), (label, "label")):
        alone, count = drawn(f"{use} alone", *given)
        used, same_count = drawn(f"{use} used", *given, f"use_conditions=[{use}]")
        assert np.array_equal(alone, used) and count == same_count
        with pytest.raises(ValueError, match=rf"this model with use_conditions=\[{use}\] reads no"):
            drawn("refused", *prompt, *label, f"use_conditions=[{use}]")
    joint, count = drawn("joint", *prompt, *label)
    all_used, same_count = drawn("all used", *prompt, *label, "use_conditions=[label,text]")
    assert np.array_equal(joint, all_used) and count == same_count
    none, count = drawn("none", "use_conditions=[]")
    null, same_count = drawn("null", *prompt, "guidance.scale=0")
    assert np.array_equal(none, null) and count == same_count
    auto = ["guidance=autoguidance", f"weak_model={weak}"]
    compared, _ = drawn("compared", *label, *auto, "use_conditions=[label]")
    assert not np.array_equal(compared, drawn("plain", *label, "guidance.scale=1")[0])
    with pytest.raises(ValueError, match="use_conditions: no condition t5; the conditions of this model: text, label"):
        drawn("refused", *prompt, "use_conditions=[t5]")
    with pytest.raises(ValueError, match=r"guidance\.scales: no condition label"):
        drawn("refused", *prompt, "use_conditions=[text]", "guidance=per_condition", "guidance.scales={label:2}")


def test_a_negative_prompt_that_would_not_be_read_and_no_prompt_at_all_are_told(model, tmp_path, caplog):
    words = ["conditioner=[text]", "network.attention_factors=[1]"]
    text = untrained_run(tmp_path / "text", *words)
    never = untrained_run(tmp_path / "never", *words, "conditioner.text.drop_prob=0.0")
    empty = first_image(text, tmp_path / "empty", "prompt=")
    assert not caplog.messages and np.array_equal(empty, first_image(text, tmp_path / "none"))
    assert caplog.messages == ["text: sampled without a prompt, for the empty text; prompt=TEXT gives it one"]
    with pytest.raises(ValueError, match="prompt: this model was never trained without text"):
        first_image(never, tmp_path / "none", "guidance.scale=1")
    first_image(never, tmp_path / "empty", "prompt=", "guidance.scale=1")
    for more in (["guidance.scale=1"], ["guidance=autoguidance", f"weak_model={model}"]):
        with pytest.raises(ValueError, match="negative_prompt: would not be read"):
            main([f"model={text}", "prompt=a cat", "negative_prompt=blue", *more, f"out={tmp_path}/out"])
    plain = first_image(never, tmp_path / "plain", "prompt=a cat", "guidance.scale=1")
    away = first_image(never, tmp_path / "away", "prompt=a cat", "negative_prompt=blue")
    assert not np.array_equal(plain, away), "two texts can be compared without a null"


@pytest.mark.parametrize("scale", ["1e37", "1e200", "-1e39", "inf", "nan"])
def test_images_that_are_not_finite_are_an_error_and_not_black(model, tmp_path, scale):
    with pytest.raises(ValueError, match=r"guidance\.scale") as caught:
        main([f"model={model}", "label=1", f"guidance.scale={scale}", f"out={tmp_path}/out"])
    assert "finite" in str(caught.value) or "must be a number" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_finite_images_of_a_batch_are_kept(model, tmp_path, monkeypatch):
    from ldm.first_stage.first_stage import Identity

    def decode(self: Identity, z: torch.Tensor) -> torch.Tensor:
        return z.index_fill(0, torch.tensor([1]), torch.inf) if len(z) > 1 else z

    monkeypatch.setattr(Identity, "decode", decode)
    with pytest.raises(ValueError, match=r"not finite: image number 1; lower guidance\.scale"):
        main([f"model={model}", "label=1", "num_images=5", "batch_size=3", f"out={tmp_path}/out"])
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["1_0000.png", "1_0002.png", "1_0003.png"]


@pytest.fixture
def pictures(tmp_path) -> dict[str, Path]:
    """A picture, a mask of its middle and a map of classes, all 16 by 12; a mask and a map that do not fit."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    hole = np.zeros((12, 16), dtype=np.uint8)
    hole[4:8, 4:12] = 255
    arrays = {"picture": pixels, "mask": hole, "map": hole // 255, "square": hole[:, :12], "around": 255 - hole}
    for name, array in arrays.items():
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    return {name: tmp_path / f"{name}.png" for name in arrays}


def test_a_hole_is_filled(tmp_path, pictures):
    model = untrained_run(tmp_path / "holes", "conditioner=[masked_image]", "derived=[holes]")
    picture, mask = f"image={pictures['picture']}", f"mask={pictures['mask']}"
    filled = first_image(model, tmp_path / "filled", picture, mask)
    assert not np.array_equal(filled, first_image(model, tmp_path / "other", picture, f"mask={pictures['around']}"))
    for words, problem in (
        ([picture], "conditioner masked_image needs 'mask': give mask=FILE, white in the hole"),
        ([mask], "conditioner masked_image needs 'image': give image=FILE"),
        ([], "conditioner masked_image needs 'image': give image=FILE"),
        ([picture, f"mask={pictures['square']}"], r"mask=.*square\.png: another shape"),
        ([picture, mask, "guidance.scale=2"], r"never left out masked_image .*guidance\.scale=1"),
        ([picture, mask, f"map={pictures['map']}"], "map: this model reads no segmentation"),
        ([picture, f"mask={tmp_path}/nowhere.png"], r"nowhere\.png"),
        ([picture, "mask=/dev/zero"], "mask=/dev/zero: not a regular file .it is a device"),
    ):
        with pytest.raises((ValueError, OSError), match=problem):
            main([f"model={model}", *words, f"out={tmp_path}/out"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("side", [12, 8, 24])
def test_what_is_not_in_a_hole_is_kept_to_a_grey_level(tmp_path, pictures, side):
    """Whatever is resized, and whether the hole's edge is hard or soft."""
    model = untrained_run(tmp_path / "holes", "conditioner=[masked_image]", "derived=[lama]")
    soft = Image.open(pictures["mask"]).resize((40, 30), Image.Resampling.BICUBIC)
    soft.save(tmp_path / "soft.png")
    fields = load(model).data.keys

    def laid(name: str, file: Path) -> np.ndarray:
        """What the model reads of a file, on the picture as it is resized."""
        reader, lies = fields.reader(name), framed(read_picture(pictures["picture"].read_bytes(), side), (width, side))
        return reader.collate([reader.read(file.read_bytes(), lies)], [View(whole=True)], side)[0].numpy()

    width = round(side * 16 / 12)
    shown = (laid("image", pictures["picture"]).transpose(1, 2, 0) + 1) * 127.5
    for mask in (pictures["mask"], tmp_path / "soft.png"):
        hole = laid("mask", mask)[0] > 0
        words = [f"image={pictures['picture']}", f"mask={mask}", f"image_size={side}"]
        image = first_image(model, tmp_path / f"out-{mask.stem}", *words)
        apart = np.abs(image - shown).max(-1)
        assert 0 < hole.sum() < side * width and apart[~hole].max() <= 1 and apart[hole].mean() > 20


def test_a_filled_hole_is_put_back_into_the_file_as_it_is(tmp_path, pictures):
    model = untrained_run(tmp_path / "holes", "conditioner=[masked_image]", "derived=[holes]")
    words = [f"image={pictures['picture']}", f"mask={pictures['mask']}", "image_size=8"]
    small = first_image(model, tmp_path / "small", *words)
    image = first_image(model, tmp_path / "whole", *words, "paste=true")
    own, hole = np.asarray(Image.open(pictures["picture"])), np.asarray(Image.open(pictures["mask"])) > 0
    assert small.shape == (8, 11, 3) and image.shape == own.shape
    assert np.array_equal(image[~hole], own[~hole])
    enlarged = np.asarray(Image.fromarray(small.astype(np.uint8)).resize((16, 12), Image.Resampling.BICUBIC))
    assert np.abs(image[hole] - enlarged[hole].astype(float)).max() <= 2
    for more, problem in {
        "height=8 width=8": "the model is shown 12 x 12; leave out height= or width=", "mask=null": "needs 'mask'",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=problem):
            first_image(model, tmp_path / "no", *words[:2], "paste=true", *more.split())
    with pytest.raises(ValueError, match="paste=true: puts what fills a hole back into its picture; give image="):
        first_image(untrained_run(tmp_path / "plain"), tmp_path / "no", "label=1", "paste=true")


def test_a_map_of_classes_is_drawn(tmp_path, pictures):
    words = [
        "data=segmented_shards",
        "data.train=nowhere.tar",
        "conditioner=[semantic_map]",
        "conditioner.semantic_map.num_classes=3",
        "conditioner.semantic_map.factor=1",
    ]
    model = untrained_run(tmp_path / "maps", *words)
    first_image(model, tmp_path / "drawn", f"map={pictures['map']}")
    with pytest.raises(ValueError, match=r"segmentation 0\.\.255: conditioner\.semantic_map\.num_classes=3"):
        main([f"model={model}", f"map={pictures['around']}", f"out={tmp_path}/out"])
    fieldless = untrained_run(tmp_path / "fieldless", *words[2:])
    with pytest.raises(
        ValueError, match=r"map: .* reads no segmentation: nothing in the data of its run does, .* caption"
    ):
        main([f"model={fieldless}", f"map={pictures['map']}", f"out={tmp_path}/out"])
    with pytest.raises(ValueError, match="conditioner semantic_map needs 'segmentation': give map=FILE"):
        main([f"model={model}", f"out={tmp_path}/out"])


def test_boxes_are_read_by_the_run_s_own_field(tmp_path, pictures):
    model = untrained_run(
        tmp_path / "layout", "data=layout_shards", "data.train=nowhere.tar", "conditioner=[layout_transformer]",
        "conditioner.layout_transformer.width=8", "conditioner.layout_transformer.depth=1",
        "network.attention_factors=[1]", "network.channels=8",
    )  # fmt: skip
    for name, box in {"left": [0, 0, 0.5, 1], "right": [0.5, 0, 1, 1]}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"objects": [{"category": 3, "box": box}]}))
    left = first_image(model, tmp_path / "1", f"boxes={tmp_path}/left.json")
    assert np.array_equal(left, first_image(model, tmp_path / "2", f"given.layout={tmp_path}/left.json"))
    assert not np.array_equal(left, first_image(model, tmp_path / "3", f"boxes={tmp_path}/right.json"))
    (tmp_path / "broken.json").write_text('{"objects": [{"category": 400, "box": [0, 0, 1, 1]}]}')
    for words, problem in (
        ([], "layout_transformer needs 'layout': give boxes=FILE"),
        ([f"boxes={tmp_path}/broken.json"], r"boxes=.*broken\.json: broken objects .*category 400"),
        (
            [f"boxes={tmp_path}/left.json", f"given.layout={tmp_path}/left.json"],
            "boxes: given.layout gives 'layout' to",
        ),
        (
            [f"boxes={tmp_path}/left.json", f"given.other={tmp_path}/left.json"],
            "given.other: .* reads no other",
        ),
    ):
        with pytest.raises(ValueError, match=problem):
            main([f"model={model}", *words, f"out={tmp_path}/out"])


def test_an_array_and_a_text_are_given_as_the_shards_have_them(tmp_path):
    words = [
        "data=embedded_shards",
        "data.train=nowhere.tar",
        "conditioner=[embeddings]",
        "network.attention_factors=[1]",
    ]
    model = untrained_run(tmp_path / "model", *words, "conditioner.embeddings.width=8", "network.channels=8")
    for number in (1, 2):
        np.save(tmp_path / f"{number}.npy", np.full((3, 8), number, np.float32))
    one, two = (first_image(model, tmp_path / f"{n}", f"given.embeddings={tmp_path}/{n}.npy") for n in (1, 2))
    assert not np.array_equal(one, two)
    text = untrained_run(tmp_path / "text", "conditioner=[text]", "network.attention_factors=[1]")
    (tmp_path / "a, b.json").write_text('{"caption": "a cat", "style": "noto"}')  # as the built-in shards have it
    read = first_image(text, tmp_path / "3", f"given.caption={tmp_path}/a, b.json")
    assert np.array_equal(read, first_image(text, tmp_path / "4", "prompt=a cat"))
    with pytest.raises(ValueError, match=r"prompt: given\.caption gives 'caption' too"):
        main([f"model={text}", "prompt=a", f"given.caption={tmp_path}/a, b.json", f"out={tmp_path}/out"])


def test_a_small_picture_is_given_or_made_of_a_large_one(tmp_path, pictures):
    words = ["conditioner=[low_resolution]", "conditioner.low_resolution.factor=1", "derived=[low_resolution]"]
    model = untrained_run(tmp_path / "model", *words, "derived.low_resolution.factor=1")
    low = first_image(model, tmp_path / "low", f"low={pictures['picture']}")
    assert np.array_equal(low, first_image(model, tmp_path / "image", f"image={pictures['picture']}", "image_size=12"))
    assert not np.array_equal(low, first_image(model, tmp_path / "mask", f"low={pictures['mask']}"))
    with pytest.raises(ValueError, match="conditioner low_resolution needs 'low_resolution': give low=FILE"):
        main([f"model={model}", f"out={tmp_path}/out"])
    older = untrained_run(tmp_path / "older", *words[:2])  # from before there were derived fields
    assert np.array_equal(low, first_image(older, tmp_path / "older_low", f"low={pictures['picture']}"))


def test_a_class_is_given_by_its_name(model, tmp_path):
    named = first_image(model, tmp_path / "named", "label=animals-nature")
    assert np.array_equal(named, first_image(model, tmp_path / "numbered", "label=2"))
    assert (tmp_path / "named" / "animals-nature_0000.png").exists()


def test_a_prompt_and_a_label_each_have_their_scale(tmp_path):
    both = untrained_run(
        tmp_path / "both", "conditioner=[text,label]", "conditioner.label.slot=vector", "network.attention_factors=[1]"
    )

    def drawn(name: str, *words: str) -> np.ndarray:
        return first_image(both, tmp_path / name, "prompt=a cat", "label=1", *words)

    joint = drawn("joint", "guidance.scale=40")
    same = drawn("same", "guidance=per_condition", "guidance.scales={text:40,label:40}")
    text = drawn("text", "guidance=per_condition", "guidance.scales={text:40}")
    assert np.abs(joint - same).max() <= 1
    assert np.abs(joint - text).max() > 5
    assert sorted(path.name for path in (tmp_path / "joint").glob("*.png")) == ["a-cat-1_0000.png", "grid.png"]
    negative = drawn("negative", "guidance.scale=40", "negative_prompt=a dog")
    assert not np.array_equal(negative, joint)


def test_a_model_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no such run or manifest"):
        main([f"model={tmp_path}/nowhere", "prompt=x"])


def test_weights_of_another_model_are_refused(model, tmp_path):
    other = untrained_run(tmp_path / "other", "network.channels=8", "network.norm_groups=4")
    (other / "config.yaml").write_text((model / "config.yaml").read_text())
    with pytest.raises(ValueError, match=r"does not fit this model: .*wrong shapes"):
        load(other)


def test_another_latent_space_is_refused(model, tmp_path):
    other = untrained_run(tmp_path / "other")
    latent = weights.load(other).metadata["latent"]
    weights.amend(other / "weights", {"latent": {**latent, "fingerprint": "another"}})
    with pytest.raises(ValueError, match="first_stage: not the latent space this was made with: fingerprint"):
        load(other)


def test_help_needs_no_model(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "python sample.py model=" in shown and "prompt=" in shown and "dpmpp_2m" in shown
    assert "Of mask= white is the hole" in shown
