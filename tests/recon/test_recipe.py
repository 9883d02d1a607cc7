"""What makes two recipes of a reconstruction differ."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mri_qpan.recon import recipe
from mri_qpan.recon.recipe import Recipe


@pytest.fixture
def along(tmp_path):
    """A recipe whose trajectory is a file of its own."""
    np.save(tmp_path / "k.npy", np.zeros((3, 2)))
    return Recipe(method="zero-filled", device="cpu", dims=f"sample,readout@{tmp_path / 'k.npy'}:32x24")


def digest(plan):
    return plan.digest(plan.job().method)


def test_another_trajectory_is_another_recipe(along, tmp_path):
    before = digest(along)
    assert digest(along) == before
    np.save(tmp_path / "k.npy", np.ones((3, 2)))
    assert digest(along) != before


def test_a_worker_elsewhere_finds_the_trajectory(along, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    near = replace(along, dims="sample,readout@k.npy:32x24").resolved()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert near.dims is not None
    _, _, words = near.dims.partition("@")
    assert os.path.isabs(words)
    assert words.endswith(":32x24")
    assert Path(words.rpartition(":")[0]).samefile(tmp_path / "k.npy")


def test_a_variable_of_the_same_file_stays_a_name():
    plan = Recipe(method="zero-filled", device="cpu", dims="sample,readout@k:32")
    assert plan.resolved().dims == plan.dims
    digest(plan)


def test_another_version_is_another_recipe(along, monkeypatch):
    before = digest(along)
    monkeypatch.setattr(recipe, "__version__", "99")
    assert digest(along) != before
