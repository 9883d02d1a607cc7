"""The bank of magnitude images that training draws from, and its validation part."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_qpan import fourier
from mri_qpan.errors import InputError

SIDE = 256
"""Largest matrix of an image in the bank."""

TARGET_MM = 1.0
"""Volumes are resampled to voxels of at least this size, by cropping their k-space."""


@dataclass(frozen=True)
class Bank:
    """Images with the group that each came from.

    Attributes
    ----------
    images
        Magnitude (float) or complex images of varied size, each divided by its maximum, as (y, x) complex64
        or float32 arrays.
    groups
        One name an image: the data set.
    """

    images: list[NDArray[Any]]
    groups: list[str]

    def of(self, groups: set[str]) -> Bank:
        """Return the images of some groups."""
        kept = [i for i, group in enumerate(self.groups) if group in groups]
        return Bank([self.images[i] for i in kept], [self.groups[i] for i in kept])

    def save(self, path: Path) -> None:
        """Write the bank as one .npz of 16-bit magnitudes (and phases where they are measured)."""
        parts: dict[str, NDArray[Any]] = {}
        for index, image in enumerate(self.images):
            parts[f"m{index}"] = np.round(np.abs(image) * 65535).astype(np.uint16)
            if np.iscomplexobj(image):
                parts[f"p{index}"] = np.round(np.angle(image) / np.pi * 32767).astype(np.int16)
        names = np.frombuffer(json.dumps(self.groups).encode(), np.uint8)
        with path.open("wb") as file:
            np.savez_compressed(file, groups=names, **parts)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> Bank:
        """Read what `save` wrote.

        Raises
        ------
        InputError
            If the file is not such a bank.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                groups = json.loads(stored["groups"].tobytes())
                images = []
                for index in range(len(groups)):
                    image = stored[f"m{index}"].astype(np.float32) / 65535
                    if f"p{index}" in stored:
                        image = image * np.exp(1j * np.pi / 32767 * stored[f"p{index}"]).astype(np.complex64)
                    images.append(image)
        except (OSError, KeyError, ValueError) as error:
            raise InputError(
                f"{path}: not an image bank of mri-qpan ({error}); build one from a folder"
            ) from error
        return cls(images, groups)


def build(root: Path) -> Bank:
    """Collect images from a folder with one folder a data set.

    Volumes (.npz with `vol` and `spacing_mm`, .nii, .nii.gz) give slices in all three planes; .png, .mat
    (`im_ori`, `Img`) and .npz with `knees` give images. A data set's name followed by "/val" marks the part
    kept for validation: files called v_*, the last tenth of a set of .mat files, one .npz called *valid*.

    Parameters
    ----------
    root
        The folder.

    Raises
    ------
    InputError
        If there is no image in it.
    """
    images: list[NDArray[Any]] = []
    groups: list[str] = []
    for folder in sorted(p for p in root.iterdir() if p.is_dir()):
        for path in sorted(folder.iterdir()):
            found = _read(path)
            images += found
            groups += [folder.name + ("/val" if _is_validation(path) else "")] * len(found)
    if not images:
        raise InputError(f"{root}: no training images found; it needs one folder a data set")
    return Bank(images, groups)


def _is_validation(path: Path) -> bool:
    if path.suffix == ".mat":
        same = sorted(path.parent.glob("*.mat"))
        return same.index(path) >= len(same) * 0.9
    return path.name.startswith("v_") or "valid" in path.name


def _read(path: Path) -> list[NDArray[Any]]:
    if path.name.endswith((".nii", ".nii.gz")):
        import nibabel

        stored: Any = nibabel.load(path)
        return _slices(np.asarray(stored.dataobj, np.float32), stored.header.get_zooms()[:3])
    if path.suffix == ".png":
        from PIL import Image

        return _images(np.asarray(Image.open(path).convert("F"))[None])
    if path.suffix == ".mat":
        return _images(_read_mat(path)[None])
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as stored:
            if "vol" in stored:
                volume = stored["vol"].astype(np.float32)
                spacing = stored["spacing_mm"] if "spacing_mm" in stored else _spacing(path.name)
                return _slices(volume, tuple(float(s) for s in spacing))
            if "knees" in stored:
                centred = stored["knees"].astype(np.float32)
                return _images(np.sqrt((centred**2).sum(1)))
    return []


def _spacing(name: str) -> tuple[float, float, float]:
    """Return the spacing (mm) of a volume file that lacks it: the README beside the data states it."""
    known = {"adi_MEMPRAGE_T1_sag.npz": (1.0, 1.15, 1.15), "adi_FSE_T2_ax.npz": (2.5, 0.43, 0.43)}
    if name not in known:
        raise InputError(f"{name}: a volume needs spacing_mm beside vol")
    return known[name]


def _read_mat(path: Path) -> NDArray[Any]:
    import h5py
    import scipy.io

    try:
        if h5py.is_hdf5(path):
            with h5py.File(path) as file:
                return file["im_ori"][()].T
        return scipy.io.loadmat(path)["Img"]
    except (KeyError, ValueError, OSError) as error:
        raise InputError(f"{path}: no training image in it ({error}); move it out of the folder") from error


def _images(stack: NDArray[Any]) -> list[NDArray[Any]]:
    return [_normalised(_to_side(image)) for image in stack]


def _slices(volume: NDArray[np.float32], spacing: tuple[float, ...]) -> list[NDArray[Any]]:
    volume = volume / np.percentile(volume, 99.9)
    for axis, size in enumerate(spacing):
        n = volume.shape[axis]
        volume = _crop_kspace(volume, axis, min(n, max(1, round(n * size / TARGET_MM))))
    found = []
    for axis, size in enumerate(spacing):
        others = [s for i, s in enumerate(spacing) if i != axis]
        if max(others) > 1.5:
            continue  # thick slices: only their own plane is an image
        step = max(1, round(2.0 / max(size, TARGET_MM)))
        for plane in np.moveaxis(volume, axis, 0)[::step]:
            magnitude = np.abs(plane)
            if (magnitude > 0.1).mean() > 0.12:
                found.append(_normalised(_to_side(magnitude)))
    return found


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
