"""Training images out of files: pictures, volumes cut into slices, arrays of MATLAB and NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_qpan import fourier
from mri_qpan.errors import InputError

SIDE = 256
"""Largest matrix of a training image."""

SMALLEST = 8
"""Smallest matrix of one, in pixels a side."""

TARGET_MM, LARGEST_MM = 1.0, 1.5
"""Volumes are resampled to voxels of at least the first, by cropping their k-space; their planes whose voxels
are larger than the second are no images."""

SUFFIXES = (".png", ".mat", ".npz", ".nii", ".nii.gz")

NO_IMAGES = ("", ".txt", ".md", ".rst", ".pdf", ".json", ".csv", ".tsv", ".bval", ".bvec", ".xml", ".html")
"""Files that lie beside images and are not missed."""


def readable(path: Path) -> bool:
    """Return whether a file's name is that of one that `read` knows."""
    return path.name.lower().endswith(SUFFIXES)


def read(path: Path) -> tuple[list[NDArray[Any]], str]:
    """Return a file's images, and what of it was not taken, if anything.

    Volumes (.nii, .nii.gz, .npz with `vol` and `spacing_mm`) give slices in all three planes; .png, .mat
    (`im_ori`, `Img`) and .npz with `knees` give images.

    Returns
    -------
    tuple
        Images (y, x) of at most 256 x 256, magnitude or complex, each divided by its maximum; a line, or "".

    Raises
    ------
    InputError
        If the file is damaged or holds no such image.
    """
    try:
        return _read(path)
    except Exception as error:  # whatever the parsers of a damaged file trip over
        what = f"no {error} in it" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise InputError(
            f"{path}: no training image ({what or type(error).__name__}); move it out of the folder"
        ) from error


def _read(path: Path) -> tuple[list[NDArray[Any]], str]:
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        import nibabel

        stored: Any = nibabel.load(path, mmap=False)
        volume = np.asarray(stored.dataobj)
        return _slices(volume, stored.header.get_zooms()[:3])
    if name.endswith(".png"):
        from PIL import Image

        with Image.open(path) as picture:
            return _images(np.asarray(picture.convert("F"))[None])
    if name.endswith(".mat"):
        return _images(_read_mat(path)[None])
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        if "vol" in arrays:
            spacing = arrays["spacing_mm"] if "spacing_mm" in arrays else _spacing(path.name)
            return _slices(arrays["vol"], tuple(float(s) for s in spacing))
        centred = arrays["knees"].astype(np.float32)
        return _images(np.sqrt((centred**2).sum(1)))


def _spacing(name: str) -> tuple[float, float, float]:
    """Return the spacing (mm) of a volume file that lacks it: the README beside the data states it."""
    known = {"adi_MEMPRAGE_T1_sag.npz": (1.0, 1.15, 1.15), "adi_FSE_T2_ax.npz": (2.5, 0.43, 0.43)}
    if name not in known:
        raise ValueError("a volume needs spacing_mm beside vol")
    return known[name]


def _read_mat(path: Path) -> NDArray[Any]:
    import h5py
    import scipy.io

    if h5py.is_hdf5(path):
        with h5py.File(path) as file:
            image = file["im_ori"][()].T
        # MATLAB writes complex numbers as pairs.
        return image["real"] + 1j * image["imag"] if image.dtype.fields else image
    return scipy.io.loadmat(path)["Img"]


def _images(stack: NDArray[Any]) -> tuple[list[NDArray[Any]], str]:
    if stack.ndim != 3 or min(stack.shape[1:]) < SMALLEST:
        raise ValueError(f"an array of {_by(stack.shape[1:])}, not an image of at least 8 x 8")
    finite = _finite(stack)
    kept = [_normalised(_to_side(image)) for image in finite if image.any()]
    blank = len(stack) - len(kept)
    return kept, _lost(stack, f"{blank} blank images left out" if blank else "")


def _slices(stored: NDArray[Any], spacing: tuple[float, ...]) -> tuple[list[NDArray[Any]], str]:
    while stored.ndim > 3 and stored.shape[-1] == 1:
        stored = stored[..., 0]
    if stored.ndim != 3:
        raise ValueError(f"an array of {_by(stored.shape)}, not one volume")
    if len(spacing) != 3 or not all(0 < s < np.inf for s in spacing):
        raise ValueError(f"voxels of {_by(spacing)} mm")
    volume = np.abs(_finite(stored)).astype(np.float32)
    if not volume.any():
        return [], "blank, left out"
    volume = volume / (np.percentile(volume, 99.9) or volume.max())
    for axis, size in enumerate(spacing):
        n = volume.shape[axis]
        volume = _crop_kspace(volume, axis, min(n, max(1, round(n * size / TARGET_MM))))
    found = []
    for axis, size in enumerate(spacing):
        others = [s for i, s in enumerate(spacing) if i != axis]
        planes = np.moveaxis(volume, axis, 0)
        if max(others) > LARGEST_MM or min(planes.shape[1:]) < SMALLEST:
            continue  # thick slices: only their own plane is an image
        step = max(1, round(2.0 / max(size, TARGET_MM)))
        found += [_normalised(_to_side(p)) for p in planes[::step] if (p > 0.1).mean() > 0.12]
    coarse = f"voxels of {_by(spacing)} mm: no plane of {LARGEST_MM} mm or finer with an eighth of it filled"
    return found, _lost(stored, "" if found else coarse)


def _finite(array: NDArray[Any]) -> NDArray[Any]:
    """Return `array` with 0 where it is not finite, as masks of NaN are meant."""
    if not np.issubdtype(array.dtype, np.number):
        raise ValueError(f"an array of {array.dtype}, not of numbers")
    return np.where(np.isfinite(array), array, np.zeros((), array.dtype))


def _lost(array: NDArray[Any], more: str) -> str:
    spoiled = not np.isfinite(array).all()
    return "; ".join(filter(None, ["values that are no numbers taken for 0" if spoiled else "", more]))


def _by(sizes: tuple[float, ...]) -> str:
    return " x ".join(f"{size:g}" for size in sizes)


def _crop_kspace(volume: NDArray[Any], axis: int, size: int) -> NDArray[np.float32]:
    n = volume.shape[axis]
    if size >= n:
        return volume
    start = n // 2 - size // 2
    kspace = fourier.fft_numpy(volume, [axis]).take(range(start, start + size), axis)
    return np.abs(fourier.ifft_numpy(kspace, [axis])) * np.float32(np.sqrt(size / n))


def _to_side(image: NDArray[Any]) -> NDArray[Any]:
    """Crop the centre of an image larger than the bank's side."""
    slices = []
    for n in image.shape:
        start = max(0, n // 2 - SIDE // 2)
        slices.append(slice(start, start + min(n, SIDE)))
    return image[tuple(slices)]


def _normalised(image: NDArray[Any]) -> NDArray[Any]:
    kind = np.complex64 if np.iscomplexobj(image) else np.float32
    return (image / max(np.abs(image).max(), np.finfo(np.float32).tiny)).astype(kind)
