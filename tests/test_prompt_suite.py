"""Models on a set of prompts: the set's file, pictures that are drawn once, scores by category, what is refused."""

import csv
import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console
from untrained import untrained_run

import sample
from ldm.config import compose, overriding
from ldm.ensemble import write_manifest
from ldm.ensemble_model import Ensemble
from ldm.errors import UserError
from ldm.loading import load_drawer
from ldm.metrics.alignment_score import alignment_score
from ldm.model import Model
from ldm.study import drawing, suite
from ldm.study.grouped import grouped, parts, table_of
from ldm.study.names import file_name
from ldm.study.prompt_set import BUILT_IN, Prompt, categories, read_prompt_set
from ldm.study.real_pictures import real_picture, real_pictures

ROOT = Path(__file__).resolve().parents[1]
TEXT = ["conditioner=[text]", "network.attention_factors=[1]"]
SET = """\
prompt,category,group,image
red heart,hearts,signs,a.png
blue heart,hearts,signs,b.png
pizza,food,things,a.png
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two untrained models that read text, experts and their ensemble, and a set of three prompts."""
    folder = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(("one", "two")):
        untrained_run(folder / name, *TEXT, seed=seed)
    members = [untrained_run(folder / f"expert-{n}", f"expert.node=[1,{n}]", *TEXT, shared=n, seed=n) for n in range(2)]
    write_manifest(folder / "both.yaml", members)
    untrained_run(folder / "label")
    for name, color in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (20, 16), color).save(folder / f"{name}.png")
    (folder / "set.csv").write_text(SET)
    return folder


def asked(runs: Path, out: Path, models: str, *words: str) -> tuple[dict, list[str]]:
    small = ["num_images=2", "num_steps=1", "batch_size=4", "device=cpu", f"prompts={runs}/set.csv", f"out={out}"]
    given = overriding([*small, f"models={models}", *words])
    return compose("prompt_suite", given), given


# The set


def test_the_built_in_set_is_what_its_script_makes_and_has_ten_categories_in_three_groups():
    spec = importlib.util.spec_from_file_location("make_prompt_set", ROOT / "scripts/dev/make_prompt_set.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert BUILT_IN.read_text() == module.prompt_set()
    prompts = read_prompt_set(BUILT_IN)
    assert len(categories(prompts)) == 10 and len(set(categories(prompts).values())) == 3 and len(prompts) == 80
    picture = real_picture(prompts[0], BUILT_IN.parent, 32)
    assert picture.shape == (32, 32, 3) and picture.std() > 10


def test_a_set_may_be_json_and_without_pictures(tmp_path: Path):
    rows = [{"prompt": " a ", "category": "c", "group": "g", "more": 1}, {"prompt": "a", "category": "d", "group": "g"}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert read_prompt_set(tmp_path / "a.json") == [Prompt("a", "c", "g"), Prompt("a", "d", "g")]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.csv", "prompt,category\nx,y\n", "row 1 has no group; each row has prompt, category, group"),
        ("a.csv", "prompt,category,group\n", "no prompt in it"),
        ("a.csv", "prompt,category,group\na,b,c\n ,b,c\n", "row 2 has no prompt"),
        ("a.csv", "prompt,category,group\na heart, red,hearts,signs\n", "row 1 has more cells than the header"),
        ("a.csv", "prompt,category,group\na,b,c\nd,b,e\n", "row 2: category 'b' is in the groups 'c' and 'e'"),
        ("a.csv", "prompt,category,group\na,b,c\na,b,c\n", "row 2: 'a' is in 'b' twice"),
        ("a.csv", "prompt,category,group,image\na,b,c,x.png\nd,b,c,\n", "row 2 has no image and others have"),
        ("a.csv", b"\xff\xfep\0r\0", "not UTF-8: looks like UTF-16"),
        ("a.csv", "prompt,category,group\n" + "a" * 200_000 + ",b,c\n", "after line 1: field larger"),
        ("a.json", "{}", "not a JSON list of objects"),
        ("a.json", "[1]", "not a JSON list of objects"),
        ("a.json", '[{"prompt": 3, "category": "a", "group": "b"}]', "row 1 has no prompt"),
        ("a.json", '[{"prompt": "\\ud800", "category": "a", "group": "b"}]', "row 1 has half a letter"),
        ("a.json", "[", "cannot be read as JSON"),
        ("a.json", "[" * 100_000, "cannot be read as JSON"),
    ],
)
def test_a_set_that_is_wrong_is_named(tmp_path: Path, name: str, content: str | bytes, problem: str):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=rf"prompts=.*{name}: .*{problem}"):
        read_prompt_set(tmp_path / name)


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        ("none.png", r"no image .*none\.png"), ("bad.png", r"bad\.png"), ("s.tar/x.png", r"no image x\.png in"),
        ("../secret.png", "leads out of"), ("{tmp}/secret.png", "leads out of"), ("link.png", "leads out of"),
        ("link/secret.png", "leads out of"), ("../out.tar/x.png", "leads out of"), ("link.tar/x.png", "leads out of"),
    ],
)  # fmt: skip
def test_a_picture_that_is_not_there_is_named_with_its_row(tmp_path: Path, image: str, problem: str):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "bad.png").write_bytes(b"nothing")
    for file in (folder / "s.tar", tmp_path / "out.tar"):
        shutil.copy(BUILT_IN.parent / "validation-00000.tar", file)
    for file in (folder / "good.png", tmp_path / "secret.png"):
        Image.new("RGB", (9, 9)).save(file)
    for name, there in (("link.png", "secret.png"), ("link", ""), ("link.tar", "out.tar")):
        (folder / name).symlink_to(tmp_path / there)
    prompts = [Prompt("a", "b", "c", each) for each in ("good.png", image.format(tmp=tmp_path))]
    with pytest.raises(UserError, match=f"prompts: row 2: .*{problem}"):
        real_pictures(prompts, folder, 8)


# Models


def test_models_are_drawn_once_and_scored_by_category(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    alignment = alignment_score()
    monkeypatch.setattr(suite, "instantiate", lambda *_: alignment)  # loaded once
    write_page = suite.write_page
    monkeypatch.setattr(suite, "write_page", lambda *_: None)
    drawn: list[tuple[str, int]] = []

    def counting(kind: type) -> None:
        original = kind.generate

        def generate(self, sampling, batch, numbers, *rest):
            if len(drawn) == 1 and not (tmp_path / "killed").exists():
                (tmp_path / "killed").touch()
                raise KeyboardInterrupt
            drawn.extend((self.name, number) for number in numbers.tolist())
            return original(self, sampling, batch, numbers, *rest)

        monkeypatch.setattr(kind, "generate", generate)

    counting(Model)
    counting(Ensemble)
    with pytest.raises(KeyboardInterrupt):
        suite.prompt_suite(*asked(runs, tmp_path / "out", f"{runs}/one", "batch_size=1"))
    rows, folder = suite.prompt_suite(*asked(runs, tmp_path / "out", f"{runs}/one"))
    assert sorted(drawn) == [("one", number) for number in range(6)], "each picture once, kill or no kill"
    [metric] = [name for name in rows[0] if name.startswith("alignment_score/")]
    assert [(row["level"], row["name"], row["model"], row["prompts"]) for row in rows[::2]] == [
        ("all", "all", "real", 3), ("group", "signs", "real", 2), ("category", "hearts", "real", 2),
        ("group", "things", "real", 1), ("category", "food", "real", 1),
    ]  # fmt: skip
    both = f"[{runs}/one,{runs}/both.yaml]"
    monkeypatch.setattr(suite, "write_page", write_page)
    more, _ = suite.prompt_suite(*asked(runs, tmp_path / "out", both))
    assert sorted(drawn[6:]) == [("both", number) for number in range(6)], "the model that was there is not drawn again"
    assert str([row for row in more if row["model"] == "one"]) == str(rows[1::2]), "as text: NaN is not NaN"
    with (folder / "scores.csv").open() as file:
        scores = list(csv.DictReader(file))
    assert len(scores) == 3 + 6 + 6 and all((folder / row["file"]).exists() for row in scores)
    own = [float(row[metric]) for row in scores if row["model"] == "both"]
    assert sum(own) / 6 == pytest.approx(next(row[metric] for row in more if row["model"] == "both"))
    page = (folder / "index.html").read_text()
    assert page.count("<img") == 15 + 1 and "red heart" in page and (folder / "scores.png").exists()
    monkeypatch.setattr(suite, "write_page", lambda *_: None)
    again = suite.prompt_suite(*asked(runs, tmp_path / "out", both))[0]
    assert str(again) == str(more) and len(drawn) == 12
    suite.prompt_suite(*asked(runs, tmp_path / "out", both, "seed=1"))
    assert len(drawn) == 24, "of another seed all are drawn again"
    (tmp_path / "killed").unlink()
    del drawn[1:]
    with pytest.raises(KeyboardInterrupt):
        suite.prompt_suite(*asked(runs, tmp_path / "out", both, "seed=2"))
    assert not (folder / "suite.json").exists(), "pictures are never left with the scores of others"


def test_other_prompts_are_other_scores(tmp_path: Path):
    class Lengths(torch.nn.Module):
        def forward(self, images, captions):
            return torch.tensor([float(len(caption)) for caption in captions])

    folder = drawing.begin(tmp_path, "real", "identity")
    Image.new("RGB", (8, 8)).save(folder / file_name(0, 0))
    for text in ("a", "abc"):
        found = drawing.scores(folder, [Prompt(text, "c", "g")], 1, Lengths(), {}, 4, torch.device("cpu"))
        assert found == [[len(text)]]


def test_names_are_no_markup_on_the_screen():
    rows = grouped([Prompt("a", "[red]c", "g")], {"one[/]": [[1.0]]}, "score/toy")
    console = Console(width=200)
    with console.capture() as shown:
        console.print(table_of(rows))
    assert "[red]c" in shown.get() and "one[/]" in shown.get()


def test_pictures_do_not_depend_on_the_batch(runs: Path, tmp_path: Path):
    model, prompts = load_drawer(runs / "one"), read_prompt_set(runs / "set.csv")
    jobs = [(place, number) for place in range(3) for number in range(2)]
    for size in (1, 6):
        tree, _ = asked(runs, tmp_path, "x", f"batch_size={size}")
        sampling = drawing.sampling_of(model, {**tree, "guidance": None})
        where, path = tmp_path / str(size), str(runs / "one")
        counts = drawing.draw(model, path, sampling, prompts, jobs, where, tree, torch.device("cpu"))
        assert list(counts) == [size] * (6 // size)
        assert sample.main([f"again={where / file_name(2, 1)}", f"out={where}"]) == 0, "as its recipe says"
    for job in jobs:
        files = [tmp_path / size / file_name(*job) for size in "16"]
        one, other = (torch.tensor(list(Image.open(file).getdata())) for file in files)
        assert (one - other).abs().max() <= 1, "rounded to 8 bits"
    assert drawing.missing(tmp_path / "1", [*jobs, (3, 0)]) == [(3, 0)]


@pytest.mark.parametrize(
    ("models", "words", "problem"),
    [
        ("[]", [], r"models=\[\]: at least one model"),
        ("{runs}/label", [], "models: label reads no prompt; its conditions are label"),
        ("[{runs}/one,{runs}/one]", [], "models: one: two are called that"),
        ("{runs}/one", ["guidance.scale=1e200"], r"guidance\.scale"),
        ("{runs}/one", ["use_conditions=[]"], "models: one reads no prompt; it has no conditions that are used"),
        ("{runs}/one", ["prompts=/nowhere.csv"], "prompts=/nowhere.csv: no such file"),
        ("[{runs}/one,{runs}/none]", [], "none: no such run"),
        ("{runs}/one", ["alignment.path=/nowhere"], "/nowhere"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_anything_is(runs, tmp_path, monkeypatch, models, words, problem):
    monkeypatch.setattr(Model, "generate", lambda *_: pytest.fail("drawn"))
    with pytest.raises((UserError, OSError), match=problem):
        suite.prompt_suite(*asked(runs, tmp_path / "out", models.format(runs=runs), *words))
    assert not (tmp_path / "out").exists()


def test_files_of_others_are_left_alone(runs: Path, tmp_path: Path):
    (tmp_path / "images" / "one").mkdir(parents=True)
    (tmp_path / "images" / "one" / "holiday.png").touch()
    with pytest.raises(UserError, match="has files of another kind, which stay"):
        suite.prompt_suite(*asked(runs, tmp_path, f"{runs}/one"))
    assert (tmp_path / "images" / "one" / "holiday.png").exists()


# Numbers


def test_intervals_are_over_prompts_and_differences_are_paired():
    prompts = [Prompt(f"{n}", f"c{n % 2}", "g") for n in range(40)]
    generator = torch.Generator().manual_seed(0)
    hard = torch.randn(40, generator=generator)
    found = {
        "base": [[value, value] for value in hard.tolist()],
        "better": [[value + 0.1, value + 0.1] for value in hard.tolist()],
    }
    rows = {(row["name"], row["model"]): row for row in grouped(prompts, found, "clip_score/toy")}
    base, better = rows["all", "base"], rows["all", "better"]
    error = hard.std().item() / 40**0.5
    assert base["high"] - base["low"] == pytest.approx(2 * 1.96 * error, rel=0.1), "pictures of a prompt are no prompts"
    assert better["low"] < base["clip_score/toy"] < better["high"], "the difference is hidden in the means"
    assert (better["difference_low"], better["difference_high"]) == pytest.approx((0.1, 0.1)) and base[
        "difference"
    ] == ""
    assert list(parts(prompts)) == [("all", "all"), ("group", "g"), ("category", "c0"), ("category", "c1")]
