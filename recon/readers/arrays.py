"""Plain arrays of Cartesian k-space to `KSpace`: NumPy's and MATLAB's files, whose axes the user names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mri_qpan.errors import InputError
from mri_qpan.recon.kspace import Geometry, Index, KSpace
from mri_qpan.recon.readers.samples import check_samples
from mri_qpan.recon.readers.stream import KSpaceStream

SUFFIXES = (".npy", ".mat")
COUNTERS = ("repetition", "contrast", "phase", "set", "slice")
SPATIAL = ("coil", "z", "y", "x")
NAMES = (*COUNTERS, *SPATIAL)
VARIABLE = "kspace"
NOTE = "the file tells neither field of view nor position: pixels taken as 1 mm"


def read(path: Path, dims: str | None) -> KSpaceStream:
    """Read the images of an array in a .npy or .mat file.

    Parameters
    ----------
    path
        The file. Of several variables of a .mat file, the one called `kspace`, or the only one with as many
        axes as are named.
    dims
        Names of its axes in their order (a .mat's as MATLAB shows them), comma-separated, of `NAMES`: x and y
        at least.

    Returns
    -------
    Stream of `KSpace`, one for each index of the axes other than coil, z, y and x.

    Raises
    ------
    InputError
        If the file cannot be read, or the names do not fit it.
    """
    if dims is None:
        raise InputError(
            f"{path}: say what its axes are, with --dims NAME,NAME,… (for example slice,coil,y,x; of "
            f"{', '.join(NAMES)})"
        )
    names = [name.strip() for name in dims.split(",")]
    wrong = [name for name in names if name not in NAMES]
    if wrong or len(set(names)) < len(names) or not {"x", "y"} <= set(names):
        raise InputError(f"--dims {dims}: names of {', '.join(NAMES)}, each once, x and y among them")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    array = _read_npy(path) if path.suffix == ".npy" else _read_mat(path, len(names))
    if array.ndim != len(names):
        raise InputError(f"{path}: an array of shape {array.shape} has not the {len(names)} axes {dims}")
    if array.dtype.kind != "c" or 0 in array.shape:
        raise InputError(f"{path}: k-space is complex; here {array.dtype} of shape {array.shape}")
    return stream(array, names, path, NOTE)


def stream(array: NDArray[Any], names: Sequence[str], path: Path, note: str) -> KSpaceStream:
    """Return the images of an array with named axes; zeros in every coil were not measured.

    Parameters
    ----------
    array
        Complex; read where an image is taken from the stream.
    names
        Of its axes, of `NAMES`.
    path, note
        For messages, and what was assumed.
    """
    order = [names.index(name) for name in NAMES if name in names]
    sorted_array = array.transpose(order)
    full = sorted_array.reshape([array.shape[names.index(n)] if n in names else 1 for n in NAMES])
    _, nz, ny, nx = full.shape[len(COUNTERS) :]
    places = {
        Index(**dict(zip(COUNTERS, place, strict=True))): place
        for place in np.ndindex(*full.shape[: len(COUNTERS)])
    }
    indices = sorted(places)
    geometry = Geometry((float(nx), float(ny), float(nz)))

    def images() -> Iterator[KSpace]:
        for index in indices:
            data: NDArray[np.complex64] = np.array(full[places[index]], np.complex64)
            check_samples(data, path, f"image {index}")
            yield KSpace(data, np.asarray(data.any(axis=0)), (nz, ny, nx), geometry, index, notes=(note,))

    return KSpaceStream(indices, images(), None)


def _read_npy(path: Path) -> NDArray[Any]:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: not a .npy file of numbers, or a damaged one") from error


def _read_mat(path: Path, axes: int) -> NDArray[Any]:
    try:
        found = _mat73(path) if h5py.is_hdf5(path) else _mat5(path)
    except Exception as error:  # whatever the parsers trip over in a damaged file
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{path}: not a MATLAB file, or a damaged one ({reason})") from error
    fitting = [name for name, array in found.items() if array.ndim == axes and array.dtype.kind == "c"]
    if VARIABLE in found:
        return found[VARIABLE]
    if len(fitting) != 1:
        shown = ", ".join(f"{name} {array.shape}" for name, array in found.items()) or "nothing"
        raise InputError(f"{path}: holds {shown}: call the k-space {VARIABLE!r}")
    return found[fitting[0]]


def _mat5(path: Path) -> dict[str, NDArray[Any]]:
    import scipy.io  # takes a quarter of a second, which few runs need

    content = scipy.io.loadmat(path, appendmat=False)
    return {n: v for n, v in content.items() if not n.startswith("__") and isinstance(v, np.ndarray)}


def _mat73(path: Path) -> dict[str, NDArray[Any]]:
    found = {}
    with h5py.File(path, "r") as file:
        for name, item in file.items():
            if not isinstance(item, h5py.Dataset) or name.startswith("#"):
                continue
            if set(item.dtype.names or ()) == {"real", "imag"}:
                values = item[()]
                found[name] = (values["real"] + 1j * values["imag"]).T
            elif item.dtype.kind in "fc":
                # MATLAB's arrays are column-major: seen from HDF5 their axes are reversed.
                found[name] = np.asarray(item[()]).T
    return found
