"""What a session receives, kept as an ISMRMRD file, on a disk that may be full."""

from __future__ import annotations

import errno
import os
import shutil
from io import FileIO
from pathlib import Path
from typing import Any

import ismrmrd

RESERVE = 2**26
"""Bytes of the disk that are left free: what was kept until then can be closed, and read."""


class RawFile:
    """An ISMRMRD file that grows by what arrives.

    Parameters
    ----------
    path
        The file; an existing one is replaced.
    xml
        The ISMRMRD header.

    Raises
    ------
    OSError
        If it cannot be made.
    """

    def __init__(self, path: Path, xml: str) -> None:
        self._folder = path.parent
        self._check_room()
        self._disk = _Disk(path)
        self._dataset = ismrmrd.Dataset(self._disk, "dataset", mode="w")
        self._dataset.write_xml_header(xml.encode())

    def append(self, message: Any) -> None:
        """Add an acquisition, a waveform or an image; raises `OSError` where there is no room for it."""
        self._check_room()
        if isinstance(message, ismrmrd.Waveform):
            self._dataset.append_waveform(message)
        elif isinstance(message, ismrmrd.Image):
            self._dataset.append_image(f"image_{message.image_series_index}", message)
        else:
            self._dataset.append_acquisition(message)
        self._check_written()

    def close(self) -> None:
        """Write out all of it; raises `OSError` if that was not possible."""
        try:
            self._dataset.close()
        finally:
            self._disk.close()
        self._check_written()

    def _check_room(self) -> None:
        if shutil.disk_usage(self._folder).free < RESERVE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _check_written(self) -> None:
        if self._disk.failure is not None:
            raise self._disk.failure


class _Disk(FileIO):
    """A file that hides from HDF5 what could not be written, and remembers it.

    HDF5 crashes the process, and with it every other session, when it cannot write out a file that it closes.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of the bytes, or pretend to."""
        left = memoryview(data).cast("B")
        count = len(left)
        try:
            while left and self.failure is None:
                left = left[super().write(left) :]
        except OSError as error:
            self.failure = error
        return count
