"""3-D ISMRMRD files larger than memory: readouts transformed one by one, then read back in parts along x.

The Fourier transform along the readouts makes every x a problem of its own, exactly where they are complete.
Where all of them start late or end early alike (asymmetric echoes) each x is what it would be, blurred along
x: coil maps hardly change over so few pixels. The lines go through it once, into a temporary file in the
order of x; any range of x comes out of it as k-space.
"""

from __future__ import annotations

import tempfile
import weakref
from dataclasses import dataclass
from typing import IO

import numpy as np
from numpy.typing import NDArray

from mri_qpan.fourier import fft_numpy, ifft_numpy
from mri_qpan.recon.kspace import KSpace

Complex = NDArray[np.complex64]


class Spool:
    """Lines in a temporary file, by x.

    Parameters
    ----------
    z, y
        Places of the lines, (line,).
    shape
        Matrix (z, y, x), the readouts cropped.
    span
        Places of the readouts' first sample and behind their last one, of asymmetric echoes; the rest of the
        x places is filled with zeros. None: complete ones.

    Attributes
    ----------
    power
        Of every x in the image domain, (x,).
    spectrum
        Mean over the lines of the coils' power together, of every sample of a readout.
    coils, counts, empty
        Number of channels, of lines at every place (z, y), and of those that are zero in every channel, which
        `counts` leaves out.
    """

    def __init__(
        self,
        z: NDArray[np.int64],
        y: NDArray[np.int64],
        shape: tuple[int, int, int],
        span: tuple[int, int] | None = None,
    ) -> None:
        self._place = z * shape[1] + y
        self._shape = shape
        self._span = span
        self.power = np.zeros(shape[2])
        self.spectrum: NDArray[np.float64] = np.zeros(0)
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="mri-qpan-")  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self.coils = 0
        self._written = self.empty = 0
        self.counts = np.bincount(self._place, minlength=shape[0] * shape[1]).reshape(shape[:2])

    def write(self, lines: Complex) -> None:
        """Append lines (line, coil, sample), transformed and cropped."""
        power = np.square(np.abs(lines), dtype=np.float64).sum((0, 1)) / self._place.size
        self.spectrum = power + (self.spectrum if self.spectrum.size else 0)
        if self._span is not None:
            start, stop = self._span
            lines = np.pad(lines, [(0, 0), (0, 0), (start, self._shape[2] - stop)])
        nx, width = lines.shape[2], self._shape[2]
        start = nx // 2 - width // 2
        columns = ifft_numpy(lines, (-1,))[..., start : start + width].transpose(2, 0, 1)
        self.coils = lines.shape[1]
        item = 8 * self.coils
        for x, column in enumerate(columns):
            self._file.seek((x * self._place.size + self._written) * item)
            self._file.write(np.ascontiguousarray(column).tobytes())
            self.power[x] += float(np.linalg.norm(column)) ** 2
        empty = ~lines.any(axis=(1, 2))
        np.subtract.at(self.counts.reshape(-1), self._place[self._written :][: len(lines)][empty], 1)
        self.empty += int(empty.sum())
        self._written += len(lines)

    def read(self, start: int, stop: int) -> Complex:
        """Return averaged samples (coil, z, y, x) of a range of x, which is in the image domain."""
        item = 8 * self.coils * self._place.size
        self._file.seek(start * item)
        stored = np.frombuffer(self._file.read((stop - start) * item), np.complex64)
        columns = stored.reshape(stop - start, self._place.size, self.coils)
        grid = np.zeros((self.coils, self.counts.size, stop - start), np.complex64)
        for line, place in enumerate(self._place):
            grid[:, place] += columns[:, line].T
        grid /= np.maximum(self.counts, 1).reshape(-1, 1).astype(np.float32)
        return grid.reshape(self.coils, *self._shape[:2], stop - start)


@dataclass(frozen=True, kw_only=True)
class Slabs(KSpace):
    """A 3-D image's k-space in parts along x.

    `data` and `calib` are empty, the masks (z, y, 1); `part` has the samples of a range of x.

    Attributes
    ----------
    width
        Columns of x that the parts are of: the delivered ones, or all encoded ones with `span`.
    span
        Places along the encoded readout of the first sample and behind the last one, of asymmetric echoes;
        None where the readouts are complete.
    imaging, calibration
        Where the samples are; the second None with `calib_mask`.
    """

    width: int = 0
    span: tuple[int, int] | None = None
    imaging: Spool
    calibration: Spool | None = None

    def part(self, start: int, stop: int) -> KSpace:
        """Return the k-space of a range of x, its readouts complete."""
        width = stop - start
        mask, calib_mask = self.mask, self.calib_mask
        return KSpace(
            data=fft_numpy(self.imaging.read(start, stop), (-1,)),
            mask=np.repeat(mask, width, axis=2),
            recon_shape=(*self.recon_shape[:2], width),
            geometry=self.geometry,
            index=self.index,
            stamp=self.stamp,
            calib=None if self.calibration is None else fft_numpy(self.calibration.read(start, stop), (-1,)),
            calib_mask=None if calib_mask is None else np.repeat(calib_mask, width, axis=2),
            noise_covariance=self.noise_covariance,
            notes=self.notes,
        )

    def strongest(self) -> int:
        """Return the x with the most signal."""
        return int(np.argmax(self.imaging.power))
