"""Objects whose k-space is known exactly: shapes, coils and phase with a closed-form Fourier transform.

An object is a sum of ellipses and polygons of constant intensity, times a finite Fourier series for its phase
and one for each coil's sensitivity. Each wave of a series shifts the transform of the shapes in k-space, so
the samples of every coil are exact: no pixels, no FFT, hence Gibbs ringing as in a measurement and no inverse
crime. The idea of analytical phantoms for parallel imaging: Guerquin-Kern, Lejeune, Pruessmann and Unser,
IEEE Trans Med Imaging 2012;31:626.

Positions are (x, y) in mm with the origin at pixel n // 2 of an image, frequencies in cycles/mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import convolve2d
from scipy.special import j1

from mri_qpan import fourier

Real = NDArray[np.float64]
Complex = NDArray[np.complex128]
Point = tuple[float, float]

NODES_AT_ONCE = 4096


@dataclass(frozen=True)
class Ellipse:
    """A filled ellipse.

    Attributes
    ----------
    intensity
        Value inside.
    centre
        (x, y) in mm.
    semi_axes
        Half the diameters in mm.
    angle
        From the x axis to the first axis, towards y, in rad.
    """

    intensity: float
    centre: Point
    semi_axes: Point
    angle: float = 0.0

    def transform(self, ky: Real, kx: Real) -> Complex:
        """Return the Fourier transform on the grid of `ky` and `kx`, (y, x) in mm²: a b J1(2πκ) / κ, shifted.

        κ is the length of the frequency after the map that makes the ellipse the unit circle.
        """
        a, b = self.semi_axes
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        y, x = ky[:, None], kx[None]
        kappa = np.hypot(a * (cos * x + sin * y), b * (cos * y - sin * x))
        nonzero = np.where(kappa > 0, kappa, 1.0)
        disc = np.where(kappa > 0, j1(2 * np.pi * nonzero) / nonzero, np.pi)
        shift = np.outer(_turns(-ky * self.centre[1]), _turns(-kx * self.centre[0]))
        return self.intensity * a * b * disc * shift


@dataclass(frozen=True)
class Polygon:
    """A filled simple polygon.

    Attributes
    ----------
    intensity
        Value inside, where the vertices run from x towards y; its negative where they run the other way,
        so that outlines of holes need no care.
    vertices
        (vertex, 2): x, y in mm; the last one joins the first.
    """

    intensity: float
    vertices: Real

    def transform(self, ky: Real, kx: Real) -> Complex:
        """Return the Fourier transform on the grid of `ky` and `kx`, (y, x) in mm².

        By Green's theorem it is the integral of X(kx, x) exp(-2πi ky y) dy along the outline, where X is the
        antiderivative of exp(-2πi kx x) in x. Gauss and Legendre's rule takes it edge by edge, with as many
        nodes as bring the error of an edge to 1e-8 of its length.
        """
        total = np.zeros((ky.size, kx.size), np.complex128)
        x, y, weight = self._nodes(float(np.abs(ky).max()), float(np.abs(kx).max()))
        for start in range(0, x.size, NODES_AT_ONCE):
            part = slice(start, start + NODES_AT_ONCE)
            rows = _turns(-np.outer(ky, y[part])) * weight[part]
            columns = _antiderivative(x[part], kx)
            # Unlike NumPy's, torch's threads do not fight for cores that others keep busy.
            total += (torch.from_numpy(rows) @ torch.from_numpy(columns)).numpy()
        return self.intensity * total

    def _nodes(self, ky: float, kx: float) -> tuple[Real, Real, Real]:
        """Return x, y and the weight dy of the nodes that integrate frequencies up to `ky` and `kx`."""
        edges = np.roll(self.vertices, -1, axis=0) - self.vertices
        middles = self.vertices + edges / 2
        turns = np.pi * np.abs(edges) @ (kx, ky)
        counts = np.ceil(turns).astype(int) + 4
        parts = []
        for count in np.unique(counts):
            t, w = np.polynomial.legendre.leggauss(int(count))
            middle, edge = middles[counts == count, None], edges[counts == count, None]
            points = middle + t[:, None] / 2 * edge
            dy = w / 2 * edge[..., 1]
            parts.append(np.concatenate([points, dy[..., None]], axis=-1).reshape(-1, 3))
        x, y, weight = np.concatenate(parts).T
        return x, y, weight


Shape = Ellipse | Polygon


@dataclass(frozen=True)
class Series:
    """Finite Fourier series, the sum over (my, mx) of c exp(2πi (my y + mx x) / period).

    Attributes
    ----------
    coefficients
        (..., 2 order + 1, 2 order + 1), my before mx, both from -order to order.
    period
        In mm; larger than the object, so that a smooth function that is not periodic fits.
    """

    coefficients: Complex
    period: float

    @property
    def orders(self) -> NDArray[np.int64]:
        """The values that mx and my run through."""
        order = self.coefficients.shape[-1] // 2
        return np.arange(-order, order + 1)

    def __call__(self, y: Real, x: Real) -> Complex:
        """Return the values on the grid of `y` and `x` in mm, (..., y, x)."""
        rows = np.exp(2j * np.pi / self.period * np.outer(y, self.orders))
        columns = np.exp(2j * np.pi / self.period * np.outer(self.orders, x))
        return rows @ self.coefficients @ columns

    def times(self, other: Series) -> Series:
        """Return the product of coils' series (coil, my, mx) with a single one (my, mx) of that period."""
        product = np.stack([convolve2d(c, other.coefficients) for c in self.coefficients])
        return Series(product, self.period)

    @classmethod
    def fit(cls, values: Complex, points: Real, order: int, period: float) -> Series:
        """Fit functions given by `values` (..., point) at `points` (point, 2: x, y) by least squares.

        A little Tikhonov regularisation keeps the series small where there are no points.
        """
        orders = np.arange(-order, order + 1)
        x, y = (np.exp(2j * np.pi / period * np.outer(p, orders)) for p in points.T)
        system = (y[:, :, None] * x[:, None, :]).reshape(len(points), -1)
        gram = system.conj().T @ system + 1e-6 * len(points) * np.eye(system.shape[1])
        solution = np.linalg.solve(gram, system.conj().T @ values.reshape(-1, len(points)).T)
        coefficients = solution.T.reshape(*values.shape[:-1], orders.size, orders.size)
        return cls(coefficients.astype(np.complex128), period)


@dataclass(frozen=True)
class Phantom:
    """Slices of an object seen by several coils.

    Attributes
    ----------
    slices
        The shapes of each slice; their intensities add where they overlap.
    offsets
        Place of each slice along z in mm.
    phase
        Complex factor of the object, coefficients (my, mx).
    coils
        Sensitivities, coefficients (coil, my, mx), of the same period.
    """

    slices: tuple[tuple[Shape, ...], ...]
    offsets: tuple[float, ...]
    phase: Series
    coils: Series

    def kspace(self, matrix: tuple[int, int], fov: tuple[float, float]) -> NDArray[np.complex64]:
        """Return the exact k-space of every coil and slice.

        Sample (j_y, j_x) lies at frequency (j - n // 2) / fov, and is scaled so that the centred orthonormal
        inverse DFT (`mri_qpan.fourier`) is the image in units of the shapes' intensities.
        Doubling matrix and field of view along x gives what a scanner's readout oversampling gives.
        It is fast where the period of the series is a multiple of the field of view, or twice, as then most
        shifted samples coincide.

        Parameters
        ----------
        matrix
            (y, x).
        fov
            (y, x) in mm.

        Returns
        -------
        ndarray
            (coil, z, y, x) complex64, one slice a z.
        """
        series = self.coils.times(self.phase)
        frequencies = [(np.arange(n) - n // 2) / length for n, length in zip(matrix, fov, strict=True)]
        (ky, rows), (kx, columns) = (_shifted(k, series) for k in frequencies)
        kspace = np.empty((len(series.coefficients), len(self.slices), *matrix), np.complex64)
        scale = np.sqrt(matrix[0] * matrix[1]) / (fov[0] * fov[1])
        for z, shapes in enumerate(self.slices):
            spectrum = _spectrum(shapes, ky, kx)
            total = np.zeros((len(kspace), *matrix), np.complex128)
            for my in range(rows.shape[1]):
                shifted = spectrum[rows[:, my]][:, columns]
                total += np.tensordot(series.coefficients[:, my], shifted, axes=(1, 2))
            kspace[:, z] = scale * total
        return kspace

    def maps(self, matrix: tuple[int, int], fov: tuple[float, float]) -> NDArray[np.complex64]:
        """Return the coils' sensitivities on the pixels of an image, (coil, 1, y, x) complex64."""
        y, x = ((np.arange(n) - n // 2) * length / n for n, length in zip(matrix, fov, strict=True))
        return self.coils(y, x)[:, None].astype(np.complex64)


def combined(kspace: NDArray[np.complex64]) -> NDArray[np.float32]:
    """Return the root sum of squares (z, y, x) of the coil images of a full 2-D k-space (coil, z, y, x).

    Of a noise-free k-space this is the reference image that the reconstructions aim at.
    """
    images = fourier.ifft_numpy(kspace, (-2, -1))
    return np.sqrt(np.sum(np.abs(images) ** 2, axis=0))


def noise(shape: Sequence[int], covariance: NDArray[np.complexfloating], seed: int) -> NDArray[np.complex64]:
    """Draw complex Gaussian noise, the same for the same seed.

    Parameters
    ----------
    shape
        The coils first, any axes after.
    covariance
        (coil, coil), Hermitian and positive definite: the mean of n n^H over the samples n.
    seed
        Of the random stream.

    Returns
    -------
    ndarray
        `shape`, complex64.
    """
    rng = np.random.default_rng(seed)
    parts = rng.standard_normal((2, *shape)) * np.sqrt(0.5)
    white = parts[0] + 1j * parts[1]
    return np.tensordot(np.linalg.cholesky(covariance), white, axes=1).astype(np.complex64)


def coil_covariance(coils: int, sigma: float, correlation: float = 0.2) -> Complex:
    """Return a noise covariance (coil, coil) of a ring of coils whose neighbours see some of the same noise.

    Parameters
    ----------
    coils
        Number of coils.
    sigma
        Mean standard deviation of a complex sample; single coils differ by up to 20 %.
    correlation
        Of two neighbours; it falls with the distance along the ring.
    """
    index = np.arange(coils)
    distance = np.abs(index[:, None] - index)
    distance = np.minimum(distance, coils - distance)
    turn = np.exp(0.6j * (index[:, None] - index))
    level = sigma * (1 + 0.2 * np.cos(1.7 * index))
    return np.outer(level, level) * correlation**distance * turn


def _spectrum(shapes: Sequence[Shape], ky: Real, kx: Real) -> Complex:
    """Return the sum of the shapes' transforms; real shapes need one half of k-space, F(-k) = conj F(k)."""
    half, rows = np.unique(np.abs(ky), return_inverse=True)
    both, columns = np.unique(np.concatenate([kx, -kx]), return_inverse=True)
    total = np.zeros((half.size, both.size), np.complex128)
    for shape in shapes:
        total += shape.transform(half, both)
    upper, lower = total[rows][:, columns[: kx.size]], total[rows][:, columns[kx.size :]].conj()
    return np.where(ky[:, None] < 0, lower, upper)


def _turns(number: Real) -> Complex:
    """Return exp(2πi number); torch's cosines are several times faster than NumPy's exponential."""
    angle = torch.from_numpy(2 * np.pi * number)
    return torch.complex(torch.cos(angle), torch.sin(angle)).numpy()


def _antiderivative(x: Real, kx: Real) -> Complex:
    """Return the integral of exp(-2πi kx x) over x, (x, kx)."""
    nonzero = kx != 0
    factor = 0.5j / np.pi / np.where(nonzero, kx, 1.0)
    values = _turns(-np.outer(x, kx)) * factor
    values[:, ~nonzero] = x[:, None]
    return values


def _shifted(k: Real, series: Series) -> tuple[Real, NDArray[np.intp]]:
    """Return the distinct frequencies k - m / period, and where each (k, m) stands among them."""
    values = np.round(k[:, None] - series.orders / series.period, 12)
    distinct, inverse = np.unique(values, return_inverse=True)
    return distinct, inverse.reshape(values.shape)
