import subprocess
from pathlib import Path

import numpy as np
import pytest

from mri_qpan import bart
from mri_qpan.errors import InputError, ReconError
from mri_qpan.fourier import fft_numpy

needs_bart = pytest.mark.skipif(not bart.available(), reason="BART (command `bart`) is not installed")


def random_complex(*shape: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


@pytest.mark.parametrize("shape", [(5, 4), (3, 5, 4), (2, 1, 5, 4), (2, 3, 2, 5, 4)])
def test_round_trip(tmp_path: Path, shape) -> None:
    array = random_complex(*shape)
    bart.write_cfl(tmp_path / "array.1", array)
    np.testing.assert_array_equal(bart.read_cfl(tmp_path / "array.1"), array)


def test_leading_ones_go(tmp_path: Path) -> None:
    array = random_complex(1, 1, 1, 4)
    bart.write_cfl(tmp_path / "array", array)
    assert bart.read_cfl(tmp_path / "array").shape == (1, 4)


@needs_bart
def test_bart_reads_what_was_written_and_the_axes_agree(tmp_path: Path) -> None:
    image = random_complex(3, 1, 8, 7)
    bart.write_cfl(tmp_path / "image", image)
    bart.run(["fft", "-u", "3", "image", "kspace"], tmp_path, threads=1)
    np.testing.assert_allclose(bart.read_cfl(tmp_path / "kspace"), fft_numpy(image, (-2, -1)), atol=1e-5)
    said = bart.run(["show", "-d", "0", "image"], tmp_path, threads=1)
    assert said.split()[-1] == "7"


@needs_bart
def test_version_and_failure(tmp_path: Path) -> None:
    assert bart.version().startswith("v")
    with pytest.raises(ReconError, match="bart fft failed"):
        bart.run(["fft", "3", "missing", "out"], tmp_path, threads=1)


def test_without_bart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ReconError, match="not installed"):
        bart.run(["version"], tmp_path, threads=1)


def test_threads_reach_the_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = {}

    def fake(command, env, **_):
        seen.update(env)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(bart, "available", lambda: True)
    monkeypatch.setattr(subprocess, "run", fake)
    bart.run(["version"], tmp_path, threads=3)
    assert seen["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize("header", ["", "# Dimensions\n", "# Dimensions\nfour 4\n", "no sizes\n4 4\n"])
def test_a_bad_header_is_refused(tmp_path: Path, header: str) -> None:
    (tmp_path / "array.hdr").write_text(header)
    with pytest.raises(InputError, match=r"array"):
        bart.read_cfl(tmp_path / "array")


def test_a_short_or_missing_file_is_refused(tmp_path: Path) -> None:
    bart.write_cfl(tmp_path / "array", random_complex(4, 4))
    (tmp_path / "array.cfl").write_bytes(b"short")
    with pytest.raises(InputError, match="complete"):
        bart.read_cfl(tmp_path / "array")
    (tmp_path / "array.cfl").unlink()
    with pytest.raises(InputError, match="complete"):
        bart.read_cfl(tmp_path / "array")
    with pytest.raises(InputError, match="No such file"):
        bart.read_cfl(tmp_path / "other")
