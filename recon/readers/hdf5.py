"""HDF5 files, ISMRMRD's and fastMRI's, opened in a process of their own.

A damaged file can crash the HDF5 library or send it round in circles (seen on some of a thousand files with a
few bytes changed); here that ends in an `InputError` instead of the end of a batch or a server.
"""

import atexit
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import IO, Any, cast

import h5py
import numpy as np
from numpy.typing import NDArray

from mri_qpan.errors import InputError
from mri_qpan.recon.readers import hdf5_worker

PATIENCE = 120.0  # seconds to wait for one answer: the headers, or a block of samples

_idle: list[
    tuple[int, subprocess.Popen[bytes]]
] = []  # with the process id of their parent: forks share this list


class Hdf5Process:
    """An open HDF5 file of raw data, or a MATLAB file.

    Parameters
    ----------
    path
        The file.
    matlab
        Whether to look for MATLAB's variables, whatever they are called.

    Attributes
    ----------
    path
        The file.
    kind
        "ismrmrd", "fastmri" or "matlab".
    description, arrays
        What the process said of it.

    Raises
    ------
    InputError
        Whenever the file turns out to be neither, or damaged.
    """

    def __init__(self, path: Path, matlab: bool = False) -> None:
        self.path = path
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        try:
            known = h5py.is_hdf5(path)
        except OSError as error:
            raise InputError(f"{path}: cannot be opened ({error})") from error
        if not known:
            raise InputError(f"{path}: not an HDF5 file, so not ISMRMRD or fastMRI (or cut off at its start)")
        self._process = _start()
        self._kill = weakref.finalize(self, _stop, os.getpid(), self._process)
        request = "matlab" if matlab else "open"
        self.description, self.arrays = self.ask({request: str(path.resolve())}, 0 if matlab else 1)
        self.kind: str = self.description["kind"]

    def close(self) -> None:
        """Close the file; its process waits for the next one."""
        if not self._kill.alive:
            return
        with contextlib.suppress(InputError):
            self.ask({"close": True}, 0)
        self._give_back()

    def _give_back(self) -> None:
        """Let the process wait for another file, unless it is gone."""
        if self._kill.detach() is not None:
            _idle.append((os.getpid(), self._process))

    def ask(self, request: dict[str, object], arrays: int) -> tuple[dict[str, Any], list[NDArray[Any]]]:
        """Send one request and wait for its answer, which has so many arrays."""
        try:
            cast(IO[bytes], self._process.stdin).write(json.dumps(request).encode() + b"\n")
            cast(IO[bytes], self._process.stdin).flush()
        except OSError as error:
            raise self._gone() from error
        stream = cast(IO[bytes], self._process.stdout)
        watch = threading.Timer(PATIENCE, _kill, (self._process,))
        watch.start()
        try:
            line = stream.readline()
            if not line.endswith(b"\n"):
                raise self._gone()
            message = json.loads(line)
            parts = [stream.read(length) for length in message["arrays"]]
            if any(len(part) < length for part, length in zip(parts, message["arrays"], strict=True)):
                raise self._gone()
        finally:
            watch.cancel()
        if "error" in message:
            if hdf5_worker.FORKS:
                self._give_back()
            self._kill()
            raise InputError(f"{self.path}: {message['error']}")
        found = [np.lib.format.read_array(io.BytesIO(part), allow_pickle=False) for part in parts]
        if len(found) != arrays:
            raise self._gone()
        return message, found

    def _gone(self) -> InputError:
        self._kill()
        return InputError(f"{self.path}: damaged HDF5 file (the HDF5 library crashed or hung on it)")


def _start() -> subprocess.Popen[bytes]:
    """Return a process that waits for a file: an idle one of this process's own, or a new one."""
    while _idle:
        owner, process = _idle.pop()
        if owner == os.getpid() and process.poll() is None:
            return process
    return subprocess.Popen(
        [sys.executable, "-P", str(hdf5_worker.__file__)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        process_group=0 if hdf5_worker.FORKS else None,
    )


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and its fork, which has the file."""
    if hdf5_worker.FORKS:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()


def _stop(owner: int, process: subprocess.Popen[bytes]) -> None:
    if owner != os.getpid():  # a fork's copy of the handle
        return
    _kill(process)
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):  # a request that the process did not live to read
                stream.close()
    process.wait()


@atexit.register
def _stop_idle() -> None:
    while _idle:
        _stop(*_idle.pop())
