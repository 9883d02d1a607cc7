"""Small ISMRMRD files, written line by line with the ismrmrd package."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import ismrmrd
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray

from mri_qpan.errors import InputError
from mri_qpan.recon.kspace import KSpace
from mri_qpan.recon.readers import open_kspace

Acquisition = ismrmrd.Acquisition


def matrix_xml(name: str, matrix: Sequence[object], fov: Sequence[object]) -> str:
    sizes = "".join(f"<{a}>{n}</{a}>" for a, n in zip("xyz", matrix, strict=True))
    lengths = "".join(f"<{a}>{n}</{a}>" for a, n in zip("xyz", fov, strict=True))
    return f"<{name}><matrixSize>{sizes}</matrixSize><fieldOfView_mm>{lengths}</fieldOfView_mm></{name}>"


def limit_xml(counter: str, maximum: int, center: int) -> str:
    return f"<{counter}><minimum>0</minimum><maximum>{maximum}</maximum><center>{center}</center></{counter}>"


def header_xml(
    matrix: Sequence[object],
    recon: Sequence[object] | None = None,
    *,
    fov: Sequence[object] | None = None,
    recon_fov: Sequence[object] | None = None,
    limits: str | None = None,
    trajectory: str = "cartesian",
    system: str = "",
) -> str:
    """An ISMRMRD header; matrices and fields of view are (x, y, z), pixels 1 mm unless told otherwise."""
    recon = matrix if recon is None else recon
    fov = matrix if fov is None else fov
    recon_fov = recon if recon_fov is None else recon_fov
    if limits is None:
        ny, nz = int(float(str(matrix[1]))), int(float(str(matrix[2])))
        limits = limit_xml("kspace_encoding_step_1", ny - 1, ny // 2)
        limits += limit_xml("kspace_encoding_step_2", nz - 1, nz // 2)
    return (
        '<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">'
        f"<acquisitionSystemInformation>{system}</acquisitionSystemInformation>"
        "<experimentalConditions><H1resonanceFrequency_Hz>128000000</H1resonanceFrequency_Hz>"
        "</experimentalConditions><encoding>"
        + matrix_xml("encodedSpace", matrix, fov)
        + matrix_xml("reconSpace", recon, recon_fov)
        + f"<encodingLimits>{limits}</encodingLimits><trajectory>{trajectory}</trajectory></encoding>"
        "</ismrmrdHeader>"
    )


def line(
    samples: NDArray[np.complex64],
    *,
    ky: int = 0,
    kz: int = 0,
    flags: Iterable[int] = (),
    center: int | None = None,
    pre: int = 0,
    post: int = 0,
    dwell: float = 10.0,
    counter: int = 0,
    encoding: int = 0,
    position: Sequence[float] = (0, 0, 0),
    directions: Sequence[Sequence[float]] = ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    **counters: int,
) -> Acquisition:
    """One acquisition of samples (coil, sample)."""
    acquisition = Acquisition.from_array(np.ascontiguousarray(samples, np.complex64))
    for flag in flags:
        acquisition.set_flag(flag)
    acquisition.center_sample = samples.shape[1] // 2 if center is None else center
    acquisition.discard_pre, acquisition.discard_post = pre, post
    acquisition.sample_time_us = dwell
    acquisition.scan_counter = counter
    acquisition.encoding_space_ref = encoding
    acquisition.idx.kspace_encode_step_1, acquisition.idx.kspace_encode_step_2 = ky, kz
    for name, value in counters.items():
        setattr(acquisition.idx, name, value)
    for i in range(3):
        acquisition.position[i] = position[i]
        acquisition.read_dir[i], acquisition.phase_dir[i] = directions[0][i], directions[1][i]
        acquisition.slice_dir[i] = directions[2][i]
    return acquisition


def lines(
    kspace: NDArray[np.complex64], rows: Iterable[int] | None = None, **options: object
) -> list[Acquisition]:
    """The lines of k-space (coil, y, x), or (coil, z, y, x), in order."""
    volume = kspace if kspace.ndim == 4 else kspace[:, None]
    chosen = list(range(volume.shape[2]) if rows is None else rows)
    return [
        line(volume[:, z, y], ky=y, kz=z, counter=i, **options)  # type: ignore[arg-type]
        for i, (z, y) in enumerate((z, y) for z in range(volume.shape[1]) for y in chosen)
    ]


def write(path: Path, xml: str | None, acquisitions: Iterable[Acquisition], dataset: str = "dataset") -> Path:
    """Write a file with one dataset."""
    with ismrmrd.File(path, "a") as file:
        group = file[dataset]
        if xml is not None:
            group._contents.create_dataset(
                "xml", data=[xml.encode()], dtype=ismrmrd.hdf5.h5py.special_dtype(vlen=bytes)
            )
        group.acquisitions = list(acquisitions)
    return path


def random_kspace(*shape: int, seed: int = 0) -> NDArray[np.complex64]:
    generator = np.random.default_rng(seed)
    return (generator.standard_normal(shape) + 1j * generator.standard_normal(shape)).astype(np.complex64)


def few(share: int = 5) -> settings:
    """Settings of property tests that write a file an example: 100 / share, or more by --hypothesis-profile.

    A function, because a conftest.py imports this module before the profile is there.
    """
    return settings(
        deadline=None,
        max_examples=settings.default.max_examples // share,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


NY, NX = 6, 8
XML = header_xml((NX, NY, 1))
KSPACE = random_kspace(2, NY, NX)
"""Two coils' samples of a small slice, which most tests of the reader write."""


def only(path: Path) -> KSpace:
    """The one image of a file."""
    (image,) = open_kspace(path)
    return image


def refused(path: Path) -> str:
    """What the reader says of a file that it must refuse: one line that names it."""
    with pytest.raises(InputError) as caught:
        list(open_kspace(path))
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message
