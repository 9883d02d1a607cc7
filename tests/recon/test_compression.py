from pathlib import Path

import numpy as np
import pytest
from mrd_files import random_kspace
from numpy.typing import NDArray

from mri_qpan import bart
from mri_qpan.errors import InputError
from mri_qpan.fourier import fft_numpy, ifft_numpy
from mri_qpan.methods import get_method
from mri_qpan.phantom import Ellipse, Phantom
from mri_qpan.phantom_head import _coils, _phase
from mri_qpan.recon.compression import (
    FEWEST,
    MANY,
    aligned,
    components,
    compress,
    correlations,
    enough,
    mix,
    parse_number,
)
from mri_qpan.recon.kspace import Geometry, KSpace
from mri_qpan.recon.pipeline import reconstruct
from mri_qpan.recon.prepare import condition
from mri_qpan.recon.readers import open_kspace
from mri_qpan.recon.study import Undersampling, study
from mri_qpan.sampling_masks import make_mask

Complex = NDArray[np.complex64]
COILS, NY, NX = 8, 64, 72
needs_bart = pytest.mark.skipif(not bart.available(), reason="BART (command `bart`) is not installed")


def slice_of(data: Complex) -> KSpace:
    return KSpace(data, np.ones(data.shape[1:], bool), (1, NY, NX), Geometry((float(NX), float(NY), 1)))


@pytest.fixture(scope="module")
def ring() -> KSpace:
    """Ellipses within a ring of coils."""
    shapes = (
        Ellipse(0.5, (0, 0), (85, 105)),
        Ellipse(0.3, (20, 30), (30, 18), 0.6),
        Ellipse(0.4, (35, -45), (9, 14)),
    )
    phantom = Phantom((shapes,), (0.0,), _phase(), _coils(COILS))
    return slice_of(phantom.kspace((NY, NX), (256.0, 288.0)))


def root_sum_of_squares(kspace: Complex) -> NDArray[np.float32]:
    return np.linalg.norm(ifft_numpy(kspace, (-2, -1)), axis=0)


def lost(kspace: Complex, whole: Complex) -> float:
    return 1 - float(np.linalg.norm(kspace) / np.linalg.norm(whole)) ** 2


@pytest.mark.parametrize("number", [2, 3, 4, 6])
def test_geometric_keeps_more_than_one_mixture(ring: KSpace, number: int) -> None:
    geometric, _ = compress(ring, number, geometric=True)
    single, _ = compress(ring, number, geometric=False)
    assert geometric.data.shape == (number, 1, NY, NX)
    assert lost(geometric.data, ring.data) < 0.3 * lost(single.data, ring.data)
    assert "compressed geometrically" in geometric.notes[-1]
    kept = 1 - lost(geometric.data, ring.data)
    assert geometric.notes[-1].endswith(f"to {number} with {kept:.2%} of their power")


def test_rows_are_orthonormal_and_white_noise_stays_white(ring: KSpace) -> None:
    _, mixer = compress(ring, 3, geometric=True)
    assert mixer.shape == (NX, 3, COILS)
    eye = np.broadcast_to(np.eye(3), (NX, 3, 3))
    np.testing.assert_allclose(mixer @ mixer.conj().swapaxes(1, 2), eye, atol=1e-5)
    noise = random_kspace(COILS, 1, 40, NX)
    mixed = fft_numpy(mix(mixer, ifft_numpy(noise, (-1,))), (-1,)).reshape(3, -1)
    np.testing.assert_allclose(mixed @ mixed.conj().T / mixed.shape[1], 2 * np.eye(3), atol=0.12)


def test_alignment_makes_the_virtual_coils_smooth(ring: KSpace) -> None:
    """Neighbours of a smooth array see the same; without alignment their phases are arbitrary."""
    hybrid = ifft_numpy(ring.data, (-1,))
    rough = components(correlations(hybrid), 4)
    rough = rough * np.exp(2j * np.pi * np.random.default_rng(0).random((NX, 4, 1))).astype(np.complex64)
    smooth = aligned(rough)

    def steps(mixer: Complex) -> float:
        inside = mixer[NX // 5 : -NX // 5]
        return float(np.linalg.norm(np.diff(inside, axis=0), axis=(1, 2)).mean())

    assert steps(smooth) < 0.1 * steps(rough)
    np.testing.assert_allclose(smooth[NX // 2], rough[NX // 2])
    planes = (m.conj().swapaxes(1, 2) @ m for m in (rough, smooth))
    np.testing.assert_allclose(*planes, atol=1e-5)


def test_a_slab_is_compressed_along_its_readout(ring: KSpace) -> None:
    slab = slice_of(np.concatenate([ring.data, 0.5 * ring.data], axis=1))
    found, mixer = compress(slab, 3, geometric=True)
    flat, _ = compress(ring, 3, geometric=True)
    assert found.data.shape == (3, 2, NY, NX)
    assert lost(found.data, slab.data) == pytest.approx(lost(flat.data, ring.data), rel=1e-3)
    assert mixer.shape == (NX, 3, COILS)


def test_the_image_of_half_the_channels(ring: KSpace) -> None:
    mask = make_mask("lines", (NY, NX), 0.5, calib=20)[None]
    undersampled = slice_of(ring.data * mask)
    undersampled = KSpace(undersampled.data, mask, undersampled.recon_shape, undersampled.geometry)
    method = get_method("cg-sense")
    truth = root_sum_of_squares(ring.data)

    def error(number: int | None) -> float:
        image = np.abs(reconstruct(undersampled, method, compress=number).image.data)
        return float(np.linalg.norm(image - truth) / np.linalg.norm(truth))

    assert error(4) < 1.05 * error(None)


def test_lines_that_are_not_whole_share_one_mixture(ring: KSpace) -> None:
    mask = ring.mask.copy()
    mask[..., : NX // 3] = False
    short = KSpace(ring.data * mask, mask, ring.recon_shape, ring.geometry)
    found, mixer = condition(short, 4)
    assert mixer is not None
    assert mixer.shape == (4, COILS)
    assert not found.data[:, ~mask].any()
    assert "compressed by SVD" in found.notes[-1]


def test_given_maps_are_mixed_alike(ring: KSpace) -> None:
    """Of maps that are exact the compressed image is the full one, cropped or not."""
    maps = ifft_numpy(ring.data, (-2, -1))
    maps = (maps / np.maximum(np.linalg.norm(maps, axis=0), 1e-6)).astype(np.complex64)
    truth = root_sum_of_squares(ring.data)
    method = get_method("zero-filled")
    image = np.abs(reconstruct(ring, method, mps=maps, compress=6).image.data)
    np.testing.assert_allclose(image, truth, atol=0.01 * truth.max())
    cropped = KSpace(ring.data, ring.mask, (1, NY, NX // 2), ring.geometry)
    image = np.abs(reconstruct(cropped, method, mps=maps, compress=6).image.data)
    scale = np.sqrt(0.5)  # of the orthonormal transform of half as many samples
    middle = truth[..., NX // 4 : NX // 4 + NX // 2]
    np.testing.assert_allclose(image, middle * image.max() / middle.max(), atol=0.02 * scale * truth.max())
    found = study(ring, method, Undersampling.parse("lines:0.5"), mps=maps, compress=6)
    np.testing.assert_allclose(np.abs(found.reference.data), truth, atol=0.01 * truth.max())
    with pytest.raises(InputError, match="do not fit"):
        reconstruct(ring, method, mps=maps[:3], compress=2)


@needs_bart
@pytest.mark.parametrize("number", [2, 4])
def test_barts_geometric_compression_is_the_same(ring: KSpace, tmp_path: Path, number: int) -> None:
    bart.write_cfl(tmp_path / "kspace", ring.data)
    bart.run(["cc", "-G", "-A", "-p", str(number), "kspace", "mixed"], tmp_path, threads=1)
    theirs = bart.read_cfl(tmp_path / "mixed").reshape(number, 1, NY, NX)
    ours = compress(ring, number, geometric=True)[0].data
    # BART takes no neighbours together, which fits these very samples a little closer.
    assert lost(ours, ring.data) < 1.05 * lost(theirs, ring.data) + 2e-4
    images = [root_sum_of_squares(kspace) for kspace in (ours, theirs)]
    np.testing.assert_allclose(*images, atol=0.03 * images[0].max())


@pytest.mark.parametrize("name", ["head_8ch_256.h5", "brain_8ch_wrap_320x168.h5"])
def test_real_arrays_lose_several_times_less(shared_data: Path, name: str) -> None:
    kspace = next(iter(open_kspace(shared_data / "kspace" / name)))
    geometric, _ = compress(kspace, 3, geometric=True)
    single, _ = compress(kspace, 3, geometric=False)
    assert lost(geometric.data, kspace.data) < 0.25 * lost(single.data, kspace.data)


@pytest.mark.parametrize("geometric", [True, False])
def test_auto_keeps_the_power_above_the_noise(ring: KSpace, geometric: bool) -> None:
    """Of channels that are mixtures of eight and noise."""
    rng = np.random.default_rng(0)
    unitary, _ = np.linalg.qr(rng.normal(size=(20, 20)) + 1j * rng.normal(size=(20, 20)))
    many = np.tensordot(unitary[:, :COILS], ring.data, axes=1)
    sigma = 0.02 * np.sqrt((np.abs(many) ** 2).mean())
    noise = sigma * (rng.normal(size=many.shape) + 1j * rng.normal(size=many.shape))
    found, mixer = compress(slice_of((many + noise).astype(np.complex64)), "auto", geometric=geometric)
    assert len(found.data) == FEWEST
    kept = mix(mixer, ifft_numpy(many.astype(np.complex64), (-1,)))
    assert np.linalg.norm(kept) ** 2 >= 0.99 * np.linalg.norm(many) ** 2
    if geometric:
        result = reconstruct(slice_of(many.astype(np.complex64)), get_method("zero-filled"), compress="auto")
        assert result.figures.coils == FEWEST
        assert any("20 channels compressed geometrically" in note for note in result.notes)


@pytest.mark.parametrize(("strong", "kept"), [(3, FEWEST), (12, 12), (20, 19)])
def test_how_many_are_enough(strong: int, kept: int) -> None:
    powers = np.full(20, 2.0)
    powers[:strong] += np.linspace(100, 60, strong)
    correlation = np.stack([np.diag(powers), 3 * np.diag(powers[::-1])]).astype(complex)
    assert enough(correlation) == kept


def test_auto_leaves_fewer_channels_alone(ring: KSpace) -> None:
    assert len(ring.data) < MANY
    kept, mixer = condition(ring, "auto")
    assert len(kept.data) == len(ring.data)
    assert mixer is None


def test_numbers_of_coils() -> None:
    assert [parse_number(text) for text in ("auto", "all", "12", 3)] == ["auto", None, 12, 3]
    for text in ("0", "-1", "1.5", "many", ""):
        with pytest.raises(InputError, match="auto or all"):
            parse_number(text)
