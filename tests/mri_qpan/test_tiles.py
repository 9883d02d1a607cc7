"""The fused kernel by AMX's tiles, their instructions emulated: to the bit what vectors give."""

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mri_qpan import engines
from mri_qpan.engines import fused, kernels
from mri_qpan.networks import ProximalNetwork, named_config

TILES = 8192
SOURCES = Path(engines.__file__).parent
COMPILER = shutil.which("g++") or shutil.which("clang++")

pytestmark = pytest.mark.skipif(
    COMPILER is None or kernels.width() < 512 or sys.platform != "linux",
    reason="needs Linux, a C++ compiler and a processor with AVX-512 VNNI",
)


def built(folder: Path, kind: int) -> ctypes.CDLL:
    path = folder / f"emulated{kind}.so"
    flags = ["-O1", "-std=c++17", "-fPIC", "-shared", "-pthread", f"-DEMULATE_TILES={kind}"]
    assert COMPILER is not None
    words = [COMPILER, *flags, str(SOURCES / "fused.cpp"), "-o", str(path)]
    subprocess.run(words, check=True, capture_output=True)
    return ctypes.CDLL(str(path))


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernels' own sources, built with the tiles' instructions in plain C++."""
    return built(tmp_path_factory.mktemp("kernels"), 1)


@pytest.mark.parametrize("shape", [(1, 1), (3, 16), (19, 17), (40, 48), (37, 97)])
@pytest.mark.parametrize(("channels", "bits"), [(2, 3), (1, 1)])
def test_tiles_give_what_vectors_give(monkeypatch, emulated, shape, channels, bits):
    torch.manual_seed(0)
    config = named_config("pan+", layers=2, filters=32, bits=bits, channels=channels, carry=True)
    network = ProximalNetwork(config).requires_grad_(False)
    for layer in network.layers:
        torch.nn.init.normal_(layer.carry, std=0.3)
    r = torch.randn(1, channels, *shape)
    r[..., shape[0] // 2, :] *= 100  # rows of other steps: sums are rescaled on their way
    found = []
    # Both of one library: compilers round the image's last sums in ways of their own.
    monkeypatch.setattr(kernels, "library", lambda: emulated)
    for width in (TILES, 512):
        kernel = fused.Fused(network, width)
        first, features = kernel(0, r, None)
        found.append((first, features.units, kernel(1, first, features)[0]))
    for tiles, vectors in zip(*found, strict=True):
        assert torch.equal(tiles, vectors)
    assert bool((found[0][1] != 0).any())


def test_a_trial_tells_that_emulated_tiles_are_right_but_slow(monkeypatch, emulated):
    before = torch.random.get_rng_state()
    assert fused.trial(emulated) == fused.EQUAL
    assert torch.equal(torch.random.get_rng_state(), before)
    monkeypatch.setattr(kernels, "library", lambda: emulated)
    assert fused.best_width.__wrapped__() == kernels.width()
    monkeypatch.setattr(fused, "trial", lambda library: fused.EQUAL | fused.FASTER)
    assert fused.best_width.__wrapped__() == TILES
    monkeypatch.setenv("MRI_QPAN_AMX", "0")
    assert fused.best_width.__wrapped__() == kernels.width()


@pytest.mark.parametrize("kind", [2, 3], ids=["fault", "wrong"])
def test_a_trial_outlives_tiles_that_fail(capfd, tmp_path, kind):
    assert not fused.trial(built(tmp_path, kind)) & fused.EQUAL
    assert capfd.readouterr() == ("", "")


def test_the_emulation_counts_as_a_machine_with_tiles(emulated):
    assert emulated.mri_qpan_fused_tiles() == TILES
    library = kernels.library()
    assert library is not None
    assert library.mri_qpan_fused_tiles() in (0, TILES)
