"""Muon against the definition of what it approximates."""

import pytest
import torch

from mri_qpan.training.muon import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(8, 18), (18, 8), (32, 288), (2, 288), (32, 18)])
def test_singular_values_come_near_one_and_directions_stay(shape):
    torch.manual_seed(0)
    matrix = torch.randn(3, *shape)
    result = orthogonalised(matrix)
    values = torch.linalg.svdvals(result)
    assert float(values.min()) > 0.5
    assert float(values.max()) < 1.3
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    core = u.mT @ result @ vh.mT
    off_diagonal = core - torch.diag_embed(core.diagonal(dim1=-2, dim2=-1))
    assert float(off_diagonal.abs().max()) < 1e-2


def test_a_step_has_the_size_that_the_learning_rate_says():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(32, 32, 3, 3))
    optimizer = Muon([weight], lr=1e-2)
    (weight * torch.randn_like(weight)).sum().backward()
    optimizer.step()
    size = float(weight.detach().square().mean().sqrt())
    assert 0.5 * 0.2e-2 < size < 1.3 * 0.2e-2


def test_it_descends_and_leaves_weights_without_a_gradient():
    torch.manual_seed(0)
    weight, idle = (torch.nn.Parameter(torch.randn(4, 3, 3, 3)) for _ in range(2))
    goal, before = torch.randn(4, 3, 3, 3), idle.detach().clone()
    optimizer = Muon([weight, idle], lr=5e-2)
    losses = []
    for _ in range(200):
        optimizer.zero_grad()
        loss = (weight - goal).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.02 * losses[0]
    assert torch.equal(idle.detach(), before)
