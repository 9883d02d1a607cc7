"""Every proximal operator against a brute-force minimiser, every penalty against its own definition."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mri_qpan import penalties

values = st.floats(-5, 5)
lams = st.floats(0.01, 2)
gammas = st.floats(1.05, 6)
shapes_a = st.floats(2.05, 8)


def as_tensor(value):
    return torch.tensor([value], dtype=torch.float64)


def brute_force(penalty, x):
    """Minimise 0.5 (u - x)^2 + g(u) on a grid that is refined around its best point."""
    low, high = -abs(x) - 0.1, abs(x) + 0.1
    for _ in range(4):
        u = torch.linspace(low, high, 20001, dtype=torch.float64)
        cost = 0.5 * (u - x) ** 2 + penalty(u)
        best = int(cost.argmin())
        step = (high - low) / 20000
        low, high = float(u[best]) - 2 * step, float(u[best]) + 2 * step
    return float(u[best]), float(cost[best])


@settings(deadline=None, max_examples=150)
@given(x=values, lam=lams, gamma=gammas, a=shapes_a)
@pytest.mark.parametrize("name", ["l1", "mcp", "scad"])
def test_prox_is_the_minimiser(name, x, lam, gamma, a):
    penalty, prox = {
        "l1": (lambda u: penalties.l1(u, lam), lambda u: penalties.prox_l1(u, lam)),
        "mcp": (lambda u: penalties.mcp(u, lam, gamma), lambda u: penalties.prox_mcp(u, lam, gamma)),
        "scad": (lambda u: penalties.scad(u, lam, a), lambda u: penalties.prox_scad(u, lam, a)),
    }[name]
    _, least = brute_force(penalty, x)
    u = prox(as_tensor(x))
    cost = float(0.5 * (u - x) ** 2 + penalty(u))
    assert cost <= least + 1e-9


def table_mcp(x, lam, gamma):
    if abs(x) <= lam:
        return 0.0
    return np.sign(x) * gamma / (gamma - 1) * (abs(x) - lam) if abs(x) <= gamma * lam else x


def table_scad(x, lam, a):
    if abs(x) <= 2 * lam:
        return np.sign(x) * max(abs(x) - lam, 0)
    return ((a - 1) * x - np.sign(x) * a * lam) / (a - 2) if abs(x) <= a * lam else x


@settings(deadline=None, max_examples=200)
@given(x=values, lam=lams, gamma=gammas, a=shapes_a)
def test_branch_free_forms_are_table_1(x, lam, gamma, a):
    mcp, scad = penalties.prox_mcp(as_tensor(x), lam, gamma), penalties.prox_scad(as_tensor(x), lam, a)
    assert float(mcp) == pytest.approx(table_mcp(x, lam, gamma), abs=1e-9)
    assert float(scad) == pytest.approx(table_scad(x, lam, a), abs=1e-9)


@settings(deadline=None, max_examples=100)
@given(lam=lams, gamma=gammas, a=shapes_a)
def test_penalties_are_continuous_at_their_knots(lam, gamma, a):
    eps = 1e-7
    knots = [
        (lambda u: penalties.mcp(u, lam, gamma), gamma * lam),
        (lambda u: penalties.scad(u, lam, a), lam),
        (lambda u: penalties.scad(u, lam, a), a * lam),
    ]
    for penalty, knot in knots:
        below, above = penalty(as_tensor(knot - eps)), penalty(as_tensor(knot + eps))
        assert float((above - below).abs()) < 1e-5


@settings(deadline=None, max_examples=50)
@given(x=values, lam=st.tuples(lams, lams, lams), gamma=gammas, a=shapes_a)
def test_average_is_the_mean_of_its_parts(x, lam, gamma, a):
    point = as_tensor(x)
    parts = [
        penalties.prox_l1(point, lam[0]),
        penalties.prox_mcp(point, lam[1], gamma),
        penalties.prox_scad(point, lam[2], a),
    ]
    assert torch.allclose(penalties.proximal_average(point, lam, gamma, a), sum(parts) / 3)
    two = penalties.proximal_average(point, lam[:2], gamma, a, ("l1", "mcp"))
    assert torch.allclose(two, (parts[0] + parts[1]) / 2)


def test_shares_weight_the_average():
    x = torch.linspace(-2, 2, 41)
    lam, shares = (0.1, 0.2, 0.3), (0.5, 0.2, 0.3)
    names = penalties.PENALTIES
    parts = [penalties.proximal_average(x, (t,), 2.0, 3.7, (p,)) for t, p in zip(lam, names, strict=True)]
    expected = sum(s * p for s, p in zip(shares, parts, strict=True))
    torch.testing.assert_close(penalties.proximal_average(x, lam, 2.0, 3.7, names, shares), expected)


def test_complex_values_keep_their_phase():
    x = torch.tensor([3 + 4j, 0.1j, 0j])
    shrunk = penalties.prox_l1(x, 1.0)
    assert torch.allclose(shrunk, torch.tensor([2.4 + 3.2j, 0j, 0j]))


def test_unknown_and_missing_penalties_are_named():
    with pytest.raises(ValueError, match="l2"):
        penalties.proximal_average(as_tensor(1.0), [1.0], 2, 3, ("l2",))
    with pytest.raises(ValueError, match="at least one"):
        penalties.proximal_average(as_tensor(1.0), [], 2, 3, ())


def test_gradients_flow_to_every_parameter():
    x = torch.linspace(-2, 2, 101)
    lam = torch.tensor([0.3, 0.4, 0.5], requires_grad=True)
    gamma = torch.tensor(2.0, requires_grad=True)
    a = torch.tensor(3.0, requires_grad=True)
    penalties.proximal_average(x, list(lam), gamma, a).abs().sum().backward()
    assert bool((lam.grad != 0).all())
    assert gamma.grad != 0
    assert a.grad != 0
