"""Studies of people's judgement: the pairs, the page, the answers, and what is said of them."""

import base64
import io
import json
import random
import re
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from test_report import CUT, Browser

from ldm.config import compose
from ldm.study.answers import Answer, read_answers, read_key
from ldm.study.export import export_study
from ldm.study.intervals import bootstrap_mean, wilson
from ldm.study.judged import agreement, correlations, shares
from ldm.study.names import INDEX, file_name
from ldm.study.pairs import planned
from ldm.study.prompt_set import Prompt
from ldm.study.results import import_study

MODELS = {"real": 1, "one": 2, "other": 2}  # pictures of a prompt
PROMPTS = [Prompt(f"thing {n} </script>", f"kind {n % 5}", f"group {n % 5 // 3}") for n in range(20)]


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What scripts/prompt_suite.py leaves, with pictures of noise."""
    folder, generator = tmp_path_factory.mktemp("suite"), random.Random(0)
    for model, count in MODELS.items():
        (folder / "images" / model).mkdir(parents=True)
        for place in range(len(PROMPTS)):
            for number in range(count):
                side = 12 if model == "real" else 8
                image = Image.frombytes("RGB", (side, side), generator.randbytes(3 * side * side))
                image.save(folder / "images" / model / file_name(place, number))
    scores = {model: [[generator.random()] * count for _ in PROMPTS] for model, count in MODELS.items()}
    listed = [{"prompt": each.prompt, "category": each.category, "group": each.group} for each in PROMPTS]
    (folder / INDEX).write_text(json.dumps({"metric": "clip_score/toy", "prompts": listed, "scores": scores}))
    return folder


def study(suite: Path, folder: Path, *words: str) -> dict:
    export_study(compose("study_export", [f"suite={suite}", f"out={folder}", *words]))
    return read_key(folder)


def rated(key: dict, skill: float, seed: int, rater: str = "a") -> list[dict]:
    """Answers of somebody who takes the real picture, and else that of `one`, with probability `skill`."""
    generator, rows = random.Random(seed), []
    for pair in key["pairs"]:
        wanted = next(name for name in ("real", "one") if name in (pair["left"]["model"], pair["right"]["model"]))
        good = generator.random() < skill
        side = next(side for side in ("left", "right") if (pair[side]["model"] == wanted) == good)
        rows.append({"id": pair["id"], "choice": side, "seconds": 1.5})
    return rows


def saved(file: Path, key: dict, rows: object, rater: object, change: dict | None = None) -> Path:
    file.write_text(json.dumps({"study": key["study"], "rater": rater, "answers": rows, **(change or {})}))
    return file


def answers(key: dict, skill: float, seed: int, rater: str = "a") -> list[Answer]:
    pairs = {pair["id"]: pair for pair in key["pairs"]}
    return [Answer(rater, pairs[row["id"]], row["choice"], 1.0) for row in rated(key, skill, seed)]


# Pairs


@pytest.mark.parametrize("seed", range(3))
def test_pairs_are_balanced_and_none_is_there_twice(seed: int):
    tasks = ["real", "better", "text"]
    pairs = planned(PROMPTS, MODELS, tasks, 30, seed)
    assert Counter(pair.task for pair in pairs) == dict.fromkeys(tasks, 30)
    for task in tasks:
        own = [pair for pair in pairs if pair.task == task]
        met = [frozenset((pair.left.model, pair.right.model)) for pair in own]
        assert len({(pair.place, models) for pair, models in zip(own, met, strict=True)}) == 30
        assert set(Counter(PROMPTS[pair.place].category for pair in own).values()) == {6}
        assert set(Counter(met).values()) <= ({15} if task == "real" else set(range(7, 14))), Counter(met)
        assert max(Counter(pair.place for pair in own).values()) == 2, "all others of the category come first"
        if task == "real":
            assert Counter(pair.left.model == "real" for pair in own) == {True: 15, False: 15}
    assert planned(PROMPTS, MODELS, tasks, 30, seed) == pairs != planned(PROMPTS, MODELS, tasks, 30, seed + 1)


def test_two_tasks_share_no_prompt_while_there_are_others():
    pairs = planned(PROMPTS, MODELS, ["real", "better"], 10, 0)
    assert len({pair.place for pair in pairs}) == 20


@pytest.mark.parametrize("task, most", [("real", 40), ("text", 60)])
def test_as_many_pairs_as_there_are_can_be_shown(task: str, most: int):
    pairs = planned(PROMPTS, MODELS, [task], most, 0)
    assert len({(pair.place, frozenset((pair.left.model, pair.right.model))) for pair in pairs}) == most


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["tasks=[rael]"], "tasks: no task 'rael'; there are real, better, text"),
        (["tasks=[]"], r"tasks=\[\]: at least one of real"),
        (["num_pairs=41"], "num_pairs=41: these prompts and models give 40 pairs of 'real' at most"),
        (["num_pairs=0"], "num_pairs=0"),
        (["models=[one,other]"], "tasks: 'real' needs real pictures"),
        (["models=[one]", "tasks=[better]"], "tasks: 'better' needs two to compare"),
        (["models=[One]"], "models: no One in .*; there are real, one, other"),
        (["seconds=0"], "seconds=0.*how long a pair is seen"),
    ],
)
def test_what_cannot_be_asked_is_named(suite: Path, tmp_path: Path, words, problem):
    with pytest.raises(ValueError, match=problem):
        study(suite, tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_suite_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"suite=.*: no suite\.json in it"):
        study(tmp_path, tmp_path / "out")


# The page


def test_the_page_is_whole_and_does_not_tell_which_is_which(suite: Path, tmp_path: Path):
    key = study(suite, tmp_path / "a", "num_pairs=10")
    text = (tmp_path / "a" / "study.html").read_text()
    content = json.loads(re.search(r'<script type="application/json" id="study">(.*?)</script>', text)[1])
    assert text.count("</script>") == 2, "a prompt ends no script"
    assert not re.findall(r"(?:src|href)=[\"'](?!data:)", text) and "http" not in text.replace(
        "http-equiv", ""
    ).replace("http://www.w3.org/2000/svg", "")
    assert [item["id"] for item in content["items"]] == [pair["id"] for pair in key["pairs"]]
    assert content["items"][0]["prompt"] in {prompt.prompt for prompt in PROMPTS}
    shown = re.sub(r"base64,[\w+/=]+", "", re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL))
    assert "other" not in json.dumps(content["items"]).replace("base64", "") and "score" not in shown
    for item in content["items"]:
        assert item.keys() == {"id", "task", "prompt", "left", "right"}
        for side in ("left", "right"):
            image = Image.open(io.BytesIO(base64.b64decode(item[side].partition("base64,")[2])))
            assert image.size == (8, 8) and not image.info, "neither its size nor what is written in it"
    other = study(suite, tmp_path / "b", "num_pairs=10")
    assert other == key and (tmp_path / "b" / "study.html").read_text() == text, "the same words, the same page"
    assert study(suite, tmp_path / "a", "num_pairs=10") == key
    with pytest.raises(ValueError, match=f"out=.*: has the key of study {key['study']}, which its answers need"):
        study(suite, tmp_path / "a", "num_pairs=10", "seed=1")
    assert read_key(tmp_path / "a") == key


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [None, 0.2])
def test_a_rater_in_a_browser_is_measured_as_good_as_he_is(suite: Path, tmp_path: Path, seconds: float | None):
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    if not executable:
        pytest.skip("no Chromium on this machine")
    skill, words = 0.8, [] if seconds is None else [f"seconds={seconds}"]
    key = study(suite, tmp_path / "study", "num_pairs=40", *words)
    wanted = {row["id"]: row["choice"] for row in rated(key, skill, seed=5)}
    browser = Browser(executable, tmp_path / "profile")

    def press(name: str) -> None:
        for kind in ("keyDown", "keyUp"):
            browser("Input.dispatchKeyEvent", type=kind, key=name, code=name)

    def until(expression: str) -> None:
        deadline = time.monotonic() + 20
        while not browser.evaluate(expression):
            assert time.monotonic() < deadline, expression
            time.sleep(0.01)

    def click(name: str) -> None:
        browser.evaluate(f"document.getElementById('{name}').click(), 0")

    try:
        browser("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
        for width, scheme in ((400, "dark"), (1400, "light")):
            browser.open((tmp_path / "study" / "study.html").as_uri(), width, scheme)
            browser.evaluate("document.getElementById('rater').value = 'Ada L.', 0")
            browser.evaluate("document.getElementById('begin').requestSubmit(), 0")
            for name in ("trial", "end"):
                until(f"!document.getElementById('{name}').hidden")
                assert browser.evaluate(CUT) == [] and browser.evaluate("document.documentElement.scrollWidth") == width
                click("stop" if name == "trial" else "resume")
        for place, pair in enumerate(key["pairs"]):
            until(f"!document.getElementById('trial').hidden && answers.length === {place}")
            if seconds is not None:
                click("next")
            until("open")
            if place == 3 and seconds is None:  # a mistake that is taken back
                press("ArrowLeft")
                until("answers.length === 4")
                press("Backspace")
                until("answers.length === 3 && open")
            if place == 3 and seconds is not None:  # the pictures go, and an answer is taken still
                until("document.getElementById('pair').classList.contains('away')")
            if place == 20:  # closed, and opened again
                browser.open((tmp_path / "study" / "study.html").as_uri(), 1400, "light")
                assert browser.evaluate("document.getElementById('rater').value") == "Ada L."
                click("anew")  # somebody else at the same browser begins with nothing, and takes nothing from the first
                browser.evaluate("document.getElementById('rater').value = 'Bo', 0")
                browser.evaluate("document.getElementById('begin').requestSubmit(), 0")
                assert browser.evaluate("[rater, answers.length].join()") == "Bo,0"
                browser.open((tmp_path / "study" / "study.html").as_uri(), 1400, "light")
                assert browser.evaluate("document.getElementById('go').textContent") == "Begin"
                browser.evaluate("document.getElementById('rater').value = 'Ada L.', 0")
                browser.evaluate("document.getElementById('begin').requestSubmit(), 0")
                if seconds is not None:
                    click("next")
                until("open")
            press({"left": "ArrowLeft", "right": "ArrowRight"}[wanted[pair["id"]]])
        until("!document.getElementById('end').hidden")
        click("save")
        [name] = [f"answers-{key['study']}-Ada-L-.json"]
        deadline = time.monotonic() + 20
        while not (tmp_path / name).exists():
            assert time.monotonic() < deadline, list(tmp_path.iterdir())
            time.sleep(0.05)
        bad = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Network.loadingFailed")
        assert not [event for event in browser.events if event.get("method") in bad]
    finally:
        browser.close()
    found = json.loads((tmp_path / name).read_text())
    assert {row["id"]: row["choice"] for row in found["answers"]} == wanted and found["rater"] == "Ada L."
    rows, _ = import_study(compose("study_import", [f"study={tmp_path / 'study'}", f"answers={tmp_path / name}"]))
    measured = [row for row in rows if row["task"] == "real"] + [
        row for row in rows if (row["model"], row["against"]) == ("real", "all")
    ]
    assert len(measured) == 3 and all(row["low"] <= skill <= row["high"] for row in measured), measured


# Answers


def test_answers_come_back_as_shares(suite: Path, tmp_path: Path, capsys):
    key = study(suite, tmp_path / "study")
    good, bad = (saved(tmp_path / f"{s}.json", key, rated(key, s, 1), rater=f"<{s}>") for s in (1, 0))
    tree = compose("study_import", [f"study={tmp_path / 'study'}", f"answers=[{good},{bad}]"])
    rows, out = import_study(tree)
    assert [(row["model"], row["against"], row["answers"], row["value"]) for row in rows if row["task"] == "real"] == [
        ("one", "real", 40, 0.5), ("other", "real", 40, 0.5),
    ]  # fmt: skip
    text = (out / "index.html").read_text()
    assert "&lt;1&gt;" in text and "<script" not in text and "clip_score/toy" in text and (out / "real.png").exists()
    assert (out / "results.csv").exists() and (out / "correlations.csv").exists()
    alone = shares(read_answers([good], key))[0]
    assert (alone["task"], alone["value"], alone["answers"]) == ("real", 1, 20)


def test_intervals_have_the_skill_as_often_as_they_say(suite: Path, tmp_path: Path):
    key = study(suite, tmp_path / "study", "tasks=[real]")
    rows = [row for seed in range(150) for row in shares(answers(key, 0.8, seed)) if row["level"] == "all"]
    hits = [row["low"] <= 0.8 <= row["high"] for row in rows]
    assert 0.92 < sum(hits) / len(hits) < 0.99


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda rows, key: {"study": "000000000000"}, "answers to study '000000000000', and this is"),
        (lambda rows, key: {"answers": [*rows, rows[0]]}, "pair '.*' is answered twice"),
        (lambda rows, key: {"answers": [{**rows[0], "id": "nobody"}]}, "answer 1 is to 'nobody', which is no pair"),
        (lambda rows, key: {"answers": [{**rows[0], "id": ["a"]}]}, "answer 1 is to .*, which is no pair"),
        (lambda rows, key: {"answers": ["left"]}, "answer 1 is to 'None', which is no pair"),
        (lambda rows, key: {"answers": [{**rows[0], "choice": "both"}]}, "has the choice 'both'; it is left or right"),
        (lambda rows, key: {"answers": [{**rows[0], "choice": ["left"]}]}, "has the choice"),
        (lambda rows, key: {"answers": [{**rows[0], "seconds": float("nan")}]}, "took 'nan' seconds"),
        (lambda rows, key: {"answers": [{**rows[0], "seconds": 10**400}]}, "took '10+' seconds"),
        (lambda rows, key: {"answers": [{**rows[0], "seconds": True}]}, "took 'True' seconds"),
        (lambda rows, key: {"answers": []}, "no answers in it"),
        (lambda rows, key: {"answers": {"a": 1}}, "no answers in it"),
        (lambda rows, key: {"rater": ""}, "'rater' is not a name"),
        (lambda rows, key: {"rater": "a" * 1000}, "'rater' is not a name"),
        (lambda rows, key: {"rater": "first"}, r"'first' has answered in .*first\.json too"),
    ],
)
def test_answers_that_are_not_of_the_study_are_named_and_nothing_is_written(suite, tmp_path: Path, change, problem):
    key = study(suite, tmp_path / "study")
    rows = rated(key, 0.5, 0)
    (tmp_path / "in").mkdir()
    saved(tmp_path / "in" / "first.json", key, rows, "first")
    saved(tmp_path / "in" / "second.json", key, rows, "second", change(rows, key))
    with pytest.raises(ValueError, match=rf"second\.json: .*{problem}"):
        import_study(compose("study_import", [f"study={tmp_path / 'study'}", f"answers={tmp_path / 'in'}"]))
    assert not (tmp_path / "study" / "results").exists()


def test_files_that_are_no_answers_are_named(suite: Path, tmp_path: Path):
    study(suite, tmp_path / "study")
    for content in (b"\xff\xfe\0", b"{", b"[]", b"[" * 100_000):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.json: "):
            import_study(compose("study_import", [f"study={tmp_path / 'study'}", f"answers={tmp_path / 'a.json'}"]))
    (tmp_path / "none").mkdir()
    for given, problem in ((tmp_path / "b.json", "no such file"), (tmp_path / "none", r"no \.json file in it")):
        with pytest.raises((ValueError, OSError), match=problem):
            import_study(compose("study_import", [f"study={tmp_path / 'study'}", f"answers={given}"]))
    with pytest.raises(ValueError, match=r"no key\.json in it"):
        import_study(compose("study_import", [f"study={tmp_path}", f"answers={tmp_path / 'a.json'}"]))


# Numbers


def test_agreement_is_krippendorffs():
    """The example of two observers and ten units in Krippendorff (2011), whose alpha is 0.095."""
    one, other = ("0100000010", "1110010000")
    sides = {"0": "left", "1": "right"}
    rows = [
        Answer(rater, {"id": str(place)}, sides[value], None)
        for rater, values in (("a", one), ("b", other))
        for place, value in enumerate(values)
    ]
    share, alpha = agreement(rows)
    assert share == pytest.approx(0.6) and alpha == pytest.approx(0.095, abs=5e-4)
    assert agreement(rows[:10]) != agreement(rows[:10]), "nothing to agree with: NaN"
    assert agreement(answers_like(rows)) == (1.0, 1.0)


def answers_like(rows: list[Answer]) -> list[Answer]:
    return [Answer(rater, row.pair, row.side, None) for rater in "ab" for row in rows[:10]]


def test_people_who_go_by_the_score_correlate_with_it(suite: Path, tmp_path: Path):
    key = study(suite, tmp_path / "study", "tasks=[real,text]")
    by_score = [
        Answer("a", pair, max(("left", "right"), key=lambda side: pair[side]["score"]), 1.0) for pair in key["pairs"]
    ]
    for row in correlations(by_score):
        assert row["points"] == {"pairs": 40, "categories": 15, "models": 3}[row["level"]] - (
            {"pairs": 0, "categories": 5, "models": 1}[row["level"]] if row["task"] == "real" else 0
        )
        if row["level"] == "models":
            assert row["spearman"] == "" == row["p"] if row["task"] == "real" else row["p"] >= 1 / 3, (
                "so few say little"
            )
        elif row["level"] == "pairs":
            assert row["spearman"] > 0.8 and row["p"] < 1e-3


def test_intervals_are_the_textbooks():
    assert wilson(8, 10) == pytest.approx((0.8, 0.490162, 0.943318), abs=1e-5)
    assert str(bootstrap_mean([0.5])) == "0.500"
    mean, low, high = bootstrap_mean([float(n) for n in range(100)])
    assert mean == 49.5 and low == pytest.approx(49.5 - 5.66, abs=0.3) and high == pytest.approx(49.5 + 5.66, abs=0.3)
