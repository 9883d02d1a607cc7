"""Masks on disk: .npy, .mat (`mask_matrix`, zero frequency at the corner), .cfl/.hdr (BART), .png."""

from __future__ import annotations

import math
import os
import tokenize
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from mri_qpan.sampling_masks.errors import MaskError
from mri_qpan.sampling_masks.geometry import MAX_SAMPLES, Mask, check_shape

MAT_VARIABLE = "mask_matrix"
"""The variable of the published masks: uint8, zero frequency at [0, 0]."""

BART_DIMENSIONS = 16
"""How many dimensions BART writes into a header."""


def load_mask(path: str | os.PathLike[str]) -> Mask:
    """Read a sampling mask.

    Parameters
    ----------
    path
        A .npy, .mat, .cfl (or its .hdr) or .png file; see `save_mask` for what each holds. Numbers of any
        type will do as long as they are 0 and 1 (in a .png also 0 and 255).

    Returns
    -------
    Mask
        bool, (y, x) or (z, y, x), zero frequency at n // 2.

    Raises
    ------
    MaskError
        If the file is missing, damaged, of another format, or what it holds is not a mask.
    """
    file = Path(path)
    read = _format(file).read
    if not file.is_file():
        raise MaskError(f"{file}: no such file")
    try:
        return _checked(read(file), file)
    except FileNotFoundError as error:
        raise MaskError(f"{error.filename or file}: no such file") from None
    except OSError as error:
        raise MaskError(f"{file}: cannot be read: {error.strerror or error}") from None


def save_mask(path: str | os.PathLike[str], mask: NDArray[Any]) -> None:
    """Write a sampling mask; the file's suffix says how.

    Parameters
    ----------
    path
        - .npy: bool, as in memory.
        - .mat (version 5): `mask_matrix`, uint8, zero frequency moved to the corner [0, 0].
        - .cfl or .hdr (BART; both are written): complex64 with BART's axes (x, y, z).
        - .png (2-D only): 8-bit grey, 255 where a sample is acquired.
    mask
        (y, x) or (z, y, x), zero frequency at n // 2, 0 and 1 only.

    Raises
    ------
    MaskError
        If `mask` is not a mask, the format cannot hold it or the file cannot be written.
    """
    file = Path(path)
    write = _format(file).write
    checked = _checked(np.asarray(mask), file)
    try:
        write(file, checked)
    except OSError as error:
        raise MaskError(f"{file}: cannot be written: {error.strerror or error}") from None


def _checked(array: NDArray[Any], file: Path) -> Mask:
    """Return `array` as bool, or say what keeps it from being a mask."""
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise MaskError(f"{file}: a mask is (y, x) or (z, y, x), this array has shape {array.shape}")
    if array.dtype.kind not in "biufc":
        raise MaskError(f"{file}: a mask holds 0 and 1, this array holds {array.dtype}")
    check_shape(array.shape)
    mask = array != 0
    wrong = np.flatnonzero((mask & (array != 1)).ravel())
    if wrong.size:
        place = tuple(int(i) for i in np.unravel_index(wrong[0], array.shape))
        raise MaskError(f"{file}: a mask holds 0 and 1 only, but {array[place]} stands at {place}")
    if not mask.any():
        raise MaskError(f"{file}: the mask acquires no sample at all")
    return np.ascontiguousarray(mask)


@contextmanager
def _replacing(file: Path) -> Iterator[Path]:
    """Give a temporary name beside `file` that becomes `file` when all went well."""
    temporary = file.with_name(f".{file.stem}-{os.getpid()}{file.suffix}")
    try:
        yield temporary
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def _read_npy(file: Path) -> NDArray[Any]:
    try:
        return np.lib.format.open_memmap(file, mode="r")
    except (ValueError, EOFError, SyntaxError, tokenize.TokenError) as error:
        raise MaskError(f"{file}: not a .npy array: {error}") from None


def _write_npy(file: Path, mask: Mask) -> None:
    with _replacing(file) as temporary:
        np.save(temporary, mask)


def _read_mat(file: Path) -> NDArray[Any]:
    corner = _read_mat73(file) if h5py.is_hdf5(file) else _read_mat5(file)
    return np.fft.fftshift(corner)


def _read_mat5(file: Path) -> NDArray[Any]:
    import scipy.io  # takes a quarter of a second, which few runs need

    try:
        names = [name for name, _, _ in scipy.io.whosmat(file, appendmat=False)]
        if MAT_VARIABLE in names:
            content = scipy.io.loadmat(file, appendmat=False, variable_names=[MAT_VARIABLE])
            return np.asarray(content[MAT_VARIABLE])
    except Exception as error:  # whatever SciPy's parser trips over in a damaged file
        raise MaskError(f"{file}: not a MATLAB file, or a damaged one: {error}") from None
    raise _no_variable(file, names)


def _read_mat73(file: Path) -> NDArray[Any]:
    with h5py.File(file, "r") as matlab:
        variable = matlab.get(MAT_VARIABLE)
        if not isinstance(variable, h5py.Dataset):
            raise _no_variable(file, [name for name in matlab if not name.startswith("#")])
        if variable.size is None or variable.size > MAX_SAMPLES:
            raise MaskError(f"{file}: a mask cannot have the shape {variable.shape}")
        # MATLAB's arrays are column-major: seen from HDF5 their axes are reversed.
        return np.asarray(variable[()]).T


def _no_variable(file: Path, names: list[str]) -> MaskError:
    found = ", ".join(names) or "nothing"
    return MaskError(f"{file}: holds no variable {MAT_VARIABLE!r} (found: {found}); name the mask so")


def _write_mat(file: Path, mask: Mask) -> None:
    import scipy.io

    with _replacing(file) as temporary:
        corner = np.fft.ifftshift(mask).astype(np.uint8)
        scipy.io.savemat(temporary, {MAT_VARIABLE: corner}, do_compression=True)


def _read_cfl(file: Path) -> NDArray[Any]:
    sizes = _read_header(file.with_suffix(".hdr"))
    while len(sizes) > 2 and sizes[-1] == 1:
        sizes.pop()
    if len(sizes) > 3:
        raise MaskError(f"{file}: a mask has BART dimensions 0 to 2 only, not {' x '.join(map(str, sizes))}")
    samples = file.with_suffix(".cfl")
    expected, found = 8 * math.prod(sizes), samples.stat().st_size
    if expected != found:
        raise MaskError(f"{samples}: its header asks for {expected} bytes, the file has {found}")
    array = np.fromfile(samples, dtype="<c8").reshape(sizes[::-1])
    # `bart poisson`, `bart upat` leave out the readout: what they make is the plane (z, y).
    return array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array


def _read_header(file: Path) -> list[int]:
    lines = file.read_text(encoding="ascii", errors="replace").splitlines()
    try:
        sizes = [int(word) for word in lines[lines.index("# Dimensions") + 1].split()]
    except (ValueError, IndexError):
        raise MaskError(f"{file}: not a BART header: no '# Dimensions' with whole numbers below it") from None
    if len(sizes) < 2 or min(sizes) < 1 or math.prod(sizes) > MAX_SAMPLES:
        raise MaskError(f"{file}: a mask cannot have the dimensions {' '.join(map(str, sizes))}")
    return sizes


def _write_cfl(file: Path, mask: Mask) -> None:
    sizes = [*mask.shape[::-1], *[1] * (BART_DIMENSIONS - mask.ndim)]
    with _replacing(file.with_suffix(".cfl")) as samples, _replacing(file.with_suffix(".hdr")) as header:
        mask.astype("<c8").tofile(samples)
        header.write_text("# Dimensions\n" + " ".join(map(str, sizes)) + "\n", encoding="ascii")


def _read_png(file: Path) -> NDArray[Any]:
    try:
        with Image.open(file, formats=["PNG"]) as image:
            if image.mode not in ("1", "L", "I", "I;16"):
                raise MaskError(f"{file}: a mask is a grey image, this one is {image.mode}: convert it first")
            pixels = np.asarray(image)
    except (UnidentifiedImageError, SyntaxError, Image.DecompressionBombError):
        raise MaskError(f"{file}: not a PNG image, or a damaged one") from None
    return pixels // 255 if set(np.unique(pixels)) <= {0, 255} else pixels


def _write_png(file: Path, mask: Mask) -> None:
    if mask.ndim != 2:
        raise MaskError(f"{file}: a .png holds (y, x) only, not {mask.shape}: write .npy, .mat or .cfl")
    with _replacing(file) as temporary:
        Image.fromarray(mask.astype(np.uint8) * 255).save(temporary, format="PNG")


class _Format(NamedTuple):
    read: Callable[[Path], NDArray[Any]]
    write: Callable[[Path, Mask], None]


_FORMATS = {
    ".npy": _Format(_read_npy, _write_npy),
    ".mat": _Format(_read_mat, _write_mat),
    ".cfl": _Format(_read_cfl, _write_cfl),
    ".hdr": _Format(_read_cfl, _write_cfl),
    ".png": _Format(_read_png, _write_png),
}

SUFFIXES = tuple(_FORMATS)
"""The file formats that `load_mask` and `save_mask` know."""


def _format(file: Path) -> _Format:
    try:
        return _FORMATS[file.suffix.lower()]
    except KeyError:
        raise MaskError(f"{file}: a mask's file name ends in {', '.join(SUFFIXES)}") from None
