"""Distances of feature sets: closed forms, limits, and agreement with torchmetrics."""

import math
import warnings

import pytest
import torch
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import poly_mmd

from ldm.metrics.features import FeatureBank
from ldm.metrics.frechet import Moments, frechet_distance, moments
from ldm.metrics.inception_score import inception_score
from ldm.metrics.kid import kernel_distance, polynomial_mmd
from ldm.metrics.precision_recall import precision_recall, radii_of


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------------------------------------ Frechet distance


def test_frechet_of_equal_sets_is_zero_even_when_the_covariance_is_singular():
    x = normal(20, 64)
    with pytest.warns(UserWarning, match="20 samples in 64 dimensions"):
        assert frechet_distance(moments(x), moments(x)) < 1e-4


def test_frechet_of_two_gaussians_is_the_closed_form():
    dim, generator_ = 8, generator()
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=generator_, dtype=torch.float64)).Q
    first, second = torch.linspace(0.1, 4, dim).double(), torch.linspace(3, 0.01, dim).double()
    mean = torch.arange(dim).double()
    a = Moments(mean, basis @ first.diag() @ basis.T, 1000)
    b = Moments(mean + 1, basis @ second.diag() @ basis.T, 1000)  # commuting covariances
    expected = dim + (first.sqrt() - second.sqrt()).square().sum()
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-10)
    assert frechet_distance(b, a) == pytest.approx(expected.item(), rel=1e-10)


def test_frechet_equals_torchmetrics():
    a, b = moments(normal(200, 12, seed=1)), moments(normal(150, 12, seed=2) * 1.3 + 0.2)
    theirs = _compute_fid(a.mean, a.covariance, b.mean, b.covariance)
    assert frechet_distance(a, b) == pytest.approx(theirs.item(), rel=1e-9)


@pytest.mark.filterwarnings("ignore:Frechet distance from")
@pytest.mark.parametrize(("few", "others"), [(3, 4), (20, 30), (20, 300), (60, 500)])
def test_frechet_of_few_samples_in_many_dimensions_is_that_of_their_singular_values(few: int, others: int):
    """tr (A B)^(1/2) of A = X^T X and B = Y^T Y is the sum of the singular values of X Y^T."""
    x, y = normal(few, 256, seed=1).double(), normal(others, 256, seed=2).double() * torch.logspace(0, -4, 256) + 0.1
    centred = [(z - z.mean(0)) / (len(z) - 1) ** 0.5 for z in (x, y)]
    cross = torch.linalg.svdvals(centred[0] @ centred[1].T).sum()
    expected = (x.mean(0) - y.mean(0)).square().sum() + sum(z.square().sum() for z in centred) - 2 * cross
    for a, b in ((x, y), (y, x)):
        assert frechet_distance(moments(a), moments(b)) == pytest.approx(expected.item(), rel=1e-6)
    told = moments(y)._replace(count=5)  # a covariance of another rank than its count says
    assert frechet_distance(told, moments(x)) == pytest.approx(expected.item(), rel=1e-6)


def test_frechet_warns_only_about_few_samples():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet_distance(moments(normal(100, 4)), moments(normal(100, 4, seed=1)))
    with pytest.raises(ValueError, match="at least 2"):
        moments(normal(1, 4))


# ------------------------------------------------------------------------------------------------ kernel distance


def test_mmd_is_the_double_sum():
    x, y = normal(5, 3).double(), normal(7, 3, seed=1).double() + 0.5

    def k(a, b):
        return (float(a @ b) / 3 + 1) ** 3

    xx = sum(k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j) / (5 * 4)
    yy = sum(k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j) / (7 * 6)
    xy = sum(k(a, b) for a in x for b in y) / 35
    assert polynomial_mmd(x, y).item() == pytest.approx(xx + yy - 2 * xy, rel=1e-12)


def test_mmd_equals_torchmetrics():
    x, y = normal(40, 16).double(), normal(40, 16, seed=1).double() * 1.2
    assert polynomial_mmd(x, y).item() == pytest.approx(poly_mmd(x, y).item(), rel=1e-9)


def test_kernel_distance_is_unbiased_and_tells_sets_apart():
    x = normal(2000, 16)
    mean, std = kernel_distance(x[:1000], x[1000:], generator(), num_subsets=50, subset_size=100)
    assert abs(mean) < std and std > 0
    assert kernel_distance(x[:1000], x[1000:] + 0.5, generator(), num_subsets=50, subset_size=100)[0] > 5 * std


def test_kernel_distance_follows_its_generator_alone():
    x, y = normal(60, 8), normal(80, 8, seed=1)
    first = kernel_distance(x, y, generator(3), 10, 30)
    torch.manual_seed(9)
    assert first == kernel_distance(x, y, generator(3), 10, 30) != kernel_distance(x, y, generator(4), 10, 30)
    whole, std = kernel_distance(x, y[:60], generator(), 10)
    assert std == 0 and whole == pytest.approx(polynomial_mmd(x.double(), y[:60].double()).item())
    with pytest.raises(ValueError, match="at least 2"):
        kernel_distance(x[:1], y, generator())


# ------------------------------------------------------------------------------------------- precision and recall


def test_precision_recall_of_equal_and_of_far_sets():
    x = normal(100, 4)
    assert precision_recall(x, x) == (1.0, 1.0)
    assert precision_recall(x, x + 100) == (0.0, 0.0)


def test_a_collapsed_generator_has_precision_without_recall():
    data = torch.cat([normal(100, 4), normal(100, 4, seed=1) + 50])  # two modes, the samples know one
    precision, recall = precision_recall(data, normal(100, 4, seed=2))
    assert precision > 0.8 and 0.2 < recall < 0.55
    assert precision_recall(normal(100, 4, seed=2), data) == (recall, precision)


def test_precision_recall_on_a_line_by_hand_in_any_chunks():
    real = torch.tensor([[0.0], [1.0], [2.0], [10.0]])  # k=1 radii: 1, 1, 1, 8
    fake = torch.tensor([[2.9], [3.1], [30.0], [-0.5]])  # radii: 0.2, 0.2, 26.9, 3.4
    for chunk in (1, 3, 4096):
        assert precision_recall(real, fake, k=1, chunk_samples=chunk) == (0.75, 1.0)
    with pytest.raises(ValueError, match="k=3"):
        precision_recall(real[:3], fake)


def at_once(real, fake, k=3):
    """Precision and recall by all distances at once."""
    real, fake = real.double(), fake.double()
    within = [(torch.cdist(x, y) <= torch.cdist(y, y).kthvalue(k + 1).values).any(1).double().mean().item()
              for x, y in ((fake, real), (real, fake))]  # fmt: skip
    return tuple(within)


def test_blocks_on_both_sides_are_all_at_once():
    real, fake = normal(1100, 12), normal(900, 12, seed=1) * 0.9
    expected = at_once(real, fake)
    assert 0.1 < min(expected) < max(expected) < 0.99
    for chunk in (256, 1000, 5000):
        assert precision_recall(real, fake, chunk_samples=chunk) == expected
    assert precision_recall(real[:40], fake[:30], chunk_samples=2) == at_once(real[:40], fake[:30])
    assert precision_recall(real, fake, real_radii=radii_of(real)) == expected
    assert precision_recall(real, fake, real_radii=torch.zeros(len(real)))[0] == 0.0, "they are read"
    found = moments(real, chunk_samples=77)
    assert torch.allclose(found.covariance, torch.cov(real.double().T), rtol=1e-12, atol=1e-14)
    assert torch.allclose(found.mean, real.double().mean(0))


# ------------------------------------------------------------------------------------------------ Inception score


def test_inception_score_limits():
    sure = torch.eye(10).repeat(10, 1) * 1000
    assert inception_score(sure, 1)[0] == pytest.approx(10)
    assert inception_score(torch.zeros(50, 10))[0] == pytest.approx(1)
    with pytest.raises(ValueError, match="num_splits=10"):
        inception_score(torch.zeros(5, 10))


@pytest.mark.filterwarnings("ignore")
def test_inception_score_equals_torchmetrics():
    class Logits(torch.nn.Module):
        def forward(self, x):
            return x[:, :7, 0, 0].float()

    logits = torch.randint(0, 8, (90, 7), generator=generator())
    theirs = InceptionScore(feature=Logits(), splits=1)
    theirs.update(logits.to(torch.uint8)[..., None, None])
    assert inception_score(logits.float(), 1)[0] == pytest.approx(theirs.compute()[0].item(), rel=1e-5)
    mean, std = inception_score(logits.float(), 3)
    parts = [inception_score(part.float(), 1)[0] for part in logits.chunk(3)]
    assert mean == pytest.approx(sum(parts) / 3) and std == pytest.approx(
        math.sqrt(sum((part - mean) ** 2 for part in parts) / 3)
    )


# ------------------------------------------------------------------------------------------------ collecting


def test_feature_bank_orders_by_number_and_drops_repeats():
    bank, x = FeatureBank(), normal(6, 3)
    bank.update(x[[4, 0, 2]], torch.tensor([4, 0, 2]))
    bank.update(x[[1, 3, 5, 0]], torch.tensor([1, 3, 5, 0]))
    features, numbers = bank.compute()
    assert torch.equal(features, x) and numbers.tolist() == list(range(6))
