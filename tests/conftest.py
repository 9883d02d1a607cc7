import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

from mri_qpan.fourier import fft_numpy
from mri_qpan.recon.kspace import Geometry, Index, KSpace, Stamp

# Fifty times the examples: pytest --hypothesis-profile=fuzz tests/recon/test_reader_fuzz.py
settings.register_profile("fuzz", max_examples=5000)

if "PYTEST_XDIST_WORKER" in os.environ:  # pytest -n 2 --dist loadfile: a core each, also for what tests start
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)

LONGEST = "test_wheel.py"
"""What several workers begin with, lest one is left with it alone at the end."""

# Models that a developer has fetched are no part of the package.
os.environ["MRI_QPAN_MODELS"] = os.devnull

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest file first for several workers."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: item.path.name != LONGEST)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; a test that needs it skips where it is missing."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the project's real data (shared/data) are not beside this checkout")
    return SHARED_DATA


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a test of a reader writes its file."""
    return tmp_path / "scan.h5"


@pytest.fixture(scope="session")
def small_kspace() -> Callable[..., KSpace]:
    """A maker of fully sampled slices of a disc: `small_kspace(index, coils, ny, nx)`."""

    def make(index: Index = Index(), coils: int = 4, ny: int = 48, nx: int = 40) -> KSpace:  # noqa: B008
        y, x = np.meshgrid(np.linspace(-1, 1, ny), np.linspace(-1, 1, nx), indexing="ij")
        disc = (x**2 + y**2 < 0.6) * (1 + 0.3 * np.sin(9 * x + index.slice)) + 2 * (
            (x - 0.3) ** 2 + y**2 < 0.02
        )
        angles = 2 * np.pi * np.arange(coils) / coils
        centres = np.stack([np.sin(angles), np.cos(angles)], axis=1)
        mps = np.stack(
            [np.exp(-((y - a) ** 2 + (x - b) ** 2 + 1j * (a * x + b * y)) / 2) for a, b in centres]
        )
        data = fft_numpy(disc * mps if coils > 1 else disc[None], (-2, -1))[:, None]
        position = (1.0, 2.0, 3.0 + 5.0 * index.slice)
        geometry = Geometry(fov=(2.0 * nx, 2.0 * ny, 5.0), position=position)
        return KSpace(
            data, np.ones((1, ny, nx), bool), (1, ny, nx), geometry, index, Stamp(measurement_uid=7)
        )

    return make
