"""Ensembles: members tile the noise, the manifest is checked against what it names, routing goes by sigma."""

import math
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from toys import t5_folder
from untrained import untrained_run

from ldm.checkpoint import weights
from ldm.conditioners import t5
from ldm.config import dump
from ldm.data.seals import SEAL, seal_of
from ldm.ensemble import WHOLE, load_ensemble, share, write_manifest
from ldm.ensemble_model import Ensemble
from ldm.loading import load, load_drawer, trained_on
from ldm.model import Model, load_model

PER_CONDITION = "ldm.diffusion.guidance.PerCondition"
LOW, HIGH = [(0.0, 1.0)], [(1.0, math.inf)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Untrained runs: the whole of the noise, its halves, its upper quarter. Not to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    parts = {"base": "node=[0,0]", "low": "node=[1,0]", "high": "node=[1,1]", "top": "node=[2,3]"}
    parts["upper"] = "interval={quantile:[0.5,null]}"
    return {
        name: untrained_run(folder / name, f"expert.{part}", seed=place)
        for place, (name, part) in enumerate(parts.items())
    }


LABELS, NUMBERS = {"label": torch.tensor([0, 3])}, torch.tensor([0, 1])


def answer(model: Model | Ensemble, sigma: float, scale: float = 1.0) -> torch.Tensor:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * sigma
    with torch.no_grad():
        return model.guided(model.sampling({}).with_scale(scale), LABELS, 2)(x, torch.full((2,), sigma))


def cut_of(manifest: dict) -> float:
    return manifest["members"][0]["intervals"][0][1]


# Who serves what


def test_members_serve_what_they_were_trained_for():
    assert share([LOW, HIGH]) == [LOW, HIGH]
    assert share([WHOLE]) == [WHOLE]


def test_one_member_trained_on_everything_serves_what_the_others_leave():
    middle = [(1.0, 2.0)]
    assert share([WHOLE, middle]) == [[(0.0, 1.0), (2.0, math.inf)], middle]
    assert share([HIGH, WHOLE]) == [HIGH, LOW]
    assert share([WHOLE, LOW, HIGH]) == [[], LOW, HIGH]
    assert share([WHOLE, WHOLE]) == [WHOLE, WHOLE], "two of them overlap, which the cover refuses"


# The manifest


def test_the_manifest_says_who_is_who(runs, tmp_path):
    manifest = write_manifest(tmp_path / "e.yaml", [runs["low"], runs["high"]])
    assert yaml.safe_load((tmp_path / "e.yaml").read_text()) == manifest
    low, high = manifest["members"]
    assert low["intervals"][0][0] == 0.0 and high["intervals"][-1][1] == math.inf
    assert low["intervals"][0][1] == high["intervals"][0][0] == pytest.approx(math.exp(-0.507))
    assert (tmp_path / low["run"]).samefile(runs["low"]) and not Path(low["run"]).is_absolute()
    assert (low["step"], low["samples_seen"]) == (1, 64)
    assert len(low["sha256"]) == 64 and low["weights"] == "step_00000001.ema.safetensors"


def test_what_it_was_trained_on_is_what_its_member_for_the_highest_noise_was(runs, tmp_path):
    high = untrained_run(tmp_path / "high", "expert.node=[1,1]", "data.max_samples=7")
    manifest = tmp_path / "e.yaml"
    for members in ([runs["low"], high], [high, runs["low"]]):
        write_manifest(manifest, members)
        assert trained_on(manifest).max_samples == load_drawer(manifest).data.max_samples == 7
    empty = {"members": []}
    manifest.write_text(dump({**empty, SEAL: seal_of(empty)}))
    with pytest.raises(ValueError, match=r"e\.yaml: names no members"):
        trained_on(manifest)


def test_an_interval_in_another_unit_fits_the_node_beside_it(runs, tmp_path):
    manifest = write_manifest(tmp_path / "e.yaml", [runs["low"], runs["upper"]])
    assert manifest["members"][1]["intervals"][0][0] == cut_of(manifest)


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        (["low", "top"], "gap, no member is for sigma in"),
        (["high"], r"gap, no member is for sigma in \[0,"),
        (["low", "high", "top"], "overlap, members 1 and 2"),
        (["base", "base"], "overlap, members 0 and 1"),
        ([], "name at least one run"),
    ],
)
def test_a_gap_or_an_overlap_is_refused(runs, tmp_path, members, problem):
    with pytest.raises(ValueError, match=f"members: {problem}"):
        write_manifest(tmp_path / "e.yaml", [runs[name] for name in members])
    assert not (tmp_path / "e.yaml").exists()


def test_a_run_that_has_not_finished_is_refused(runs, tmp_path):
    unfinished = untrained_run(tmp_path / "unfinished", finished=False)
    with pytest.raises(ValueError, match="unfinished has not finished training"):
        write_manifest(tmp_path / "e.yaml", [runs["base"], unfinished])


def test_members_of_other_latent_spaces_are_refused(runs, tmp_path):
    other = untrained_run(tmp_path / "other", "expert.node=[1,1]")
    latent = weights.load(other).metadata["latent"]
    weights.amend(other / "weights", {"latent": {**latent, "fingerprint": "another"}})
    with pytest.raises(ValueError, match=r"low and other have different first stages; .*fingerprint is 'another'"):
        write_manifest(tmp_path / "e.yaml", [runs["low"], other])


def test_a_manifest_without_a_kind_is_of_experts_and_another_kind_is_refused_by_name(runs, tmp_path):
    manifest = write_manifest(tmp_path / "e.yaml", [runs["base"]])
    assert manifest.pop("kind") == "experts"
    del manifest["seal"]
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(manifest))
    assert isinstance(load(tmp_path / "old.yaml"), Ensemble)
    (tmp_path / "new.yaml").write_text(yaml.safe_dump({**manifest, "kind": "tokens"}))
    with pytest.raises(ValueError, match=r"new\.yaml: kind 'tokens' is not known here; there are experts, cascade"):
        load(tmp_path / "new.yaml")
    (tmp_path / "new.yaml").write_text(yaml.safe_dump({**manifest, "kind": ["experts"]}))
    with pytest.raises(ValueError, match=r"new\.yaml: kind .*is not known here"):
        load(tmp_path / "new.yaml")
    manifest["members"][0]["run"] = "~nobody-of-that-name/run"
    (tmp_path / "new.yaml").write_text(yaml.safe_dump(manifest))
    with pytest.raises(ValueError, match=r"nobody-of-that-name.*no such weights"):
        load(tmp_path / "new.yaml")


# The model


def test_each_member_answers_for_its_noise(runs, tmp_path):
    cut = cut_of(write_manifest(tmp_path / "e.yaml", [runs["low"], runs["high"]]))
    ensemble, low, high = load(tmp_path / "e.yaml"), load_model(runs["low"]), load_model(runs["high"])
    assert ensemble.name == "e" and len(ensemble.weights) == 2
    for sigma in (0.002, 0.9 * cut):
        assert torch.equal(answer(ensemble, sigma), answer(low, sigma))
    for sigma in (cut, 1.1 * cut, 80.0):
        assert torch.equal(answer(ensemble, sigma), answer(high, sigma))
    assert not torch.equal(answer(low, cut), answer(high, cut))


def test_a_base_fills_in_and_an_ensemble_of_one_is_that_one(runs, tmp_path):
    write_manifest(tmp_path / "filled.yaml", [runs["base"], runs["top"]])
    write_manifest(tmp_path / "one.yaml", [runs["base"]])
    filled, one = load_ensemble(tmp_path / "filled.yaml"), load_ensemble(tmp_path / "one.yaml")
    base, top = load_model(runs["base"]), load_model(runs["top"])
    for sigma in (0.01, 0.5, 20.0):
        assert torch.equal(answer(one, sigma), answer(base, sigma))
        assert torch.equal(answer(filled, sigma), answer(top if sigma == 20 else base, sigma))


def test_an_ensemble_samples_like_any_model(runs, tmp_path):
    write_manifest(tmp_path / "e.yaml", [runs["low"], runs["high"]])
    model = load(tmp_path / "e.yaml")
    sampling = model.sampling({"sampler": None, "sigmas": None, "guidance": None, "num_steps": 4})
    image = model.generate(sampling, {"label": torch.tensor([1, 2])}, torch.tensor([0, 1]), seed=0)
    assert image.shape == (2, 3, 8, 8) and image.isfinite().all()


def test_tampered_weights_are_refused(runs, tmp_path):
    own = untrained_run(tmp_path / "own", "expert.node=[1,1]")
    write_manifest(tmp_path / "e.yaml", [runs["low"], own])
    file = own / "weights" / "step_00000001.ema.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        load_ensemble(tmp_path / "e.yaml")


def test_weights_that_changed_since_are_refused(runs, tmp_path):
    untrained_run(tmp_path / "own", "expert.node=[1,1]")
    write_manifest(tmp_path / "e.yaml", [runs["low"], tmp_path / "own"])
    (tmp_path / "own").rename(tmp_path / "before")
    untrained_run(tmp_path / "own", "expert.node=[1,1]", seed=9)
    with pytest.raises(ValueError, match=r"not the weights .* was written for; write the manifest anew"):
        load_ensemble(tmp_path / "e.yaml")


def test_members_may_follow_the_newest_weights_of_their_runs(runs, tmp_path):
    own = untrained_run(tmp_path / "own", "expert.node=[1,1]")
    for name, follow in (("pinned", None), ("newest", "newest")):
        write_manifest(tmp_path / f"{name}.yaml", [runs["low"], own], follow=follow)
    first = load_ensemble(tmp_path / "newest.yaml")
    description = weights.load(own).metadata
    state = {name: tensor + 1 for name, tensor in weights.load(own).state.items()}
    facts = {key: description[key] for key in ("intervals", "latent", "samples_seen")}
    weights.save(own / "weights", 2, {"ema": state, "raw": state}, facts)
    newest, pinned = load_ensemble(tmp_path / "newest.yaml"), load_ensemble(tmp_path / "pinned.yaml")
    assert newest.weights[1].path.name == "step_00000002.ema.safetensors"
    assert not torch.equal(answer(newest, 20.0), answer(first, 20.0))
    assert torch.equal(answer(pinned, 20.0), answer(first, 20.0)), "the weights of then, while they are there"
    assert trained_on(tmp_path / "newest.yaml") is not None
    weights.save(own / "weights", 3, {"ema": state}, {**facts, "intervals": LOW})
    with pytest.raises(ValueError, match=r"gives own the noise .* but it was trained for"):
        load_ensemble(tmp_path / "newest.yaml")
    with pytest.raises(ValueError, match="follow=last: members are the weights of now"):
        write_manifest(tmp_path / "e.yaml", [own], follow="last")


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_members_have_trained_conditioners_of_their_own(runs, tmp_path, scale):
    """Other embeddings, of another width, heard in another slot."""
    words = ["conditioner.label.width=6", "conditioner.label.slot=tokens", "network.attention_factors=[1]"]
    other = untrained_run(tmp_path / "other", "expert.node=[1,1]", *words, shared=7)
    cut = cut_of(write_manifest(tmp_path / "e.yaml", [runs["low"], other]))
    ensemble, low, high = load(tmp_path / "e.yaml"), load_model(runs["low"]), load_model(other)
    for sigma in (0.01, 0.9 * cut):
        assert torch.equal(answer(ensemble, sigma, scale), answer(low, sigma, scale))
    for sigma in (cut, 20.0):
        assert torch.equal(answer(ensemble, sigma, scale), answer(high, sigma, scale))
    mixed, sampling = torch.tensor([0.1, 20.0]), ensemble.sampling({}).with_scale(scale)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        each = [model.guided(sampling, LABELS, 2)(x, mixed) for model in (ensemble, low, high)]
    torch.testing.assert_close(each[0], torch.stack([each[1][0], each[2][1]]))
    assert ensemble.generate(sampling, LABELS, NUMBERS, seed=0).isfinite().all()


def test_a_member_may_lack_a_condition_and_is_then_not_guided_by_it(runs, tmp_path):
    free = untrained_run(tmp_path / "free", "expert.node=[1,0]", "conditioner=[]")
    cut = cut_of(write_manifest(tmp_path / "e.yaml", [free, runs["high"]]))
    ensemble, low, high = load(tmp_path / "e.yaml"), load_model(free), load_model(runs["high"])
    assert torch.equal(answer(ensemble, 0.9 * cut, 3.0), answer(low, 0.9 * cut))
    assert torch.equal(answer(ensemble, cut, 3.0), answer(high, cut, 3.0))
    sampling = ensemble.sampling({"guidance": {"_target_": PER_CONDITION, "scales": {"label": 3.0}}})
    x, cold = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.full((2,), 0.01)
    assert torch.equal(ensemble.guided(sampling, LABELS, 2)(x, cold), low.guided(low.sampling({}), {}, 2)(x, cold))
    assert ensemble.left_out(sampling) == {"label"} and ensemble.missing({}, sampling) == {"label": "label"}
    assert not ensemble.missing({}, ensemble.sampling({"use_conditions": []}))
    with pytest.raises(ValueError, match=r"guidance\.scales: no condition text"):
        ensemble.left_out(ensemble.sampling({"guidance": {"_target_": PER_CONDITION, "scales": {"text": 3.0}}}))
    with pytest.raises(ValueError, match="use_conditions: no condition text; the conditions of this model: label"):
        ensemble.sampling({"use_conditions": ["text"]})


def test_the_process_is_that_of_the_member_that_the_ladder_begins_in(runs, tmp_path):
    flow = untrained_run(tmp_path / "flow", "expert.node=[1,1]", "schedule=flow", "precond=flow")
    write_manifest(tmp_path / "e.yaml", [runs["low"], flow])
    ensemble = load(tmp_path / "e.yaml")
    short = {"sigmas": {"_target_": "ldm.diffusion.sigmas.given", "levels": [0.3, 0.1, 0.0]}}
    assert type(ensemble.sampling({}).schedule).__name__ == "Flow"
    assert type(ensemble.sampling(short).schedule).__name__ == "VE"
    assert ensemble.generate(ensemble.sampling({}), LABELS, NUMBERS, seed=0).isfinite().all()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["image_size=16"], "image_size is 8 in low and 16 in other"),
        (["conditioner.label.num_classes=6"], r"conditioner\.label\.num_classes is 5 in low and 6 in other"),
    ],
)
def test_members_that_are_not_one_model_are_refused(runs, tmp_path, words, problem):
    other = untrained_run(tmp_path / "other", "expert.node=[1,1]", *words)
    with pytest.raises(ValueError, match=f"members: {problem}"):
        write_manifest(tmp_path / "e.yaml", [runs["low"], other])
    manifest = write_manifest(tmp_path / "e.yaml", [runs["low"], runs["high"]])
    found = weights.load(other)
    intervals = found.metadata["intervals"]
    manifest["members"][1] |= {"run": str(other), "sha256": found.digest, "intervals": intervals}
    del manifest["seal"]
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(manifest))
    with pytest.raises(ValueError, match=f"members: {problem}"):
        load_ensemble(tmp_path / "e.yaml")


def test_members_of_other_encoders_are_refused(tmp_path):
    words = [
        "conditioner=[t5]", "conditioner.t5.max_tokens=6", "conditioner.t5.dtype=fp32", "network.attention_factors=[1]"
    ]  # fmt: skip
    same, other = (Path(shutil.copytree(t5_folder(), tmp_path / name)) for name in ("same", "other_words"))
    weight = load_file(other / "model.safetensors")
    save_file({name: value + 1 for name, value in weight.items()}, other / "model.safetensors", {"format": "pt"})
    places = {"low": (t5_folder(), [1, 0]), "high": (same, [1, 1]), "misread": (other, [1, 1])}
    low, high, misread = (
        untrained_run(tmp_path / name, *words, f"conditioner.t5.path={at}", f"expert.node={node}".replace(" ", ""))
        for name, (at, node) in places.items()
    )
    write_manifest(tmp_path / "e.yaml", [low, high])
    load_ensemble(tmp_path / "e.yaml")
    with pytest.raises(ValueError, match=r"members: conditioner\.t5 of low and misread are different encoders"):
        write_manifest(tmp_path / "other.yaml", [low, misread])
    shutil.rmtree(same)
    other.rename(same)
    t5._find.cache_clear()
    with pytest.raises(ValueError, match=r"members: conditioner\.t5 of low and high are different encoders"):
        load_ensemble(tmp_path / "e.yaml")


def test_members_may_have_other_parametrisations_and_networks(runs, tmp_path):
    words = ["precond=v", "schedule.c_noise_scale=1", "network.channels=8", "conditioner.label.drop_prob=0"]
    other = untrained_run(tmp_path / "other", "expert.node=[1,1]", *words)
    write_manifest(tmp_path / "e.yaml", [runs["low"], other])
    model = load_ensemble(tmp_path / "e.yaml")
    assert torch.equal(answer(model, 20.0), answer(load_model(other), 20.0))
    with pytest.raises(ValueError, match=r"other of e: guidance\.scale=3: .*label\.drop_prob=0"):
        model.left_out(model.sampling({}).with_scale(3.0))


def test_a_manifest_with_a_gap_written_by_hand_is_refused(runs, tmp_path):
    manifest = write_manifest(tmp_path / "e.yaml", [runs["low"], runs["high"]])
    manifest["members"][0]["intervals"] = [[0.0, 0.1]]
    del manifest["seal"]  # as one who writes by hand
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(manifest))
    with pytest.raises(ValueError, match=r"gap, no member is for sigma in \[0\.1,"):
        load_ensemble(tmp_path / "e.yaml")


def test_intervals_that_were_exchanged_or_changed_are_refused(runs, tmp_path):
    manifest = write_manifest(tmp_path / "e.yaml", [runs["low"], runs["high"]])
    low, high = manifest["members"]
    low["intervals"], high["intervals"] = high["intervals"], low["intervals"]
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(manifest))
    with pytest.raises(ValueError, match=r"e\.yaml: edited or damaged since it was written"):
        load_ensemble(tmp_path / "e.yaml")
    del manifest["seal"]  # as it was written before there were seals
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(manifest))
    with pytest.raises(ValueError, match=r"e\.yaml: gives low the noise .* but it was trained for "):
        load_ensemble(tmp_path / "e.yaml")


def test_a_manifest_follows_members_that_were_moved(runs, tmp_path):
    manifest = write_manifest(tmp_path / "e.yaml", [runs["low"], runs["high"]])
    shutil.copytree(runs["high"], tmp_path / "moved")
    manifest["members"][1]["run"] = str(tmp_path / "moved")
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(manifest))
    load_ensemble(tmp_path / "e.yaml")


@pytest.mark.parametrize(
    "text",
    ["", "text", "[1]", "members: 3", "members: []", "members: [{run: a}]", "members: {a: b}", "a: [",
     "members: [{run: [a], weights: w, sha256: s, intervals: []}]",
     "members: [{run: a, weights: w, sha256: s, intervals: [[0, x]]}]",
     "members: [{run: a, weights: w, sha256: s, intervals: [[0]]}]",
     "members: !!python/object/apply:os.system [echo]"],
)  # fmt: skip
def test_what_is_no_manifest_is_refused(tmp_path, text):
    (tmp_path / "e.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"e\.yaml: (not an ensemble's manifest|names no members)"):
        load_ensemble(tmp_path / "e.yaml")


def test_a_manifest_cannot_name_a_file_outside_the_weights_folder(runs, tmp_path):
    manifest = write_manifest(tmp_path / "e.yaml", [runs["base"]])
    manifest["members"][0]["weights"] = "../../../etc/passwd"
    del manifest["seal"]
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(manifest))
    with pytest.raises(ValueError, match=r"weights.passwd: no such weights|no weights found"):
        load_ensemble(tmp_path / "e.yaml")


def test_a_manifest_takes_the_place_of_nothing_but_a_manifest(runs: dict[str, Path], tmp_path: Path):
    run = Path(shutil.copytree(runs["base"], tmp_path / "base"))
    before = sorted(path.name for path in run.iterdir())
    for out in (run, run / "config.yaml", tmp_path / "ensemble"):
        with pytest.raises(ValueError, match=r"^out=.*manifest"):
            write_manifest(out, [run])
    assert sorted(path.name for path in run.iterdir()) == before and load(run).name == "base"
    for _ in range(2):
        write_manifest(tmp_path / "ensemble.yaml", [run])
