"""Plain arrays of k-space to `KSpace`: NumPy's and MATLAB's files, whose axes the user names."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

import h5py
import numpy as np
from numpy.typing import NDArray

from mri_qpan.errors import InputError, OptionError
from mri_qpan.recon.kspace import COUNTERS, Geometry, Index, KSpace
from mri_qpan.recon.readers import array_trajectory
from mri_qpan.recon.readers.array_trajectory import ALONG, Trajectory
from mri_qpan.recon.readers.hdf5 import PATIENCE, Hdf5Process
from mri_qpan.recon.readers.samples import check_samples
from mri_qpan.recon.readers.stream import KSpaceStream

SUFFIXES = (".npy", ".mat")
SPATIAL = ("coil", "z", "y", "x")
NAMES = (*COUNTERS, "average", *SPATIAL)
VARIABLE = "kspace"
PART = 2**26  # bytes read at once
MAT5_WORKER = Path(__file__).with_name("mat5_worker.py")
NOTE = "the file tells neither field of view nor position: pixels taken as 1 mm"

Variables = Mapping[str, tuple[str, Sequence[int]]]
"""Type ("complex…" or another) and shape by name."""


def read(path: Path, dims: str | None) -> KSpaceStream:
    """Read the images of an array in a .npy or .mat file.

    Parameters
    ----------
    path
        The file. Of several variables of a .mat file, the one that `dims` names, or is called `kspace`, or is
        the only one with as many axes as are named.
    dims
        Names of its axes in their order (a .mat's as MATLAB shows them), comma-separated, of `NAMES`: x and y
        at least. A variable of a .mat file may stand before them, with a colon. Samples along a trajectory
        have sample and readout for x, y and z, and @ and the trajectory after them (see `Trajectory`).

    Returns
    -------
    Stream of `KSpace`, one for each index of the axes other than average, coil, z, y and x.

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
    cartesian, at, words = dims.partition("@")
    variable, _, axes = cartesian.rpartition(":")
    names = [name.strip() for name in axes.split(",")]
    possible, needed = ((*COUNTERS, "coil", *ALONG), {"sample"}) if at else (NAMES, {"x", "y"})
    if not needed <= set(names) <= set(possible) or len(set(names)) < len(names):
        among = " and ".join(sorted(needed))
        raise OptionError(f"--dims {dims}: names of {', '.join(possible)}, each once, {among} among them")
    trajectory = Trajectory.parse(words) if at else None
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if variable and path.suffix.lower() == ".npy":
        raise InputError(f"--dims {dims}: {path} holds one array and no variable called {variable!r}")
    array = _read_npy(path) if path.suffix.lower() == ".npy" else _read_mat(path, len(names), variable)
    if array.ndim != len(names):
        raise InputError(f"{path}: an array of shape {array.shape} has not the {len(names)} axes {axes}")
    if array.dtype.kind != "c" or 0 in array.shape:
        raise InputError(f"{path}: k-space is complex; here {array.dtype} of shape {array.shape}")
    if trajectory is None:
        return stream(array, names, path, NOTE)

    def load(name: str) -> NDArray[Any]:
        return _read_npy(Path(name)) if name.endswith(".npy") else _read_mat(path, 0, name, real=True)

    return array_trajectory.stream(array, names, COUNTERS, path, trajectory, load, NOTE)


def stream(array: NDArray[Any], names: Sequence[str], path: Path, note: str) -> KSpaceStream:
    """Return the images of an array with named axes; zeros in every coil were not measured, nor averaged.

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
    nz, ny, nx = full.shape[-3:]
    places = {
        Index(**dict(zip(COUNTERS, place, strict=True))): place
        for place in np.ndindex(*full.shape[: len(COUNTERS)])
    }
    indices = sorted(places)
    geometry = Geometry((float(nx), float(ny), float(nz)))

    def images() -> Iterator[KSpace]:
        for index in indices:
            averages: NDArray[np.complex64] = np.array(full[places[index]], np.complex64)
            check_samples(averages, path, f"image {index}")
            counts = averages.any(axis=1).sum(axis=0, dtype=np.float32)
            data = averages[0] if len(averages) == 1 else averages.sum(axis=0) / np.maximum(counts, 1)
            notes = (note, *_centre_notes(data))
            yield KSpace(data, counts > 0, (nz, ny, nx), geometry, index, notes=notes)

    return KSpaceStream(indices, images(), None)


def _centre_notes(data: NDArray[np.complex64]) -> list[str]:
    """Say where the echo is if it is not near the centre of k-space (coil, z, y, x), as is assumed."""
    power = np.linalg.norm(data, axis=0)
    place = [int(p) for p in np.unravel_index(int(power.argmax()), power.shape)]
    if all(abs(p - n // 2) <= n // 4 for p, n in zip(place, power.shape, strict=True)):
        return []
    centre = [n // 2 for n in power.shape]
    return [
        f"the strongest sample lies at {place} (z, y, x), far from the centre {centre}: "
        "k-space without fftshift, axes of other names, or not Cartesian?"
    ]


def _read_npy(path: Path) -> NDArray[Any]:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged header is read as Python: syntax, tokens, types
        raise InputError(f"{path}: not a .npy file of numbers, or a damaged one") from error


def _read_mat(path: Path, axes: int, variable: str, real: bool = False) -> NDArray[Any]:
    """Return the variable of a MATLAB file that is the k-space, or another one by its name."""
    if path.suffix.lower() == ".npy":
        raise InputError(f"{path}: holds one array: give the trajectory as a .npy file, @FILE.npy:MATRIX")
    if h5py.is_hdf5(path):
        return _read_mat73(path, axes, variable, real)
    return _read_mat5(path, axes, variable, real)


def _read_mat5(path: Path, axes: int, variable: str, real: bool) -> NDArray[Any]:
    """Read an older MATLAB file in a process of its own: SciPy's reader crashes on some damaged ones."""
    worker = subprocess.Popen(
        [sys.executable, "-P", str(MAT5_WORKER), str(path.resolve())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    watch = threading.Timer(PATIENCE, worker.kill)
    watch.start()
    try:
        with worker:
            requests, answers = cast(IO[bytes], worker.stdin), cast(IO[bytes], worker.stdout)
            held: dict[str, tuple[str, list[int]]] = _answer(path, answers)["variables"]
            name = _choose(path, held, axes, variable, real)
            requests.write(json.dumps(name).encode() + b"\n")
            requests.flush()
            length: int = _answer(path, answers)["bytes"]
            return np.lib.format.read_array(io.BytesIO(answers.read(length)), allow_pickle=False)
    except (OSError, ValueError) as error:  # the process ended before its answer did
        raise InputError(f"{path}: damaged MATLAB file (it breaks off)") from error
    finally:
        watch.cancel()


def _answer(path: Path, answers: IO[bytes]) -> dict[str, Any]:
    line = answers.readline()
    message: dict[str, Any] = (
        json.loads(line) if line.endswith(b"\n") else {"error": "SciPy's reader crashed or hung on it"}
    )
    if "error" in message:
        raise InputError(f"{path}: not a MATLAB file, or a damaged one ({message['error']})")
    return message


def _read_mat73(path: Path, axes: int, variable: str, real: bool) -> NDArray[Any]:
    """Read a MATLAB 7.3 file, which is HDF5, part by part; its axes are reversed, seen from there."""
    process = Hdf5Process(path, matlab=True)
    try:
        described: dict[str, tuple[str, list[int]]] = process.description["variables"]
        held = {name: (kind, shape[::-1]) for name, (kind, shape) in described.items()}
        name = _choose(path, held, axes, variable, real)
        kind, shape = described[name][0], tuple(described[name][1])
        dtype = np.dtype(np.complex64 if kind == "complex" else np.float64)
        if 0 in shape:
            return np.zeros(shape, dtype).T
        step = max(1, PART // (16 * math.prod(shape[1:])))
        ends = [(first, min(first + step, shape[0])) for first in range(0, shape[0], step)]
        array = np.empty(shape, dtype)
        for first, last in ends:
            _, (part,) = process.ask({"variable": name, "part": [first, last]}, 1)
            if part.shape != array[first:last].shape:
                raise InputError(f"{path}: damaged MATLAB file: {name!r} breaks off")
            array[first:last] = part
    except MemoryError as error:
        raise InputError(f"{path}: {variable or 'the k-space'} does not fit into memory") from error
    finally:
        process.close()
    return array.T


def _choose(path: Path, held: Variables, axes: int, variable: str, real: bool) -> str:
    """Return the name of the variable that is the k-space, or `variable`, which may be `real`."""
    complexes = [name for name, (kind, _) in held.items() if kind.startswith("complex")]
    fitting = [name for name in complexes if len(held[name][1]) == axes]
    if variable in held or (not variable and VARIABLE in held):
        name = variable or VARIABLE
    elif variable or len(fitting) != 1:
        shown = ", ".join(f"{name} {tuple(shape)}" for name, (_, shape) in held.items()) or "nothing"
        if variable:
            raise InputError(f"{path}: holds no variable {variable!r}, but {shown}")
        raise InputError(f"{path}: holds {shown}: say which is the k-space, with --dims VARIABLE:NAME,…")
    else:
        name = fitting[0]
    if not real and name not in complexes:
        kind, shape = held[name]
        raise InputError(f"{path}: k-space is complex; here {kind} of shape {tuple(shape)}")
    return name
