"""The SigPy App, beside SigPy's own."""

import numpy as np
import pytest
import sigpy as sp
import sigpy.mri as mr
import torch

from mri_qpan import metrics
from mri_qpan.app import QPanRecon
from mri_qpan.encoding import Encoding
from mri_qpan.errors import InputError
from mri_qpan.methods import get_method
from mri_qpan.models import DEFAULT, load_model, model_path
from mri_qpan.sampling_masks import make_mask

SHAPE = (64, 48)


@pytest.fixture(scope="module")
def scan():
    """A phantom through four coils with a little noise: image, maps, full k-space."""
    rng = np.random.default_rng(0)
    image = sp.shepp_logan(SHAPE).astype(np.complex64)
    mps = mr.birdcage_maps((4, *SHAPE), dtype=np.complex64)
    mps /= np.sqrt((np.abs(mps) ** 2).sum(0)).max()
    kspace = sp.fft(mps * image, axes=(-2, -1))
    noise = rng.standard_normal((2, *kspace.shape)) * 0.003
    return image, mps, (kspace + noise[0] + 1j * noise[1]).astype(np.complex64)


def psnr(image, found):
    return metrics.psnr(np.abs(image), np.abs(found))


def test_it_is_called_as_sigpys_and_gives_the_networks_image(scan):
    image, mps, kspace = scan
    mask = make_mask("lines", SHAPE, 0.33)
    y = kspace * mask
    found = QPanRecon(y, mps, show_pbar=False).run()
    assert found.shape == SHAPE
    assert found.dtype == np.complex64
    encoding = Encoding(torch.from_numpy(mask)[None], torch.from_numpy(mps)[None])
    adjoint = encoding.adjoint(torch.from_numpy(y)[None])
    with torch.inference_mode():
        expected = get_method(DEFAULT)(adjoint, encoding.normal)[0].numpy()
    assert np.allclose(found, expected, atol=1e-5)
    assert psnr(image, found) > psnr(image, adjoint[0].numpy()) + 3
    assert np.allclose(QPanRecon(y, mps, weights=mask.astype(float), show_pbar=False).run(), found, atol=1e-5)


def test_a_number_in_the_place_of_the_weights_is_no_lamda(scan):
    _, mps, kspace = scan
    mask = make_mask("lines", SHAPE, 0.33)
    with pytest.raises(ValueError, match="there is no lamda here"):
        QPanRecon(kspace * mask, mps, 0.002, show_pbar=False)
    whole = QPanRecon(kspace, mps, 1, show_pbar=False).run()
    assert np.allclose(whole, QPanRecon(kspace, mps, show_pbar=False).run(), atol=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(scan):
    _, mps, kspace = scan
    with pytest.raises(ValueError, match="no GPU 0 found"):
        QPanRecon(kspace, mps, device=0, show_pbar=False)


def test_weights_that_are_no_mask_give_the_same_image_again(scan):
    _, mps, kspace = scan
    mask = make_mask("lines", SHAPE, 0.33)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    y, weights = kspace * mask, 0.3 + 0.7 * mask
    images = [QPanRecon(y, mps, weights=weights, show_pbar=False).run() for _ in range(2)]
    assert np.array_equal(*images)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_weights_that_are_no_mask_weigh_as_sigpys(scan):
    _, mps, kspace = scan
    mask = make_mask("lines", SHAPE, 0.5)
    half = QPanRecon(kspace * mask, mps, weights=0.5 * mask, show_pbar=False).run()
    whole = QPanRecon(kspace * mask, mps, weights=mask, show_pbar=False).run()
    # One weight for all samples drops out of the problem once its norm is 1.
    assert np.linalg.norm(half - whole) < 0.02 * np.linalg.norm(whole)


@pytest.mark.parametrize("tiny", [1e-30, 1e30])
@pytest.mark.parametrize("along", [False, True])
def test_only_ratios_of_weights_count(scan, tiny, along):
    image, mps, kspace = scan
    coord = mr.radial((24, 96, 2), SHAPE, golden=True) if along else None
    y = sp.nufft(mps * image, coord) if along else kspace
    weights = (
        np.linspace(0.5, 1, 96) * np.ones((24, 1))
        if along
        else np.linspace(0.5, 1, SHAPE[1]) * np.ones(SHAPE)
    )
    images = [
        QPanRecon(y, mps, weights=factor * weights, coord=coord, show_pbar=False).run()
        for factor in (1, tiny)
    ]
    assert np.linalg.norm(images[1] - images[0]) < 0.02 * np.linalg.norm(images[0])
    assert not QPanRecon(y, mps, weights=0 * weights, coord=coord, show_pbar=False).run().any()


@pytest.mark.parametrize("gain", [0.25, 30])
def test_maps_of_any_scale_give_the_image_that_they_ask_for(scan, gain):
    """L1WaveletRecon's image times a map is the measurement too, whatever the maps' scale."""
    _, mps, kspace = scan
    y = kspace * make_mask("lines", SHAPE, 0.5)
    model = load_model(DEFAULT, engine="float32")
    expected = QPanRecon(y, mps, model=model, show_pbar=False).run()
    found = QPanRecon(y, gain * mps, model=model, show_pbar=False).run()
    assert np.linalg.norm(gain * found - expected) < 1e-3 * np.linalg.norm(expected)


def test_radial_samples(scan):
    image, mps, _ = scan
    coord = mr.radial((24, 96, 2), SHAPE, golden=True)
    y = sp.nufft(mps * image, coord)
    found = QPanRecon(y, mps, coord=coord, show_pbar=False).run()
    weights = mr.dcf.pipe_menon_dcf(coord, SHAPE, show_pbar=False)
    gridded = (mps.conj() * sp.nufft_adjoint(y * weights, coord, mps.shape)).sum(0)
    gridded *= np.vdot(gridded, image) / np.vdot(gridded, gridded)  # gridding has no scale of its own
    assert psnr(image, found) > psnr(image, gridded) + 3


def test_density_compensations_of_ones_own(scan):
    """A ramp is its own square root to some and its square to others (BART's -p): 50 % of error for 1 %."""
    image, mps, _ = scan
    coord = mr.radial((40, 96, 2), SHAPE, golden=True)
    y = sp.nufft(mps * image, coord)
    ramp = np.maximum(np.linalg.norm(coord, axis=-1), 0.25)
    model = load_model(DEFAULT, engine="float32")
    expected = QPanRecon(y, mps, None, coord, model, show_pbar=False).run()
    for weights in (
        np.ones_like(ramp),
        1.0,
        ramp,
        ramp**2,
        mr.dcf.pipe_menon_dcf(coord, SHAPE, show_pbar=False),
    ):
        found = QPanRecon(y, mps, weights, coord, model, show_pbar=False).run()
        assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)


@pytest.mark.parametrize("spokes", [48, 96])
def test_radial_images_are_as_bright_as_least_squares(scan, spokes):
    """Outliers of a density compensation took the norm: images were 2 to 12 % too dim."""
    image, mps, _ = scan
    coord = mr.radial((spokes, 128, 2), SHAPE, golden=True)
    y = sp.nufft(mps * image, coord, oversamp=2, width=6)
    density = mr.dcf.pipe_menon_dcf(coord, SHAPE, show_pbar=False)
    theirs = mr.app.SenseRecon(y, mps, coord=coord, weights=density, max_iter=30, show_pbar=False).run()
    ours = QPanRecon(y, mps, coord=coord, show_pbar=False).run()
    assert abs(np.vdot(ours, theirs) / np.vdot(ours, ours)) == pytest.approx(1, abs=0.03)
    assert psnr(image, ours) > psnr(image, theirs)


def test_weights_on_a_grid_that_fall_towards_its_centre(scan):
    _, mps, kspace = scan
    mask = make_mask("lines", SHAPE, 0.5)
    y = kspace * mask
    places = np.meshgrid(*(np.arange(n) - n // 2 for n in SHAPE), indexing="ij")
    ramp = np.maximum(np.hypot(*places), 0.25)
    model = load_model(DEFAULT, engine="float32")
    expected = QPanRecon(y, mps, model=model, show_pbar=False).run()
    for weights in (mask * ramp, mask * ramp**2):
        found = QPanRecon(y, mps, weights, model=model, show_pbar=False).run()
        assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)


@pytest.mark.parametrize("least", [0.5, 0.05])
def test_soft_weights_on_a_grid_leave_the_image_bright(scan, least):
    """Over the largest eigenvalue, most samples had little weight: up to 8 % too dim, and blurred."""
    image, mps, kspace = scan
    mask = make_mask("random2d", SHAPE, 0.4)
    weights = (mask * np.random.default_rng(2).uniform(least, 1, SHAPE)).astype(np.float32)
    found, alike = (QPanRecon(kspace * mask, mps, w, show_pbar=False).run() for w in (weights, None))
    assert psnr(image, found) > psnr(image, alike) - 4
    assert abs(np.vdot(found, image) / np.vdot(found, found)) == pytest.approx(1, abs=0.02)


def test_models_are_names_or_paths_of_complex_networks(scan):
    _, mps, kspace = scan
    expected = QPanRecon(kspace, mps, model="qpan+-1bit", device=-1, show_pbar=False).run()
    found = QPanRecon(kspace, mps, model=model_path("qpan+-1bit"), show_pbar=False).run()
    assert np.array_equal(found, expected)
    with pytest.raises(InputError, match="choose another model"):
        QPanRecon(kspace, mps, model="brain-pan+")


def test_maps_of_the_smallest_numbers_lose_no_digits(scan):
    _, mps, kspace = scan
    model = load_model(DEFAULT, engine="float32")
    expected = QPanRecon(kspace, mps, model=model, show_pbar=False).run()
    for scale in np.float32([1e-22, 1e22]):
        found = scale * QPanRecon(kspace, scale * mps, model=model, show_pbar=False).run()
        assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected)


def test_readouts_of_little_weight(scan):
    """Those that are wrong, as of a moved head, and told so by a hundredth of the others' weight."""
    image, mps, _ = scan
    coord = mr.radial((40, 96, 2), SHAPE, golden=True)
    y = sp.nufft(mps * image, coord)
    y[:, ::4] *= -1
    weights = np.ones(coord.shape[:-1])
    weights[::4] = 0.01
    images = [QPanRecon(y, mps, w, coord, show_pbar=False).run() for w in (None, weights)]
    assert psnr(image, images[1]) > psnr(image, images[0]) + 6


def test_slabs(scan):
    _, mps, kspace = scan
    mask = make_mask("lines", SHAPE, 0.5)
    y = sp.fft(np.stack([kspace * mask, 2 * kspace * mask], axis=1), axes=(1,))
    y = y.astype(np.complex64)
    found = QPanRecon(y, np.stack([mps, mps], axis=1), show_pbar=False).run()
    assert found.shape == (2, *SHAPE)
    assert np.linalg.norm(found[1] - 2 * found[0]) < 0.1 * np.linalg.norm(found[1])


def test_the_progress_bar_counts_to_its_end(scan, capsys):
    _, mps, kspace = scan
    QPanRecon(kspace, mps).run()
    assert "1/1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mps": np.ones((4, 64))}, "mps must be"),
        ({"mps": np.zeros((4, *SHAPE))}, "mps are zero"),
        ({"y": np.full((4, *SHAPE), np.nan + 0j)}, "y must be finite"),
        ({"mps": np.ones((3, *SHAPE))}, "4 coils, mps 3"),
        ({"mps": np.ones((4, 64, 40))}, "shaped as mps"),
        ({"weights": -np.ones(SHAPE)}, "not negative"),
        ({"y": np.zeros((4, 0, SHAPE[1]))}, "is empty"),
        ({"weights": np.ones((5, 7))}, "do not fit"),
        ({"coord": np.ones((64, 48, 3))}, "coord must be"),
        ({"coord": np.full((*SHAPE, 2), np.nan)}, "coord must be finite"),
        ({"y": np.full((4, *SHAPE), 1e40 + 0j)}, "in single precision"),
    ],
)
def test_what_does_not_fit_is_said(scan, change, words):
    _, mps, kspace = scan
    with pytest.raises(ValueError, match=words):
        QPanRecon(**{"y": kspace, "mps": mps, "show_pbar": False, **change})
