"""Warnings where a measurement is unlike a model's training."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mrd_files import random_kspace

from mri_qpan.errors import ReconError
from mri_qpan.methods import Method, get_method
from mri_qpan.networks import NetworkConfig, ProximalNetwork
from mri_qpan.recon.familiar import centre_missed, measure, noise_level, warnings
from mri_qpan.recon.job import Job, reconstruct_file
from mri_qpan.recon.kspace import KSpace
from mri_qpan.recon.pipeline import reconstruct
from mri_qpan.recon.prepare import Prepared, prepare
from mri_qpan.recon.readers import open_kspace
from mri_qpan.recon.writers.ismrmrd_raw import write_raw
from mri_qpan.sampling_masks import make_mask

Maker = Callable[..., KSpace]
CARD = {"training": {"ratios": [0.15, 0.5], "largest_noise": 0.1}}


def smooth(kspace: KSpace) -> KSpace:
    """Without the disc's edge, whose signal reaches the corners of so small a matrix."""
    return replace(
        kspace,
        data=kspace.data * np.outer(*(np.hanning(n) ** 4 for n in kspace.mask.shape[1:])).astype(np.float32),
    )


def under(kspace: KSpace, ratio: float, noise: float = 0.0) -> Prepared:
    kspace = smooth(kspace)
    mask = make_mask("lines", kspace.mask.shape[1:], ratio, calib=4)[None]
    data = kspace.data + np.complex64(noise / np.sqrt(2)) * random_kspace(*kspace.data.shape)
    return prepare(replace(kspace, data=data * mask, mask=mask))


@pytest.mark.parametrize(
    ("ratio", "noise", "words"),
    [
        (0.3, 0.0, None),
        (0.5, 0.05, None),
        (0.08, 0.0, "8% of k-space was acquired, the model was trained at 15% to 50%"),
        (0.7, 0.0, "70% of k-space"),
        (1.0, 0.0, "fully sampled"),
        (0.3, 0.3, "noise of 0.3"),
    ],
)
def test_what_is_unlike_the_training_is_said(
    small_kspace: Maker, ratio: float, noise: float, words: str | None
) -> None:
    found = warnings(CARD, under(small_kspace(coils=1, ny=50), ratio, noise), 1.0, {})
    assert len(found) == (words is not None)
    assert words is None or words in found[0]


@pytest.mark.parametrize(
    ("lines", "missed"),
    [
        (slice(0, 20), True),
        (slice(0, 46), True),  # just not there
        (slice(50, 96), True),
        (slice(0, 49), False),
        (slice(40, 96), False),  # partial Fourier
        (slice(0, 96, 6), False),
        (slice(3, 96, 6), False),
        (np.r_[0:38, 58:96], True),
    ],
)
def test_a_measurement_without_its_centre(
    small_kspace: Maker, lines: slice | np.ndarray, missed: bool
) -> None:
    kspace = small_kspace(coils=4, ny=96, nx=96)
    mask = np.zeros_like(kspace.mask)
    mask[:, lines] = True
    result = reconstruct(replace(kspace, data=kspace.data * mask, mask=mask), get_method("zero-filled"))
    assert bool(centre_missed(mask)) == missed
    assert any("centre was not acquired" in warning for warning in result.warnings) == missed
    assert np.abs(result.image.data).max() > 0


def test_a_model_that_does_not_say_is_not_judged(small_kspace: Maker) -> None:
    assert warnings({"training": "none"}, under(small_kspace(coils=1), 1.0), 1.0, {}) == []


@pytest.mark.parametrize(
    ("ny", "nx", "said"), [(50, 40, False), (20, 96, False), (50, 97, True), (19, 40, True)]
)
def test_matrices_far_from_training_are_said(small_kspace: Maker, ny: int, nx: int, said: bool) -> None:
    card = {"training": CARD["training"] | {"matrices": [[48, 40], [40, 48]], "ratios": [0.0, 1.0]}}
    prepared = prepare(small_kspace(coils=1, ny=ny, nx=nx))
    found = warnings(card, replace(prepared, mask=prepared.mask * (np.arange(nx) % 2 > 0)), 1e9, {})
    assert [f"a matrix of {ny} x {nx}" in words for words in found] == [True] * said


@pytest.mark.parametrize("sigma", [0.02, 0.2])
def test_noise_level(small_kspace: Maker, sigma: float) -> None:
    assert noise_level(under(small_kspace(coils=2, ny=96, nx=96), 0.4, sigma)) == pytest.approx(
        sigma, rel=0.3
    )


@pytest.mark.parametrize(("name", "sigma"), [("knee_1ch_coronal_640x332", 0.051), ("head_8ch_256", 0.0041)])
def test_noise_of_real_files(shared_data: Path, name: str, sigma: float) -> None:
    """Against the corners of the full k-space, beyond any signal, over the image's maximum."""
    prepared = prepare(next(open_kspace(shared_data / f"kspace/{name}.h5")))
    coils = np.fft.ifftn(np.fft.ifftshift(prepared.data[:, 0], (-2, -1)), axes=(-2, -1), norm="ortho")
    largest = np.linalg.norm(coils, axis=0).max()
    assert noise_level(prepared) / largest == pytest.approx(sigma, rel=0.2)


def test_strict_refuses(tmp_path: Path, small_kspace: Maker) -> None:
    write_raw(tmp_path / "scan.h5", [small_kspace(coils=1)])
    network = ProximalNetwork(NetworkConfig(layers=1, filters=4))
    network.card = CARD
    job = Job(Method("mine", network.eval()), torch.device("cpu"))
    out = tmp_path / "out"
    out.mkdir()
    record = reconstruct_file(tmp_path / "scan.h5", out, job)
    assert "fully sampled" in record["warnings"][0]
    with pytest.raises(ReconError, match="refused as --strict asks: k-space is fully sampled"):
        reconstruct_file(tmp_path / "scan.h5", out, replace(job, strict=True))


def test_statistics_are_recorded_and_held_against_the_training(tmp_path: Path, small_kspace: Maker) -> None:
    kspace = small_kspace(coils=2, ny=48)
    mask = make_mask("lines", kspace.mask.shape[1:], 0.4, calib=6)[None]
    write_raw(tmp_path / "scan.h5", [replace(kspace, data=kspace.data * mask, mask=mask)])
    network = ProximalNetwork(NetworkConfig(layers=2, filters=4)).eval()
    job = Job(Method("mine", network), torch.device("cpu"))
    network.card = CARD
    found = reconstruct_file(tmp_path / "scan.h5", tmp_path, job)
    statistics = found["images"][0]["likeness"]
    assert set(statistics) == {"fall", "gap", "peak", "filled", "moved"}
    assert not any("matrix" in words for words in found["warnings"])
    assert not any("moves the image" in words for words in found["warnings"])
    seen = {name: (0.4 * value, 0.5 * value) for name, value in statistics.items()}
    network.card = {"training": CARD["training"] | {"seen": seen}}
    strange = reconstruct_file(tmp_path / "scan.h5", tmp_path, job)["warnings"]
    assert any(f"moves the image by {statistics['moved']:.1%}" in words for words in strange)
    seen = {name: (value - 1, value + 1) for name, value in statistics.items()}
    network.card = {"training": CARD["training"] | {"seen": seen}}
    assert reconstruct_file(tmp_path / "scan.h5", tmp_path, job)["warnings"] == found["warnings"]


def test_contraction_is_measured_where_trust_is_asked_for(tmp_path: Path, small_kspace: Maker) -> None:
    kspace = small_kspace(coils=2, ny=48)
    mask = make_mask("lines", kspace.mask.shape[1:], 0.4, calib=6)[None]
    write_raw(tmp_path / "scan.h5", [replace(kspace, data=kspace.data * mask, mask=mask)])
    network = ProximalNetwork(NetworkConfig(layers=2, filters=4)).eval()
    network.card = {"training": CARD["training"] | {"seen": {"contraction": (0.0, 1e-6)}}}
    job = Job(Method("mine", network), torch.device("cpu"))
    plain = reconstruct_file(tmp_path / "scan.h5", tmp_path, job)
    assert not any("one more layer" in words for words in plain["warnings"])
    record = reconstruct_file(tmp_path / "scan.h5", tmp_path, replace(job, report=True))
    statistics = record["images"][0]["likeness"]
    assert set(statistics) - set(plain["images"][0]["likeness"]) == {"further", "contraction", "eta1", "eta2"}
    assert statistics["contraction"] == pytest.approx(statistics["eta1"] + statistics["eta2"])
    words = f"one more layer would leave {statistics['contraction']:.2f} times the last layer's step"
    assert any(words in warning for warning in record["warnings"])
    (page,) = tmp_path.glob("*.html")
    assert f"{statistics['further']:.2%}" in page.read_text()
    network.card["training"] |= {"ratios": [0.0, 1.0], "largest_noise": 10.0}
    with pytest.raises(ReconError, match="one more layer would leave"):
        reconstruct_file(tmp_path / "scan.h5", tmp_path, replace(job, strict=True))


def test_two_sets_of_maps_count_as_one_image(small_kspace: Maker) -> None:
    prepared = prepare(small_kspace(coils=2))
    image = torch.complex(torch.ones(1, 2, *prepared.mask.shape[1:]), torch.zeros(()))
    assert measure(prepared, image, 1.0, {"moved": 0.5})["peak"] == pytest.approx(2**0.5)
