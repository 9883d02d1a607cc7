"""Coil compression: fewer virtual channels, mixed from the channels so that most of the signal stays.

Where every line is sampled over its whole length the mixture differs along the readout: geometric coil
compression (Zhang, Pauly, Vasanawala and Lustig, Magn Reson Med 69:571, 2013). Elsewhere one mixture, the
strongest principal components, serves all samples (Buehrer et al., Magn Reson Med 57:1131, 2007).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from mri_qpan.errors import OptionError
from mri_qpan.fourier import fft_numpy, ifft_numpy
from mri_qpan.recon.kspace import KSpace

Complex = NDArray[np.complex64]

Number = int | Literal["auto"] | None
"""Of virtual channels: "auto" is `enough` of them where there are `MANY` channels, None all."""

MANY = 16
FEWEST = 8

ENOUGH = 0.995
"""Of the channels' power above the noise, for "auto"."""

WINDOW = 5
"""Places along the readout whose samples are taken together, as in the paper."""


def parse_number(text: str | int) -> Number:
    """Read a number of virtual channels: N, "auto" or "all".

    Raises
    ------
    OptionError
        If it is none of these.
    """
    if text == "all":
        return None
    if text == "auto":
        return "auto"
    if not str(text).isdecimal() or int(text) < 1:
        raise OptionError(f"coils {text!r}: give a number of virtual ones, auto or all")
    return int(text)


def is_asked_for(number: Number, channels: int) -> bool:
    """Return whether so many channels are to be compressed."""
    if isinstance(number, int):
        return number < channels
    return number == "auto" and channels >= MANY


def compress(kspace: KSpace, number: int | Literal["auto"], *, geometric: bool) -> tuple[KSpace, Complex]:
    """Mix the channels into fewer.

    Parameters
    ----------
    kspace
        Of channels with equal and uncorrelated noise, which stays so.
    number
        Virtual channels, fewer than there are channels; "auto": see `enough`.
    geometric
        Let the mixture differ along the readout: every line must be sampled over its whole length.

    Returns
    -------
    kspace
        Of the virtual channels, with a note on what they keep.
    mixer
        Orthonormal rows (virtual coil, coil), or (x, virtual coil, coil) for `geometric`.
    """
    samples = kspace.data if kspace.calib is None else kspace.calib
    if geometric:
        samples = ifft_numpy(samples, (-1,))
    if geometric:
        correlation = _windowed(correlations(samples))
    else:
        correlation = correlations(samples.reshape(len(samples), -1, 1, 1))
    number = number if isinstance(number, int) else enough(correlation)
    mixer = components(correlation, number)
    mixer = aligned(mixer) if geometric else mixer[0]
    kept = _power(mix(mixer, samples)) / _power(samples)
    covariance = kspace.noise_covariance
    if covariance is not None:
        places = mixer.reshape(-1, *mixer.shape[-2:])
        mixed = places @ covariance @ places.conj().swapaxes(-1, -2)
        covariance = mixed.mean(axis=0).astype(np.complex64)
    kind = "geometrically (a mixture for each place along the readout)" if geometric else "by SVD"
    note = f"{len(kspace.data)} channels compressed {kind} to {number} with {kept:.2%} of their power"
    compressed = replace(
        kspace,
        data=_mix_samples(mixer, kspace.data),
        calib=None if kspace.calib is None else _mix_samples(mixer, kspace.calib),
        noise_covariance=covariance,
        notes=(*kspace.notes, note),
    )
    return compressed, mixer


def mix(mixer: Complex, data: Complex) -> Complex:
    """Mix the channels of samples or maps.

    Parameters
    ----------
    mixer
        (virtual coil, coil), or (x, virtual coil, coil) where they differ along x.
    data
        (coil, z, y, x); for the second kind with x in the image domain.

    Returns
    -------
    (virtual coil, z, y, x) complex64.
    """
    if mixer.ndim == 2:
        return np.tensordot(mixer, data, axes=1).astype(np.complex64, copy=False)
    columns = torch.from_numpy(data).permute(3, 0, 1, 2).reshape(data.shape[3], len(data), -1)
    mixed = (torch.from_numpy(mixer) @ columns).reshape(*mixer.shape[:2], *data.shape[1:3])
    return np.ascontiguousarray(mixed.permute(1, 2, 3, 0).numpy())


def mix_maps(mixer: Complex, maps: Complex) -> Complex:
    """Mix the channels of maps, (coil, z, y, x) or (set, coil, z, y, x); else as `mix`."""
    return mix(mixer, maps) if maps.ndim == 4 else np.stack([mix(mixer, one) for one in maps])


def correlations(samples: Complex) -> NDArray[np.complex128]:
    """Return the channels' correlation at every x, (x, coil, coil), of samples (coil, z, y, x)."""
    found = np.empty((samples.shape[3], len(samples), len(samples)), np.complex128)
    for x in range(samples.shape[3]):
        column = samples[..., x].reshape(len(samples), -1).astype(np.complex128)
        found[x] = column @ column.conj().T
    return found


def enough(correlation: NDArray[np.complex128]) -> int:
    """Return how many components of (x, coil, coil) to keep.

    They hold `ENOUGH` of the power above the noise, for which the weakest one is taken, and are at least
    `FEWEST`: few directions of undersampling need more. Of 16 birdcage coils, a quarter of the lines and
    noise of 1 % of the image, three would lose 0.1 dB of a least-squares image, and none of a network's.
    """
    powers = np.linalg.eigvalsh(correlation)[:, ::-1]
    above = (powers - powers[:, -1:]).sum(axis=0)
    return max(FEWEST, int(np.searchsorted(np.cumsum(above), ENOUGH * above.sum())) + 1)


def components(correlation: NDArray[np.complex128], number: int) -> Complex:
    """Return the strongest principal components, (..., virtual coil, coil), of (..., coil, coil)."""
    _, vectors = np.linalg.eigh(correlation)
    return vectors[..., : -number - 1 : -1].conj().swapaxes(-1, -2).astype(np.complex64)


def aligned(mixer: Complex) -> Complex:
    """Rotate the virtual channels of every x so that they go on smoothly from those at the centre.

    Each place's components are known up to a unitary matrix; the one nearest to its neighbour's is U V^H of
    the singular value decomposition of their product (the paper's eq. 9 to 11). Without it the virtual coils
    jump along the readout, and have no smooth sensitivity maps.
    """
    found = mixer.copy()
    for x, neighbour in outwards(len(mixer) // 2, len(mixer)):
        left, _, right = np.linalg.svd(found[neighbour] @ found[x].conj().T)
        found[x] = (left @ right) @ found[x]
    return found


def outwards(first: int, length: int) -> list[tuple[int, int]]:
    """Return every place but the first with its neighbour on the way to that one, in an order outwards."""
    after = [(x, x - 1) for x in range(first + 1, length)]
    return after + [(x, x + 1) for x in range(first - 1, -1, -1)]


def _windowed(correlation: NDArray[np.complex128]) -> NDArray[np.complex128]:
    """Sum the correlations of `WINDOW` neighbours along x, fewer at the ends."""
    half = WINDOW // 2
    padded = np.pad(correlation, ((half, half), (0, 0), (0, 0)))
    summed = sum(padded[shift : shift + len(correlation)] for shift in range(WINDOW))
    return np.asarray(summed)


def _mix_samples(mixer: Complex, samples: Complex) -> Complex:
    """Mix k-space samples (coil, z, y, x)."""
    if mixer.ndim == 2:
        return mix(mixer, samples)
    return fft_numpy(mix(mixer, ifft_numpy(samples, (-1,))), (-1,))


def _power(samples: Complex) -> float:
    return float(np.linalg.norm(samples)) ** 2
