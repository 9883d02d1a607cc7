"""ESPIRiT: coil sensitivity maps as eigenvectors (Uecker et al., Magn Reson Med 71:990, 2014).

With SigPy's defaults (6x6 kernels, singular values above 2 % of the largest, eigenvalues above 0.95), several
times faster: the image-space Gram matrix is evaluated from the 11x11 autocorrelation of the kernels instead
of from every kernel's image, and a few power iterations start at the low-resolution coil images. Where two
eigenvalues are near 1 (the object folds over) that start also picks the combination that is there, not an
arbitrary one. They run on a coarse grid, which holds these smooth maps as well, and end with a few on the
image's. Several sets are found alike: a few steps of subspace iteration (Saad, Numerical Methods for Large
Eigenvalue Problems, 2011, chapter 5) start at their span in the nearest pixel of the coarse grid.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mri_qpan.encoding import Encoding
from mri_qpan.errors import InputError
from mri_qpan.fourier import ifft
from mri_qpan.networks.consistency import conjugate_gradient
from mri_qpan.recon.geometry import centre
from mri_qpan.recon.memo import Memo, fingerprint

KERNEL = 6
THRESHOLD = 0.02  # of the largest singular value: kernels below are noise
CROP = 0.95  # eigenvalue above which a pixel lies inside the object
ITERATIONS = 5  # of the power method, four steps each; what is not settled then has two equal eigenvalues
COARSE = 48
EDGE = 4  # columns of that grid on either side, about half of what 6 x 6 kernels resolve
STEP = 4  # pixels to one of the grid that the power method settles on
REFINEMENTS = 3  # steps on the image's own grid
FAINT = 0.005  # of the largest singular value: what a structure apart must have at least
NOISE_PEAK = 2.5  # of the median where nothing is: noise alone hardly gets there
EXPLAINED = 12  # steps of conjugate gradients to the image that explains a calibration region
CHUNK = 2**25  # bytes of Gram matrices held at a time

_correlations: Memo[tuple[Tensor | None, float]] = Memo(
    2**25, lambda found: 0 if found[0] is None else found[0].nbytes
)

Complex = NDArray[np.complex64]


def espirit(calib: Complex, shape: tuple[int, int], *, sets: int = 1, noise: float = 0.0) -> Complex:
    """Estimate the sensitivity maps of a slice by ESPIRiT.

    Parameters
    ----------
    calib
        Calibration samples, (coil, ky, kx), fully sampled.
    shape
        Matrix (y, x) of the maps.
    sets
        Number of sets: 2 where the object is larger than the field of view, so that two places share a pixel.
    noise
        Standard deviation of the noise of one sample, 0 if not known: singular values that noise alone can
        reach are not taken as signal (Marchenko and Pastur's edge).

    Returns
    -------
    Maps, (coil, y, x) for one set, else (set, coil, y, x): sum over coils of abs(map)^2 is 1 inside the
    object and 0 outside. The strongest combination of the coils has phase 0, so the phases are smooth.

    Raises
    ------
    InputError
        If the calibration region is narrower than the kernel.
    """
    maps = maps_of_plane(calib, shape, sets, noise, _strongest_combination(calib))
    return maps[0] if sets == 1 else maps


def maps_of_plane(
    calib: Complex, shape: tuple[int, int], sets: int, noise: float, reference: Tensor, floor: float = 0.0
) -> Complex:
    """`espirit`, (set, coil, y, x), from kernels whose singular values are above `floor` too.

    `reference` (coil,) is the combination of the coils that has phase 0.
    """
    coils = calib.shape[0]
    correlation, _ = _kernel_correlation(calib, noise, floor)
    maps = np.zeros((sets, coils, *shape), np.complex64)
    if correlation is None:
        return maps
    if sets == 1:
        start = _settled(correlation, calib, shape, reference)
    else:
        start = _nearby(correlation, shape, min(sets, coils))
    rows = max(1, CHUNK // (8 * coils * coils * shape[1]))
    for top in range(0, shape[0], rows):
        here = slice(top, min(top + rows, shape[0]))
        gram = _gram(correlation, shape, here)
        if sets == 1:
            vector, values = _power(gram, start[here], REFINEMENTS)
            vectors = vector[..., None, :]
        else:
            vectors, values = _subspace(gram, start[here], REFINEMENTS)
        found = _turned(vectors, reference) * (values > CROP)[..., None]
        maps[: found.shape[2], :, here] = found.permute(2, 3, 0, 1).numpy()
    return maps


def add_faint(
    maps: Complex, calib: Complex, noise: float = 0.0, reference: Tensor | None = None, floor: float = 0.0
) -> None:
    """Give maps to places without any where the calibration region shows a structure, in place.

    The singular values of a structure far from a much brighter one are below the threshold, and its image
    would be zero. The region's samples less what the maps explain show it without the bright one's blur.

    Parameters
    ----------
    maps
        What `maps_of_plane` found, (set, coil, y, x); the first set is added to.
    calib, noise, reference, floor
        As it took them; no reference: the one that `espirit` takes.
    """
    seen = torch.from_numpy((maps != 0).any((0, 1)))
    if seen.all() or not seen.any():
        return
    least = max(floor, _kernel_correlation(calib, noise, floor)[1]) * FAINT / THRESHOLD
    few, coarse = _thinned(maps)
    left = _unexplained(few, calib)
    apart = ~(few != 0).any(0).any(0)
    level = _point_values(_low_resolution(left, coarse), calib)[apart]
    if not level.numel():
        return
    least = max(least, _noise_edge(calib, noise) if noise else NOISE_PEAK * float(level.median()))
    if float(level.max()) <= least:
        return
    images = _low_resolution(left, maps.shape[-2:])
    here = ~seen & (_point_values(images, calib) > least)
    reference = _strongest_combination(calib) if reference is None else reference
    maps[0][:, here.numpy()] = _turned(_unit(images[here])[0], reference).mT.numpy()


def _thinned(maps: Complex) -> tuple[Tensor, tuple[int, int]]:
    """Return maps (set, coil, y, x) on the coarse grid, and its matrix."""
    height, width = _coarse((maps.shape[-2], maps.shape[-1]))
    rows, columns = (
        (np.arange(few) - few // 2) * n // few + n // 2
        for few, n in zip((height, width), maps.shape[-2:], strict=True)
    )
    return torch.from_numpy(np.ascontiguousarray(maps[:, :, rows][..., columns])), (height, width)


def _point_values(images: Tensor, calib: Complex) -> Tensor:
    """Return the one singular value of a point as bright as each pixel of `_low_resolution`, (y, x)."""
    root_sum = torch.linalg.vector_norm(torch.view_as_real(images).flatten(-2), dim=-1)
    sums = math.prod(float(_hann_window(n).sum()) for n in calib.shape[1:])
    return root_sum * (KERNEL * math.sqrt(root_sum.numel() * _patch_count(calib)) / sums)


def _unexplained(maps: Tensor, calib: Complex) -> Complex:
    """Return a region's samples less those of the image that explains them best.

    Parameters
    ----------
    maps
        (set, coil, y, x), on the coarse grid.
    calib
        (coil, ky, kx).
    """
    coarse = maps.shape[-2:]
    sizes = tuple(min(n, few) for n, few in zip(calib.shape[1:], coarse, strict=True))
    rows, columns = centre(coarse, sizes)
    taken = (slice(None), *centre(calib.shape[1:], sizes))
    mask = torch.zeros(1, *coarse, dtype=torch.bool)
    mask[:, rows, columns] = True
    measured = torch.zeros(1, len(calib), *coarse, dtype=torch.complex64)
    measured[:, :, rows, columns] = torch.from_numpy(calib[taken]).to(torch.complex64)
    encoding = Encoding(mask, maps[None])
    image = conjugate_gradient(encoding.adjoint(measured), encoding.normal, EXPLAINED)
    left = calib.copy()
    left[taken] -= encoding.forward(image)[0, :, rows, columns].numpy()
    return left


def folded_share(calib: Complex, *, noise: float = 0.0) -> float:
    """Share of the object (0 to 1) that folds over: where the second eigenvalue is near 1 as well.

    Evaluated on a coarse grid, fine enough for the eigenvalues of 6 x 6 kernels. Arguments as of `espirit`.
    Along the readout scanners' filters let nothing fold, but the maps of an object that they cut off jump
    where the field of view closes, which looks the same: its ends are left out.
    """
    correlation, _ = _kernel_correlation(calib, noise)
    if correlation is None:
        return 0.0
    values = torch.linalg.eigvalsh(_gram(correlation, (COARSE, COARSE), slice(0, COARSE)))[:, EDGE:-EDGE]
    inside = int((values[..., -1] > CROP).sum())
    return int((values[..., -2] > CROP).sum()) / max(inside, 1)


def signal_floor(plane: Complex, noise: float = 0.0) -> float:
    """Return the singular value from which signal starts in the strongest plane (coil, kz, ky) of a slab."""
    return _spectrum(plane, noise)[2]


def _patches(calib: Complex) -> Tensor:
    """Calibration matrix: every KERNEL x KERNEL patch of all coils is a row."""
    if min(calib.shape[1:]) < KERNEL:
        shown = " x ".join(map(str, calib.shape[1:]))
        raise InputError(
            f"the calibration region of {shown} is smaller than ESPIRiT's {KERNEL} x {KERNEL} kernel"
        )
    blocks = torch.from_numpy(calib).unfold(1, KERNEL, 1).unfold(2, KERNEL, 1)
    return blocks.permute(1, 2, 0, 3, 4).reshape(-1, calib.shape[0] * KERNEL**2).to(torch.complex128)


def _spectrum(calib: Complex, noise: float) -> tuple[Tensor, Tensor, float]:
    """Singular values and right singular vectors of the calibration matrix, and where signal starts."""
    matrix = _patches(calib)
    values, vectors = torch.linalg.eigh(matrix.mH @ matrix)
    values = values.clamp(min=0).sqrt()
    return values, vectors, max(THRESHOLD * float(values[-1]), _noise_edge(calib, noise))


def _noise_edge(calib: Complex, noise: float) -> float:
    """Return the singular value that noise alone can reach: Marchenko and Pastur's edge."""
    return noise * (math.sqrt(_patch_count(calib)) + KERNEL * math.sqrt(len(calib)))


def _patch_count(calib: Complex) -> int:
    """Return how many rows the calibration matrix has."""
    return math.prod(n - KERNEL + 1 for n in calib.shape[1:])


def _kernel_correlation(calib: Complex, noise: float, floor: float = 0.0) -> tuple[Tensor | None, float]:
    """Autocorrelation of the row space's kernels, (coil, coil, lag y, lag x), and where signal starts.

    Of noise alone there is no autocorrelation: None.
    """
    # `folded_share` and `espirit` ask for the same one.
    return _correlations.get((fingerprint(calib), noise, floor), lambda: _correlate(calib, noise, floor))


def _correlate(calib: Complex, noise: float, floor: float) -> tuple[Tensor | None, float]:
    coils = calib.shape[0]
    values, vectors, signal = _spectrum(calib, noise)
    kernels = vectors[:, values > max(signal, floor)]
    if kernels.shape[1] == 0:
        return None, signal
    # matrix = U S V^H: its rows are combinations of the conjugates of V's columns
    projection = (kernels.conj() @ kernels.mT).reshape(coils, KERNEL, KERNEL, coils, KERNEL, KERNEL)
    lags = 2 * KERNEL - 1
    correlation = torch.zeros(coils, coils, lags, lags, dtype=torch.complex128)
    for y in range(KERNEL):
        for x in range(KERNEL):
            part = projection[:, y, x].flip(2, 3)
            correlation[:, :, y : y + KERNEL, x : x + KERNEL] += part
    return (correlation / KERNEL**2).to(torch.complex64), signal


def _gram(correlation: Tensor, shape: tuple[int, int], rows: slice) -> Tensor:
    """Image-space Gram matrices of some rows of the image, (rows, x, coil, coil)."""
    lags = torch.arange(1 - KERNEL, KERNEL, dtype=torch.float64)
    waves = []
    for n, part in zip(shape, (rows, slice(None)), strict=True):
        place = (torch.arange(n, dtype=torch.float64)[part] - n // 2) / n
        waves.append(torch.exp(2j * math.pi * place[:, None] * lags).to(torch.complex64))
    coils, lag = correlation.shape[0], correlation.shape[2]
    # In this order each product ends as the next one takes it: `einsum` turns the last, the largest, over.
    down = waves[0] @ correlation.permute(2, 3, 0, 1).reshape(lag, -1)
    return (waves[1] @ down.reshape(-1, lag, coils * coils)).reshape(-1, shape[1], coils, coils)


def _low_resolution(calib: Complex, shape: tuple[int, int]) -> Tensor:
    """Coil images of the calibration region alone, (y, x, coil)."""
    window = _hann_window(calib.shape[1])[:, None] * _hann_window(calib.shape[2])
    padded = torch.zeros(calib.shape[0], *shape, dtype=torch.complex64)
    height, width = (min(a, b) for a, b in zip(calib.shape[1:], shape, strict=True))
    weighted = torch.from_numpy(np.ascontiguousarray(calib * window)).to(torch.complex64)
    inside, taken = centre(shape, (height, width)), centre(calib.shape[1:], (height, width))
    padded[:, *inside] = weighted[:, *taken]
    return ifft(padded, (-2, -1)).permute(1, 2, 0)


def _settled(correlation: Tensor, calib: Complex, shape: tuple[int, int], reference: Tensor) -> Tensor:
    """Leading eigenvectors, (y, x, coil), by the power method on a coarse grid, interpolated."""
    height, width = _coarse(shape)
    low = _low_resolution(calib, (height, width))
    gram = _gram(correlation, (height, width), slice(0, height))
    squared = gram @ gram
    vectors, _ = _power(squared @ squared, low + 1e-6 * low.abs().max(), ITERATIONS)
    vectors = _turned(vectors, reference)
    down, across = (_interpolation(m, n) for m, n in zip((height, width), shape, strict=True))
    return torch.einsum("yv,vuc,xu->yxc", down, vectors, across)


def _nearby(correlation: Tensor, shape: tuple[int, int], count: int) -> Tensor:
    """Leading eigenvectors at every pixel's nearest one of a coarse grid, (y, x, coil, count).

    They cannot be interpolated: any turn within their span is as good.
    """
    coarse = _coarse(shape)
    vectors = torch.linalg.eigh(_gram(correlation, coarse, slice(0, coarse[0])))[1][..., -count:]
    rows, columns = (
        ((torch.arange(fine) - fine // 2) * few / fine + few // 2).round().long() % few
        for fine, few in zip(shape, coarse, strict=True)
    )
    return vectors[rows][:, columns]


def _coarse(shape: tuple[int, int]) -> tuple[int, int]:
    """Matrix of the coarse grid."""
    height, width = (min(n, max(COARSE, -(-n // STEP))) for n in shape)
    return height, width


def _interpolation(coarse: int, fine: int) -> Tensor:
    """Linear interpolation between centred periodic grids, (fine, coarse)."""
    place = (torch.arange(fine, dtype=torch.float64) - fine // 2) * coarse / fine + coarse // 2
    below, rows = place.floor().long(), torch.arange(fine)
    weights = torch.zeros(fine, coarse, dtype=torch.complex64)
    weights[rows, below % coarse] = (1 - (place - below)).to(torch.complex64)
    weights[rows, (below + 1) % coarse] += (place - below).to(torch.complex64)
    return weights


def _power(gram: Tensor, vectors: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Leading eigenvectors (..., coil), of norm 1, and eigenvalues (..., 1), of Hermitian matrices."""
    for _ in range(steps):
        vectors = (gram @ _unit(vectors)[0][..., None])[..., 0]
    return _unit(vectors)


def _subspace(gram: Tensor, vectors: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Leading eigenvectors (..., set, coil) and eigenvalues (..., set) of Hermitian matrices, largest first.

    `vectors` (..., coil, set) span about the same.
    """
    for _ in range(steps):
        vectors = _orthonormal(gram @ vectors)
    values, turn = torch.linalg.eigh(vectors.mH @ (gram @ vectors))
    return (vectors @ turn).mT.flip(-2), values.flip(-1)


def _orthonormal(vectors: Tensor) -> Tensor:
    """Vectors (..., coil, set) made orthonormal, one after the other."""
    made: list[Tensor] = []
    for vector in vectors.unbind(-1):
        for other in made:
            vector = vector - other * (other.conj() * vector).sum(-1, keepdim=True)
        made.append(_unit(vector)[0])
    return torch.stack(made, -1)


def _unit(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors (..., coil) over their norms, and the norms (..., 1): of real numbers torch is faster."""
    parts = torch.view_as_real(vectors).flatten(-2)
    norms = torch.linalg.vector_norm(parts, dim=-1, keepdim=True)
    parts = parts / norms.clamp(min=1e-12)
    return torch.view_as_complex(parts.unflatten(-1, (-1, 2))), norms


def _turned(vectors: Tensor, reference: Tensor) -> Tensor:
    """Vectors (..., coil) with the phase in which a combination of the coils has none."""
    seen = (vectors * reference.conj()).sum(-1, keepdim=True)
    return vectors * torch.exp(-1j * seen.angle())


def _strongest_combination(calib: Complex) -> Tensor:
    """Weights (coil,) of the combination of coils that holds most of the signal."""
    samples = torch.from_numpy(np.ascontiguousarray(calib)).reshape(calib.shape[0], -1).to(torch.complex128)
    return torch.linalg.eigh(samples @ samples.mH)[1][:, -1].to(torch.complex64)


def _hann_window(n: int) -> NDArray[np.float32]:
    return (0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(n) + 0.5) / n)).astype(np.float32)
