"""The probe of a first stage's latents: it is deterministic, tells latents apart, and leaves the training alone."""

import os
import signal
from pathlib import Path

import pytest
from toys import curve, newest_step, state, train

from ldm.training.callbacks import latent_probe

OPTIONS = (
    "callback=[metrics,validation,panels,latent_probe,checkpoint,signals,progress]",
    "callback.latent_probe.metric.size=32",
    "callback.latent_probe.every_steps=1",
    "callback.latent_probe.num_images=8",
    "callback.latent_probe.num_samples=6",
    "callback.latent_probe.fit_steps=6",
    "callback.latent_probe.batch_size=4",
    "callback.latent_probe.channels=32",
    "callback.latent_probe.num_steps=2",
)


@pytest.mark.filterwarnings("ignore:Frechet distance from")
@pytest.mark.parametrize("regularizer", ["kl", "vq"])
def test_a_probed_training_is_the_same_training_with_a_curve_more(regularizer: str, tmp_path: Path):
    more = [f"regularizer={regularizer}", *(["regularizer.num_codes=32"] if regularizer == "vq" else [])]
    plain = train("quickstart/autoencoder", tmp_path, *more, run="plain")
    probed = train("quickstart/autoencoder", tmp_path, *more, *OPTIONS, run="probed")
    again = train("quickstart/autoencoder", tmp_path, *more, *OPTIONS, run="again")
    for part in ("trained", "ema", "optimizer"):
        one, other = (str(state(run.folder, 2)[part]) for run in (plain, probed))
        assert one == other, part
    assert curve(plain.folder) == curve(probed.folder)
    names = [f"probe/{name}" for name in ("kid/efficientnet_lite0@32", "fd/efficientnet_lite0@32", "loss")]
    for name in names:
        values = curve(probed.folder, name)
        assert values.keys() == {1, 2} and values == curve(again.folder, name)
    assert (probed.folder / "samples/step_00000002_probe.png").exists()


def test_only_first_stages_are_probed(train_diffusion, tmp_path):
    with pytest.raises(ValueError, match=r"latent_probe: only a first stage"):
        train_diffusion(*OPTIONS)
    assert not list(tmp_path.iterdir()), "refused before anything is written"


@pytest.mark.filterwarnings("ignore:Frechet distance from")
def test_a_signal_ends_a_probe_and_a_long_one_says_how_far_it_is(train_autoencoder, monkeypatch, capsys):
    monkeypatch.setattr(latent_probe, "SAY_EVERY_SECONDS", 0.0)
    fit, began = latent_probe.LatentProbe._fit, []

    def interrupted(self: latent_probe.LatentProbe, *given: object) -> object:
        began.append(1)
        os.kill(os.getpid(), signal.SIGTERM)
        return fit(self, *given)

    monkeypatch.setattr(latent_probe.LatentProbe, "_fit", interrupted)
    run = train_autoencoder(*OPTIONS, "callback.latent_probe.fit_steps=100000", "max_steps=3")
    said = capsys.readouterr().out
    assert "step 1, probe of the latents has looked at 4 of 8 images" in said
    assert "step 1: not probed to the end" in said and "saved at step 1 of 3" in said
    assert not run.finished and began == [1] and newest_step(run.folder) == 1
