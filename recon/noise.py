"""What a measurement's noise does to its image: standard deviation, SNR and g-factor of every pixel.

From pseudo-replicas, which have the measurement's noise once more (Robson et al., Magn Reson Med 60:895,
2008). They are right for any method, and for a network they tell what noise does to the image, and nothing of
structure that the network lacks or invents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mri_qpan.recon import familiar
from mri_qpan.recon.geometry import centre
from mri_qpan.recon.kspace import Quantity
from mri_qpan.recon.prepare import Prepared

Maps = Mapping[Quantity, NDArray[np.complex64]]

UNCERTAINTY = Quantity(
    "uncertainty", "uncertainty", "STD_MAP", 2, "standard deviation of the magnitude under noise", pure=False
)
SNR = Quantity("SNR", "snr", "SNR_MAP", 3, "magnitude over the noise's standard deviation")
SNR_LIKE = Quantity(
    "SNR-like", "snr-like", "SNR_like_MAP", 3, "magnitude over its deviation under noise; not linear"
)
GFACTOR = Quantity("g-factor", "gfactor", "Gfactor", 4, "SNR of full encoding / (SNR of this one x sqrt(R))")


def noise_maps(
    image: NDArray[np.complex64],
    prepared: Prepared,
    covariance: NDArray[np.complex64] | None,
    again: Callable[[Prepared], NDArray[np.complex64]],
    replicas: int,
    *,
    linear: bool,
    least_squares: bool,
) -> tuple[Maps, tuple[str, ...]]:
    """Return maps of what noise does to an image, and notes on how they were made.

    The uncertainty is the standard deviation of the magnitude. The SNR is the magnitude over the standard
    deviation of the noise in one of the real and imaginary parts, which is that of a strong signal's
    magnitude (Kellman and McVeigh, Magn Reson Med 54:1439, 2005). A linear method's noise does not depend on
    the image, so it holds where there is no signal too; of other methods the deviation of the magnitude
    stands in, and the map is called SNR-like.

    The g-factor of a least-squares solution is SNR_full / (SNR sqrt(R)) (Pruessmann et al., Magn Reson Med
    42:952, 1999). The fully encoded image of the same noise has the variances on the diagonal of
    (S^H Psi^-1 S)^-1, so it needs no replicas; R is the number of places of the k-space matrix over those
    acquired in this very image: calibration lines of its own count, a separate reference scan does not.

    Parameters
    ----------
    image
        The image, (z, y, x).
    prepared
        Its samples.
    covariance
        Of the noise scan, (coil, coil); None: the noise is at most what the outermost samples hold.
    again
        Reconstructs other samples as `image` was.
    replicas
        How many, at least 2.
    linear, least_squares
        What kind of method `again` runs (`methods.Method`).
    """
    if covariance is None:
        sigma, source = familiar.noise_level(prepared), "the outermost samples, at most"
    else:
        sigma, source = level(covariance), "the noise scan"
    magnitude, component = _deviations(image, prepared, sigma, again, replicas)
    several = prepared.mps.ndim == 5
    # The phase of the root sum of squares of several sets is the first set's alone.
    component = component if linear and not several else magnitude
    notes = [f"uncertainty from {replicas} replicas with noise of {sigma:.3g}, by {source}"]
    if linear and several:
        notes.append("two sets of coil maps: SNR too high where there is no signal")
    maps = {UNCERTAINTY: magnitude, SNR if linear else SNR_LIKE: _ratio(np.abs(image), component)}
    if least_squares and prepared.coord is not None:
        notes.append("no g-factor: samples along a trajectory have no fully sampled counterpart")
    elif least_squares:
        acceleration = 1 / float(prepared.mask.mean())
        full = _fully_encoded(prepared, sigma)
        maps[GFACTOR] = _ratio(component, full * math.sqrt(acceleration))
        # A variance from 2 (n - 1) squares (real and imaginary parts), or n - 1 of the magnitude.
        chance = 0.5 / math.sqrt(replicas - 1) * (math.sqrt(2) if several else 1)
        notes.append(
            f"g-factor for R = {acceleration:.3g} (matrix over acquired samples), of the method with its "
            f"regularisation, which lowers it; {chance:.0%} by chance in a pixel"
        )
    return {quantity: pixels.astype(np.complex64) for quantity, pixels in maps.items()}, tuple(notes)


def level(covariance: NDArray[np.complex64]) -> float:
    """Return the standard deviation of a prepared sample's noise, by a covariance (coil, coil)."""
    return float(np.sqrt(np.trace(covariance).real / len(covariance)))


def _deviations(
    image: NDArray[np.complex64],
    prepared: Prepared,
    sigma: float,
    again: Callable[[Prepared], NDArray[np.complex64]],
    replicas: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the standard deviations of the magnitude, and of one of the real and imaginary parts."""
    rng = np.random.default_rng(0)
    acquired = prepared.mask if prepared.coord is None else True
    mean, squares = np.zeros(image.shape), np.zeros(image.shape)
    complex_mean, complex_squares = np.zeros(image.shape, np.complex128), np.zeros(image.shape)
    for number in range(1, replicas + 1):
        noise = rng.standard_normal((2, *prepared.data.shape), dtype=np.float32)
        added = np.complex64(sigma / np.sqrt(2)) * (noise[0] + 1j * noise[1])
        replica = again(replace(prepared, data=(prepared.data + added * acquired).astype(np.complex64)))
        apart = np.abs(replica) - mean
        mean = mean + apart / number
        squares += apart * (np.abs(replica) - mean)
        complex_apart = replica - complex_mean
        complex_mean = complex_mean + complex_apart / number
        complex_squares += (complex_apart * (replica - complex_mean).conj()).real
    return np.sqrt(squares / (replicas - 1)), np.sqrt(complex_squares / (replicas - 1) / 2)


def _fully_encoded(prepared: Prepared, sigma: float) -> NDArray[np.float64]:
    """Return the standard deviation of one part of the fully encoded image, (z, y, x) as delivered.

    The channels are white, and several sets of maps orthonormal in every pixel, so the diagonal of
    (S^H S)^-1 is one over the sum of squares. 0 where no coil sees anything.
    """
    maps = prepared.mps.reshape(-1, *prepared.mps.shape[-4:])
    power = np.square(np.abs(maps), dtype=np.float64).sum(axis=1).max(axis=0)
    power = power[centre(power.shape, prepared.recon_shape)]
    return _ratio(np.full(power.shape, sigma / math.sqrt(2)), np.sqrt(power))


def _ratio(over: NDArray[np.floating], under: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return over / under, 0 where `under` is."""
    found = np.zeros(over.shape)
    np.divide(over, under, out=found, where=under > 0)
    return found
