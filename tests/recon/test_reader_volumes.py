"""3-D trajectories in ISMRMRD files: stacks and koosh balls, held against BART's phantom and transform."""

from pathlib import Path

import ismrmrd
import numpy as np
import pytest
import sigpy as sp
from mrd_files import header_xml, refused, write
from numpy.typing import NDArray

from mri_qpan import bart
from mri_qpan.methods import get_method
from mri_qpan.noncartesian import ACCURATE, NonCartesian
from mri_qpan.recon.pipeline import reconstruct
from mri_qpan.recon.readers import open_kspace

needs_bart = pytest.mark.skipif(not bart.available(), reason="BART (command `bart`) is not installed")
N, DEPTH, SPOKES, COILS = 24, 12, 36, 4
Coord = NDArray[np.float32]


def radial(turned: float = 0.0) -> Coord:
    """Spokes of every partition, (partition, spoke, sample, (z, y, x)) in cycles over the field of view.

    `turned` is the angle from a partition to the next.
    """
    angle = np.pi * np.arange(SPOKES) / SPOKES + turned * np.arange(DEPTH)[:, None]
    radius = (np.arange(2 * N) - N) / 2
    coord = np.empty((DEPTH, SPOKES, 2 * N, 3), np.float32)
    coord[..., 0] = (np.arange(DEPTH) - DEPTH // 2)[:, None, None]
    coord[..., 1] = np.sin(angle)[..., None] * radius
    coord[..., 2] = np.cos(angle)[..., None] * radius
    return coord


def koosh(spokes: int) -> Coord:
    """Spokes over the sphere along a spiral, (spoke, sample, 3)."""
    height = np.linspace(-1, 1, spokes)
    turn = np.arange(spokes) * 2.399963
    axis = np.stack([height, *(np.sqrt(1 - height**2) * np.array([np.sin(turn), np.cos(turn)]))], axis=-1)
    radius = (np.arange(2 * N) - N) / 2
    return (axis[:, None] * radius[:, None]).astype(np.float32)


def phantom(folder: Path, coord: Coord) -> NDArray[np.complex64]:
    """Exact samples (coil, *coord.shape[:-1]) of BART's 3-D phantom with its coils; x, y, z in this order."""
    traj = np.ascontiguousarray(coord.reshape(1, -1, 3)[..., ::-1])
    bart.write_cfl(folder / "traj", traj.astype(np.complex64))
    bart.run(["phantom", "-3", "-k", "-s", str(COILS), "-t", "traj", "samples"], folder, threads=1)
    samples = bart.read_cfl(folder / "samples").reshape(COILS, *coord.shape[:-1])
    return samples / np.abs(samples).max()


def sampled(image: NDArray[np.complex64], mps: NDArray[np.complex64], coord: Coord) -> NDArray[np.complex64]:
    return sp.nufft(mps * image, coord, **ACCURATE).astype(np.complex64)


def acquisitions(
    samples: NDArray[np.complex64], coord: Coord, dimensions: int = 3, unit: float = 1.0
) -> list[ismrmrd.Acquisition]:
    """One a spoke; of (partition, spoke, ...) with the partitions' counter."""
    made = []
    for place in np.ndindex(*coord.shape[:-2]):
        path = np.ascontiguousarray(coord[place][:, : -dimensions - 1 : -1] * np.float32(unit))
        made.append(ismrmrd.Acquisition.from_array(np.ascontiguousarray(samples[:, *place]), path))
        made[-1].idx.kspace_encode_step_2 = place[0] if len(place) > 1 else 0
        made[-1].idx.kspace_encode_step_1 = place[-1]
        for axis, vector in zip(("read_dir", "phase_dir", "slice_dir"), np.eye(3), strict=True):
            for i in range(3):
                getattr(made[-1], axis)[i] = vector[i]
    return made


def header(depth: int, recon: int | None = None, trajectory: str = "radial") -> str:
    delivered = (N, N, recon or depth)
    return header_xml((N, N, depth), delivered, recon_fov=delivered, trajectory=trajectory)


def volume(depth: int) -> tuple[NDArray[np.complex64], NDArray[np.complex64]]:
    """An image (z, y, x) that no turn or flip keeps, and smooth maps."""
    z, y, x = np.meshgrid(*(np.arange(n) / n - 0.5 for n in (depth, N, N)), indexing="ij")
    image = (((2.4 * x) ** 2 + (2.8 * y) ** 2 + (2.6 * z) ** 2) < 1).astype(np.complex64)
    for centre, value in (((0.2, 0.1, 0.2), 1.0), ((-0.2, 0.15, -0.1), 0.6), ((0.1, -0.2, -0.1), -0.5)):
        apart = [(a - c) ** 2 for a, c in zip((z, y, x), centre, strict=True)]
        image += value * np.exp(-sum(apart) / 0.006)
    mps = [
        np.exp(-((z - a) ** 2 + (y - b) ** 2 + (x - c) ** 2) + 1j * (a * x + b * z))
        for a, b, c in ((0.5, 0.5, 0), (-0.5, 0.5, 0.3), (0.5, -0.5, -0.3), (-0.5, -0.5, 0))
    ]
    weight = np.sqrt(sum(np.abs(m) ** 2 for m in mps))
    return image, (np.stack(mps) / weight).astype(np.complex64)


def error(found: NDArray[np.complex64], truth: NDArray[np.complex64]) -> float:
    a, b = np.abs(found), np.abs(truth)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("order", ["partitions", "spokes"])
def test_a_stack_of_stars_is_its_planes(path: Path, dimensions: int, order: str) -> None:
    """With kz in the trajectory or by the counter, whichever loop is inside."""
    image, mps = volume(DEPTH)
    coord = radial()
    made = acquisitions(sampled(image, mps, coord), coord, dimensions)
    if order == "spokes":
        made = [made[p * SPOKES + s] for s in range(SPOKES) for p in range(DEPTH)]
    write(path, header(DEPTH), made)
    (kspace,) = open_kspace(path)
    assert kspace.data.shape == (COILS, DEPTH, 1, SPOKES * 2 * N)
    assert kspace.coord is not None
    assert kspace.coord.shape == (SPOKES * 2 * N, 2)
    assert "12 of 12 partitions" in str(kspace.notes)
    planes = sampled(image, mps, coord[0][..., 1:]).reshape(kspace.data[:, :, 0].shape)
    np.testing.assert_allclose(kspace.data[:, :, 0], planes, atol=2e-3 * np.abs(planes).max())
    if dimensions == 3 and order == "partitions":
        result = reconstruct(kspace, get_method("cg-sense"))
        assert error(result.image.data, image) < 0.15
        for turned in (image[::-1], image[:, ::-1], image[..., ::-1], image.swapaxes(1, 2)):
            assert error(result.image.data, turned) > 0.2
        assert result.figures.residual < 0.1


def test_oversampled_and_missing_partitions(path: Path) -> None:
    """Twice the field of view along z, and the lowest partitions never acquired."""
    image, mps = volume(DEPTH // 2)
    padding = [(0, 0), (DEPTH // 4, DEPTH // 4), (0, 0), (0, 0)]
    coord = radial()
    samples = sampled(np.pad(image, padding[1:]), np.pad(mps, padding), coord)
    made = acquisitions(samples, coord, unit=1 / N, dimensions=2)[2 * SPOKES :]
    write(path, header(DEPTH, DEPTH // 2), made)
    (kspace,) = open_kspace(path)
    assert kspace.data.shape[1] == DEPTH // 2
    assert "10 of 12 partitions" in str(kspace.notes)
    result = reconstruct(kspace, get_method("cg-sense"), compress=3, replicas=2)
    assert result.image.data.shape == (DEPTH // 2, N, N)
    assert error(result.image.data, image) < 0.3


@pytest.mark.parametrize(
    ("dimensions", "recon", "fov", "planes"),
    [
        (2, 9, 18, 9),
        (2, 18, 18, 9),
        (3, 18, 18, 9),
        (3, 6, 24, 12),
        (2, 20, 17, 8),
        (2, 1, 24, 12),
        (3, 1, 24, 12),
    ],
)
def test_planes_keep_the_spacing_that_was_encoded(
    path: Path, dimensions: int, recon: int, fov: int, planes: int
) -> None:
    """A reconSpace of other pixels along z: as on a grid, cropped to its field of view, not interpolated."""
    image, mps = volume(DEPTH)
    coord = radial()
    made = acquisitions(sampled(image, mps, coord), coord, dimensions)
    sizes = {"fov": (N, N, 2 * DEPTH), "recon_fov": (N, N, fov)}
    write(path, header_xml((N, N, DEPTH), (N, N, recon), trajectory="radial", **sizes), made)
    (kspace,) = open_kspace(path)
    assert kspace.recon_shape == (planes, N, N)
    assert kspace.geometry.fov == (N, N, 2 * planes)
    start = DEPTH // 2 - planes // 2
    wanted = sampled(image, mps, coord[0][..., 1:]).reshape(COILS, DEPTH, -1)[:, start : start + planes]
    np.testing.assert_allclose(kspace.data[:, :, 0], wanted, atol=2e-3 * np.abs(wanted).max())
    asked = f"asks for {recon} pixels along z; delivered uninterpolated: {planes}"
    assert (asked in str(kspace.notes)) == (recon != planes)


@pytest.mark.parametrize(("planes", "thickness"), [(1, 40), (8, 5)])
def test_a_single_partition_is_a_slice(path: Path, planes: int, thickness: int) -> None:
    """Of a header that counts slices as partitions: nothing is resolved along z."""
    image, mps = volume(DEPTH)
    coord = radial()[:1]
    coord[..., 0] = 0
    made = acquisitions(sampled(image, mps, coord), coord, 2)
    sizes = {"fov": (N, N, 40), "recon_fov": (N, N, 40)}
    write(path, header_xml((N, N, 8), (N, N, planes), trajectory="radial", **sizes), made)
    (kspace,) = open_kspace(path)
    assert kspace.recon_shape == (1, N, N)
    assert kspace.geometry.fov == (N, N, thickness)
    assert "8 partitions but all readouts are of one" in str(kspace.notes)


def test_turned_partitions_take_the_3d_transform(path: Path) -> None:
    image, mps = volume(DEPTH)
    coord = radial(turned=0.3)
    write(path, header(DEPTH), acquisitions(sampled(image, mps, coord), coord, 2))
    (kspace,) = open_kspace(path)
    assert kspace.coord is not None
    assert kspace.coord.shape == (DEPTH * SPOKES * 2 * N, 3)
    np.testing.assert_allclose(kspace.coord, coord.reshape(-1, 3), atol=1e-4)
    result = reconstruct(kspace, get_method("cg-sense"))
    assert error(result.image.data, image) < 0.15


def test_a_koosh_ball(path: Path) -> None:
    image, mps = volume(N)
    coord = koosh(600)
    # Cycles a pixel, unlike the stacks.
    write(path, header(N, trajectory="other"), acquisitions(sampled(image, mps, coord), coord, unit=1 / N))
    (kspace,) = open_kspace(path)
    assert kspace.recon_shape == (N, N, N)
    result = reconstruct(kspace, get_method("qpan+-1bit"))
    assert error(result.image.data, image) < 0.22
    for turned in (image[::-1], image[:, ::-1], image[..., ::-1], image.swapaxes(0, 2)):
        assert error(result.image.data, turned) > 0.3


@needs_bart
def test_the_image_is_barts(path: Path) -> None:
    """A stack of the exact k-space of BART's phantom, against BART's own inverse of the NUFFT."""
    coord, folder = radial(), path.parent
    samples = phantom(folder, coord)
    write(path, header(DEPTH), acquisitions(samples, coord))
    (kspace,) = open_kspace(path)
    found = np.abs(reconstruct(kspace, get_method("cg-sense")).image.data)
    sizes = [str(n) for n in (N, N, DEPTH)]
    traj = np.ascontiguousarray(coord.reshape(1, -1, 3)[..., ::-1]).astype(np.complex64)
    bart.write_cfl(folder / "traj", traj)
    bart.write_cfl(folder / "k", samples.reshape(COILS, 1, -1, 1))
    bart.run(["nufft", "-i", "-m", "8", "-d", ":".join(sizes), "traj", "k", "coils"], folder, threads=1)
    theirs = np.linalg.norm(bart.read_cfl(folder / "coils").reshape(COILS, DEPTH, N, N), axis=0)
    inside = theirs > 0.1 * theirs.max()
    scale = float((theirs[inside] * found[inside]).sum() / (found[inside] ** 2).sum())
    apart = np.linalg.norm((scale * found - theirs)[inside]) / np.linalg.norm(theirs[inside])
    assert apart < 0.15


class TestOperator:
    @pytest.mark.parametrize("dimensions", [2, 3])
    def test_adjoint_normal_and_norm(self, dimensions: int) -> None:
        rng = np.random.default_rng(0)
        _, mps = volume(DEPTH)
        coord = rng.uniform(-5, 5, (700, dimensions)).astype(np.float32)
        A = NonCartesian(coord, mps, rng.random(700).astype(np.float32) + 0.1)
        import torch

        generator = torch.Generator().manual_seed(1)
        x = torch.randn(1, DEPTH, N, N, dtype=torch.complex64, generator=generator)
        shape = (1, COILS, DEPTH, 700) if dimensions == 2 else (1, COILS, 700)
        y = torch.randn(shape, dtype=torch.complex64, generator=generator)
        assert A.forward(x).shape == y.shape
        left, right = (A.forward(x) * y.conj()).sum(), (x * A.adjoint(y).conj()).sum()
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-3 * float(abs(left)))
        again = A.adjoint(A.forward(x))
        assert float((A.normal(x) - again).norm()) < 5e-3 * float(again.norm())
        for _ in range(20):
            x = A.normal(x / x.norm())
        assert 0.97 < float(x.norm()) < 1.15


def test_files_that_cannot_be_used(path: Path) -> None:
    image, mps = volume(DEPTH)
    coord = radial()
    samples = sampled(image, mps, coord)
    made = acquisitions(samples, coord, 2)
    assert "single one" in refused(write(path, header(1), made))
    assert "along z" in refused(write(path.with_name("2.h5"), header(DEPTH - 2), made))
    mixed = acquisitions(samples, coord * np.array([1, 1 / N, 1 / N], np.float32))
    assert "in plane alone" in refused(write(path.with_name("4.h5"), header(DEPTH), mixed))
    mixed = acquisitions(samples, coord * np.array([1 / (4 * DEPTH), 1, 1], np.float32))
    assert "cycles a pixel in z alone" in refused(write(path.with_name("5.h5"), header(4 * DEPTH), mixed))
    made[7] = acquisitions(samples, coord)[7]
    assert "others 3-D" in refused(write(path.with_name("3.h5"), header(DEPTH), made))
