"""The quickstart's chain: its pieces, and, slow, the whole of it at toy length with its report."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from toys import tiny

from ldm.build import Parts
from ldm.config import compose
from ldm.evaluation.diversity import mean_distance, of_one_caption
from ldm.evaluation.evaluate import curve_keys
from ldm.evaluation.interval_loss import by_caption, gain
from ldm.evaluation.table import write_csv
from ldm.evaluation.yardsticks import LastRemembered, remembering
from ldm.measuring import conditions
from ldm.metrics.features import Features
from ldm.quickstart import chain as chains
from ldm.quickstart.chain import Chain, Stage
from ldm.quickstart.estimate import REFERENCE, Measured, benchmark, estimate
from ldm.quickstart.numbers import expert_words
from ldm.quickstart.sample_sheet import write_sheet
from ldm.quickstart.samples import _moments, file_name
from ldm.run import settle_precision

ROOT = Path(__file__).resolve().parent.parent
TOY = (
    "max_steps=2 lr.warmup_steps=1 data.max_samples=100 data.validation_samples=16 data.batch_size=8 "
    "callback.checkpoint.every_steps=1 callback.metrics.every_steps=1"
)


def test_conditions_are_whole_batches_that_repeat_the_images_in_order():
    data = Parts(compose("config", tiny("quickstart/autoencoder", Path("runs"), "data.max_samples=5")))["data"]
    batches, numbers = zip(*conditions(data, 12, batch_size=2), strict=True)
    assert torch.cat(numbers).tolist() == list(range(12))
    assert [len(batch["key"]) for batch in batches] == [2, 2, 1, 2, 2, 1, 2]
    keys = [key for batch in batches for key in batch["key"]]
    [all_five] = data.statistics_loader(batch_size=5)
    assert keys == [all_five["key"][place % 5] for place in range(12)]
    assert {"image", *data.fields} <= batches[0].keys()


def test_curve_is_kid_against_alignment_whatever_the_backbones():
    point = {"fid/x": 1.0, "kid/x": 2.0, "kid_std/x": 0.1, "clip_score/ViT": 0.3}
    assert curve_keys(point) == ("kid/x", "clip_score/ViT")


def test_csv_has_one_row_per_point(tmp_path):
    path = write_csv(tmp_path / "deep" / "curve.csv", [{"scale": 1.0, "kid/x": 2.0}, {"scale": 2.0, "kid/x": 3.0}])
    assert path.read_text().splitlines() == ["scale,kid/x", "1.0,2.0", "2.0,3.0"]


# The stages

NODES = "nodes=[[1,0],[1,1]]"


def chain(folder: Path, *words: str) -> Chain:
    return Chain(compose("quickstart", [f"runs_dir={folder}", "logger.mode=disabled", *words]))


@pytest.mark.parametrize(
    ("able", "given", "expected"),
    [(True, None, "bf16-mixed"), (False, None, "32-true"), (True, "32-true", "32-true"), (False, "64-true", "64-true")],
)
def test_runs_are_in_bf16_where_the_processor_computes_in_it(tmp_path, monkeypatch, able, given, expected):
    monkeypatch.setattr("ldm.device.computes_bf16", lambda *_: able)
    made = chain(tmp_path, *([f"precision={given}"] if given else []))
    assert made.precision == expected
    for words in made.commands.values():
        assert settle_precision(compose("config", words), "x")["trainer"]["precision"] == expected


def test_times_of_a_stage_add_up_over_restarts(tmp_path):
    for _ in range(2):
        with chain(tmp_path)._timed("stage"):
            pass
    kept = json.loads((tmp_path / "quickstart" / "times.json").read_text())
    assert list(kept) == ["stage"]
    assert kept["stage"] > 0


@pytest.mark.parametrize("family", ["quickstart", "quickstart_experts"])
def test_control_is_the_experts_recipe_for_the_sum_of_their_steps(tmp_path, family):
    made = chain(tmp_path, f"family={family}", NODES)
    trees = {run: compose("config", words) for run, words in made.commands.items()}
    expert, control = trees[made.experts[0]], trees[made.control]
    assert control["max_steps"] == control["lr"]["max_steps"] == sum(trees[run]["max_steps"] for run in made.experts)
    assert control["expert"]["node"] is None
    for key in ("optimizer", "data", "ema", "branch", "branch_optimizer", "network", "noise"):
        assert control[key] == expert[key], key
    assert {**control["lr"], "max_steps": 0} == {**expert["lr"], "max_steps": 0}
    assert compose("config", [f"experiment={family}/control"])["max_steps"] == control["max_steps"], "the file's own"


def test_families_share_a_first_stage(tmp_path):
    small, experts = chain(tmp_path), chain(tmp_path, "family=quickstart_experts", NODES)
    assert small.commands[small.autoencoder] == experts.commands[experts.autoencoder]
    assert not {small.folder, *small.commands} & {experts.folder, *list(experts.commands)[1:]}


def test_without_experts_there_is_nothing_to_compare(tmp_path, monkeypatch):
    whole = [stage.name for stage in chain(tmp_path, NODES).stages()]
    assert {"expert (1, 0)", "control", "ensemble", "guidance, control", "experts compared"} < set(whole)
    alone = [stage.name for stage in chain(tmp_path).stages()]
    assert alone == ["first stage", "diffusion", "reconstructions", "samples", "guidance, base"]
    (tmp_path / "experiment").mkdir()
    monkeypatch.setattr(chains, "CONF", tmp_path)  # a family without expert.yaml
    assert [stage.name for stage in chain(tmp_path, NODES).stages()] == alone


def test_new_prompts_are_no_captions_but_their_words_are_known():
    data = Parts(compose("config", ["experiment=quickstart/diffusion", "first_stage=x"]))["data"]
    data.setup()
    captions = {text for _, texts in data.peek("caption", data.num_train) for text in texts}
    words = {word for caption in captions for word in caption.split()}
    prompts = compose("quickstart", [])["new_prompts"]
    assert len(prompts) == 6
    for prompt in prompts:
        assert prompt not in captions and set(prompt.split()) <= words, prompt


# The estimate


def test_estimate_leaves_out_what_is_done_and_follows_steps_and_ratio():
    known = {"a": Measured(100, 10), "b": Measured(50), "c": Measured(7)}
    stages = [
        Stage("a", bool, lambda: 0.5, 20),  # half done, twice the steps
        Stage("b", bool, lambda: 1.0),
        Stage("c", bool, lambda: 0.0),
        Stage("never measured", bool, lambda: 1.0),
    ]
    assert estimate(stages, known, 3.0) == {"a": 300.0, "b": 150.0}


def test_every_stage_has_been_measured(tmp_path):
    stages = list(chain(tmp_path).stages())
    assert list(estimate(stages, REFERENCE.families["quickstart"], 1.0)) == [stage.name for stage in stages]


def test_benchmark_measures_a_step(monkeypatch):
    monkeypatch.setattr("ldm.quickstart.estimate.BENCHMARK_SECONDS", 0.0)
    assert 0 < benchmark("32-true") < 10


def test_size_is_small_or_full():
    def make(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["make", "--no-print-directory", "-n", "quickstart", *words], cwd=ROOT, capture_output=True, text=True
        )

    def chains(*words: str) -> list[str]:
        return re.findall(r"quickstart\.py (.+)", make(*words).stdout)

    assert chains("ARGS=seed=1") == ["seed=1"]
    experts = "family=quickstart_experts 'nodes=[[2,0],[2,1]]'"
    assert chains("SIZE=full", "ARGS=seed=1") == ["seed=1", f"{experts} seed=1"]
    refused = make("SIZE=huge")
    assert refused.returncode and "SIZE=huge: choose small or full" in refused.stderr and not refused.stdout
    assert refused.stderr.count("\n") == 1


# What is measured


def test_pictures_of_one_caption_count_once():
    of, over = torch.tensor([1.0, 3.0, 5.0]), torch.tensor([2.0, 3.0, 9.0])
    single = gain(of, over, ["a", "b", "c"])
    again = gain(of.repeat(3), over.repeat(3), ["a", "b", "c"] * 3)
    assert single == pytest.approx(again) and single["captions"] == 3, "three pictures each tell no more than one"
    assert single["gain"] == pytest.approx(5 / 3)
    assert single["half_interval"] == pytest.approx(1.96 * torch.tensor([1.0, 0.0, 4.0]).std().item() / 3**0.5)
    assert by_caption(torch.tensor([1.0, 2.0, 3.0]), ["x", "y", "x"]).tolist() == [2.0, 2.0]


def test_a_gain_within_its_interval_is_none():
    def row(gain_: float, half: float) -> dict:
        of = {"gain": gain_, "half_interval": half, "over": 1.0}
        return expert_words({"node": [1, 0], "sigma": [0.0, 2.0], "parent": of, "control": of})

    assert "beats its parent by 3.00 % ± 1.00, and beats the control" in row(0.03, 0.01)
    assert "cannot be told from its parent" in row(0.03, 0.04) and "beats" not in row(0.03, 0.04)
    assert "is worse than the control by 3.00 %" in row(-0.03, 0.01)
    of = {"gain": 0.03, "half_interval": 0.01, "over": 1.0}
    together = expert_words({"node": None, "sigma": [0.0, math.inf], "parent": of, "control": of})
    assert together.startswith("The ensemble, over all of the noise, beats its parent by 3.00 %")


def squared(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a - b).square().flatten(1).mean(1)


def test_diversity_is_the_mean_of_the_groups_means():
    same = torch.zeros(4, 3, 2, 2)
    two = torch.stack([torch.zeros(3, 2, 2), torch.ones(3, 2, 2)])
    assert mean_distance([same], squared) == 0.0
    assert mean_distance([same, two], squared, batch_size=2) == pytest.approx(0.5)
    assert mean_distance([two[:1]], squared) is None
    images = torch.arange(5.0).reshape(5, 1, 1, 1)
    found = of_one_caption(images, ["a", "b", "a", "b", "c"], 5)
    assert [group.flatten().tolist() for group in found] == [[0.0, 2.0], [1.0, 3.0]]
    assert len(of_one_caption(images, ["a", "b", "a", "b", "c"], 1)) == 1


@pytest.mark.parametrize(("kept", "shown"), [(0, []), (1, [1]), (2, [1, 2]), (4, [1, 2, 3, 4]), (12, [3, 6, 9, 12])])
def test_moments_are_spread_evenly_and_end_with_the_last(tmp_path, kept, shown):
    (tmp_path / "weights").mkdir()
    for step in range(1, kept + 1):
        for ending in ("json", "ema.safetensors"):
            (tmp_path / "weights" / f"step_{step:08d}.{ending}").touch()
    assert list(_moments(tmp_path)) == shown


class Counted(Features):
    name, dim, frechet = "counted", 1, "fd"

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return images.mean((1, 2, 3))[:, None]

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        return features


def test_no_batch_and_no_sentence_is_looked_at_twice():
    features = Counted()
    remembered, images = LastRemembered(features), torch.rand(2, 3, 4, 4)
    assert torch.equal(remembered(images), remembered(images)) and features.calls == 1
    assert not torch.equal(remembered(images + 1), remembered(images)) and features.calls == 3
    asked = []

    def encode(sentences):
        asked.extend(sentences)
        return torch.tensor([[float(len(sentence))] for sentence in sentences])

    encoded = remembering(encode)
    assert encoded(["a", "bb", "a"]).tolist() == [[1.0], [2.0], [1.0]]
    assert encoded(["bb", "ccc"]).tolist() == [[2.0], [3.0]] and asked == ["a", "bb", "ccc"]


def test_sheet_has_all_images_at_their_prompts(tmp_path):
    colors = {(place, seed): (40 * place, 60 * seed, 200) for place in range(6) for seed in range(4)}
    for (place, seed), color in colors.items():
        Image.new("RGB", (8, 8), color).save(tmp_path / file_name(place, seed))
    samples = {"prompts": ["a very long prompt " * 4, *"bcdef"], "seeds": [None] * 4}
    with Image.open(write_sheet(tmp_path / "sheet.png", tmp_path, samples)) as sheet:
        found = dict((color, count) for count, color in sheet.getcolors(1 << 20))
        assert all(found[color] >= 128 * 128 for color in colors.values())
        assert sheet.width > 5 * 256


@pytest.mark.slow
def test_whole_chain_at_toy_length_then_again_from_its_folders(tmp_path):
    command = [
        sys.executable, "scripts/quickstart.py", f"runs_dir={tmp_path}", "num_samples=6", "scales=[1,3]",
        "num_seeds=2", "num_steps=2", "nodes=[[2,1],[1,1]]", f"overrides={TOY}",
    ]  # fmt: skip
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert first.returncode == 0, first.stdout + first.stderr
    family = tmp_path / "quickstart"
    index = family / "report" / "index.html"
    page = index.read_text()
    assert str(index) in first.stdout
    assert first.stdout.index("from here, by a benchmark") < first.stdout.index("[first stage]")
    for image in re.findall(r'src(?:set)?="([^" ]+\.png)', page):
        assert (index.parent / image).exists()
    for words in ("red heart", "blue pizza", "LPIPS", "KID", "How did it learn?", "against a control",
                  "32 samples, as many as the experts together", "the same learning rate", "Expert (2, 1), for sigma",
                  "The ensemble, over all of the noise",                  "Bad samples skipped: none"):  # fmt: skip
        assert words in page
    assert (index.parent / "samples.png").exists()
    lineage = json.loads((tmp_path / "quickstart-expert-1-1" / "lineage.json").read_text())
    assert lineage["parent"]["run"] == "quickstart-diffusion"
    assert lineage["samples_seen_total"] == 2 * 2 * 8
    assert list((tmp_path / "quickstart-diffusion" / "wandb").glob("offline-run-*"))

    def figures() -> dict[Path, str]:
        return {path: path.read_text() for path in family.glob("*/*.json")} | {
            family / "expert_losses.json": (family / "expert_losses.json").read_text()
        }

    weights = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/weights/*.safetensors")}
    before = figures()
    (family / "expert_losses.json").unlink()
    (family / "samples-ensemble" / "samples.json").unlink()
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert second.returncode == 0, second.stdout + second.stderr
    assert weights == {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/weights/*.safetensors")}
    assert figures() == before, "the same to the last digit"
