import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mri_qpan.errors import InputError
from mri_qpan.fourier import fft_numpy, ifft_numpy
from mri_qpan.methods import get_method
from mri_qpan.recon.job import Job, reconstruct_file
from mri_qpan.recon.kspace import Geometry, KSpace
from mri_qpan.recon.pipeline import Result, reconstruct
from mri_qpan.recon.readers import open_kspace
from mri_qpan.recon.readers.mrd_slabs import Slabs
from mri_qpan.recon.slabs import parts_of, reconstruct_slabs, study_slabs
from mri_qpan.recon.study import Undersampling, study
from mri_qpan.recon.views import PLANES
from mri_qpan.recon.writers.ismrmrd_raw import draw_noise_scan, write_raw
from mri_qpan.sampling_masks import make_mask

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


def test_lines_of_zeros_were_not_measured_in_parts_either(tmp_path: Path) -> None:
    lines = np.zeros(SHAPE[:2], bool)
    lines[:, ::2] = lines[4:16, 6:18] = True
    kspace = volume(SHAPE, 4, lines)
    path = tmp_path / "zeros.h5"
    write_raw(path, [replace(kspace, mask=np.ones_like(kspace.mask))])
    found, wanted = both(path, "zero-filled")
    assert found.figures.ratio == pytest.approx(lines.mean())
    assert found.figures.mask_hash == wanted.figures.mask_hash
    assert any(f"{(~lines).sum()} lines are zero" in note for note in found.notes)
    # Four coils alike: which of them has phase 0 is up to rounding.
    error = np.linalg.norm(abs(found.image.data) - abs(wanted.image.data))
    assert error < 0.01 * np.linalg.norm(wanted.image.data)


def test_the_zeros_before_an_asymmetric_echo_were_not_measured_in_parts_either(tmp_path: Path) -> None:
    kspace = volume(SHAPE, 4, np.ones(SHAPE[:2], bool))
    data = kspace.data.copy()
    data[..., : SHAPE[2] // 5] = 0
    path = tmp_path / "echo.h5"
    write_raw(path, [replace(kspace, data=data, mask=np.ones_like(kspace.mask))])
    found, wanted = both(path, "zero-filled")
    assert found.figures.ratio == wanted.figures.ratio == pytest.approx(1 - (SHAPE[2] // 5) / SHAPE[2])
    assert any("18.8% of the samples are zero" in note for note in found.notes)
    error = np.linalg.norm(abs(found.image.data) - abs(wanted.image.data))
    assert error < 0.02 * np.linalg.norm(wanted.image.data)


def test_parts_of_a_few_columns_have_the_maps_of_the_whole(file: Path) -> None:
    (parts,) = open_kspace(file, memory=MEMORY // 4)
    (whole,) = open_kspace(file)
    assert isinstance(parts, Slabs)
    assert min(part.stop - part.start for part in parts_of(parts, MEMORY // 4)) < 8
    run = get_method("cg-sense")
    found, wanted = reconstruct_slabs(parts, run, MEMORY // 4), reconstruct(whole, run)
    assert any("coil maps by ESPIRiT" in note for note in found.notes)
    assert not any("no calibration region" in note for note in found.notes)
    assert apart(found, wanted) < 0.01


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


def test_too_narrow_a_calibration_region(tmp_path: Path) -> None:
    """ESPIRiT would find no maps, and the image would be zero, in parts and as a whole."""
    lines = np.zeros(SHAPE[:2], bool)
    lines[:, ::2] = lines[6:14, 8:16] = True
    kspace = volume(SHAPE, 4, lines)
    write_raw(tmp_path / "slab.h5", [kspace])
    found, wanted = both(tmp_path / "slab.h5", "cg-sense")
    assert apart(found, wanted) < 0.06
    full = both(tmp_path / "slab.h5", "zero-filled")[1]
    assert np.linalg.norm(wanted.image.data) > 0.9 * np.linalg.norm(full.image.data)
    truth = np.sqrt((abs(ifft_numpy(volume(SHAPE, 4, lines | True).data, (1, 2, 3))) ** 2).sum(0))[..., 16:48]
    for result in (found, wanted):
        assert np.linalg.norm(abs(result.image.data) - truth) < 0.2 * np.linalg.norm(truth)
        assert any("coil maps from the low resolution" in note for note in result.notes)


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
    text = (tmp_path / "slab_zero-filled.html").read_text(encoding="utf-8")
    assert text.count("<section><h2>slice 1, plane") == PLANES
    assert text.count('alt="uncertainty"') == PLANES
    with pytest.raises(InputError, match="needs a fully sampled measurement"):
        reconstruct_file(file, tmp_path, replace(job, undersampling=Undersampling.parse("lines:0.5")))
    assert "worked" not in str(reconstruct_file(file, tmp_path, replace(job, memory=2**30))["notes"])


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("full") / "full.h5"
    write_raw(path, [volume(SHAPE, 4, np.ones(SHAPE[:2], bool))])
    return path


@pytest.mark.parametrize("spec", ["poisson:0.3:4", "lines:0.5"])
def test_a_study_in_parts_is_that_of_the_whole(full: Path, spec: str) -> None:
    (parts,) = open_kspace(full, memory=MEMORY)
    (whole,) = open_kspace(full)
    assert isinstance(parts, Slabs)
    wanted, method = Undersampling.parse(spec), get_method("cg-sense")
    found = study_slabs(parts, method, wanted, MEMORY)
    expected = study(whole, method, wanted)
    assert found.result.figures.mask_hash == expected.result.figures.mask_hash
    assert found.result.figures.ratio == pytest.approx(expected.result.figures.ratio)
    assert found.result.figures.residual == pytest.approx(expected.result.figures.residual, rel=0.1, abs=1e-3)
    for name in ("reference", "zero_filled"):
        pair = getattr(found, name), getattr(expected, name)
        assert np.linalg.norm(pair[0].data - pair[1].data) < 0.03 * np.linalg.norm(pair[1].data)
    for name in ("zero-filled", "cg-sense"):
        assert found.metrics[name]["psnr"] == pytest.approx(expected.metrics[name]["psnr"], abs=0.3)
        assert found.metrics[name]["ssim"] == pytest.approx(expected.metrics[name]["ssim"], abs=0.01)


def test_a_mask_that_ties_the_parts_together_is_refused(full: Path) -> None:
    class Scattered(Undersampling):
        def mask(self, shape: tuple[int, ...]) -> NDArray[np.bool_]:
            return np.random.default_rng(0).random(shape) < self.ratio

    (parts,) = open_kspace(full, memory=MEMORY)
    assert isinstance(parts, Slabs)
    with pytest.raises(InputError, match="differs along the readout"):
        study_slabs(parts, get_method("zero-filled"), Scattered("mine:0.5", "mine", 0.5, 0), MEMORY)


def test_a_report_in_parts_is_that_of_the_whole(file: Path) -> None:
    (parts,) = open_kspace(file, memory=MEMORY)
    (whole,) = open_kspace(file)
    assert isinstance(parts, Slabs)
    run = get_method("zero-filled")
    found = reconstruct_slabs(parts, run, MEMORY, views=True).views
    wanted = reconstruct(whole, run, views=True).views
    assert found is not None
    assert wanted is not None
    assert found.planes == wanted.planes
    assert found.noise <= 1.5 * wanted.noise
    np.testing.assert_array_equal(found.mask, wanted.mask)
    for name in ("zero_filled", "mps", "samples", "residual"):
        pair = getattr(found, name), getattr(wanted, name)
        assert pair[0].shape == pair[1].shape
        assert np.linalg.norm(pair[0] - pair[1]) < 0.02 * np.linalg.norm(pair[1]), name


@pytest.mark.parametrize("direction", ["z", "y", "x", "xy"])
def test_partial_fourier_in_parts_is_that_of_the_whole(tmp_path: Path, direction: str) -> None:
    shape = (40, 40, 64)
    kspace = volume(shape, 2, np.ones(shape[:2], bool))
    for axis in direction:
        line = np.arange(shape["zyx".index(axis)]) < 0.75 * shape["zyx".index(axis)]
        kspace.mask[:] &= line.reshape([-1 if axis == d else 1 for d in "zyx"])
    kspace.data[:] *= kspace.mask
    path = tmp_path / "partial.h5"
    write_raw(path, [kspace], noise=draw_noise_scan(1e-8 * np.eye(2), 0))
    memory = 8 * 2 * shape[0] * shape[1] * 12 * 40
    (parts,) = open_kspace(path, memory=memory)
    (whole,) = open_kspace(path)
    assert isinstance(parts, Slabs)
    run = get_method("cg-sense")
    wanted = reconstruct(whole, run)
    left = reconstruct(whole, run, partial_fourier="none")
    found = reconstruct_slabs(parts, run, memory, views=True)
    assert found.image.data.shape == wanted.image.data.shape
    assert found.figures.mask_hash == wanted.figures.mask_hash
    assert found.figures.ratio == pytest.approx(wanted.figures.ratio)
    assert found.figures.partial_fourier is not None
    assert found.figures.partial_fourier == wanted.figures.partial_fourier
    # Along x every part has blurred samples of coils that hardly change: nearly what the whole makes.
    assert apart(found, wanted) < (0.6 if "x" in direction else 0.3) * apart(left, wanted)


def in_a_random_array(seed: int, coils: int) -> tuple[KSpace, NDArray[np.float64]]:
    """k-space of a real ball, and the magnitude that all coils see together."""
    rng, shape = np.random.default_rng(seed), (16, 32, 64)
    z, y, x = np.meshgrid(*((np.arange(n) - n // 2) / n * 2 for n in shape), indexing="ij")
    ball = (z**2 + y**2 + x**2 < 0.8) * (1 + 0.25 * np.cos(9 * x) + 0.2 * np.sin(11 * y + 4 * z))
    images = np.empty((coils, *shape), np.complex64)
    for coil in range(coils):
        place = rng.normal(size=3)
        distance = sum(
            (a - 1.3 * b) ** 2 for a, b in zip((z, y, x), place / np.linalg.norm(place), strict=True)
        )
        phase = rng.uniform(-3, 3) + rng.uniform(-1, 1) * x + rng.uniform(-1, 1) * y
        images[coil] = ball / (1 + distance / 0.8) ** 1.5 * np.exp(1j * phase)
    noise = rng.standard_normal((2, *images.shape))
    data = fft_numpy(images, (1, 2, 3)) + 0.003 * (noise[0] + 1j * noise[1])
    kspace = KSpace(data.astype(np.complex64), np.ones(shape, bool), shape, Geometry((100.0, 100.0, 100.0)))
    return kspace, np.linalg.norm(images, axis=0).astype(np.float64)


RANDOM_ARRAYS = [(0, 6, None), (1, 6, None), (3, 8, 5), (4, 8, 5)]


@pytest.mark.parametrize(("seed", "coils", "compress"), RANDOM_ARRAYS)
def test_the_phase_goes_on_from_part_to_part(
    tmp_path: Path, seed: int, coils: int, compress: int | None
) -> None:
    kspace, magnitude = in_a_random_array(seed, coils)
    write_raw(tmp_path / "slab.h5", [kspace], noise=draw_noise_scan(1.8e-5 * np.eye(coils), 0))
    memory = 8 * coils * 16 * 32 * 12 * 20
    (parts,) = open_kspace(tmp_path / "slab.h5", memory=memory)
    (whole,) = open_kspace(tmp_path / "slab.h5")
    assert isinstance(parts, Slabs)
    assert len(parts_of(parts, memory)) > 4
    run = get_method("zero-filled")
    found = reconstruct_slabs(parts, run, memory, compress=compress).image.data
    wanted = reconstruct(whole, run, compress=compress).image.data
    inside = magnitude > 0.3 * magnitude.max()
    for image in (found, wanted):
        steps = np.angle(image[..., 1:] * image[..., :-1].conj())
        assert np.abs(steps[inside[..., 1:] & inside[..., :-1]]).max() < 0.5
    found = found * np.exp(-1j * np.angle(np.vdot(wanted, found)))
    assert np.linalg.norm(found - wanted) < 0.05 * np.linalg.norm(wanted)


@pytest.mark.parametrize(("seed", "coils", "compress"), RANDOM_ARRAYS)
def test_asymmetric_echoes_of_any_array_are_filled(
    tmp_path: Path, seed: int, coils: int, compress: int | None
) -> None:
    """POCS takes what the coils' maps leave of their phase for the object's."""
    kspace, magnitude = in_a_random_array(seed, coils)
    kspace.mask[..., :20] = False
    kspace.data[:] *= kspace.mask
    write_raw(tmp_path / "slab.h5", [kspace], noise=draw_noise_scan(1.8e-5 * np.eye(coils), 0))
    memory = 8 * coils * 16 * 32 * 12 * 26
    (parts,) = open_kspace(tmp_path / "slab.h5", memory=memory)
    (whole,) = open_kspace(tmp_path / "slab.h5")
    assert isinstance(parts, Slabs)
    run = get_method("cg-sense")

    def error(result: Result) -> float:
        return float(np.linalg.norm(np.abs(result.image.data) - magnitude) / np.linalg.norm(magnitude))

    left, filled = (
        error(reconstruct_slabs(parts, run, memory, compress=compress, partial_fourier=mode))
        for mode in ("none", "auto")
    )
    assert filled < 0.5 * left
    assert error(reconstruct(whole, run, compress=compress)) < 0.025


@pytest.mark.parametrize(
    ("method", "tolerance"), [("wavelet", 0.01), ("qpan+-fp", 0.06), ("qpan+-3bit", 0.08)]
)
def test_dim_parts_are_those_of_the_whole(tmp_path: Path, method: str, tolerance: float) -> None:
    """Half of the object is far from the coil: alone, a part of it would be scaled up and smoothed less."""
    shape = (8, 64, 160)
    z, y, x = np.meshgrid(*((np.arange(n) - n // 2) / n * 2 for n in shape), indexing="ij")
    rod = ((z**2 + y**2 < 0.7) & (np.abs(x) < 0.95)) * (
        1 + 0.25 * np.cos(19 * x) + 0.2 * np.sin(11 * y + 4 * z)
    )
    rng = np.random.default_rng(0)
    noise = 0.02 * (rng.standard_normal(shape) + 1j * rng.standard_normal(shape))
    mask = make_mask("lines", shape, 0.33)
    data = ((fft_numpy(rod * np.where(x > 0.3, 0.06, 1.0), (0, 1, 2)) + noise) * mask).astype(np.complex64)
    write_raw(tmp_path / "rod.h5", [KSpace(data[None], mask, shape, Geometry((160.0, 64.0, 8.0)))])
    memory = 8 * shape[0] * shape[1] * 12 * 64
    (parts,) = open_kspace(tmp_path / "rod.h5", memory=memory)
    (whole,) = open_kspace(tmp_path / "rod.h5")
    assert isinstance(parts, Slabs)
    run = get_method(method)
    found, wanted = (
        np.abs(result.image.data)
        for result in (
            reconstruct_slabs(parts, run, memory, partial_fourier="none"),
            reconstruct(whole, run, partial_fourier="none"),
        )
    )
    for columns in (slice(10, 90), slice(112, 152)):
        difference = np.linalg.norm((found - wanted)[..., columns])
        assert difference < tolerance * np.linalg.norm(wanted[..., columns])


def test_readouts_of_several_lengths_are_not_worked_in_parts(tmp_path: Path) -> None:
    kspace = volume(SHAPE, 2, np.ones(SHAPE[:2], bool))
    kspace.mask[3, 4, 50:] = False
    kspace.data[:] *= kspace.mask
    write_raw(tmp_path / "mixed.h5", [kspace])
    (image,) = open_kspace(tmp_path / "mixed.h5", memory=MEMORY // 2)
    assert not isinstance(image, Slabs)
    assert "was not worked in parts" in image.notes[-1]


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
    """A file eight times as large, and four times what is allowed.

    With one arena, and what is large returned at once: else `malloc` keeps what the threads' turns decide.
    """
    lines = np.ones((32, 64), bool)
    lines[16, 32] = False  # no calibration region: its maps would take the test's time
    limit, peaks, sizes = 16, [], []
    environment = os.environ | {
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": str(2**17),
        "OMP_NUM_THREADS": "1",
    }
    for name, length in (("short", 64), ("long", 512)):
        path = tmp_path / name / f"{name}.h5"
        path.parent.mkdir()
        write_raw(path, [volume((32, 64, length), 8, lines)])
        command = [sys.executable, "-c", PEAK, str(path), str(limit << 20)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
        )
        peaks.append(int(done.stdout) / 1024)
        sizes.append(path.stat().st_size / 2**20)
    assert sizes[1] > 4 * limit
    image = 32 * 64 * 256 * 8 / 2**20
    assert peaks[1] - peaks[0] < limit / 2 + 3 * image < (sizes[1] - sizes[0]) / 2
