"""Weights on the x0 error: the published losses in one unit."""

import pytest
import torch

from ldm.diffusion import weighting
from ldm.diffusion.precond import EDM, X0, Eps, Flow, V
from ldm.diffusion.schedule import VE
from ldm.diffusion.schedule import Flow as FlowSchedule

SIGMA = torch.logspace(-2.5, 2, 50, dtype=torch.float64)
PRECONDS = [Eps(VE()), V(VE()), X0(VE()), Flow(FlowSchedule()), EDM(VE(), sigma_data=0.5)]


@pytest.mark.parametrize("precond", PRECONDS, ids=lambda precond: type(precond).__name__)
def test_native_weight_is_one_over_c_out_squared(precond):
    c_out = precond(SIGMA)[1]
    torch.testing.assert_close(weighting.Native(precond)(SIGMA) * c_out**2, torch.ones_like(SIGMA))


def test_edm_weight_is_native_to_edm():
    torch.testing.assert_close(weighting.EDM(0.5)(SIGMA), weighting.Native(EDM(VE(), sigma_data=0.5))(SIGMA))


def test_min_snr_is_the_published_weight_for_each_parametrisation():
    snr = 1 / SIGMA**2
    weight = weighting.MinSNR(gamma=5.0)(SIGMA)
    capped = snr.clamp(max=5.0)
    torch.testing.assert_close(weight / weighting.Native(Eps(VE()))(SIGMA), capped / snr)
    torch.testing.assert_close(weight / weighting.Native(V(VE()))(SIGMA), capped / (snr + 1))
    torch.testing.assert_close(weight / weighting.Native(X0(VE()))(SIGMA), capped)


def test_unit_weight():
    assert torch.equal(weighting.Unit()(SIGMA), torch.ones_like(SIGMA))


@pytest.mark.parametrize(("make", "key"), [(weighting.EDM, "sigma_data"), (weighting.MinSNR, "gamma")])
def test_non_positive_constants_are_refused(make, key):
    with pytest.raises(ValueError, match=key):
        make(0.0)
