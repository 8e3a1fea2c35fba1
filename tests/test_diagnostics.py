"""Diagnostics of eDiff-I's figures: attention shares are those of the formula, at a cost of nothing to the model."""

import csv
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from toys import clip_folder, text_folder
from untrained import untrained_run

from ldm.config import compose, overriding
from ldm.data.fields import Caption
from ldm.data.making.canvases import CanvasSettings
from ldm.data.module import ShardData
from ldm.diagnostics.attention_record import probabilities, recorded
from ldm.diagnostics.attention_shares import attention_shares
from ldm.diagnostics.caption_lengths import LengthParts
from ldm.diagnostics.composed_set import CATEGORIES, ComposedSet, truth
from ldm.diagnostics.composed_suite import composed_suite
from ldm.diagnostics.condition_curves import condition_curves
from ldm.diagnostics.pictures import held_out
from ldm.diagnostics.prompt_pairs import Pairs
from ldm.diagnostics.prompt_switch import bound, decided, prompt_switch, switched
from ldm.drawer import Drawer
from ldm.ensemble import write_manifest
from ldm.errors import UserError
from ldm.evaluation.stand_ins import NOTE
from ldm.evaluation.yardsticks import Yardsticks
from ldm.generate import drawn, latent_shape
from ldm.loading import load_drawer
from ldm.metrics.features import Features
from ldm.networks.attention import Attention, TransformerBlock
from ldm.report.theme import LIGHT
from ldm.study.prompt_set import read_prompt_set

TEXTS = [
    "conditioner=[text,null_token]", "conditioner.null_token.width=8", "conditioner.null_token.num_tokens=2",
    "network.attention_factors=[1,2]", "network.norm_groups=2", "data.num_workers=0",
    "data.train=data/quickstart/validation-00000.tar",
]  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore:Frechet distance from")
SMALL = ["device=cpu", "num_steps=2", "batch_size=4", "logger.mode=disabled"]


class Pooled(Features):
    """Means of an image's quarters, in the place of a network."""

    name, dim, frechet = "pooled", 12, "fd"

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return F.adaptive_avg_pool2d(images, 2).flatten(1)

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        return features


class Lengths(torch.nn.Module):
    """Agreement of what is seen in an image with how long its caption is, in the place of a network."""

    metric, name = "alignment_score", "lengths"

    def embed_images(self, images: torch.Tensor) -> torch.Tensor:
        return F.normalize(Pooled()(images), dim=1)

    def embed_captions(self, captions: list[str]) -> torch.Tensor:
        return F.normalize(torch.tensor([[len(text) ** (place / 9) for place in range(12)] for text in captions]))

    def forward(self, images: torch.Tensor, captions: list[str]) -> torch.Tensor:
        return (self.embed_images(images) * self.embed_captions(captions)).sum(1)


@pytest.fixture(autouse=True)
def plots_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plot in one theme and width, of four, and small."""

    def drawn(path, height, paint, named=()):
        figure = Figure(dpi=30)
        paint(figure.subplots(), LIGHT)
        figure.savefig(path)
        return path

    for module in ("lines", "plots"):
        monkeypatch.setattr(f"ldm.report.{module}.draw", drawn)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained models that read text: two, two experts with their manifest, and one that reads none."""
    folder, words = tmp_path_factory.mktemp("runs"), [*TEXTS, f"conditioner.text.path={text_folder()}"]
    untrained_run(folder / "one", *words)
    members = [
        untrained_run(folder / f"expert-{n}", f"expert.node=[1,{n}]", *words, shared=n, seed=n) for n in range(2)
    ]
    write_manifest(folder / "both.yaml", members)
    both = ["conditioner=[text,clip_text,null_token]", f"conditioner.clip_text.path={clip_folder()}"]
    untrained_run(folder / "two_texts", *words, *both)
    untrained_run(folder / "label", "conditioner.label.num_classes=9", "conditioner.label.slot=vector")
    return folder


@pytest.fixture(scope="module")
def models(runs: Path) -> dict[str, Drawer]:
    return {name: load_drawer(runs / name) for name in ("one", "both.yaml")}


def asked(root: str, *words: str) -> tuple[dict, list[str]]:
    given = overriding([*SMALL, *([] if root == "composed_suite" else ["resamples=20"]), *words])
    return compose(root, given), given


# Attention


def test_what_was_trained_on_is_what_the_runs_filters_left():
    shards = {"train": "data/quickstart/validation-00000.tar", "validation": "data/quickstart/validation-00000.tar"}
    data = ShardData(
        **shards, image_size=32, batch_size=4, fields={"caption": Caption()}, filters={"values": {"class": ["flags"]}}
    )
    found = {name: held_out(SimpleNamespace(data=data), {"model": "m", "num_samples": 5, "data": name})
             for name in (None, "training", shards["train"])}  # fmt: skip
    assert found[None].num_train == found[shards["train"]].num_train > found["training"].num_train > 5
    captions = next(iter(found["training"].statistics_loader(batch_size=8)))["caption"]
    assert all("flag" in text for text in captions)
    with pytest.raises(ValueError, match=r"^data: no shard nosuch\.tar"):
        held_out(SimpleNamespace(data=data), {"model": "m", "num_samples": 5, "data": "nosuch.tar"})
    data.validation = "gone.tar"
    with pytest.raises(ValueError, match=r"^data\.validation: no shard gone\.tar"):
        held_out(SimpleNamespace(data=data), {"model": "m", "num_samples": 5, "data": None})


def test_shares_are_those_of_each_layers_own_probabilities(runs: Path):
    model = load_drawer(runs / "one")
    batch = {"caption": ["a red heart", "the large blue car"]}
    sampling = model.sampling({"guidance": None}).with_scale(1.0)
    x, sigma = torch.randn(2, 3, 8, 8), torch.tensor([1.0, 1.0])
    expected, own = [], []

    def crossed(module: Attention, args, added):
        position, context = args
        if context.mask is None:
            return
        q, k = (
            part.unflatten(-1, (module.num_heads, -1)).transpose(1, 2)
            for part in (module.to_q(position), module.to_k(context.tokens))
        )
        shown = torch.stack([
            (q[n] @ k[n, :, context.mask[n]].transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)[..., -2:].sum(-1).mean()
            for n in range(2)
        ])  # fmt: skip
        expected.append(shown)

    added = {}
    for block in [module for module in model.denoiser.network.modules() if isinstance(module, TransformerBlock)]:
        for name in ("attn1", "attn2"):
            part = getattr(block, name)
            part.register_forward_hook(crossed)
            part.register_forward_hook(lambda _, __, out, name=name: added.update({name: out.flatten(1).norm(dim=1)}))
        block.register_forward_hook(lambda *_: own.append(added["attn1"] / (added["attn1"] + added["attn2"])))
    with recorded([model]) as record:
        given = model.guided(sampling, batch, 2)
        looked = record.look(given, x, sigma)
        plain = given(x, sigma)
    half = len(own) // 2
    assert len(expected) == len(own) and half > 3, "each of the network's blocks, in both evaluations"
    torch.testing.assert_close(looked.shares["null_token"], torch.stack(expected[:half]).mean(0))
    torch.testing.assert_close(looked.shares["text"] + looked.shares["null_token"], torch.ones(2))
    torch.testing.assert_close(looked.own, torch.stack(own[:half]).mean(0))
    assert torch.equal(plain, model.guided(sampling, batch, 2)(x, sigma)), "nothing of the network is changed"
    assert not model.denoiser.network._forward_hooks and not model.conditioner.parts["text"]._forward_hooks


def test_what_is_masked_has_no_share():
    q, k = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 5, 8)
    mask = torch.tensor([[True] * 5, [True, True, False, True, False]])[:, None, None]
    shown = probabilities(q, k, mask)
    assert not shown[1, :, :, [2, 4]].any() and torch.allclose(shown.sum(-1), torch.ones(2, 3, 4))
    bias = torch.zeros(2, 1, 1, 5).masked_fill(~mask, -torch.inf)
    assert torch.equal(probabilities(q, k, bias), shown), "a bias is added"


@pytest.mark.parametrize("model", ["one", "both.yaml"])
def test_attention_is_told_over_noise_for_noisy_pictures_and_for_a_sampler(runs: Path, tmp_path: Path, model: str):
    words = [f"model={runs}/{model}", f"out={tmp_path}/out", "num_samples=6", "num_levels=3", "guidance.scale=2"]
    rows, folder = attention_shares(*asked("attention_shares", *words))
    assert [row["on"] for row in rows] == ["noisy"] * 3 + ["sampling"] * 2
    assert rows[0]["sigma"] > rows[1]["sigma"] > rows[2]["sigma"] > 0
    assert rows[3]["sigma"] == pytest.approx(rows[0]["sigma"]), "where a sampler begins"
    for row in rows:
        assert row["share/text"] + row["share/null_token"] == pytest.approx(1)
        assert row["block/self"] + row["block/cross"] == pytest.approx(1)
        assert row["share_low/text"] <= row["share/text"] <= row["share_high/text"]
    assert rows[0]["share/text"] != rows[2]["share/text"]
    with (folder / "attention.csv").open() as file:
        assert [float(row["sigma"]) for row in csv.DictReader(file)] == [row["sigma"] for row in rows]
    assert (folder / "attention.png").exists() and (folder / "self_and_cross.png").exists()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["model={runs}/label"], "has no condition that gives tokens"),
        (["model={runs}/one", "at=[]"], r"at=\[\]: noise levels"),
        (["model={runs}/one", "at=[1,0]"], r"at=.*above 0"),
        (["model={runs}/one", "num_levels=1"], "num_levels=1: must be at least 2"),
        (["model={runs}/one", "num_samples=100000"], "num_samples=100000: there are"),
        (["model={runs}/one", "use_conditions=[t5]"], "use_conditions: no condition t5"),
    ],
)
def test_attention_that_cannot_be_looked_at_is_refused_before_anything(runs, tmp_path, words, problem):
    given = [word.format(runs=runs) for word in words]
    with pytest.raises(ValueError, match=problem):
        attention_shares(*asked("attention_shares", *given, f"out={tmp_path}/out"))
    assert not (tmp_path / "out").exists()


# The prompt switched on the way


@pytest.mark.parametrize(
    ("name", "sampler"), [("one", "euler"), ("one", "dpmpp_2m"), ("both.yaml", "heun"), ("both.yaml", "kutta3")]
)
def test_a_switch_below_the_last_step_changes_nothing_and_one_above_the_first_everything(models, name, sampler):
    model = models[name]
    tree = compose("prompt_switch", ["model=x", f"sampler={sampler}", "num_steps=3"])
    sampling = model.sampling({**tree, "guidance": None}).with_scale(2.0)
    numbers = torch.arange(2)
    part = Pairs({"caption": ["a red heart", "a key"]}, ["the blue car", "a green apple"], numbers)
    shape = latent_shape(model.first_stage, model.image_size)

    def images(sigma: float) -> torch.Tensor:
        denoise = switched(*bound(model, sampling, part), sigma)
        return drawn(denoise, model.first_stage, sampling, shape, part.batch, numbers, 7)

    first, second = (
        model.generate(sampling, {"caption": texts}, numbers, 7) for texts in (part.batch["caption"], part.others)
    )
    highest, lowest = sampling.sigmas[0].item(), sampling.sigmas[-2].item()
    assert torch.equal(images(lowest / 100), first) and torch.equal(images(1.001 * highest), second)
    between = images(sampling.sigmas[1].item())
    assert not torch.equal(between, first) and not torch.equal(between, second)
    if sampler == "euler":
        assert torch.equal(images(lowest), first), "at the level of the switch it still is A"


def test_the_switch_is_told_over_sigma(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    alignment = Lengths()
    monkeypatch.setattr("ldm.diagnostics.prompt_switch.instantiate", lambda *_: alignment)
    words = [f"model={runs}/one", f"out={tmp_path}/held_out", "num_samples=6", "num_switches=3", "guidance.scale=2"]
    rows, folder = prompt_switch(*asked("prompt_switch", *words))
    assert [row["steps"] for row in rows] == [100, 50, 0] and rows[0]["sigma"] < rows[1]["sigma"] < rows[2]["sigma"]
    assert rows[0]["rms_to_a"] == rows[2]["rms_to_b"] == 0 < rows[0]["rms_to_b"] == pytest.approx(rows[2]["rms_to_a"])
    key = f"alignment_score_{{}}/{alignment.name}"
    for row in rows:
        assert 1 <= row["rank_a"] <= 12 and 1 <= row["rank_b"] <= 12
        assert -1 <= row[key.format("a")] <= 1
    for name in ("switch.csv", "decided.csv", "switch.png", "ranks.png", "sheet.png"):
        assert (folder / name).exists()
    assert Image.open(folder / "sheet.png").width == 3 * (96 + 6) + 6
    pair = ["prompt=a red heart", "to_prompt=the blue car", "switch=[0.5]", "num_samples=2"]
    [row], folder = prompt_switch(*asked("prompt_switch", words[0], f"out={tmp_path}/pair", *pair))
    assert row["sigma"] == 0.5 and row["rms_to_a"] > 0 < row["rms_to_b"] and row["rank_a"] in (1, 1.5, 2)


def test_what_is_decided_when_is_read_off_the_curve():
    near, far = {"rms_to_a": 1.0, "rms_to_b": 50.0}, {"rms_to_a": 50.0, "rms_to_b": 0.5}
    middle = {"rms_to_a": 20.0, "rms_to_b": 20.0}
    rows = [{"sigma": sigma, "steps": steps, **row} for sigma, steps, row in (
        (0.01, 100.0, near), (0.1, 90.0, near), (1.0, 50.0, middle), (9.0, 20.0, far), (99.0, 0.0, far))]  # fmt: skip
    found = decided(rows)
    assert found == {"by": "rms", "unchanged_sigma": 0.1, "unchanged_steps": 10.0, "changed_sigma": 9.0,
                     "changed_steps": 20.0}  # fmt: skip
    assert decided(rows[2:3])["unchanged_sigma"] is None


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["model={runs}/label"], "reads no prompt"),
        (["model={runs}/one", "prompt=a"], "prompt and to_prompt: both are needed"),
        (["model={runs}/one", "prompt=a", "to_prompt=a"], "to_prompt=a: the same as prompt"),
        (["model={runs}/one", "switch=[0]"], r"switch=.*above 0"),
        (["model={runs}/one", "num_switches=1"], "num_switches=1: must be at least 2"),
        (["model={runs}/one", "num_samples=1"], "num_samples=1: held-out samples of two captions"),
        (["model={runs}/one", "num_samples=1", "data=training"], "num_samples=1: training samples of two captions"),
        (["model={runs}/one", "num_samples=0"], "num_samples=0: must be at least 1"),
    ],
)
def test_a_switch_that_cannot_be_drawn_is_refused_before_anything(runs, tmp_path, words, problem):
    given = [word.format(runs=runs) for word in words]
    with pytest.raises(ValueError, match=problem):
        prompt_switch(*asked("prompt_switch", *given, f"out={tmp_path}/out"))
    assert not (tmp_path / "out").exists()


# Encoders alone and together


def test_captions_are_parted_by_their_words():
    lengths = [2, 3, 3, 5, 9]
    assert LengthParts(lengths, None).names == ["all", "up to 3 words", "from 4 words"]
    parts = LengthParts(lengths, [2, 5])
    assert parts.names == ["all", "up to 2 words", "3 to 5 words", "from 6 words"]
    chosen = torch.stack([chosen for name, chosen in parts.of(torch.tensor(lengths)).items() if name != "all"])
    assert chosen.sum(0).tolist() == [1] * 5 and chosen.sum(1).tolist() == [1, 3, 1]
    assert LengthParts(lengths, []).names == ["all"] == LengthParts([4, 4], None).names
    with pytest.raises(ValueError, match=r"words=.*rise"):
        LengthParts(lengths, [5, 5])


def test_encoders_are_compared_over_guidance_and_by_length(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    yardsticks = Yardsticks(Pooled(), Lengths(), torch.device("cpu"))
    words = [f"model={runs}/two_texts", f"out={tmp_path}/out", "num_samples=24", "scales=[1,3]"]
    given = asked("condition_curves", *words, "batch_size=12")
    rows, folder = condition_curves(*given, yardsticks)
    sets, parts = ["text", "clip_text", "text+clip_text"], list(dict.fromkeys(row["captions"] for row in rows))
    assert parts[0] == "all" and len(parts) == 3
    assert [(row["captions"], row["conditions"], row["scale"]) for row in rows] == [
        (part, name, scale) for part in parts for name in sets for scale in (1.0, 3.0)
    ]
    kid, alignment = (next(name for name in rows[0] if name.startswith(key)) for key in ("kid/", "alignment_score/"))
    counts = {row["captions"]: row["samples"] for row in rows}
    assert counts["all"] == 24 == counts[parts[1]] + counts[parts[2]]
    whole, short, long = (next(row for row in rows if row["captions"] == part) for part in parts)
    shares = [counts[part] / 24 for part in parts[1:]]
    assert whole[alignment] == pytest.approx(shares[0] * short[alignment] + shares[1] * long[alignment])
    assert len({row[kid] for row in rows}) == len(rows), "each set, part and scale is another set of pictures"
    assert {path.name for path in folder.glob("*.png") if path.stem.count(".") == 0} == {
        "sheet.png", *(f"{part.replace(' ', '_')}.png" for part in parts)
    }  # fmt: skip
    monkeypatch.setattr("ldm.diagnostics.condition_curves.make", lambda *_, **__: pytest.fail("measured again"))
    assert condition_curves(*given, yardsticks)[0] == rows


def test_every_figure_of_a_model_with_stand_ins_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    encoder = shutil.copytree(text_folder(), tmp_path / "encoder")
    (encoder / NOTE).write_text("{}")
    both = ["conditioner=[text,clip_text,null_token]", f"conditioner.clip_text.path={clip_folder()}"]
    model = untrained_run(tmp_path / "run", *TEXTS, *both, f"conditioner.text.path={encoder}")
    said: dict[str, str] = {}
    for module in ("lines", "plots"):
        monkeypatch.setattr(f"ldm.report.{module}.label", lambda _axes, _theme, across, up: said.setdefault(up, across))
    monkeypatch.setattr("ldm.diagnostics.prompt_switch.instantiate", lambda *_: Lengths())
    for module in ("prompt_switch", "condition_curves"):
        monkeypatch.setattr(
            f"ldm.diagnostics.{module}.labelled_sheet", lambda path, *given: said.setdefault(str(path), given[-1])
        )
    given = [f"model={model}", "resamples=0"]
    attention_shares(*asked("attention_shares", *given, "num_samples=2", "at=[1]", f"out={tmp_path}/a"))
    prompt_switch(*asked("prompt_switch", *given, "num_samples=3", "num_switches=2", f"out={tmp_path}/b"))
    few = ["num_samples=24", "scales=[1]", "batch_size=12", f"out={tmp_path}/c"]
    yardsticks = Yardsticks(Pooled(), Lengths(), torch.device("cpu"))
    condition_curves(*asked("condition_curves", *given, *few), yardsticks)
    assert len(said) == 2 + 3 + 4, "attention, both kinds; switch, ranks and sheet; three parts of captions and a sheet"
    assert all("stand-ins for published encoders: text" in text for text in said.values())


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["model={runs}/one"], "text of its conditions reads captions, so none can be alone and together"),
        (["model={runs}/two_texts", "use_conditions=[[t5]]"], "use_conditions: no condition t5"),
        (["model={runs}/two_texts", "use_conditions=[[text],[text]]"], "none twice"),
        (["model={runs}/two_texts", "scales=[]"], r"scales=\[\]"),
    ],
)
def test_encoders_that_cannot_be_compared_are_refused_before_anything(runs, tmp_path, words, problem):
    given = [word.format(runs=runs) for word in words]
    with pytest.raises(ValueError, match=problem):
        condition_curves(*asked("condition_curves", *given, f"out={tmp_path}/out"))
    assert not (tmp_path / "out").exists()


# Prompts of composed emoji


@pytest.fixture(scope="module")
def composed() -> ComposedSet:
    return ComposedSet(CanvasSettings(size=(48, 48)), list(CATEGORIES), 4)


def test_prompts_are_captions_of_canvases_that_their_rules_pass(composed: ComposedSet):
    assert [item.category for item in composed.items] == [name for name in CATEGORIES for _ in range(4)]
    assert len({item.prompt for item in composed.items}) == len(composed.items)
    for item in composed.items:
        assert composed.passes(item, truth(item)), item.prompt
        assert all(name in item.prompt for name in item.names)
    by = {name: [item for item in composed.items if item.category == name] for name in CATEGORIES}
    assert [len(item.names) for item in by["counting"]] == [1, 2, 3, 4]
    for item in by["colour"]:
        (one, heart), (other, circle) = (name.split() for name in item.names)
        assert one != other and heart != circle


def test_pictures_that_show_something_else_are_not_passed(composed: ComposedSet):
    by = {name: [item for item in composed.items if item.category == name] for name in CATEGORIES}
    counting, relation = by["counting"], by["relation"][0]
    assert not any(composed.passes(one, truth(two)) for one in counting for two in counting if one is not two)
    mirrored = truth(relation).flip(2 if "of" in relation.prompt.split() else 1)
    assert not composed.passes(relation, mirrored), "the same things the other way round"
    for name in ("colour", "long"):
        blank = torch.full((3, 48, 48), 0.3)
        assert not composed.passes(by[name][0], blank) and not composed.passes(by[name][0], truth(by[name][1]))


def test_models_are_judged_by_category_beside_chance_and_the_truth(
    runs: Path, tmp_path: Path, composed: ComposedSet, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ldm.diagnostics.composed_suite._asked", lambda *_: composed)  # made once
    given = asked("composed_suite", f"models=[{runs}/one,{runs}/both.yaml]", f"out={tmp_path}/out", "batch_size=20")
    rows, folder = composed_suite(*given)
    assert [(row["model"], row["category"]) for row in rows] == [
        (model, name) for model in ("truth", "one", "both") for name in CATEGORIES
    ]
    for row in rows:
        assert row["score_low"] <= row["score"] <= row["score_high"] and row["prompts"] == 4
    assert all(row["score"] == 1 and row["chance"] < 1 for row in rows[:5])
    assert all(row["score"] < 1 for row in rows[5:]), "an untrained model"
    written = read_prompt_set(folder / "set.csv")
    assert [each.prompt for each in written] == [item.prompt for item in composed.items]
    assert all((folder / each.image).exists() for each in written)
    with (folder / "pictures.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 3 * 20
    assert (folder / "composed.csv").exists() and (folder / "sheet.png").exists()
    monkeypatch.setattr("ldm.study.drawing.draw", lambda *_: pytest.fail("drawn again"))
    assert composed_suite(*given)[0] == rows


def test_experts_that_come_and_go_are_told_of_the_same_and_seldom_change(
    runs: Path, tmp_path: Path, composed: ComposedSet, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ldm.diagnostics.composed_suite._asked", lambda *_: composed)
    monkeypatch.setattr("ldm.diagnostics.prompt_switch.instantiate", lambda *_: Lengths())
    opened, yardsticks = [], Yardsticks(Pooled(), Lengths(), torch.device("cpu"))
    for module in ("pictures", "composed_suite"):
        monkeypatch.setattr(
            f"ldm.diagnostics.{module}.load_drawer", lambda *given: opened.append(load_drawer(*given)) or opened[-1]
        )
    few, both = ["num_steps=3", "num_samples=4", "batch_size=2"], f"model={runs}/both.yaml"
    asks = {
        "attention_shares": (attention_shares, [both, *few, "num_levels=2"]),
        "prompt_switch": (prompt_switch, [both, *few, "num_switches=2"]),
        "condition_curves": (
            lambda *given: condition_curves(*given, yardsticks),
            [both, *few, "num_samples=16", "scales=[2]", "use_conditions=[[text]]", "words=[]"],
        ),
        "composed_suite": (composed_suite, [f"models={runs}/both.yaml", "num_steps=3", "batch_size=5"]),
    }
    for name, (job, words) in asks.items():
        rows = {
            mode: job(*asked(name, *words, f"residency={mode}", f"out={tmp_path}/{name}-{mode}"))[0]
            for mode in ("all", "one")
        }
        assert rows["all"] == rows["one"], name
        assert opened[-2].residency == {} and opened[-1].residency["switches"] > 0, name
    assert opened[-1].residency["switches"] == 1, "of 20 prompts in 4 batches"
    with pytest.raises(UserError, match=r"residency=one: .*one has none"):
        attention_shares(*asked("attention_shares", f"model={runs}/one", "residency=one", f"out={tmp_path}/x"))


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["models={runs}/both.yaml", "ema=raw"], "ema=raw: chooses among the weights of a run, and .*both.yaml names"),
        (["models=[]"], r"models=\[\]: at least one"),
        (["models={runs}/label"], "models: label reads no prompt"),
        (["models={runs}/one", "categories=[color]"], "categories=.*choose of colour, counting"),
        (["models={runs}/one", "categories=[long,long]"], r"categories=.*choose of colour, .*, each once"),
        (["models={runs}/one", "split=test"], "split=test: emoji are of train or validation"),
        (["models={runs}/one", "num_prompts=0"], "num_prompts=0: must be at least 1"),
        (["models={runs}/one", "num_prompts=1000000"], "num_prompts=1000000: .*at most 10000"),
        (["models={runs}/one", "size=0"], "size=0x0: height and width of a canvas are"),
        (["models={runs}/one", "size=8"], "size=8x8: height and width of a canvas are"),
    ],
)
def test_composed_prompts_that_cannot_be_drawn_are_refused_before_anything(runs, tmp_path, words, problem):
    given = [word.format(runs=runs) for word in words]
    with pytest.raises(ValueError, match=problem):
        composed_suite(*asked("composed_suite", *given, f"out={tmp_path}/out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("category", ["colour", "spelling"])
def test_a_split_without_names_for_a_category_says_so(category: str):
    with pytest.raises(ValueError, match=f"split=validation have too few names for {category}"):
        ComposedSet(CanvasSettings("validation", (48, 48)), [category], 2)
