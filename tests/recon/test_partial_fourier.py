from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mrd_files import header_xml, lines
from numpy.typing import NDArray
from torch import Tensor

from mri_qpan import bart
from mri_qpan.encoding import Normal
from mri_qpan.errors import InputError
from mri_qpan.fourier import fft_numpy, ifft_numpy
from mri_qpan.methods import Method, get_method
from mri_qpan.phantom import Ellipse, Phantom, Series
from mri_qpan.recon import job as job_module
from mri_qpan.recon.job import Done, Edges, Job, reconstruct_file, reconstruct_images
from mri_qpan.recon.kspace import Geometry, Index, KSpace
from mri_qpan.recon.partial_fourier import (
    WORTH,
    Edge,
    check_mode,
    edge_signal,
    fill_edge,
    find_partial_fourier,
    pocs,
)
from mri_qpan.recon.pipeline import reconstruct
from mri_qpan.recon.serving.painter import Painter
from mri_qpan.recon.serving.session import Lines
from mri_qpan.recon.writers import find_formats
from mri_qpan.sampling_masks import make_mask
from mri_qpan.solvers import SOLVERS

Maker = Callable[..., KSpace]
needs_bart = pytest.mark.skipif(not bart.available(), reason="BART (command `bart`) is not installed")
MATRIX = 96
FOV = 230.0


@pytest.fixture(scope="module")
def full() -> NDArray[np.complex64]:
    """Exact k-space (y, x) of ellipses with smooth phase, seen by one uniform coil."""
    shapes = (
        Ellipse(0.5, (0, 0), (85, 105)),
        Ellipse(0.3, (20, 30), (30, 18), 0.6),
        Ellipse(-0.2, (-30, -20), (12, 25), -0.3),
        Ellipse(0.5, (35, -45), (3, 4)),
    )
    waves = np.zeros((3, 3), complex)
    waves[1, 1], waves[0, 1], waves[1, 2], waves[2, 2] = 1, 0.3j, -0.4, 0.2j
    uniform = np.zeros((1, 3, 3), complex)
    uniform[0, 1, 1] = 1
    phantom = Phantom((shapes,), (0.0,), Series(waves, 2 * FOV), Series(uniform, 2 * FOV))
    return phantom.kspace((MATRIX, MATRIX), (FOV, FOV))[0, 0]


def extent(size: int, fraction: float, upper: bool) -> NDArray[np.bool_]:
    line = np.arange(size) < round(fraction * size)
    return line[::-1].copy() if upper else line


def along(line: NDArray[np.bool_], direction: str, shape: tuple[int, int, int]) -> NDArray[np.bool_]:
    sizes = [line.size if d == direction else 1 for d in "zyx"]
    return np.broadcast_to(line.reshape(sizes), shape).copy()


def filled(kspace: NDArray[np.complex64], mask: NDArray[np.bool_]) -> NDArray[np.complex64]:
    image = ifft_numpy(kspace * mask[0], (-2, -1))
    return pocs(torch.from_numpy(image), find_partial_fourier(mask)).numpy()


def error(image: NDArray[np.complex64], truth: NDArray[np.complex64]) -> float:
    return float(np.linalg.norm(np.abs(image) - np.abs(truth)) / np.linalg.norm(truth))


@settings(deadline=None)
@given(
    st.integers(110, 257),
    st.floats(0.6, 0.87),
    st.booleans(),
    st.sampled_from("zyx"),
    st.integers(1, 2),
)
def test_a_missing_edge_is_found(size: int, fraction: float, upper: bool, direction: str, step: int) -> None:
    line = extent(size, fraction, upper)
    comb = line & (np.abs(np.arange(size) - size // 2) % step == 0)
    mask = along(comb, direction, tuple(size if d == direction else 2 for d in "zyx"))  # type: ignore[arg-type]
    (found,) = find_partial_fourier(mask)
    assert found.direction == direction
    assert found.fraction == pytest.approx(line.mean(), abs=(step + 1) / size)
    assert found.near == pytest.approx(line.sum() - size / 2, abs=step + 1)


@pytest.mark.parametrize("kind", ["equispaced", "poisson", "random2d", "radial"])
@pytest.mark.parametrize("ratio", [0.15, 0.33, 0.5])
def test_undersampling_is_no_missing_edge(kind: str, ratio: float) -> None:
    assert find_partial_fourier(make_mask(kind, (128, 120), ratio, seed=3)[None]) == ()


def test_a_narrow_centre_and_empty_masks_are_none() -> None:
    mask = np.zeros((1, 64, 64), bool)
    assert find_partial_fourier(mask) == ()
    mask[:, 20:44] = True
    assert find_partial_fourier(mask) == ()
    assert find_partial_fourier(~mask) == ()


@pytest.mark.parametrize("direction", ["y", "x"])
@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize(("fraction", "gain"), [(5 / 8, 3.5), (6 / 8, 2.2), (7 / 8, 1.4)])
def test_the_edge_comes_back(
    full: NDArray[np.complex64], direction: str, upper: bool, fraction: float, gain: float
) -> None:
    truth = ifft_numpy(full, (-2, -1))
    mask = along(extent(MATRIX, fraction, upper), direction, (1, MATRIX, MATRIX))
    image = filled(full, mask)
    assert error(image, truth) < error(ifft_numpy(full * mask[0], (-2, -1)), truth) / gain
    kspace = fft_numpy(image, (-2, -1))
    np.testing.assert_allclose(kspace[mask[0]], full[mask[0]], atol=1e-4 * np.abs(full).max())
    assert np.linalg.norm((kspace - full)[~mask[0]]) < 0.7 * np.linalg.norm(full[~mask[0]])


def test_an_edge_in_both_directions(full: NDArray[np.complex64]) -> None:
    mask = along(extent(MATRIX, 0.75, True), "y", (1, MATRIX, MATRIX))
    mask &= along(extent(MATRIX, 0.75, False), "x", mask.shape)  # type: ignore[arg-type]
    truth = ifft_numpy(full, (-2, -1))
    image = filled(full, mask)
    kspace = fft_numpy(image, (-2, -1))
    assert error(image, truth) < error(ifft_numpy(full * mask[0], (-2, -1)), truth) / 1.5
    # Where neither a sample nor its partner was acquired, nothing is invented.
    corner = ~mask[0] & ~np.roll(mask[0, ::-1, ::-1], 1, (0, 1))
    np.testing.assert_allclose(kspace[corner], 0, atol=1e-4 * np.abs(full).max())


def test_a_slab_is_its_planes(full: NDArray[np.complex64]) -> None:
    mask = along(extent(MATRIX, 0.7, True), "y", (1, MATRIX, MATRIX))
    partial = find_partial_fourier(mask)
    planes = torch.from_numpy(ifft_numpy(np.stack([full, 2 * full[::-1]]) * mask, (-2, -1)))
    both = pocs(planes, partial)
    for plane, one in zip(both, planes, strict=True):
        np.testing.assert_allclose(plane, pocs(one, partial), atol=1e-6)
    across = along(extent(MATRIX, 0.7, True), "z", (MATRIX, 2, MATRIX))
    turned = torch.from_numpy(ifft_numpy(full * mask[0], (-2, -1)))[:, None].repeat(1, 2, 1)
    restored = pocs(turned, find_partial_fourier(across))[:, 0].numpy()
    truth = ifft_numpy(full, (-2, -1))
    assert error(restored, truth) < error(turned[:, 0].numpy(), truth) / 2


@needs_bart
@pytest.mark.parametrize("fraction", [5 / 8, 6 / 8, 7 / 8])
@pytest.mark.parametrize(("direction", "dimension"), [("x", "0"), ("y", "1")])
def test_nearer_to_the_truth_than_homodyne_of_bart(
    full: NDArray[np.complex64], tmp_path: Path, fraction: float, direction: str, dimension: str
) -> None:
    mask = along(extent(MATRIX, fraction, False), direction, (1, MATRIX, MATRIX))
    truth = ifft_numpy(full, (-2, -1))
    bart.write_cfl(tmp_path / "kspace", full * mask[0])
    bart.run(["homodyne", dimension, str(fraction), "kspace", "image"], tmp_path, threads=1)
    theirs = bart.read_cfl(tmp_path / "image")
    ours = filled(full, mask)
    zero_filled = error(ifft_numpy(full * mask[0], (-2, -1)), truth)
    assert error(theirs, truth) < 0.8 * zero_filled
    assert error(ours, truth) < error(theirs, truth)


class TestPipeline:
    def partial(self, small_kspace: Maker, coils: int = 4) -> KSpace:
        kspace = small_kspace(coils=coils)
        mask = along(extent(48, 0.7, False), "y", (1, 48, 40))
        return replace(kspace, data=kspace.data * mask, mask=mask)

    @pytest.mark.parametrize("name", ["zero-filled", "cg-sense"])
    def test_classical_methods_are_filled(self, small_kspace: Maker, name: str) -> None:
        kspace, method = self.partial(small_kspace), get_method(name)
        found = reconstruct(kspace, method)
        left = reconstruct(kspace, method, partial_fourier="none")
        truth = reconstruct(small_kspace(), method).image.data
        assert found.figures.partial_fourier is not None
        assert found.figures.partial_fourier.filled_by == "pocs"
        assert found.figures.partial_fourier.fraction == {"y": pytest.approx(34 / 48)}
        assert found.notes[-1] == "partial Fourier: 70.8% along y; the edge as POCS fills it"
        assert left.notes[-1] == "partial Fourier: 70.8% along y; the edge as the method made it"
        assert error(found.image.data, truth) < 0.7 * error(left.image.data, truth)

    def test_others_are_left_alone_unless_asked(self, small_kspace: Maker) -> None:
        def own(adjoint: Tensor, normal: Normal) -> Tensor:
            return adjoint

        kspace = self.partial(small_kspace, coils=1)
        for method in (own, Method("a network", own)):
            found = reconstruct(kspace, method)
            assert found.figures.partial_fourier is not None
            assert found.figures.partial_fourier.filled_by == "method"
            np.testing.assert_allclose(
                found.image.data, ifft_numpy(kspace.data, (-2, -1))[0], atol=1e-5 * np.abs(kspace.data).max()
            )
            asked = reconstruct(kspace, method, partial_fourier="pocs", replicas=2)
            assert error(asked.image.data, found.image.data) > 0.01

    def test_an_aliased_image_says_nothing_of_the_phase(self, small_kspace: Maker) -> None:
        kspace = self.partial(small_kspace)
        mask = kspace.mask.copy()
        mask[:, 1:16:2] = False
        found = reconstruct(replace(kspace, data=kspace.data * mask, mask=mask), get_method("zero-filled"))
        assert found.figures.partial_fourier is not None
        assert found.figures.partial_fourier.filled_by == "method"

    def test_an_asymmetric_echo_keeps_its_oversampling_until_the_edge_is_filled(
        self, small_kspace: Maker
    ) -> None:
        kspace = replace(small_kspace(nx=96), recon_shape=(1, 48, 48))
        mask = along(extent(96, 0.7, True), "x", (1, 48, 96))
        method = get_method("cg-sense")
        short = replace(kspace, data=kspace.data * mask, mask=mask)
        found, left = (reconstruct(short, method, partial_fourier=m).image.data for m in ("auto", "none"))
        truth = reconstruct(kspace, method).image.data
        assert found.shape == (1, 48, 48)
        assert error(found, truth) < 0.7 * error(left, truth)

    def test_full_kspace_has_no_edge(self, small_kspace: Maker) -> None:
        found = reconstruct(small_kspace(), get_method("cg-sense"))
        assert found.figures.partial_fourier is None
        assert not any("partial Fourier" in note for note in found.notes)


@pytest.mark.parametrize("name", SOLVERS)
def test_auto_is_for_classical_solvers(full: NDArray[np.complex64], name: str) -> None:
    mask = along(extent(MATRIX, 0.7, True), "y", (1, MATRIX, MATRIX))
    image = torch.from_numpy(ifft_numpy(full * mask, (-2, -1)))
    for method, expected in ((name, "pocs"), ("qpan+-3bit", "method")):
        edge = fill_edge(image, mask, "auto", method)[1]
        assert edge is not None
        assert edge.filled_by == expected


@pytest.mark.parametrize("level", [0.005, 0.02, 0.06, 0.15, 0.4])
@pytest.mark.parametrize("known", [True, False])
def test_auto_leaves_an_edge_that_is_noise(full: NDArray[np.complex64], level: float, known: bool) -> None:
    """The error against the noise-free image is never far above that of the better choice."""
    truth = ifft_numpy(full, (-2, -1))
    sigma = level * np.abs(truth).max()
    rng = np.random.default_rng(int(1000 * level))
    noise = sigma / np.sqrt(2) * (rng.normal(size=full.shape) + 1j * rng.normal(size=full.shape))
    mask = along(extent(MATRIX, 0.7, False), "y", (1, MATRIX, MATRIX))
    measured = KSpace(
        ((full + noise) * mask)[None].astype(np.complex64),
        mask,
        (1, MATRIX, MATRIX),
        Geometry((FOV, FOV, 5.0)),
        noise_covariance=np.full((1, 1), sigma**2, np.complex64) if known else None,
    )
    method = get_method("zero-filled")
    found = reconstruct(measured, method)
    errors = {
        mode: error(reconstruct(measured, method, partial_fourier=mode).image.data[0], truth)
        for mode in ("pocs", "none")
    }
    assert error(found.image.data[0], truth) < 1.05 * min(errors.values())
    edge = found.figures.partial_fourier
    assert edge is not None
    if level <= 0.02:
        assert edge.filled_by == "pocs"
    if level >= 0.15:
        assert edge.filled_by == "noise"
        assert "too little signal above the noise" in found.notes[-1]
        assert (
            found.figures.partial_fourier == reconstruct(measured, method, replicas=2).figures.partial_fourier
        )


def test_the_signal_of_an_edge(full: NDArray[np.complex64]) -> None:
    """Of white noise it is none, of a sample it is its power over the noise's, whatever the direction."""
    rng = np.random.default_rng(0)
    shape = (4, 1, MATRIX, MATRIX)
    white = (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)
    for direction in "yx":
        mask = along(extent(MATRIX, 0.7, True), direction, (1, MATRIX, MATRIX))
        assert edge_signal(white * mask, mask, np.sqrt(2)) < 0.1
        assert edge_signal(np.full(shape, 3, np.complex64) * mask, mask, 0.5) == pytest.approx(4 * 36 - 4)
        assert edge_signal(white * mask, mask, 0.0) == np.inf
    assert edge_signal(white, np.ones((1, MATRIX, MATRIX), bool), 1.0) == np.inf
    assert WORTH == 1


def test_bad_requests() -> None:
    with pytest.raises(InputError, match="choose auto, pocs, none"):
        check_mode("homodine")
    mask = along(extent(64, 0.55, False), "y", (1, 64, 64))
    image = torch.ones(1, 64, 64, dtype=torch.complex64)
    with pytest.raises(InputError, match="too little of the phase"):
        fill_edge(image, mask, "pocs", "cg-sense")
    left, edge = fill_edge(image, mask, "auto", "cg-sense")
    assert left is image
    assert edge is not None
    assert edge.filled_by == "method"


@pytest.mark.parametrize(("near", "expected"), [(7, "pocs"), (4, "pocs"), (3, "method")])
def test_an_edge_follows_the_first_of_its_series(
    full: NDArray[np.complex64], near: int, expected: str
) -> None:
    """A few lines fewer than an image alone would need still make it better."""
    acquired = np.arange(MATRIX) <= MATRIX // 2 + near
    mask = along(acquired, "y", (1, MATRIX, MATRIX))
    image = torch.from_numpy(ifft_numpy(full * mask[0], (-2, -1)))
    alone = fill_edge(image, mask, "auto", "cg-sense")[1]
    assert alone is not None
    assert alone.filled_by == "method"
    first = Edge("pocs", {"y": 0.6})
    made, edge = fill_edge(image, mask, "auto", "cg-sense", before=first)
    assert edge is not None
    assert (edge.filled_by, edge.followed) == (expected, expected == "pocs")
    assert str(edge).endswith("first image with signal there") == edge.followed
    truth = ifft_numpy(full, (-2, -1))
    if expected == "pocs":
        assert error(made.numpy(), truth) < 0.9 * error(image.numpy(), truth)
    wider = along(extent(MATRIX, 0.7, False), "y", (1, MATRIX, MATRIX))
    for reason in ("noise", "method"):
        kept, edge = fill_edge(image, wider, "auto", "cg-sense", before=Edge(reason, {"y": 0.6}))
        assert kept is image
        assert edge is not None
        assert (edge.filled_by, edge.followed) == (reason, True)
    assert fill_edge(image, wider, "none", "cg-sense", before=first)[0] is image
    asked = fill_edge(image, wider, "pocs", "cg-sense", before=Edge("noise", {"y": 0.6}))[1]
    assert asked == Edge("pocs", asked.fraction if asked else {})


@pytest.mark.parametrize(("sides", "expected"), [((8, 7), "pocs"), ((7, 8), "method")])
def test_images_of_a_series_are_filled_alike(
    full: NDArray[np.complex64], tmp_path: Path, sides: tuple[int, int], expected: str
) -> None:
    """From a file, and as they come from a scanner."""
    echoes = [full * (np.arange(MATRIX) <= MATRIX // 2 + near)[:, None] for near in sides]
    np.save(tmp_path / "echoes.npy", np.stack(echoes)[:, None])
    job = Job(get_method("zero-filled"), torch.device("cpu"), dims="contrast,coil,y,x")
    record = reconstruct_file(tmp_path / "echoes.npy", tmp_path, job)
    found = [image["partial_fourier"] for image in record["images"]]
    assert [edge["filled_by"] for edge in found] == [expected] * 2
    assert [edge["followed"] for edge in found] == [False, True]
    painter = Painter(job, header_xml((MATRIX, MATRIX, 1)), "scanner")
    for contrast, (echo, near) in enumerate(zip(echoes, sides, strict=True)):
        rows = range(MATRIX // 2 + near + 1)
        arrived = Lines(Index(contrast=contrast), lines(echo[None], rows, contrast=contrast))
        (message,) = painter.paint(arrived, [].append)
    zero_filled = torch.from_numpy(ifft_numpy(echoes[1], (-2, -1)))
    made = pocs(zero_filled, find_partial_fourier((echoes[1] != 0)[None]))
    apart = {
        kind: misfit(message.data[0, 0].astype(float), np.abs(image.numpy()))
        for kind, image in (("pocs", made), ("method", zero_filled))
    }
    assert min(apart, key=apart.__getitem__) == expected
    assert min(apart.values()) < 0.001


def test_an_image_of_noise_does_not_decide(full: NDArray[np.complex64], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    white = (rng.normal(size=full.shape) + 1j * rng.normal(size=full.shape)).astype(np.complex64)
    images = np.stack([white, full, white]) * extent(MATRIX, 0.7, False)[:, None]
    np.save(tmp_path / "slices.npy", images[:, None])
    job = Job(get_method("zero-filled"), torch.device("cpu"), dims="slice,coil,y,x")
    found = [i["partial_fourier"] for i in reconstruct_file(tmp_path / "slices.npy", tmp_path, job)["images"]]
    assert [edge["filled_by"] for edge in found] == ["noise", "pocs", "pocs"]
    assert [edge["followed"] for edge in found] == [False, False, True]


def test_what_a_series_decides_holds_for_images_made_elsewhere(
    full: NDArray[np.complex64], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Apart, each range would decide for itself: those after the one that does are made again."""
    rng = np.random.default_rng(0)
    white = (rng.normal(size=full.shape) + 1j * rng.normal(size=full.shape)).astype(np.complex64)
    order = [white, white, full, white, white, full, white]
    np.save(tmp_path / "slices.npy", (np.stack(order) * extent(MATRIX, 0.7, False)[:, None])[:, None])
    npy = find_formats(["npy"])
    job = Job(get_method("zero-filled"), torch.device("cpu"), dims="slice,coil,y,x", formats=npy)
    again, real = [], reconstruct_images

    def spread(start: int, stop: int, edges: Edges) -> list[list[Done]]:
        ends = [(start, 3), (3, 5), (5, stop)]
        return [real(tmp_path / "slices.npy", job, first, last, edges) for first, last in ends]

    def noted(path: Path, job: Job, start: int, stop: int, edges: Edges) -> list[Done]:
        again.append((start, stop))
        return real(path, job, start, stop, edges)

    monkeypatch.setattr(job_module, "reconstruct_images", noted)
    records, images = [], []
    for name, how in (("alone", None), ("apart", spread)):
        (tmp_path / name).mkdir()
        records.append(reconstruct_file(tmp_path / "slices.npy", tmp_path / name, job, spread=how))
        images.append(np.load(tmp_path / name / "slices_zero-filled.npy"))
    one, two = ([image["partial_fourier"] for image in record["images"]] for record in records)
    assert [edge["filled_by"] for edge in one] == ["noise", "noise", *["pocs"] * 5]
    assert one == two
    assert again == [(3, 5), (5, 7)]
    assert np.array_equal(*images)


def misfit(pixels: NDArray[np.floating], image: NDArray[np.floating]) -> float:
    """Return how far pixels are from an image of any scale."""
    scaled = image * (pixels * image).sum() / (image * image).sum()
    return float(np.linalg.norm(pixels - scaled) / np.linalg.norm(pixels))
