"""The classifier of noisy latents: its scaling, what its run learns, records and refuses, and how it is loaded."""

from pathlib import Path

import pytest
import torch
from toys import QUICKSTART, curve, losses, train

from ldm.build import Parts
from ldm.checkpoint import weights
from ldm.diffusion.classifier import NoisyClassifier
from ldm.diffusion.schedule import VE
from ldm.loading import load, load_drawer
from ldm.model import load_classifier
from ldm.run import Run


def test_the_network_sees_unit_variance_and_is_told_the_noise():
    seen = []

    def network(x, c_noise):
        seen.append((x, c_noise))
        return torch.stack([x.mean((1, 2, 3)), torch.zeros(len(x))], dim=1)

    schedule = VE(c_noise_scale=3.0)
    sigma = torch.tensor([0.1, 7.0])
    x = torch.randn(2, 3, 16, 16) * (1 + sigma**2).sqrt().view(-1, 1, 1, 1)
    log_prob = NoisyClassifier(network, schedule).log_prob(x, sigma, torch.tensor([0, 1]))
    assert seen[0][0].flatten(1).std(1).tolist() == pytest.approx([1, 1], abs=0.1)
    assert seen[0][1].tolist() == pytest.approx((3 * sigma.log()).tolist())
    mean = seen[0][0].mean((1, 2, 3))
    expected = torch.stack([mean[0] - (1 + mean[0].exp()).log(), -(1 + mean[1].exp()).log()])
    torch.testing.assert_close(log_prob, expected)


def test_it_learns_to_tell_the_classes_and_less_so_under_more_noise(tmp_path: Path):
    run = train(
        "quickstart/classifier", tmp_path, "image_size=8", "max_steps=100", "data.batch_size=16", "optimizer.lr=1e-2",
        "network.channels=16", "network.dropout=0", "data.horizontal_flip_prob=0", "ema.decay=0.5", "noise.std=2.5",
        "noise.mean=-1", f"data.validation={QUICKSTART}/train-00000.tar", "data.validation_samples=16",
    )  # fmt: skip
    loss = curve(run.folder)
    assert loss[1] == pytest.approx(torch.tensor(9.0).log().item(), abs=1e-4), "at first every class is equally likely"
    found = {name: float(value) for _, name, value in losses(run.folder)[1:] if name.startswith("validation/")}
    levels = [found[f"validation/accuracy_noise_{level}"] for level in range(4)]
    assert levels[0] > 0.5 and levels[0] > levels[3] + 0.2, levels
    assert found["validation/accuracy"] == pytest.approx(sum(levels) / 4)
    assert (run.folder / "samples" / "step_00000100_noisy.png").exists()


def test_it_is_loaded_as_a_classifier_and_as_nothing_else(classifier: Run, diffusion: Run, first_stage: Run):
    model = load(diffusion.folder)
    found = load_classifier(classifier.folder, model.first_stage)
    state = weights.load(classifier.folder).state
    assert all(torch.equal(state[f"network.{name}"], p) for name, p in found.network.state_dict().items())
    assert not any(p.requires_grad for p in found.parameters())
    assert found(torch.randn(2, 4, 8, 8), torch.ones(2)).shape == (2, 9)
    with pytest.raises(ValueError, match="a classifier, not a diffusion model, which takes it as classifier="):
        load_drawer(classifier.folder)
    for run in (diffusion, first_stage):
        with pytest.raises(ValueError, match="not a classifier's run; experiment=quickstart/classifier trains one"):
            load_classifier(run.folder, model.first_stage)


def test_other_latents_are_refused(classifier: Run, other_first_stage: Run):
    parts = Parts({"first_stage": str(other_first_stage.folder)})
    with pytest.raises(ValueError, match=r"classifier=.*made for other latents than the model's; .*fingerprint"):
        load_classifier(classifier.folder, parts["first_stage"])


def test_data_without_labels_or_with_more_classes_is_refused(first_stage: Run, diffusion: Run, tmp_path: Path):
    given = f"first_stage={first_stage.folder}"
    with pytest.raises(ValueError, match=r"data\.fields has none; choose data=labelled_shards"):
        train("quickstart/classifier", tmp_path, given, "data=shards", run="unlabelled")
    with pytest.raises(ValueError, match=r"train-00000\.tar .*: label \d: network\.num_classes=2 asks for 0\.\.1"):
        train("quickstart/classifier", tmp_path, given, "network.num_classes=2", run="few")
    with pytest.raises(ValueError, match="another kind of run, DiffusionTask where this one is ClassifierTask"):
        train("quickstart/classifier", tmp_path, given, f"branch={diffusion.folder}", run="branched")
