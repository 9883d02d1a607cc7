"""What a session receives, kept as an ISMRMRD file, on a disk that may be full."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import shutil
import time
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any

import h5py
import ismrmrd
import numpy as np
from ismrmrd.hdf5 import acquisition_dtype, acquisition_header_dtype, waveform_dtype, waveform_header_dtype
from numpy.typing import NDArray

from mri_qpan.errors import InputError
from mri_qpan.recon.serving.mrd_stream import head_of

RESERVE = 2**26
"""Bytes of the disk that are left free: what was kept until then can be closed, and read."""

BLOCK = 2**24
"""Bytes of samples that wait at most to be written together."""

MOST = 256
"""Readouts and waveforms that wait at most; also the rows of HDF5's chunks."""

ENDS = (ismrmrd.ACQ_LAST_IN_SLICE, ismrmrd.ACQ_LAST_IN_REPETITION, ismrmrd.ACQ_LAST_IN_MEASUREMENT)

log = logging.getLogger(__name__)


class Kept:
    """What a peer sends, in a file of its own in a folder; what goes wrong with it costs no image.

    Parameters
    ----------
    folder
        Made if missing; None keeps nothing.
    peer
        Whom messages name.
    tell
        Called with what the peer is to know.
    """

    def __init__(self, folder: Path | None, peer: str, tell: Callable[[str], None]) -> None:
        self._folder, self._peer, self._tell = folder, peer, tell
        self._file: RawFile | None = None
        self._left_out = False

    def begin(self, xml: str | None) -> None:
        """Open the file, with its ISMRMRD header; where it is open already, add the header."""
        if self._folder is None:
            return
        stem = f"{time.strftime('%Y%m%d-%H%M%S')}_{self._peer.replace(':', '_')}"
        try:
            if self._file is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._file = _new_file(self._folder, stem)
            if xml is not None:
                self._file.write_header(xml)
        except Exception as error:  # a full disk must not cost the images
            self._give_up(error)

    def add(self, message: Any) -> None:
        """Keep an acquisition, a waveform or an image; images and waveforms may come without a header."""
        if self._file is None:
            self.begin(None)
        if self._file is None:
            return
        try:
            self._file.append(message)
        except InputError as error:
            self._leave_out(error)
        except Exception as error:
            self._give_up(error)

    def end(self) -> None:
        """Write out all of it."""
        file, self._file = self._file, None
        if file is None:
            return
        try:
            file.close()
        except Exception as error:
            log.error("%s: what was kept may be incomplete: %s", self._peer, error)

    def _leave_out(self, error: Exception) -> None:
        log.warning("%s: %s", self._peer, error)
        if not self._left_out:  # once: a peer that only sends may not read much
            self._left_out = True
            self._tell(f"warning: {' '.join(str(error).split())}")

    def _give_up(self, error: Exception) -> None:
        self.end()
        self._folder = None
        log.error("%s: what it sends cannot be kept: %s", self._peer, error)
        self._tell(f"warning: what you send cannot be kept: {' '.join(str(error).split())}")


def _new_file(folder: Path, stem: str) -> RawFile:
    """Open a file of a name that none has yet: a port may come again within the second, a clock go back."""
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    return RawFile(next(path for name in names if not (path := folder / f"{name}.h5").exists()))


class RawFile:
    """An ISMRMRD file that grows by what arrives.

    Readouts and waveforms are written together: at the end of a slice, or when they are many. What is written
    can be read from then on, whatever becomes of this process: its crash costs what came since.

    Parameters
    ----------
    path
        The file, which does not exist yet.

    Raises
    ------
    OSError
        If it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self._folder = path.parent
        self._waiting: list[Any] = []
        self._bytes = 0
        self._check_room()
        self._disk = _Disk(path)
        self._dataset = ismrmrd.Dataset(self._disk, "dataset", mode="w")
        self._file = (
            self._dataset._file
        )  # Dataset writes rows one by one, milliseconds each, and flushes none
        self._file.create_group("dataset")

    def write_header(self, xml: str) -> None:
        """Write the ISMRMRD header."""
        self._dataset.write_xml_header(xml.encode())

    def append(self, message: Any) -> None:
        """Add an acquisition, a waveform or an image.

        Raises
        ------
        OSError
            If there is no room for it.
        InputError
            If HDF5 cannot hold an image; the file goes on without it.
        """
        if isinstance(message, ismrmrd.Image):
            self._check_room()
            append_image(self._dataset, message)
            self._file.flush()
            self._check_written()
            return
        self._waiting.append(message)
        self._bytes += message.data.nbytes
        last = isinstance(message, ismrmrd.Acquisition) and any(map(message.is_flag_set, ENDS))
        if last or self._bytes >= BLOCK or len(self._waiting) >= MOST:
            self._write()

    def close(self) -> None:
        """Write out all of it; raises `OSError` if that was not possible."""
        try:
            self._write()
        finally:
            try:
                self._dataset.close()
            finally:
                self._disk.close()
        self._check_written()

    def _write(self) -> None:
        """Write what waits; where that fails, it is lost."""
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        if not waiting:
            return
        self._check_room()
        acquisitions = [m for m in waiting if isinstance(m, ismrmrd.Acquisition)]
        waveforms = [m for m in waiting if isinstance(m, ismrmrd.Waveform)]
        if acquisitions:
            self._extend("data", _acquisition_rows(acquisitions))
        if waveforms:
            self._extend("waveforms", _waveform_rows(waveforms))
        self._file.flush()
        self._check_written()

    def _extend(self, name: str, rows: NDArray[np.void]) -> None:
        group = self._file["dataset"]
        if name not in group:
            group.create_dataset(name, (0,), rows.dtype, maxshape=(None,), chunks=(MOST,))
        table = group[name]
        count = len(table)
        table.resize(count + len(rows), axis=0)
        table[count:] = rows

    def _check_room(self) -> None:
        if shutil.disk_usage(self._folder).free < RESERVE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _check_written(self) -> None:
        if self._disk.failure is not None:
            raise self._disk.failure


def append_image(dataset: ismrmrd.Dataset, image: Any) -> None:
    """Add an image to the group of its series, which has one size and data type.

    Series 1 is `image_1`; its images of another size or type are in `image_1_2`, then `image_1_3`, ….

    Raises
    ------
    InputError
        If HDF5 cannot hold the image; the dataset is then as it was.
    """
    content = dataset._dataset
    series = f"image_{image.image_series_index}"
    names = itertools.chain([series], (f"{series}_{number}" for number in itertools.count(2)))
    name = next(name for name in names if name not in content or _is_like(content[name], image))
    count = len(content[name]["header"]) if name in content else 0
    try:
        dataset.append_image(name, image)
    except (TypeError, ValueError) as error:
        if count:
            for table in content[name].values():  # ismrmrd makes all three longer, then fills them
                table.resize(count, axis=0)
        elif name in content:
            del content[name]
        raise InputError(f"an image of series {image.image_series_index} cannot be kept: {error}") from error


def _is_like(group: h5py.Group, image: Any) -> bool:
    return group["data"].shape[1:] == image.data.shape and group["header"][0]["data_type"] == image.data_type


def _acquisition_rows(acquisitions: list[Any]) -> NDArray[np.void]:
    rows = np.empty(len(acquisitions), acquisition_dtype)
    for place, acquisition in enumerate(acquisitions):
        rows["head"][place] = np.frombuffer(head_of(acquisition), acquisition_header_dtype)[0]
        rows["traj"][place] = acquisition.traj.ravel()
        rows["data"][place] = acquisition.data.ravel().view(np.float32)
    return rows


def _waveform_rows(waveforms: list[Any]) -> NDArray[np.void]:
    rows = np.empty(len(waveforms), waveform_dtype)
    for place, waveform in enumerate(waveforms):
        rows["head"][place] = np.frombuffer(head_of(waveform), waveform_header_dtype)[0]
        rows["data"][place] = waveform.data.ravel().view(np.uint32)
    return rows


class _Disk(FileIO):
    """A file that hides from HDF5 what could not be written, and remembers it.

    HDF5 crashes the process, and with it every other session, when it cannot write out a file that it closes.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "x+")
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

    def truncate(self, size: int | None = None) -> int:
        """Cut or extend the file, or pretend to."""
        try:
            if self.failure is None:
                return super().truncate(size)
        except OSError as error:
            self.failure = error
        return self.tell() if size is None else size
