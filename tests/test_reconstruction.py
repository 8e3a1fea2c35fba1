"""The first stage's loss: its one backward gives both players the gradients of the published, separate losses."""

import pytest
import torch
import torch.nn.functional as F

from ldm.first_stage.reconstruction import ReconstructionLoss
from ldm.first_stage.regularizers import KL, VQ
from ldm.networks.autoencoder import Autoencoder
from ldm.networks.discriminator import PatchDiscriminator
from ldm.networks.lpips import LPIPS

START = 10


def parts(regularizer=None, **arguments):
    """Tiny real parts with random weights, an image, and noise for the posterior."""
    torch.manual_seed(0)
    regularizer = regularizer or KL(3)
    autoencoder = Autoencoder(
        regularizer.moment_channels, 3, channels=8, multipliers=[1, 2], num_blocks=1, norm_groups=4
    )
    discriminator = PatchDiscriminator(channels=8, num_layers=2)
    loss = ReconstructionLoss(LPIPS("vgg"), discriminator, start_step=START, **arguments)
    image = torch.rand(4, 3, 32, 32) * 2 - 1
    return autoencoder, regularizer, loss, image, torch.randn(4, 3, 16, 16)


def run(autoencoder, regularizer, loss, image, noise, step=START):
    z, terms = regularizer(autoencoder.encode(image), noise)
    return loss(image, autoencoder.decode(z), terms, autoencoder.last_layer, step)


def gradients(*modules):
    return torch.cat([p.grad.flatten() for m in modules for p in m.parameters() if p.grad is not None])


def published(autoencoder, regularizer, loss, image, noise, weight):
    """The losses as the paper states them, each player by its own forward; weights of the terms by `weight`."""
    z, terms = regularizer(autoencoder.encode(image), noise)
    xhat = autoencoder.decode(z)
    distances = loss.distances(image, xhat)
    nll = weight["nll"] * (distances["l1"] + distances["lpips"]).mean()
    generator = -loss.discriminator(xhat).mean()
    norms = [torch.autograd.grad(t, autoencoder.last_layer, retain_graph=True)[0].norm() for t in (nll, generator)]
    adaptive = (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4).detach()
    total = nll + sum(weight[name] * value for name, value in terms.items()) + 0.5 * adaptive * generator
    for_autoencoder = torch.autograd.grad(total, list(autoencoder.parameters()))
    real, fake = loss.discriminator(image), loss.discriminator(xhat.detach())
    hinge = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    for_discriminator = torch.autograd.grad(hinge, list(loss.discriminator.parameters()))
    flat = [torch.cat([g.flatten() for g in group]) for group in (for_autoencoder, for_discriminator)]
    return *flat, adaptive, hinge


VALUES = 3 * 32 * 32
RECIPES = {
    "kl mean": (KL(3), {}, {"nll": 1.0, "kl": 1e-6 / VALUES}),
    "kl sum": (KL(3), {"sum_over_values": True}, {"nll": VALUES, "kl": 1e-6}),
    "kl heavy": (KL(3), {"kl_weight": 1.0}, {"nll": 1.0, "kl": 1.0 / VALUES}),
    "vq": (VQ(3, num_codes=16), {}, {"nll": 1.0, "codebook": 1.0}),
}


@pytest.mark.parametrize("name", RECIPES)
def test_one_backward_gives_both_players_the_published_gradients(name):
    regularizer, arguments, weight = RECIPES[name]
    given = parts(regularizer, **arguments)
    autoencoder, _, loss, *_ = given
    expected, expected_discriminator, adaptive, hinge = published(*given, weight)
    total, logs = run(*given)
    total.backward()
    assert torch.allclose(gradients(autoencoder), expected, rtol=1e-3, atol=1e-6 * expected.abs().max())
    assert torch.allclose(
        gradients(loss.discriminator),
        expected_discriminator,
        rtol=1e-3,
        atol=1e-6 * expected_discriminator.abs().max().item(),
    )
    assert torch.allclose(logs["adaptive_weight"], adaptive, rtol=1e-3)
    assert torch.allclose(logs["discriminator"], hinge, rtol=1e-4)


def test_before_the_start_the_discriminator_neither_pulls_nor_learns():
    autoencoder, regularizer, loss, image, noise = parts()
    total, logs = run(autoencoder, regularizer, loss, image, noise, step=START - 1)
    total.backward()
    assert all(p.grad is not None and not p.grad.any() for p in loss.discriminator.parameters())
    assert "adaptive_weight" not in logs
    with_gan = gradients(autoencoder).clone()

    autoencoder.zero_grad()
    z, terms = regularizer(autoencoder.encode(image), noise)
    distances = loss.distances(image, autoencoder.decode(z))
    ((distances["l1"] + distances["lpips"]).mean() + 1e-6 / VALUES * terms["kl"]).backward()
    assert torch.allclose(gradients(autoencoder), with_gan, rtol=1e-4, atol=1e-8)


def test_the_value_is_the_sum_of_what_is_named():
    total, logs = run(*parts(), step=0)
    expected = logs["nll"] + 1e-6 / VALUES * logs["kl"]
    assert torch.allclose(total, expected, rtol=1e-5)
    assert torch.allclose(logs["rec"], logs["l1"] + logs["lpips"])
    assert not any(value.requires_grad for value in logs.values())


def test_a_learned_log_variance_settles_at_the_log_of_the_distance():
    given = parts(learn_logvar=True)
    _, _, loss, image, _ = given
    total, logs = run(*given)
    total.backward()
    assert torch.allclose(loss.logvar.grad, 1 - logs["rec"], rtol=1e-4)  # d/dv (rec e^-v + v) at v = 0
    with torch.no_grad():
        loss.logvar.copy_(logs["rec"].log())
    loss.logvar.grad = None
    run(*given)[0].backward()
    assert abs(loss.logvar.grad) < 1e-4
    assert image.grad is None


def test_the_adaptive_weight_is_bounded():
    _, logs = run(*parts(max_adaptive_weight=1e-3))
    assert torch.allclose(logs["adaptive_weight"], torch.tensor(1e-3))


def test_processes_share_the_adaptive_weight_of_the_whole_batch():
    autoencoder, regularizer, loss, image, noise = parts(lpips_weight=0.0)
    # Averages stand for the other process: it sees the same batch with gradients of the opposite sign.
    z, terms = regularizer(autoencoder.encode(image), noise)
    xhat = autoencoder.decode(z)
    _, logs = loss(image, xhat, terms, autoencoder.last_layer, START, all_reduce=lambda tensor: 0 * tensor)
    assert logs["adaptive_weight"] == 0


def test_the_perceptual_network_is_not_saved_or_trained():
    _, _, loss, _, _ = parts()
    assert not [key for key in loss.state_dict() if "lpips" in key]
    assert sum(p.numel() for p in loss.parameters()) == 1 + sum(p.numel() for p in loss.discriminator.parameters())


def test_distances_are_per_sample_and_zero_for_equal_images():
    _, _, loss, image, _ = parts()
    distances = loss.distances(image, image)
    assert {name: tuple(value.shape) for name, value in distances.items()} == {"l1": (4,), "lpips": (4,)}
    assert not any(value.any() for value in distances.values())


def test_bf16_gives_finite_gradients_close_to_fp32():
    given = parts()
    found = []
    for enabled in (False, True):
        given[0].zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            total, _ = run(*given)
        total.backward()
        found.append(gradients(given[0]))
    assert found[1].isfinite().all()
    assert F.cosine_similarity(*found, dim=0) > 0.9
