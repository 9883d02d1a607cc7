"""The one type between the readers and the pipeline."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = tuple[float, float, float]


def as_vector(values: NDArray[Any]) -> Vector:
    """Return three numbers as a tuple."""
    x, y, z = (float(value) for value in values)
    return x, y, z


COUNTERS = ("repetition", "contrast", "phase", "set", "slice")
"""Of an encoding's images, as they are nested: a repetition has contrasts, a contrast phases, and so on."""


@dataclass(frozen=True)
class Geometry:
    """Where an image lies in the patient: DICOM's LPS axes, millimetres.

    Attributes
    ----------
    fov
        Field of view (x, y, z) of the reconstructed image in mm: readout, phase, slice.
    position
        Centre of the image (LPS, mm).
    read_dir, phase_dir, slice_dir
        Unit vectors of the image's x, y and z axes (LPS).
    table_position
        Patient table position (LPS, mm).
    """

    fov: Vector
    position: Vector = (0.0, 0.0, 0.0)
    read_dir: Vector = (1.0, 0.0, 0.0)
    phase_dir: Vector = (0.0, 1.0, 0.0)
    slice_dir: Vector = (0.0, 0.0, 1.0)
    table_position: Vector = (0.0, 0.0, 0.0)


@dataclass(frozen=True, order=True)
class Index:
    """Which image of a measurement this is, by ISMRMRD's counters (from 0)."""

    encoding: int = 0
    repetition: int = 0
    contrast: int = 0
    phase: int = 0
    set: int = 0
    slice: int = 0


@dataclass(frozen=True)
class Stamp:
    """What an image header copies from the readout nearest the k-space centre."""

    measurement_uid: int = 0
    acquisition_time_stamp: int = 0
    physiology_time_stamp: tuple[int, int, int] = (0, 0, 0)
    user_int: tuple[int, ...] = (0,) * 8
    user_float: tuple[float, ...] = (0.0,) * 8


@dataclass(frozen=True)
class KSpace:
    """The samples of one image (one slice or one 3-D slab).

    On a grid they are centred, with zeros where nothing was measured; along a trajectory `coord` says where
    each of them lies.

    Attributes
    ----------
    data
        Samples, (coil, z, y, x) complex64; z is 1 for a 2-D slice. Averages are averaged. With `coord`
        (coil, 1, 1, sample), or (coil, z, 1, sample) of a stack that was transformed along z: every plane has
        the same trajectory.
    mask
        True where a sample was acquired, (z, y, x); with `coord` True for every sample.
    calib
        Calibration samples on the same grid as `data`, zeros elsewhere, or None when the
        calibration region is part of `data` alone.
    calib_mask
        True where `calib` was acquired, (z, y, x); None with `calib`.
    noise_covariance
        (coil, coil) complex64 covariance of the noise of one sample of `data`, or None without a noise scan.
    recon_shape
        Matrix (z, y, x) of the image to deliver; smaller than `data`'s where readout or phase were
        oversampled.
    geometry
        Place and size of the delivered image.
    index
        Which image of the measurement this is.
    stamp
        Header values of the readout nearest the k-space centre.
    notes
        What the reader assumed or left out, in words for a person.
    coord
        Of samples along a trajectory, (sample, 2) float32: y and x in cycles over the delivered field of
        view; (sample, 3) with z before them where the trajectory is 3-D. None on a grid.
    """

    data: NDArray[np.complex64]
    mask: NDArray[np.bool_]
    recon_shape: tuple[int, int, int]
    geometry: Geometry
    index: Index = field(default_factory=Index)
    stamp: Stamp = field(default_factory=Stamp)
    calib: NDArray[np.complex64] | None = None
    calib_mask: NDArray[np.bool_] | None = None
    noise_covariance: NDArray[np.complex64] | None = None
    notes: tuple[str, ...] = ()
    coord: NDArray[np.float32] | None = None

    @property
    def blank(self) -> bool:
        """Whether nothing was measured: every sample is zero."""
        return not self.mask.any() or (self.data.size > 0 and not self.data.any())


@dataclass(frozen=True)
class Image:
    """One reconstructed image, (z, y, x) complex64 in the input's intensity units, its place and counters."""

    data: NDArray[np.complex64]
    geometry: Geometry
    index: Index = field(default_factory=Index)
    stamp: Stamp = field(default_factory=Stamp)


@dataclass(frozen=True)
class Quantity:
    """What the pixels of a map are, where they are not an image's.

    Attributes
    ----------
    name
        Follows the method's name in the names of series.
    suffix
        Follows a file's name.
    role
        Data role in ISMRMRD images, Gadgetron's where it has one; in capitals the fourth value of DICOM's
        ImageType.
    series
        Number of the series, the image's own being 1.
    meaning
        In words, at most 64 characters.
    pure
        Whether it is a pure number, and not in the units of the image.
    angle
        Whether it is the angle of complex pixels, in radians, and not their magnitude.
    """

    name: str
    suffix: str
    role: str
    series: int
    meaning: str
    pure: bool = True
    angle: bool = False


PHASE = Quantity("phase", "phase", "Image", 5, "phase in radians", angle=True)
"""With several channels relative to the strongest virtual one, which the coil maps have no phase of."""


@dataclass(frozen=True)
class ImageSeries:
    """Images of one measurement and method, all of one matrix size.

    Attributes
    ----------
    images
        In the order of their `Index`.
    xml
        The measurement's ISMRMRD header (XML), or None where the input had none.
    provenance
        What made the images: command, method, model and its hash, version, mask ratio and hash, timings.
    quantity
        What a map shows; None for images.
    """

    images: list[Image]
    xml: str | None
    provenance: dict[str, object]
    quantity: Quantity | None = None

    def pixels(self, image: Image) -> NDArray[np.float32]:
        """Return what an image of the series shows, (z, y, x): magnitudes, or angles in (-pi, pi]."""
        if self.quantity is not None and self.quantity.angle:
            return np.angle(image.data)
        return np.abs(image.data)
