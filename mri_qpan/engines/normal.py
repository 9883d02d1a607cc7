"""A^H A of a Cartesian measurement in one C++ pass, several times faster than one DFT after the other.

See normal.cpp.
"""

from __future__ import annotations

import ctypes
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mri_qpan.engines import kernels

MOST = 127
"""Largest prime that a size may have; mirrored in normal.cpp."""

RADICES = (4, 2, *range(3, MOST + 1, 2))
_POINTER = ctypes.c_void_p


class _CTransform(ctypes.Structure):
    """Mirrors `Transform` in normal.cpp."""

    _fields_ = (
        ("size", ctypes.c_int),
        ("stages", ctypes.c_int),
        ("radix", _POINTER),
        ("twiddles", _POINTER),
        ("roots", _POINTER),
    )


class _CMeasurement(ctypes.Structure):
    """Mirrors `Measurement` in normal.cpp."""

    _fields_ = (
        ("sets", ctypes.c_int),
        ("coils", ctypes.c_int),
        ("height", ctypes.c_int),
        ("width", ctypes.c_int),
        ("both", ctypes.c_int),
        ("maps", _POINTER),
        ("mask", _POINTER),
        ("along_y", _CTransform),
        ("along_x", _CTransform),
    )


def fits(mask: Tensor, mps: Tensor | None) -> bool:
    """Return whether the kernel can work such a measurement here.

    Parameters
    ----------
    mask
        (batch, y, x) bool.
    mps
        (batch, [set,] coil, y, x), or None.
    """
    return (
        kernels.width() > 0
        and mask.ndim == 3
        and mask.device.type == "cpu"
        and (mps is None or (mps.dtype == torch.complex64 and mps.device.type == "cpu"))
        and all(n == 1 or radices(n) for n in mask.shape[1:])
    )


def radices(size: int) -> list[int]:
    """Return the factors that the transform of a size goes through; none if it has too large a prime."""
    found = []
    for radix in RADICES:
        while size % radix == 0:
            found.append(radix)
            size //= radix
    return found if size == 1 else []


class Normal:
    """x -> A^H A x of one image.

    Parameters
    ----------
    mask
        (y, x), centred: bool, or real weights of the samples.
    mps
        (set, coil, y, x) complex64, or None: one coil of unit sensitivity.
    vector_width
        Largest width of vectors to use, in bits; None: all that the processor has.

    Raises
    ------
    ValueError
        If it does not fit (`fits`).
    """

    def __init__(self, mask: Tensor, mps: Tensor | None, vector_width: int | None = None) -> None:
        self._width = vector_width or kernels.width()
        lanes = self._width // 32
        samples = mask.detach().numpy()
        along_y = bool((samples != samples[:1]).any())
        along_x = bool((samples != samples[:, :1]).any())
        # Whole lines need no DFT along them; lines along y are worked as lines along x of a turned image.
        self._turned = along_x and not along_y
        if self._turned:
            samples, mps = samples.T, None if mps is None else mps.transpose(-1, -2)
        both = along_x and along_y
        height, width = samples.shape
        self._shape = (height, width)
        plans = [_Plan(height), _Plan(width)]
        weights = _weights(samples, both, plans, lanes)
        maps = None if mps is None else _blocked(mps.detach(), lanes)
        self._kept = (plans, weights, maps)
        self._structure = _CMeasurement(
            sets=1 if mps is None else mps.shape[0],
            coils=1 if mps is None else mps.shape[1],
            height=height,
            width=width,
            both=both,
            maps=None if maps is None else maps.data_ptr(),
            mask=weights.data_ptr(),
            along_y=plans[0].structure,
            along_x=plans[1].structure,
        )

    def __call__(self, image: Tensor) -> Tensor:
        """Return A^H A x of an image (set, y, x) complex64; without maps, set is 1."""
        image = image.transpose(-1, -2) if self._turned else image
        image = image.resolve_conj().contiguous()
        if image.shape != (self._structure.sets, *self._shape) or image.dtype != torch.complex64:
            raise ValueError(f"an image of {image.dtype} {tuple(image.shape)} does not fit the measurement")
        out = torch.empty_like(image)
        library = kernels.library()
        assert library is not None
        outcome = library.mri_qpan_normal(
            ctypes.byref(self._structure),
            _POINTER(image.data_ptr()),
            _POINTER(out.data_ptr()),
            torch.get_num_threads(),
            self._width,
        )
        kernels.check(outcome)
        return out.transpose(-1, -2).contiguous() if self._turned else out


class _Plan:
    """The transform of one size: radices, twiddle factors, roots of unity, and the order it leaves."""

    def __init__(self, size: int) -> None:
        found = radices(size)
        if size > 1 and not found:
            raise ValueError(f"no transform of {size}: it has a prime above {MOST}")
        twiddles, roots = [], []
        length = size
        for radix in found:
            length //= radix
            k, r = np.arange(length)[:, None], np.arange(1, radix)[None]
            twiddles.append(np.exp(-2j * np.pi * k * r / (length * radix)).ravel())
            roots.append(np.exp(2j * np.pi * np.arange(radix) / radix))
        self.order = _order(size, found)
        self._kept = (
            np.array(found, np.int32),
            _parts(np.concatenate([*twiddles, [0]])),
            _parts(np.concatenate([*roots, [0]])),
        )
        self.structure = _CTransform(size, len(found), *(part.ctypes.data for part in self._kept))


def _parts(values: NDArray[np.complex128]) -> NDArray[np.float32]:
    return np.ascontiguousarray(values.astype(np.complex64)).view(np.float32)


def _order(size: int, found: list[int]) -> NDArray[np.int64]:
    """Return the frequency at each position of decimation in frequency."""
    if not found:
        return np.zeros(1, np.int64)
    rest = _order(size // found[0], found[1:])
    return np.concatenate([r + found[0] * rest for r in range(found[0])])


def _weights(samples: NDArray[np.bool_], both: bool, plans: list[_Plan], lanes: int) -> Tensor:
    """Return the mask with its DC at the corner, in the transform's order, over the number of pixels."""
    height, width = samples.shape
    corner = np.fft.ifftshift(samples)[plans[0].order]
    if not both:
        return torch.from_numpy(corner[:, 0].astype(np.float32) / height)
    groups = math.ceil(height / lanes)
    padded = np.zeros((groups * lanes, width), np.float32)
    padded[:height] = corner[:, plans[1].order] / np.float32(height * width)
    grouped = padded.reshape(groups, lanes, width).transpose(0, 2, 1)
    return torch.from_numpy(np.ascontiguousarray(grouped))


def _blocked(mps: Tensor, lanes: int) -> Tensor:
    """Reorder maps (set, coil, y, x) to (block, coil, set, y, 2, lane), zeros beyond the last column."""
    sets, coils, height, width = mps.shape
    blocks = math.ceil(width / lanes)
    parts = torch.view_as_real(mps.resolve_conj().contiguous())
    padded = parts.new_zeros(sets, coils, height, blocks * lanes, 2)
    padded[:, :, :, :width] = parts
    return padded.reshape(sets, coils, height, blocks, lanes, 2).permute(3, 1, 0, 2, 5, 4).contiguous()
