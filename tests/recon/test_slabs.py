import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mri_qpan.errors import InputError
from mri_qpan.fourier import fft_numpy
from mri_qpan.methods import get_method
from mri_qpan.recon.job import Job, reconstruct_file
from mri_qpan.recon.kspace import Geometry, KSpace
from mri_qpan.recon.pipeline import Result, reconstruct
from mri_qpan.recon.readers import open_kspace
from mri_qpan.recon.readers.mrd_slabs import Slabs
from mri_qpan.recon.slabs import parts_of, reconstruct_slabs
from mri_qpan.recon.study import Undersampling
from mri_qpan.recon.writers.ismrmrd_raw import draw_noise_scan, write_raw

CPU = torch.device("cpu")
SHAPE = (20, 24, 64)
MEMORY = 8 * 4 * 20 * 24 * 12 * 24
"""Bytes for 24 columns: parts of 12 and 6 on each side of it."""


def volume(shape: tuple[int, int, int], coils: int, lines: NDArray[np.bool_]) -> KSpace:
    """k-space of a ball with twofold readout oversampling."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    ball = ((2 * x) ** 2 + y**2 + z**2 < 0.7) * (1 + 0.3 * np.sin(14 * x) * np.cos(7 * y))
    data = np.empty((coils, *shape), np.complex64)
    for coil, angle in enumerate(2 * np.pi * np.arange(coils) / coils):
        distance = (y - np.sin(angle)) ** 2 + (z - np.cos(angle)) ** 2
        data[coil] = fft_numpy(ball * np.exp(-distance + 1j * (angle + y)), (0, 1, 2))
    mask = np.repeat(lines[..., None], shape[2], axis=2)
    recon_shape = (shape[0], shape[1], shape[2] // 2)
    return KSpace(data * mask, mask, recon_shape, Geometry((100.0, 100.0, 100.0)))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every second line and a calibration region, with a noise scan; acquired twice."""
    lines = np.zeros(SHAPE[:2], bool)
    lines[:, ::2] = True
    lines[4:16, 6:18] = True
    kspace = volume(SHAPE, 4, lines)
    path = tmp_path_factory.mktemp("slab") / "slab.h5"
    noise = draw_noise_scan(1e-6 * np.eye(4), 0)
    write_raw(path, [kspace, replace(kspace, data=0.9 * kspace.data)], noise=noise, reverse=True)
    return path


def both(file: Path, method: str, **options: int) -> tuple[Result, Result]:
    """In parts and whole."""
    (parts,) = open_kspace(file, memory=MEMORY)
    assert isinstance(parts, Slabs)
    (whole,) = open_kspace(file)
    run = get_method(method)
    return reconstruct_slabs(parts, run, MEMORY, **options), reconstruct(whole, run, **options)


def apart(found: Result, wanted: Result) -> float:
    error = np.linalg.norm(found.image.data - wanted.image.data)
    return float(error / np.linalg.norm(wanted.image.data))


@pytest.mark.parametrize(
    ("method", "tolerance"), [("zero-filled", 1e-3), ("cg-sense", 5e-3), ("qpan+-3bit", 0.01)]
)
def test_parts_make_the_whole(file: Path, method: str, tolerance: float) -> None:
    found, wanted = both(file, method)
    assert apart(found, wanted) < tolerance
    assert found.image.data.shape == (20, 24, 32)
    assert (found.image.geometry, found.image.index) == (wanted.image.geometry, wanted.image.index)
    assert found.figures.mask_hash == wanted.figures.mask_hash
    assert found.figures.ratio == pytest.approx(wanted.figures.ratio)
    assert found.figures.residual == pytest.approx(wanted.figures.residual, rel=0.1, abs=1e-3)
    assert "worked in 3 parts along the readout" in found.notes[-1]


def test_the_parts_cover_every_column_once(file: Path) -> None:
    (slabs,) = open_kspace(file, memory=MEMORY)
    assert isinstance(slabs, Slabs)
    for columns in (1, 2, 5, 9, 31):
        parts = parts_of(slabs, MEMORY * columns // 24)
        kept = np.concatenate([np.arange(32)[part.keep] for part in parts])
        np.testing.assert_array_equal(np.sort(kept), np.arange(32))
        assert parts[0].keep.start <= slabs.strongest() < parts[0].keep.stop
        assert max(part.stop - part.start for part in parts) <= columns
    with pytest.raises(InputError, match="do not hold one column"):
        parts_of(slabs, MEMORY // 30)


def test_a_job_in_parts(file: Path, tmp_path: Path) -> None:
    job = Job(get_method("zero-filled"), CPU, memory=MEMORY, compress=3, replicas=2, report=True)
    record = reconstruct_file(file, tmp_path, job)
    assert any("worked in 3 parts" in note for note in record["notes"])
    assert record["images"][0]["matrix_zyx"] == [20, 24, 32]
    assert any("_uncertainty" in name for name in record["outputs"])
    with pytest.raises(InputError, match="more memory than there is"):
        reconstruct_file(file, tmp_path, replace(job, undersampling=Undersampling.parse("lines:0.5")))
    assert "worked" not in str(reconstruct_file(file, tmp_path, replace(job, memory=2**30))["notes"])


PEAK = """
import re, sys, torch
from pathlib import Path
from mri_qpan.methods import get_method
from mri_qpan.recon.job import Job, reconstruct_file
from mri_qpan.recon.writers import find_formats
torch.set_num_threads(1)
npy = find_formats(["npy"])
job = Job(get_method("zero-filled"), torch.device("cpu"), memory=int(sys.argv[2]), formats=npy)
reconstruct_file(Path(sys.argv[1]), Path(sys.argv[1]).parent, job)
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory of a process is read from /proc")
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """A file eight times as large, and four times what is allowed."""
    lines = np.ones((32, 64), bool)
    lines[16, 32] = False  # no calibration region: its maps would take the test's time
    limit, peaks, sizes = 16, [], []
    for name, length in (("short", 64), ("long", 512)):
        path = tmp_path / name / f"{name}.h5"
        path.parent.mkdir()
        write_raw(path, [volume((32, 64, length), 8, lines)])
        command = [sys.executable, "-c", PEAK, str(path), str(limit << 20)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
        peaks.append(int(done.stdout) / 1024)
        sizes.append(path.stat().st_size / 2**20)
    assert sizes[1] > 4 * limit
    image = 32 * 64 * 256 * 8 / 2**20
    assert peaks[1] - peaks[0] < limit / 2 + 3 * image < (sizes[1] - sizes[0]) / 2
