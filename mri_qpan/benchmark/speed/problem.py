"""What the speed benchmark reconstructs: the head phantom, or a slice of the user's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sigpy as sp
import sigpy.mri as mr
import torch
from numpy.typing import NDArray
from torch import Tensor

from mri_qpan.benchmark.case import Case, magnitude
from mri_qpan.encoding import Encoding, Normal, RealEncoding
from mri_qpan.fourier import fft_numpy, ifft_numpy
from mri_qpan.phantom import coil_covariance, noise
from mri_qpan.phantom_head import FOV, head
from mri_qpan.sampling_masks import make_mask, parse_spec

SIGMA = 0.012
"""Standard deviation of a complex sample's noise, of a mean coil; the demo's."""


@dataclass(frozen=True)
class Problem:
    """An undersampled slice: `kspace` and `mps` (coil, y, x) complex64, `mask` (y, x) bool."""

    kspace: NDArray[np.complex64]
    mps: NDArray[np.complex64]
    mask: NDArray[np.bool_]

    def operator(self, channels: int) -> tuple[Tensor, Normal]:
        """Return A^H y and A^H A for a network of 2 channels (complex) or 1 (real; one coil of its own)."""
        mask, kspace, mps = (torch.from_numpy(a)[None] for a in (self.mask, self.kspace, self.mps))
        if channels == 1:
            real = RealEncoding(mask)
            return real.adjoint(kspace), real.normal
        encoding = Encoding(mask, None if len(self.mps) == 1 else mps)
        return encoding.adjoint(kspace), encoding.normal

    def save(self, path: Path) -> None:
        """Write it as an .npz file."""
        np.savez(path, kspace=self.kspace, mps=self.mps, mask=self.mask)

    @classmethod
    def load(cls, path: Path) -> Problem:
        """Read what `save` wrote."""
        with np.load(path) as arrays:
            return cls(arrays["kspace"], arrays["mps"], arrays["mask"])


def head_case(matrix: tuple[int, int], coils: int, spec: str) -> Case:
    """Return a noisy measurement of the head phantom, with the coil maps that it was made with.

    Parameters
    ----------
    matrix
        (y, x).
    coils
        Their number.
    spec
        The mask, "KIND:RATIO[:SEED]".
    """
    phantom = head(coils, slices=1)
    maps = phantom.maps(matrix, FOV)[:, 0]
    mps = (maps / np.linalg.norm(maps, axis=0)).astype(np.complex64)
    clean = phantom.kspace(matrix, FOV)[:, 0]
    noisy = clean + noise(clean.shape, coil_covariance(coils, SIGMA), seed=0)
    kind, ratio, seed = parse_spec(spec)
    mask = make_mask(kind, matrix, ratio, seed=seed)
    combined = (mps.conj() * ifft_numpy(clean, (-2, -1))).sum(0)
    kspace = (noisy * mask).astype(np.complex64)
    return Case("head", "head phantom", "phantom", spec, kspace, mask, mps, magnitude(combined, mps))


def single_coil(case: Case) -> Problem:
    """Return the case's reference image as one coil of unit sensitivity measures it, under the same mask."""
    kspace = fft_numpy(case.reference[None].astype(np.complex64), (-2, -1)) * case.mask
    return Problem(kspace.astype(np.complex64), np.ones((1, *case.mask.shape), np.complex64), case.mask)


def scaled(size: int, coils: int, spec: str) -> Problem:
    """Return SigPy's Shepp-Logan phantom (size, size) in birdcage coils: quick to make at any size."""
    image = sp.shepp_logan((size, size))
    maps = mr.birdcage_maps((coils, size, size)) if coils > 1 else np.ones((1, size, size))
    mps = (maps / np.linalg.norm(maps, axis=0)).astype(np.complex64)
    kind, ratio, seed = parse_spec(spec)
    mask = make_mask(kind, (size, size), ratio, seed=seed)
    kspace = fft_numpy((mps * image).astype(np.complex64), (-2, -1)) * mask
    return Problem(kspace.astype(np.complex64), mps, mask)
