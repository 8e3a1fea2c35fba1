"""What watches over a first stage in training: warnings of a bad discriminator, dead codes revived."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from toys import curve, same, state, train

from ldm.first_stage import regularizers
from ldm.training.callbacks.code_revival import CodeRevival
from ldm.training.callbacks.gan_health import GanHealth

HEALTHY = {"rec": 0.2, "discriminator": 0.7, "logits_real": 0.4, "logits_fake": -0.3, "adaptive_weight": 0.5}
TASK = SimpleNamespace(reconstruction=SimpleNamespace(max_adaptive_weight=1e4))


def look(health: GanHealth, *, times: int = 3, **values: float) -> list[str]:
    return [text for step in range(times) for text in health.look({**HEALTHY, **values}, step, TASK)]


@pytest.mark.parametrize(
    ("sign", "words"),
    [
        ({"discriminator": 0.01, "logits_real": 9.0, "logits_fake": -9.0}, "wins .* 18.0 apart"),
        ({"discriminator": 1.0}, "learns nothing"),
        ({"rec": 0.3}, r"is 0\.3000, it was 0\.2000"),
        ({"adaptive_weight": 1e4}, "at its limit"),
    ],
)
def test_each_sign_is_warned_of_once_it_has_lasted(sign, words, caplog):
    health = GanHealth(patience=3)
    assert health.look({"rec": 0.2}, 0, TASK) == []
    assert look(health, times=10) == []
    assert look(health, times=2, **sign) == [] and look(health) == []  # it went by itself
    [warning] = look(health, times=10, **sign)
    assert re.search(words, warning) and warning in caplog.text


def test_a_resumed_run_remembers_what_was_before_the_discriminator():
    health, other = GanHealth(patience=2), GanHealth(patience=2)
    health.look({"rec": 0.2}, 0, TASK)
    look(health, times=1, rec=0.9)
    other.load_state_dict(health.state_dict())
    assert len(look(other, times=1, rec=0.9)) == 1


VQ = ("regularizer=vq", "callback=[metrics,validation,panels,code_revival,checkpoint,signals,progress]")
OPTIONS = (*VQ, "regularizer.num_codes=64", "callback.code_revival.every_steps=2", "callback.checkpoint.every_steps=3")


def test_dead_codes_become_features_and_a_resumed_run_revives_the_same(tmp_path: Path):
    whole = train("quickstart/autoencoder", tmp_path, *OPTIONS, "max_steps=5", run="whole")
    revived = curve(whole.folder, "train/revived_codes")
    assert revived.keys() == {2, 4} and revived[2] > 32
    train("quickstart/autoencoder", tmp_path, *OPTIONS, "max_steps=3", run="parts")
    parts = train("quickstart/autoencoder", tmp_path, *OPTIONS, "max_steps=5", run="parts")
    assert curve(parts.folder, "train/revived_codes") == revived
    assert same(state(parts.folder, 5)["trained"], state(whole.folder, 5)["trained"])
    codes = state(whole.folder, 5)["trained"]["regularizer.embedding.weight"]
    averages = state(whole.folder, 5)["ema"]["averages"]["regularizer.embedding.weight"]
    assert (codes.abs().amax(1) > 1 / 64 + 1e-2).sum() > 32  # beyond the range they began in
    torch.testing.assert_close(averages, codes, rtol=0, atol=0.05)


def test_what_a_rank_sees_used_counts_although_ddp_gives_it_the_buffers_of_another():
    regularizer = regularizers.VQ(1, num_codes=3)
    torch.nn.init.constant_(regularizer.embedding.weight, 0).data += torch.arange(3)[:, None]
    task, trainer = SimpleNamespace(regularizer=regularizer, stepped=False), SimpleNamespace(is_global_zero=True)
    revival = CodeRevival()
    revival.on_train_start(trainer, task)
    for value in (0.0, 1.0):
        for buffer in regularizer.buffers():
            buffer.zero_()  # another rank's, before each forward
        regularizer(torch.full((1, 1, 2, 2), value), None)
        revival.on_train_batch_end(trainer, task, None, {}, 0)
    assert revival.state_dict()["hits"].tolist() == [4, 4, 0]


def test_usage_and_perplexity_are_logged(tmp_path: Path):
    run = train("quickstart/autoencoder", tmp_path, "regularizer=vq", "regularizer.num_codes=64")
    assert all(0 < usage <= 1 for usage in curve(run.folder, "train/usage").values())
    assert all(1 <= value <= 64 for value in curve(run.folder, "train/perplexity").values())


def test_only_codes_can_be_revived(tmp_path: Path):
    with pytest.raises(ValueError, match=r"code_revival: only a VQ first stage"):
        train("quickstart/autoencoder", tmp_path, *OPTIONS[1:2])


def test_a_black_image_has_finite_losses_and_gradients(tmp_path: Path):
    from ldm.first_stage.reconstruction import ReconstructionLoss
    from ldm.networks.autoencoder import Autoencoder
    from ldm.networks.discriminator import PatchDiscriminator
    from ldm.networks.lpips import LPIPS

    network = Autoencoder(6, 3, channels=8, multipliers=[1, 2], num_blocks=1, norm_groups=4)
    loss = ReconstructionLoss(LPIPS("alex"), PatchDiscriminator(8, 2), start_step=0)
    black = torch.full((2, 3, 32, 32), -1.0)
    xhat = network.decode(network.encode(black)[:, :3])
    total, _ = loss(black, xhat, {}, network.last_layer, 0)
    total.backward()
    assert total.isfinite()
    assert all(p.grad.isfinite().all() for p in [*network.parameters(), *loss.parameters()] if p.grad is not None)
