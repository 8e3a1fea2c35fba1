"""Members of an ensemble that come and go: the same images bit for bit, one expert in memory, one switch a boundary."""

import gc
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from weakref import WeakSet

import pytest
import torch
import yaml
from toys import ROOT
from untrained import untrained_run

import ldm
import sample
import scripts.demo
from ldm import ensemble_model
from ldm.cascade.manifest import write_manifest as write_cascade
from ldm.config import CONF, compose
from ldm.drawer import Drawer
from ldm.ensemble import load_ensemble, write_manifest
from ldm.ensemble_model import Ensemble
from ldm.errors import UserError
from ldm.evaluation.evaluate import evaluate
from ldm.generate import Ask, NotFinite
from ldm.loading import load_drawer, load_stage, residencies
from ldm.measuring import Ranks, make
from ldm.sampling import Sampling, levels_asked
from ldm.turns import Turn, Waiting

SAMPLERS = sorted(path.stem for path in CONF.glob("sampler/*.yaml"))
MODES = ["one", "disk"]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three experts: quarters of the noise below and above, and the half between them. Not to be changed."""
    folder = tmp_path_factory.mktemp("experts")
    parts = {"low": "expert.node=[2,0]", "middle": "expert.exclude=[[2,0],[2,3]]", "high": "expert.node=[2,3]"}
    runs = [
        untrained_run(folder / name, part, seed=place, shared=place) for place, (name, part) in enumerate(parts.items())
    ]
    write_manifest(folder / "e.yaml", runs)
    return folder / "e.yaml"


@pytest.fixture(scope="module")
def models(manifest: Path) -> dict[str, Ensemble]:
    """The ensemble under each residency."""
    return {mode: resident(manifest, mode) for mode in ("all", "one", "disk")}


def resident(path: Path, residency: str | None) -> Ensemble:
    return load_ensemble(path, residency=residency).to("cpu").tuned()


def asks(model: Drawer, count: int = 2, **more: object) -> list[Ask]:
    """Batches of two, other classes and numbers in each, over levels in all three parts of the noise."""
    levels = {"_target_": "ldm.diffusion.sigmas.given", "levels": [20.0, 3.0, 1.0, 0.5, 0.1, 0.0]}
    sampling = model.sampling({"sigmas": levels, **more}).with_scale(2.0)
    return [
        Ask(sampling, {"label": torch.tensor([place, 4 - place])}, torch.tensor([2 * place, 2 * place + 1]), seed=3)
        for place in range(count)
    ]


def switches(model: Ensemble) -> int:
    return model.residency["switches"]


def option(group: str, name: str) -> dict:
    return compose("sample", [f"{group}={name}", "model=x"])[group]


@pytest.mark.parametrize("name", SAMPLERS)
def test_images_are_the_same_bit_for_bit_wherever_members_are(models: dict[str, Ensemble], name: str):
    sampler = option("sampler", name)
    if name == "repaint":
        sampler["num_resamples"] = 2
    whole = [models["all"].generate(*ask) for ask in asks(models["all"], sampler=sampler)]
    each = [models["disk"].generate(*ask) for ask in asks(models["disk"], sampler=sampler)]
    together = [draw() for draw in models["one"].begun(asks(models["one"], sampler=sampler))]
    assert all(map(torch.equal, whole, each)) and all(map(torch.equal, whole, together))


@pytest.mark.parametrize("mode", MODES)
def test_members_that_come_and_go_are_in_bf16_bit_for_bit_as_those_that_stay(manifest: Path, mode: str):
    whole, model = (load_ensemble(manifest, residency=own).to("cpu").tuned(precision="bf16") for own in ("all", mode))
    exact = resident(manifest, mode)
    ask, plain = asks(whole)[0], asks(exact)[0]
    images = whole.generate(*ask)
    assert model.generate(*ask).equal(images) and not exact.generate(*plain).equal(images)
    assert model.residency["peak_bytes"] < 0.7 * exact.residency["peak_bytes"]


@pytest.mark.parametrize("mode", MODES)
def test_the_member_that_is_there_stays_while_its_precision_does(manifest: Path, mode: str):
    model = resident(manifest, mode)
    [ask] = asks(model, 1)
    images, inside = model.generate(*ask), held(model)
    assert inside and held(model.tuned()) == inside, "laid out where it is, not read again"
    assert model.generate(*ask).equal(images)
    assert held(model.tuned(precision="bf16")) < 0.01 * inside, "it comes again in the other precision"


@pytest.mark.parametrize("name", ["heun", "kutta3", "dpmpp_2m"])
def test_all_batches_advance_together_so_that_each_expert_comes_once(manifest: Path, name: str):
    model, sampler = resident(manifest, "one"), option("sampler", name)
    told: list[str] = []
    draws = model.begun(asks(model, 3, sampler=sampler), told.append)
    assert switches(model) == 1, "the last expert comes with the first of the images"
    for draw in draws:
        draw()
    assert switches(model) == 2 and model.residency["switch_seconds"] >= 0
    assert told == [f"{name}, batch {n} of 3" for name in ("high", "middle") for n in (1, 2, 3)]
    for ask in asks(model, 2, sampler=sampler):
        model.generate(*ask)
    assert switches(model) == 2 + 6, "batch after batch, all come again for each"


def test_a_step_across_a_cut_asks_two_experts_and_counts_no_more_switches(models: dict[str, Ensemble]):
    model = models["all"]
    sampling = asks(model, sampler=option("sampler", "kutta3"))[0].sampling
    levels = levels_asked(sampling.sampler, sampling.sigmas)
    owners = [model.member_for(level).name for level in levels]
    assert len(levels) == 3 * 4 + 1, "the last step, into 0, is Euler's"
    assert owners[:3] == ["high"] * 3 and len(set(owners[3:6])) == 2, "from 3.0 over 2.0 to 1.0"
    assert sum(one != other for one, other in pairwise(owners)) == 2


def test_no_more_than_one_expert_is_in_memory(manifest: Path, models: dict[str, Ensemble]):
    whole, model = models["all"], resident(manifest, "one")
    sizes = [sum(p.nbytes for part in (m.denoiser, m.conditioner) for p in part.parameters()) for m in whole.members]
    assert held(model) < 0.01 * sizes[0], "none until the first is asked"
    for draw in model.begun(asks(model)):
        draw()
        assert held(model) <= 1.01 * max(sizes)
    assert max(sizes) <= model.residency["peak_bytes"] < 1.1 * max(sizes)
    assert held(whole) == sum(sizes) and whole.residency == {}


def held(model: Ensemble) -> int:
    """Bytes of memory behind the parameters of all members, each storage counted once."""
    parameters = [p for m in model.members for part in (m.denoiser, m.conditioner) for p in part.parameters()]
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in parameters}
    return sum(storages.values())


def test_an_expert_that_is_not_there_draws_nothing_by_mistake(models: dict[str, Ensemble]):
    model = models["one"].to("cpu")
    with pytest.raises(NotFinite):
        model.members[0].generate(*asks(model)[0])


def test_an_image_that_is_not_finite_is_told_by_its_own_batch(models: dict[str, Ensemble]):
    model = models["one"]
    good, other = asks(model)
    bad = other._replace(sampling=other.sampling.with_scale(1e38))
    draws = model.begun([good, bad, good])
    assert torch.equal(draws[0](), model.generate(*good))
    with pytest.raises(NotFinite):
        draws[1]()


def test_a_file_that_changed_after_loading_is_refused_in_one_line(manifest: Path, tmp_path: Path):
    folder = Path(shutil.copytree(manifest.parent, tmp_path / "copy"))
    model = resident(folder / "e.yaml", "disk")
    file = folder / "low" / "weights" / "step_00000001.ema.safetensors"
    file.write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match=r"low.weights.step_00000001\.ema\.safetensors: was changed since"):
        model.generate(*asks(model)[0])


def test_the_manifest_says_it_unless_asked_and_may_be_edited(manifest: Path, tmp_path: Path):
    folder = Path(shutil.copytree(manifest.parent, tmp_path / "copy"))
    path = folder / "e.yaml"
    write_manifest(path, [folder / name for name in ("low", "middle", "high")], residency="disk")
    assert load_ensemble(path).residency["residency"] == "disk" and load_ensemble(path, residency="all").residency == {}
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "residency": "one"}))
    assert load_ensemble(path).residency["residency"] == "one"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "residency": "two"}))
    with pytest.raises(ValueError, match=r"e\.yaml: residency=two: there are all, one, disk"):
        load_ensemble(path)
    with pytest.raises(ValueError, match=r"^residency=gpu: there are all, one, disk"):
        load_ensemble(manifest, residency="gpu")


def test_sample_says_the_switches_and_the_recipe_has_them(manifest: Path, tmp_path: Path, capsys):
    words = [f"model={manifest}", "label=[0,3]", "num_images=3", "batch_size=2", "num_steps=8", "device=cpu"]
    for mode in ("all", "one"):
        assert sample.main([*words, f"residency={mode}", f"out={tmp_path / mode}"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "; " not in said[0] and "; 2 switches of experts in 0." in said[-1]
    names = sorted(path.name for path in (tmp_path / "all").glob("*.png"))
    assert len(names) == 7
    recipes = [json.loads((tmp_path / mode / "0_0000.json").read_text()) for mode in ("all", "one")]
    assert recipes[0]["pixels"] == recipes[1]["pixels"] and "residency" not in recipes[0]
    assert recipes[1]["residency"]["switches"] == 2 and "residency" not in recipes[1]["options"]
    assert sample.main([f"again={tmp_path / 'one' / '3_0001.png'}", f"out={tmp_path}", "residency=disk"]) == 0
    assert "bit for bit" in capsys.readouterr().out


def test_no_more_batches_of_a_request_wait_in_memory_than_are_asked_for(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    begin, together, waiting, turns = Ensemble.begun, [], [], WeakSet()

    class Seen(Turn):
        def __init__(self) -> None:
            super().__init__()
            turns.add(self)

    def begun(self: Ensemble, asked: Sequence[Ask], *more: object) -> list:
        together.append(len(asked))
        draws = begin(self, asked, *more)
        gc.collect()  # those of before hold each other
        waiting.append(sum(len(each._answers) for each in turns))
        return draws

    monkeypatch.setattr(Ensemble, "begun", begun)
    monkeypatch.setattr(ensemble_model, "Turn", Seen)
    gc.freeze()  # what other tests left is not looked through each time
    words = [f"model={manifest}", "label=[0,3]", "num_images=18", "batch_size=2", "num_steps=8", "device=cpu"]
    found = []
    for own in (["residency=all"], ["residency=one"], ["residency=one", "turns=3"]):
        together.clear()
        waiting.clear()
        assert sample.main([*words, *own, f"out={tmp_path / own[-1]}"]) == 0
        found.append((list(together), list(waiting)))
    said = [line.partition("; ")[2].partition(" in ")[0] for line in capsys.readouterr().out.splitlines()]
    assert said == ["", f"{3 * 3 - 1} switches of experts", f"{3 * 6 - 1} switches of experts"]
    gc.unfreeze()
    (apart, none), (eight, most), (three, few) = found
    assert (apart, eight, three) == ([1] * 18, [8, 8, 2], [3] * 6)
    assert not any(none) and most[0] == most[1] == 4 * most[2] and few == [most[0] * 3 / 8] * 6
    recipes = [json.loads((tmp_path / own / "3_0017.json").read_text()) for own in ("residency=all", "turns=3")]
    assert recipes[0]["pixels"] == recipes[1]["pixels"] and "turns" not in recipes[1]["options"]


def test_turns_are_of_experts_that_come_and_go(manifest: Path, tmp_path: Path):
    for model, turns, problem in (
        (manifest, 3, "^turns=3: is of experts that come and go; residency=one makes them$"),
        (manifest.parent / "low", 3, "^turns=3: is of experts that come and go"),
        (manifest, 0, "^turns=0: must be at least 1$"),
    ):
        with pytest.raises(UserError, match=problem):
            sample.main([f"model={model}", "label=0", f"turns={turns}", "device=cpu", f"out={tmp_path}"])
        with pytest.raises(UserError, match=problem):
            ldm.load(model, device="cpu").sample(label=0, turns=turns)
    assert len(ldm.load(manifest, device="cpu", residency="one").sample(label=0, turns=3, num_steps=2)) == 4


@pytest.mark.parametrize("mode", MODES)
def test_a_model_without_members_refuses_a_residency_that_would_do_nothing(manifest: Path, tmp_path: Path, mode: str):
    run = manifest.parent / "low"
    problem = rf"^residency={mode}: is of an ensemble's members, .*; {run} has none: leave it out$"
    words = [f"model={run}", f"residency={mode}", "device=cpu", f"out={tmp_path / 'out'}"]
    for refused in (
        lambda: sample.main([*words, "label=0"]),
        lambda: evaluate(compose("evaluate", [*words, "num_samples=4"])),
        lambda: ldm.load(run, device="cpu", residency=mode),
        lambda: scripts.demo.main(words),
    ):
        with pytest.raises(UserError, match=problem):
            refused()
    assert not (tmp_path / "out").exists()
    ldm.load(run, device="cpu", residency="all")
    assert residencies([run, manifest], mode) == {run: None, manifest: mode}, "of several models it is theirs that can"


def test_a_cascade_refuses_it_where_no_stage_is_an_ensemble(manifest: Path, tmp_path: Path):
    for name, stage, has in (("plain", manifest.parent / "low", False), ("experts", manifest, True)):
        cascade = tmp_path / f"{name}.yaml"
        write_cascade(cascade, [stage], {}, load_stage)
        if has:
            load_drawer(cascade, residency="one")
        else:
            with pytest.raises(UserError, match=r"^residency=one: .*plain\.yaml has none"):
                load_drawer(cascade, residency="one")


def test_batches_of_an_evaluation_wait_for_each_other_as_many_as_are_asked_for(manifest: Path):
    found = []
    for mode, turns in (("all", 1), ("one", 3), ("one", 1)):
        model = resident(manifest, mode)
        sampling = asks(model)[0].sampling

        def begun(asked: Sequence, model: Ensemble = model, sampling: Sampling = sampling) -> list:
            given = [({"label": batch["label"] % 5}, numbers) for batch, numbers in asked]
            return model.begun([Ask(sampling, *each, seed=0) for each in given])

        model.data.setup()
        made = make(
            lambda *each: begun([each])[0](), model.data, 8, 2, lambda images: images.flatten(1), None,
            Ranks(torch.device("cpu")), begun=begun, turns=turns,
        )  # fmt: skip
        found.append((made, model.residency.get("switches")))
    (every, none), (together, few), (apart, many) = found
    assert torch.equal(every.features, together.features) and torch.equal(every.features, apart.features)
    assert (none, few, many) == (None, 2 * 3 - 1, 4 * 3 - 1)


def test_a_draw_that_waits_goes_on_with_the_answers_it_was_given():
    asked: list[float] = []

    def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        asked.append(sigma.item())
        return x / 2

    def sampler(denoise, x):
        for sigma in (4.0, 3.0, 1.0, 0.5):
            x = x + denoise(x, torch.tensor([sigma]))
        return x

    turn, x = Turn(), torch.ones(1)
    with pytest.raises(Waiting):
        sampler(turn.stopping(denoise, lambda sigma: sigma > 2), x)
    assert asked == [4.0, 3.0]
    assert sampler(turn.ending(denoise), x) == pytest.approx(1.5**4)
    assert asked == [4.0, 3.0, 1.0, 0.5], "nothing twice"


@pytest.mark.slow
def test_the_memory_of_a_process_is_that_of_one_expert(tmp_path: Path):
    """By the system's word, of four: below 1.1 of one, beside what the process has anyway.

    Mapped files count in the whole, not in the anonymous memory.
    """
    wide = ["network.channels=256", "network.num_blocks=2", "network.norm_groups=8", "network.head_channels=32"]
    runs = [untrained_run(tmp_path / f"e{n}", f"expert.node=[2,{n}]", *wide, seed=n) for n in range(4)]
    write_manifest(tmp_path / "e.yaml", runs)
    size = (runs[0] / "weights" / "step_00000001.ema.safetensors").stat().st_size
    code = """
import sys, torch
from ldm.loading import load_drawer
from ldm.generate import Ask
def used(kind): return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith(kind))
model = load_drawer(sys.argv[1], residency=sys.argv[2]).to("cpu").tuned()
sampling = model.sampling({"num_steps": 6})
most = [0, 0]
def sampler(denoise, x, sigmas, **more):
    def seen(x, sigma):
        found = denoise(x, sigma)
        most[:] = [max(m, used(kind)) for m, kind in zip(most, ("RssAnon", "VmRSS"))]
        return found
    return sampling.sampler(seen, x, sigmas, **more)
import dataclasses
watched = dataclasses.replace(sampling, sampler=sampler)
asks = [Ask(watched, {"label": torch.tensor([0])}, torch.tensor([n]), 0) for n in range(2)]
[draw() for draw in model.begun(asks)]
print(*most)
"""

    def most(mode: str) -> list[int]:
        found = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "e.yaml"), mode],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        return [int(word) for word in found.stdout.split()]

    every, one = most("all"), most("one")
    print(f"expert {size / 2**20:.0f} MiB; all {every}, one {one}")
    assert every[0] - one[0] > (3 - 0.1) * size, "three of four are not there"
    assert every[1] - one[1] > (3 - 0.1) * size
