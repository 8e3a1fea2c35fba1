"""Training, end to end with real trainers: every experiment, both tasks, experts, and what a run refuses."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from toys import EXPERIMENTS, TINY_RUN, clip_image_folder, curve, losses, same, state, t5_folder, tiny, train
from untrained import untrained_run

from ldm.checkpoint import weights
from ldm.config import compose, overriding
from ldm.data.seals import sealed
from ldm.ensemble import load_ensemble, write_manifest
from ldm.files import write_json
from ldm.loading import load, load_drawer
from ldm.run import Run
from ldm.training.diffusion import DiffusionTask

Train = Callable[..., Run]
SMOOTH = "optimizer.eps=0.1"  # Adam's first steps are signs of the gradient otherwise, and blow up the last bit


def finite(folder: Path) -> bool:
    return all(tensor.isfinite().all() for file in folder.rglob("*.safetensors") for tensor in load_file(file).values())


# Of experiments that go on from another: its name, and what they need to be given.
PARENTS = {
    "ldm/semantic_landscapes_512": ("ldm/semantic_landscapes", []),
    "ldm/inpainting_big_512": ("ldm/inpainting_big", []),
    "distill/quickstart": ("quickstart/diffusion", []),
    "distill/fashion": ("tasks/class_fashion", []),
    "ldm/layout_coco_ft": ("ldm/layout_openimages", ["data.fields.layout.classes=[5,null,0,1,2,3,4,5,6,7,8,9]"]),
}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_trains_two_steps(
    experiment: str, first_stage: Run, tmp_path: Path, request: pytest.FixtureRequest
):
    tree = compose("config", overriding([f"experiment={experiment}", *TINY_RUN, "~logger"]), complete=False)
    in_pixels = experiment.startswith(("ldm/", "ediffi/")) and not tree["autoencoder"]
    given = [f"first_stage={first_stage.folder}"] if tree["network"] and not in_pixels else []
    if Path(experiment).name == "expert":
        parent = train(str(Path(experiment).with_name("diffusion")), tmp_path, *given)
        given = [f"branch={parent.folder}", "expert.node=[1,1]"]
    if tree["branch"]:
        name, more = PARENTS[experiment]
        given = [f"branch={train(name, tmp_path, *given).folder}", *more]
    run = train(experiment, tmp_path, *given)
    assert run.finished and run.lineage["samples_seen"] == 8
    assert sorted(curve(run.folder)) == [1, 2] and all(
        math.isfinite(float(value)) for _, _, value in losses(run.folder)[1:]
    )
    assert finite(run.folder / "weights") and state(run.folder, 2)["step"] == 2
    assert any(name.startswith("validation/") for _, name, _ in losses(run.folder))


def test_the_toys_make_tiny_what_is_chosen_and_leave_the_choice(tmp_path: Path):
    words = ("network=dit", "network.depth=3", "sampler=heun", "lr=cosine", "callback=[checkpoint]", "regularizer=vq")
    tree = compose("config", tiny("quickstart/diffusion", tmp_path, *words))
    kept = {key: tree[key]["_target_"].rpartition(".")[2] for key in ("network", "sampler", "lr", "regularizer")}
    assert kept == {"network": "DiT", "sampler": "heun", "lr": "cosine", "regularizer": "VQ"}
    assert list(tree["callback"]) == ["checkpoint"] and tree["callback"]["checkpoint"]["every_steps"] == 1000
    assert (tree["network"]["width"], tree["network"]["depth"], tree["regularizer"]["num_codes"]) == (8, 3, 32)
    for f, levels in (("f4", 3), ("f16", 5)):
        tree = compose("config", tiny("sweep/autoencoder", tmp_path, f"autoencoder={f}"))
        assert tree["autoencoder"]["multipliers"] == [1] * levels


def test_conditions_of_other_widths_and_slots_train_together(train_diffusion: Train):
    words = {
        "t5": [f"path={t5_folder()}", "width=384", "dtype=fp32"],
        "clip_image": [f"path={clip_image_folder()}", "slots=[vector,tokens]", "width=384"],
        "null_token": ["num_tokens=2"],
    }
    keys = [f"conditioner.{name}.{word}" for name, given in words.items() for word in given]
    run = train_diffusion(
        "conditioner=[text,t5,clip_image,null_token]",
        "derived=[style]",
        *keys,
        "expert=log_uniform",
        "expert.node=[1,1]",
        "task.keep_latents=false",
    )
    assert finite(run.folder / "weights") and state(run.folder, 2)["step"] == 2
    trained = {name for name in state(run.folder, 2)["trained"] if "conditioner" in name}
    assert trained == {
        f"conditioner.parts.{name}" for name in ("t5.project.weight", "clip_image.project.weight", "null_token.tokens")
    }


def test_an_expert_starts_from_its_parent_and_trains_only_its_own_noise(
    diffusion: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen, started = [], []
    original = DiffusionTask.training_step

    def watch(task: DiffusionTask, batch: dict, batch_index: int) -> torch.Tensor:
        started.append({name: tensor.clone() for name, tensor in task.model.state_dict().items()})
        seen.append(task.noise.icdf(torch.linspace(0.01, 0.99, 50, dtype=torch.float64)))
        return original(task, batch, batch_index)

    monkeypatch.setattr(DiffusionTask, "training_step", watch)
    run = train("quickstart/diffusion", tmp_path, f"branch={diffusion.folder}", "expert.node=[1,1]", "max_steps=1")
    assert same(started[0], state(diffusion.folder, 2)["trained"])
    [(lo, hi)] = weights.load(run.folder).metadata["intervals"]
    assert (
        lo == pytest.approx(math.exp(run.tree["noise"]["mean"]))
        and hi == math.inf
        and (seen[0] >= lo * (1 - 1e-6)).all()
    )
    assert run.lineage["parent"]["run"] == diffusion.name
    assert run.lineage["samples_seen"] == 4 and run.lineage["samples_seen_total"] == 12
    assert run.lineage["first_stage"] == diffusion.lineage["first_stage"]


def test_two_micro_batches_are_one_batch(train_diffusion: Train):
    whole = train_diffusion(SMOOTH, run="whole").folder
    parts = train_diffusion(SMOOTH, "accumulation=2", run="parts").folder
    assert curve(parts) == pytest.approx(curve(whole), abs=1e-6)
    torch.testing.assert_close(state(parts, 2)["trained"], state(whole, 2)["trained"], rtol=0, atol=1e-6)
    averages = state(parts, 2)["ema"], state(whole, 2)["ema"]
    assert averages[0]["num_updates"] == averages[1]["num_updates"] == 2  # of optimizer steps, not of micro-batches
    torch.testing.assert_close(averages[0]["averages"], averages[1]["averages"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("limit", [1e-3, 1e6])
def test_gradients_are_clipped_by_their_norm(limit: float, train_diffusion: Train):
    run = train_diffusion("max_steps=1", f"trainer.gradient_clip_val={limit}")
    moments = state(run.folder, 1)["optimizer"]["state"].values()  # after one step 0.1 of the gradient
    norm = 10 * torch.cat([moment["exp_avg"].flatten() for moment in moments]).norm().item()
    assert norm == pytest.approx(1e-3, rel=1e-3) if limit == 1e-3 else 1e-2 < norm < 1e3


@pytest.mark.parametrize("fused", ["true", "false"])
def test_steps_without_finite_gradients_are_skipped_and_end_the_run(fused: str, train_diffusion: Train, tmp_path: Path):
    with pytest.raises(ValueError, match=r"step 4: the gradients of 3 steps in a row were not finite"):
        train_diffusion(
            "max_steps=6",
            "optimizer.lr=1e30",
            f"optimizer.fused={fused}",
            "callback.checkpoint.every_steps=1",
            "callback.metrics.max_skipped_steps=3",
        )
    folder = tmp_path / "diffusion"
    assert curve(folder, "train/skipped_steps") == {1: 0, 2: 1, 3: 2, 4: 3}
    first, last = state(folder, 2), state(folder, 3)
    assert same(first["trained"], last["trained"]) and same(first["optimizer"]["state"], last["optimizer"]["state"])
    assert all(tensor.isfinite().all() for tensor in last["trained"].values())
    assert finite(folder / "weights")


def test_a_first_stage_without_statistics_is_refused(first_stage: Run, train_diffusion: Train, tmp_path: Path):
    unfinished = tmp_path / "unfinished"
    shutil.copytree(first_stage.folder, unfinished)
    description = unfinished / "weights" / "step_00000002.json"
    told = json.loads(description.read_text())
    del told["latent"]
    write_json(description, sealed(told))
    with pytest.raises(ValueError, match=r"first_stage=.*unfinished: has no latent statistics yet"):
        train_diffusion(f"first_stage={unfinished}")


def test_a_diffusion_run_is_no_first_stage_and_a_first_stage_no_model(
    first_stage: Run, diffusion: Run, train_diffusion: Train
):
    with pytest.raises(ValueError, match="not an autoencoder's run"):
        train_diffusion(f"first_stage={diffusion.folder}")
    with pytest.raises(ValueError, match="not a diffusion model"):
        load_drawer(first_stage.folder)


def test_latents_are_whitened_by_the_statistics_of_the_training_images(first_stage: Run):
    latent = weights.load(first_stage.folder).metadata["latent"]
    count = 16 * 8 * 8
    assert latent["count"] == count and len(latent["mean"]) == len(latent["std"]) and min(latent["std"]) > 0


def test_another_first_stage_than_the_checkpoints_is_refused(
    first_stage: Run, other_first_stage: Run, diffusion: Run, train_diffusion: Train, tmp_path: Path
):
    with pytest.raises(ValueError, match=r"not the latent space this was made with: .*fingerprint"):
        load(diffusion.folder, first_stage=str(other_first_stage.folder))
    with pytest.raises(ValueError, match="not the latent space"):
        train_diffusion(f"first_stage={other_first_stage.folder}", f"branch={diffusion.folder}", run="branched")

    here = tmp_path / "first_stage"
    shutil.copytree(first_stage.folder, here)
    train_diffusion(f"first_stage={here}", "max_steps=1", run="resumed")
    shutil.rmtree(here)
    shutil.copytree(other_first_stage.folder, here)
    with pytest.raises(ValueError, match="not the latent space"):
        train_diffusion(f"first_stage={here}", run="resumed")


def test_validation_repeats_itself_whatever_its_batches(train_diffusion: Train):
    still = ("optimizer.lr=0.0", "callback.validation.every_steps=1")
    run = train_diffusion(*still).folder
    validation, training = curve(run, "validation/loss"), curve(run)
    assert validation[1] == validation[2] and training[1] != training[2]
    cut = train_diffusion(*still, "callback.validation.batch_size=3", run="cut").folder
    assert curve(cut, "validation/loss") == pytest.approx(validation, rel=1e-6)


def test_validation_leaves_what_is_frozen_in_evaluation_mode(train_diffusion: Train, monkeypatch: pytest.MonkeyPatch):
    modes = []
    original = DiffusionTask.training_step

    def watch(task: DiffusionTask, batch: dict, batch_index: int) -> torch.Tensor:
        modes.append((task.first_stage.autoencoder.training, task.denoiser.network.training))
        return original(task, batch, batch_index)

    monkeypatch.setattr(DiffusionTask, "training_step", watch)
    train_diffusion("callback.validation.every_steps=1", "max_steps=3")
    assert modes == [(False, True)] * 3  # its dropout would be drawn anew for every step


def test_validation_judges_the_averaged_weights(train_autoencoder: Train):
    run = train_autoencoder("callback.validation.every_steps=1", "reconstruction.start_step=10", "ema=default").folder
    names = {name for _, name, _ in losses(run) if name.startswith("validation/")}
    assert names == {"validation/l1", "validation/lpips", "validation/psnr"}
    ema = weights.load(run).state
    assert not same(ema, weights.load(run, "raw").state)


def test_panels_are_drawn(first_stage: Run, diffusion: Run):
    for run, name in ((first_stage, "reconstructions"), (diffusion, "samples")):
        with Image.open(run.folder / "samples" / f"step_00000002_{name}.png") as picture:
            assert picture.size >= (64, 64) and len(picture.getcolors(picture.size[0] * picture.size[1])) > 10


def generate(model, prompts: list[str], numbers: list[int]) -> torch.Tensor:
    return model.generate(model.parts["sampling"], {"caption": prompts}, torch.tensor(numbers), seed=0)


def test_a_run_can_be_sampled(diffusion: Run):
    model = load(diffusion.folder)
    images = generate(model, ["red heart", "key"], [0, 1])
    assert images.shape == (2, 3, 32, 32) and images.isfinite().all() and images.abs().max() <= 1
    assert torch.equal(images, generate(load(diffusion.folder), ["red heart", "key"], [0, 1]))
    torch.testing.assert_close(images[1:], generate(model, ["key"], [1]), rtol=0, atol=1e-4)
    assert not torch.equal(images[0], generate(model, ["red heart"], [1])[0])


@pytest.mark.parametrize("num_copies", [2, 3])
def test_an_ensemble_of_copies_is_the_single_model(num_copies: int, diffusion: Run, tmp_path: Path):
    cuts = [*[0.0, 1.0, 20.0][:num_copies], math.inf]
    members = []
    for place in range(num_copies):
        member = tmp_path / f"member{place}"
        shutil.copytree(diffusion.folder, member)
        weights.amend(member / "weights", {"intervals": [cuts[place : place + 2]]})
        members.append(member)
    write_manifest(tmp_path / "ensemble.yaml", members)
    single, ensemble = load(diffusion.folder), load_ensemble(tmp_path / "ensemble.yaml")
    sampling = single.sampling({"sampler": None, "guidance": None, "sigmas": None})
    prompts, numbers = {"caption": ["red heart", "key"]}, torch.tensor([5, 6])
    assert torch.equal(single.generate(sampling, prompts, numbers, 0), ensemble.generate(sampling, prompts, numbers, 0))


def test_a_weak_model_in_another_latent_space_is_refused(diffusion: Run, tmp_path: Path):
    pixels = untrained_run(tmp_path / "pixels")
    tree = {
        "sampler": None,
        "sigmas": None,
        "guidance": compose("sample", ["model=x", "guidance=autoguidance"])["guidance"],
    }
    with pytest.raises(ValueError, match=r"weak_model=.*/pixels: first_stage: not the latent space .*: f is 1 where 4"):
        load(diffusion.folder).sampling({**tree, "weak_model": str(pixels)})
    load(diffusion.folder).sampling({**tree, "weak_model": str(diffusion.folder)})


def test_the_identity_is_not_trained(tmp_path: Path):
    with pytest.raises(ValueError, match=r"f = 1, pixel space, where there is nothing to train"):
        train("sweep/autoencoder", tmp_path, "autoencoder=f1", "autoencoder.multipliers=[1]")
    assert not list(tmp_path.iterdir())
