"""The client's side of MRD over TCP: a raw file out, images in."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np

from mri_qpan.errors import InputError, OptionError, ReconError
from mri_qpan.recon.files import from_memory, staged
from mri_qpan.recon.readers.hdf5 import Hdf5Process
from mri_qpan.recon.readers.ismrmrd import IsmrmrdFile
from mri_qpan.recon.serving.conversation import DRAINING
from mri_qpan.recon.serving.mrd_stream import ConfigFile, HeaderText, MrdReader, MrdWriter
from mri_qpan.recon.serving.raw_file import append_image

BLOCK = 256  # acquisitions read at once


@dataclass
class Answer:
    """What the server sent: images in their order, and its texts."""

    images: list[Any] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    failure: Exception | None = None


def send(
    path: Path,
    address: tuple[str, int],
    config: str,
    output: Path,
    *,
    patience: float = 120.0,
    tell: Callable[[str], None] = lambda words: None,
) -> int:
    """Send a raw file to an MRD server and write the images that come back; return how many.

    Parameters
    ----------
    path
        An ISMRMRD raw file; every acquisition of it goes out, whatever its kind.
    address
        The server's host and port.
    config
        Name of the reconstruction to ask for.
    output
        ISMRMRD file to write the images to, a group a series (`image_1`), and one more for every further size
        or data type in it (`image_1_2`, …); an existing one is replaced.
    patience
        Seconds that the server may be silent.
    tell
        Called with every text of the server.

    Raises
    ------
    OptionError
        If the output is the raw file, or a folder.
    InputError
        If the file cannot be read, or is refused.
    ReconError
        If the server cannot be reached, leaves early, reports an error or sends no image where the config
        makes some. Images that came are written all the same.
    """
    if path.exists() and output.exists() and output.samefile(path):
        raise OptionError(f"--output {output} is the raw file itself: name another file for the images")
    if output.is_dir():
        raise OptionError(f"--output {output} is a folder: name a file for the images")
    if len(config.encode()) >= 1024:
        raise InputError("the name of a config has less than 1024 bytes")
    file = IsmrmrdFile(Hdf5Process(path))
    answer = Answer()
    try:
        with socket.create_connection(address, timeout=patience) as connection:
            sending = threading.Event()
            sending.set()
            listener = threading.Thread(target=_listen, args=(connection, answer, tell, sending.is_set))
            listener.start()
            try:
                _talk(connection, file, config)
                sending.clear()
            except OSError as error:
                answer.failure = answer.failure or error
            except BaseException:
                connection.shutdown(socket.SHUT_RDWR)
                raise
            finally:
                sending.clear()
                listener.join()
    except OSError as error:
        raise ReconError(f"{address[0]}:{address[1]}: {error.strerror or error}") from error
    finally:
        file.close()
    count = len(answer.images)
    if count:
        _write(output, file.xml, answer.images)
    errors = [text for text in answer.texts if _is_error(text)]
    if answer.failure is not None or errors:
        # The last line of a traceback says what went wrong.
        reason = errors[0].strip().splitlines()[-1] if errors else answer.failure
        written = f" ({count} image{'' if count == 1 else 's'} in {output})" if count else ""
        raise ReconError(f"{path}: the server failed: {reason}{written}")
    if not count and Path(config.strip()).stem not in DRAINING:
        raise ReconError(f"{path}: the server closed without an image")
    return count


def _is_error(text: str) -> bool:
    """Return whether a text tells of an error: python-ismrmrd-server's begin with their level."""
    first = text.split(maxsplit=1)[:1]
    return first != [] and first[0].rstrip(":").lower() in ("error", "critical")


def _talk(connection: socket.socket, file: IsmrmrdFile, config: str) -> None:
    writer = MrdWriter(connection)
    writer.serialize(ConfigFile(config))
    writer.serialize(HeaderText(file.xml))
    for acquisition in messages_of(file):
        writer.serialize(acquisition)
    writer.close()


def messages_of(file: IsmrmrdFile) -> Iterator[Any]:
    """Yield every acquisition of a file, read in blocks, as `ismrmrd.Acquisition`; raises `InputError`."""
    count = len(file.heads)
    for start in range(0, count, BLOCK):
        rows = np.arange(start, min(start + BLOCK, count))
        pairs = zip(rows, file.samples(rows), file.samples(rows, "traj"), strict=True)
        for row, samples, path in pairs:
            yield _acquisition(file.heads[row], samples, path)


def _acquisition(head: Any, samples: Any, path: Any) -> Any:
    acquisition = ismrmrd.Acquisition(head.tobytes())
    if samples.size != 2 * acquisition.data.size or path.size != acquisition.traj.size:
        raise InputError(f"acquisition {int(head['scan_counter'])}: header and samples do not fit together")
    acquisition.data[:] = samples.view(np.complex64).reshape(acquisition.data.shape)
    acquisition.traj[:] = path.reshape(acquisition.traj.shape)
    return acquisition


def _listen(
    connection: socket.socket, answer: Answer, tell: Callable[[str], None], sending: Callable[[], bool]
) -> None:
    try:
        # While lines still go out, a server may well have nothing to say.
        for message in MrdReader(connection, sending):
            if isinstance(message, ismrmrd.Image):
                answer.images.append(message)
            elif isinstance(message, str):
                answer.texts.append(message)
                tell(message)
    except Exception as error:
        answer.failure = error


def _write(output: Path, xml: str, images: list[Any]) -> None:
    try:
        with (
            staged(output.parent) as stage,
            from_memory(stage / output.name) as memory,
            ismrmrd.Dataset(memory, "dataset", mode="w") as dataset,
        ):
            dataset.write_xml_header(xml.encode())
            for image in images:
                append_image(dataset, image)
    except OSError as error:
        raise ReconError(f"{output}: cannot be written: {error.strerror or error}") from error
