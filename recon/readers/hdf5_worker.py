"""The process that opens HDF5 files: run as a script by `hdf5.Hdf5Process`, imports h5py and NumPy alone.

Requests are lines of JSON: {"open": path} is answered with what the file holds and its "kind". Of "ismrmrd",
{"rows": [...]}, in increasing order, asks for the samples of those acquisitions, or with "field": "traj" for
their trajectories; of "fastmri", {"slice": n} for a slice's k-space. {"matlab": path} is answered with the
type and shape of every numeric variable of a MATLAB file, after which {"variable": name, "part": [first,
last]} asks for a part of one along its first axis. {"close": true} closes the file. Answers are one line of
JSON, then the arrays it announces as .npy. A request that fails is answered with {"error": ...}, and the
process ends: HDF5 may be in disorder. Where the system can fork, a copy of the process attends to each file
and ends with it: starting Python and loading h5py again would take far longer.
"""

import contextlib
import io
import json
import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

import h5py
import numpy as np
from numpy.typing import NDArray

with contextlib.suppress(ImportError):  # not on Windows, where nothing forks
    import resource

MOST_COMPRESSED = 1100  # bytes that deflate makes of one at most, and a little
FORKS = hasattr(os, "fork")
LONGEST = 150  # seconds for an answer: who waits has given up before, unless it was killed itself
SPARE, MOST_COPIES = 2**29, 8  # bytes that a file's process may take, and times the file's size beyond
NOISE = 1 << 18  # the acquisition flag ISMRMRD numbers 19
ALWAYS = 2**24  # bytes that are read whatever the file says of its size


class UnusableError(Exception):
    """The file cannot be used; the message says why."""


def serve_files(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer the requests for one file after the other, each in a fork, until there are none.

    A fork that crashes may have answered in part: then nothing more can be said.
    """
    while line := requests.readline():
        child = os.fork()
        if child == 0:
            bound_memory(line)
            serve(chain([line], requests), answers)
            os._exit(0)
        if os.WIFSIGNALED(os.waitpid(child, 0)[1]):
            return


def bound_memory(line: bytes) -> None:
    """Keep this process to what a file of its size can need: HDF5 believes a damaged file's lengths."""
    try:
        size = max(os.path.getsize(path) for path in json.loads(line).values())
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:  # the file has gone, which opening it will say, or this is no Linux
        return
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = used + SPARE + MOST_COPIES * size
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def serve(requests: Iterable[bytes], answers: BinaryIO) -> None:
    """Answer requests until the file is to be closed, there are none, or one fails."""
    file = data = cast(Any, None)  # until the first request, which opens a file
    try:
        for line in _timed(requests):
            request = json.loads(line)
            if "open" in request:
                file = h5py.File(request["open"], "r")
                names = find(file)
                if not names:
                    data = file["kspace"]
                    send(answers, *describe_fastmri(file))
                    continue
                name = choose(file, names)
                data = file[name]["data"]
                check_size(data)
                heads = read_heads(data, name)
                message: dict[str, object] = {"kind": "ismrmrd", "names": names, "name": name}
                message["waveforms"] = waveforms(file[name])
                send(answers, message | {"xml": header(file[name], "xml")}, heads)
            elif "matlab" in request:
                file = h5py.File(request["matlab"], "r")
                send(answers, {"kind": "matlab", "variables": matlab_variables(file)})
            elif "variable" in request:
                send(answers, {}, matlab_part(file[request["variable"]], *request["part"]))
            elif "close" in request:
                file.close()
                send(answers, {})
                if FORKS:
                    return
            elif "slice" in request:
                send(answers, {}, data[request["slice"]].astype(np.complex64, copy=False))
            else:
                field = request.get("field", "data")
                send(answers, {}, *samples(data, np.array(request["rows"], np.intp), field))
    except UnusableError as error:
        send(answers, {"error": str(error)})
    except Exception as error:  # HDF5 and h5py fail in many ways on a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        send(answers, {"error": f"damaged or truncated HDF5 file ({reason:.160})"})


def _timed(requests: Iterable[bytes]) -> Iterator[bytes]:
    """Yield requests, and end this process, wherever HDF5 then is, if one takes too long."""
    for line in requests:
        if FORKS:
            signal.alarm(LONGEST)
        yield line
        if FORKS:
            signal.alarm(0)


def find(file: h5py.File) -> list[str]:
    """Return the names of the groups that hold acquisitions; none where the file is fastMRI's instead."""
    found: list[str] = []

    def visit(name: str, item: Any) -> None:
        fields = set(item.dtype.names or ()) if isinstance(item, h5py.Dataset) else set()
        if {"head", "data"} <= fields and name.rpartition("/")[2] == "data":
            found.append(name.rpartition("/")[0] or "/")

    file.visititems(visit)
    if not found and not isinstance(file.get("kspace"), h5py.Dataset):
        shown = ", ".join(sorted(repr(name)[1:-1] for name in file)[:6]) or "nothing"
        raise UnusableError(f"an HDF5 file without ISMRMRD or fastMRI raw data (it holds {shown})")
    return sorted(found)


def choose(file: h5py.File, names: list[str]) -> str:
    """Return the group to read: "dataset", or the lowest number, of those with more than noise scans."""
    numbered = {name: [int(n) for n in re.findall(r"\d+", name)] for name in names}
    ordered = sorted(names, key=lambda name: (name != "dataset", numbered[name], name))
    for name in ordered if len(names) > 1 else []:
        rows = file[name]["data"]
        check_size(rows)
        heads = rows.fields("head")[:].ravel()
        if "flags" in (heads.dtype.names or ()) and (heads["flags"] & NOISE == 0).any():
            return name
    return ordered[0]


def read_heads(rows: h5py.Dataset, name: str) -> NDArray[np.void]:
    """Return the headers of all acquisitions."""
    if rows.size == 0:
        raise UnusableError(f"the dataset {name!r} has no acquisitions")
    return rows.fields("head")[:].ravel()


def waveforms(group: h5py.Group) -> int:
    """Return how many waveforms (of an ECG, a respiratory belt) lie beside the acquisitions."""
    found = group.get("waveforms")
    return int(found.size) if isinstance(found, h5py.Dataset) else 0


def describe_fastmri(file: h5py.File) -> tuple[dict[str, object], NDArray[np.bool_]]:
    """Return what a file of fastMRI's layout holds, and the mask of its lines: empty where it has none."""
    kspace = file["kspace"]
    if kspace.dtype.kind != "c" or kspace.ndim not in (3, 4) or 0 in kspace.shape:
        raise UnusableError(
            f"'kspace' of fastMRI's layout is complex, (slice, [coil,] x, y); here {kspace.dtype} of shape "
            f"{kspace.shape}"
        )
    check_size(kspace)
    xml = header(file, "ismrmrd_header") if "ismrmrd_header" in file else None
    mask = np.asarray(file["mask"][()] if "mask" in file else [], bool).ravel()
    return {"kind": "fastmri", "shape": list(kspace.shape), "xml": xml}, mask


def matlab_variables(file: h5py.File) -> dict[str, tuple[str, list[int]]]:
    """Return "complex" or the type, and the shape of the numeric variables."""
    found = {}
    for name, item in file.items():
        if isinstance(item, h5py.Dataset) and not name.startswith("#"):
            if is_complex(item):
                check_size(item)
                found[name] = ("complex", list(item.shape))
            elif item.dtype.kind in "fiu":
                found[name] = (str(item.dtype), list(item.shape))
    return found


def is_complex(item: h5py.Dataset) -> bool:
    """Whether a variable is complex: MATLAB's are records of two numbers, other writers' plain."""
    return item.dtype.kind == "c" or set(item.dtype.names or ()) == {"real", "imag"}


def matlab_part(item: h5py.Dataset, first: int, last: int) -> NDArray[Any]:
    """Return a part of a numeric variable along its first axis."""
    check_size(item)
    values = item[first:last]
    return values if values.dtype.names is None else np.asarray(values["real"] + 1j * values["imag"])


def check_size(item: h5py.Dataset) -> None:
    """Refuse an array that is larger than its bytes in the file can make."""
    if item.nbytes > ALWAYS + MOST_COMPRESSED * item.id.get_storage_size():
        raise UnusableError(
            f"damaged or truncated: {item.name.strip('/')!r} of shape {item.shape} has but "
            f"{item.id.get_storage_size()} bytes in the file"
        )


def header(group: h5py.Group, name: str) -> str:
    """Return the ISMRMRD header (XML)."""
    if name not in group:
        raise UnusableError(f"the dataset {group.name.strip('/')!r} has no ISMRMRD header (xml)")
    text = group[name][()]
    text = text.ravel()[0] if isinstance(text, np.ndarray) else text
    if not isinstance(text, bytes):
        return str(text)
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:  # names of people and places, as some converters write them
        return text.decode("latin-1")


def samples(
    rows: h5py.Dataset, wanted: NDArray[np.intp], field: str
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return how many numbers a field of each acquisition holds, and all in one array, read in bulk."""
    first, last = int(wanted[0]), int(wanted[-1]) + 1
    if last - first <= 4 * wanted.size:
        found = rows.fields(field)[first:last].ravel()[wanted - first]
    else:
        found = rows.fields(field)[wanted].ravel()
    for row, values in zip(wanted, found, strict=True):
        if values.dtype != np.float32:
            raise UnusableError(f"acquisition {row} holds {values.dtype} numbers, not ISMRMRD's float32")
    return np.array([values.size for values in found], np.int64), np.concatenate(found)


def send(answers: BinaryIO, message: dict[str, object], *arrays: NDArray[Any]) -> None:
    """Write one frame."""
    encoded = []
    for array in arrays:
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, array, allow_pickle=False)
        encoded.append(buffer.getbuffer())
    line = json.dumps(message | {"arrays": [len(part) for part in encoded]})
    answers.write(line.encode() + b"\n")
    for part in encoded:
        answers.write(part)
    answers.flush()


if __name__ == "__main__":
    (serve_files if FORKS else serve)(sys.stdin.buffer, sys.stdout.buffer)
