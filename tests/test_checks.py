"""What a run could not train with is refused by its key before anything of it is written."""

import copy
from pathlib import Path

import pytest
import torch
from toys import QUICKSTART, annotated_shard, tiny, train

from ldm.build import Parts
from ldm.checks import check_parts, doubts
from ldm.config import compose
from ldm.run import Run

LABEL = ["data=quickstart", "conditioner=[label]", "conditioner.label.width=8"]
REVIVAL = "callback=[metrics,validation,panels,code_revival,checkpoint]"
SMALL = ["network.width=8", "network.depth=1", "network.num_heads=2"]


def checked(experiment: str, folder: Path, *words: str) -> Parts:
    """The parts of a toy, checked as fit() checks them."""
    parts = Parts(compose("config", tiny(experiment, folder, *words)), folder=folder, run_name="a", run_id="a")
    parts["task"]  # built first, as there
    parts["data"].setup()
    check_parts(parts)
    return parts


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["image_size=30"], r"image_size=30: must be a multiple of the first stage's f = 4"),
        (["image_size=36", "network.patch_size=4"], r"image_size=36: must be a multiple of 16, .* f = 4 times .* 4"),
        ([*LABEL, "conditioner.label.num_classes=2"], r"train-00000\.tar [\w-]+: label [2-8]:.*num_classes=2 asks for"),
        ([*LABEL, "conditioner.label.num_classes=8", "data.max_samples=null"], "num_classes=8: the data has 9 clas"),
        (["conditioner=[semantic_map]", "guidance.scale=1"], r"map reads 'segmentation', which data\.fields does"),
        (["conditioner=[layout_transformer]", "conditioner.layout_transformer.width=8",
          "conditioner.layout_transformer.depth=1", "guidance.scale=1"], "layout_transformer reads 'layout'"),
        (["conditioner=[low_resolution]", "conditioner.low_resolution.factor=3", "guidance.scale=1"],
         r"conditioner\.low_resolution\.factor=3: .* a multiple or a divisor"),
        (["conditioner=[low_resolution]", "guidance.scale=3"], r"guidance\.scale=3: .*low_resolution\.drop_prob=0"),
        (["conditioner=[low_resolution]", "guidance.scale=1"], r"low_resolution reads 'low_resolution', .*derived=\["),
        (["conditioner=[low_resolution]", "derived=[low_resolution]", "derived.low_resolution.factor=2",
          "guidance.scale=1"], r"derived\.low_resolution: .* 2 times .*set derived\.low_resolution\.factor=4"),
        (["data=canvases", "conditioner=[boxes]", "conditioner.boxes.width=8", "guidance.scale=1"],
         r"layout makes, .* 14 of a sample in 0\.\.4095; set .*max_objects=4 conditioner\.boxes\.vocabulary=4096"),
        (["data=canvases", "conditioner=[layout_transformer]", "conditioner.layout_transformer.width=8",
          "conditioner.layout_transformer.depth=1", "conditioner.layout_transformer.num_tokens=14", "guidance.scale=1"],
         r"set conditioner\.layout_transformer\.vocabulary=4096$"),
        (["crop_size=30"], r"crop_size=30: must be a multiple of the first stage's f = 4"),
        (["crop_size=64"], r"crop_size=64: a window .*image_size=32"),
        (["crop_size=[0.8,0.5]"], r"crop_size=\[0\.8, 0\.5\]: two shares of the short side"),
        (["conditioner.text.drop_prob=0"], r"guidance\.scale=3: .*never left out text"),
        (["conditioner=[]", "guidance=per_condition", "guidance.scales={text:2}"], r"no condition text; .*: none"),
        (["callback.checkpoint.best=foo"], r"callback\.checkpoint\.best=foo: choose one of "),
        (["callback.checkpoint.best=loss", "data.validation=null"], r"checkpoint\.best=loss: there is no held-out"),
        (["callback.checkpoint.best=loss", "callback.checkpoint.every_steps=2", "callback.validation.every_steps=3"],
         r"validation\.every_steps=3: for callback\.checkpoint\.best=loss it must divide .*every_steps=2, or be a mul"),
        (["callback.checkpoint.every_steps=2", "callback.checkpoint.keep_weights_every_steps=3"],
         r"keep_weights_every_steps=3: must be a multiple of callback\.checkpoint\.every_steps=2, or divide it"),
        ([REVIVAL], r"code_revival: only a VQ first stage"),
    ],
)  # fmt: skip
def test_what_a_model_cannot_be_trained_with_is_refused(first_stage: Run, tmp_path: Path, words, problem):
    with pytest.raises(ValueError, match=problem):
        checked("quickstart/diffusion", tmp_path, f"first_stage={first_stage.folder}", *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["image_size=34"], r"image_size=34: must be a multiple of the first stage's f = 4"),
        (["image_size=28"], r"image_size=28: too small for LPIPS, which needs 31 px"),
        (
            ["discriminator.num_layers=5"],
            r"image_size=32: too small for the discriminator; lower discriminator\.num_lay",
        ),
        ([REVIVAL], r"code_revival: only a VQ first stage"),
    ],
)
def test_what_a_first_stage_cannot_be_trained_with_is_refused(tmp_path: Path, words, problem):
    with pytest.raises(ValueError, match=problem):
        checked("quickstart/autoencoder", tmp_path, *words)


def test_a_refused_run_leaves_no_folder_and_the_corrected_command_trains(first_stage: Run, tmp_path: Path):
    words = (f"first_stage={first_stage.folder}", *LABEL)
    wrongs = {"image_size=36": "image_size=36", "conditioner.label.num_classes=2": "num_classes=2",
              "data.num_workers=1000000000": "shared memory"}  # fmt: skip
    for wrong, problem in wrongs.items():
        with pytest.raises(ValueError, match=problem):
            train("quickstart/diffusion", tmp_path, *words, "network.patch_size=4", wrong, run="a")
        assert not list(tmp_path.iterdir())
    assert train("quickstart/diffusion", tmp_path, *words, "conditioner.label.num_classes=9", run="a").finished


def test_what_trains_is_not_refused(first_stage: Run, tmp_path: Path):
    given = f"first_stage={first_stage.folder}"
    checked("quickstart/diffusion", tmp_path, given, "conditioner=[]")
    checked("quickstart/diffusion", tmp_path, given, *LABEL, "conditioner.label.num_classes=9")
    checked("ldm/semantic_landscapes", tmp_path, given)
    checked("ldm/inpainting", tmp_path, given)
    checked("quickstart/autoencoder", tmp_path)


def test_few_samples_are_said(tmp_path: Path):
    few = checked("quickstart/autoencoder", tmp_path, "data.batch_size=32", "data.max_samples=16")
    [line] = doubts(few)
    assert "data.batch_size=32: there are 16 training samples" in line
    assert not list(doubts(checked("quickstart/autoencoder", tmp_path, "data.max_samples=16")))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["conditioner.text.slots=[vector]", "conditioner.text.width=64"],
         "conditioner.text.width=64: is that of its tokens, and conditioner.text.slots names none; its vector is 384"),
        (["conditioner.text.drop_prob=1"], "conditioner.text.drop_prob=1: every sample loses it"),
        (["network=unet", "conditioner.text.slots=[vector]", "network.transformer_depth=3"],
         "network.transformer_depth=3: no condition gives tokens"),
    ],
)  # fmt: skip
def test_keys_that_do_nothing_beside_others_are_said(first_stage: Run, tmp_path: Path, words, said):
    [line] = doubts(checked("quickstart/diffusion", tmp_path, f"first_stage={first_stage.folder}", *words))
    assert line.startswith(said)
    plain = [word for word in words if "slots" not in word and "drop_prob" not in word]  # what they do alone
    assert not list(doubts(checked("quickstart/diffusion", tmp_path, f"first_stage={first_stage.folder}", *plain)))


def test_a_label_that_only_training_meets_is_named_with_its_sample(first_stage: Run, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("ldm.checks.PEEKED", 0)
    words = (f"first_stage={first_stage.folder}", *LABEL, "conditioner.label.num_classes=2")
    with pytest.raises(
        ValueError, match=r"^train-00000\.tar [\w-]+: label \d\.\.\d: conditioner\.label\.num_classes=2"
    ):
        train("quickstart/diffusion", tmp_path, *words)
    kind = (f"first_stage={first_stage.folder}", "network.num_classes=2")
    with pytest.raises(
        ValueError, match=r"^train-00000\.tar [\w-]+: label \d\.\.\d: network\.num_classes=2 asks for 0"
    ):
        train("quickstart/classifier", tmp_path, *kind)


def test_a_class_of_a_map_that_only_training_meets_is_named_with_its_sample(first_stage: Run, tmp_path: Path):
    words = (f"first_stage={first_stage.folder}", "conditioner.semantic_map.num_classes=1")
    with pytest.raises(ValueError, match=rf"^{annotated_shard().name} [\w-]+: segmentation \d\.\.\d: .*num_classes=1"):
        train("ldm/semantic_landscapes", tmp_path, *words)


def test_a_branch_whose_weights_do_not_fit_leaves_no_folder(diffusion: Run, other_first_stage: Run, tmp_path: Path):
    for words, problem in (
        (["conditioner.text.slots=[tokens]", "branch_changes=[conditioner]"], "not fit this model: 4 keys too many"),
        ([f"first_stage={other_first_stage.folder}"], "not the latent space this was made with: .*fingerprint"),
    ):
        with pytest.raises(ValueError, match=problem):
            train("quickstart/diffusion", tmp_path, f"branch={diffusion.folder}", *words)
        assert not list(tmp_path.iterdir())


def test_an_unconditional_run_draws_its_panels(first_stage: Run, tmp_path: Path):
    words = (f"first_stage={first_stage.folder}", "conditioner=[]", "callback.panels.every_steps=1", *SMALL)
    run = train("quickstart/diffusion", tmp_path, *words)
    assert run.tree["guidance"]["scale"] == 3 and len(list((run.folder / "samples").glob("*.png"))) == 2


def test_panels_that_are_not_finite_are_said_and_grey(diffusion: Run, tmp_path: Path, caplog):
    words = (f"first_stage={diffusion.tree['first_stage']}", "guidance.scale=1e37", "callback.panels.every_steps=1")
    run = train("quickstart/diffusion", tmp_path, *words)
    assert run.finished and "step 2: samples are not finite" in caplog.text
    assert len(list((run.folder / "samples").glob("*_samples.png"))) == 2


def test_the_first_stage_is_left_as_it_was_by_the_check_of_its_losses(tmp_path: Path):
    parts = Parts(
        compose("config", tiny("quickstart/autoencoder", tmp_path)), folder=tmp_path, run_name="a", run_id="a"
    )
    before = copy.deepcopy(parts["discriminator"].state_dict())
    parts["data"].setup()
    check_parts(parts)
    assert all(torch.equal(value, before[name]) for name, value in parts["discriminator"].state_dict().items())
    assert (QUICKSTART / "manifest.json").exists()
