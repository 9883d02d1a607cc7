"""DICOM files to an archive, by C-STORE."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mri_qpan.errors import InputError, ReconError

CALLING = "MRI-QPAN"
PATIENCE = 20.0  # seconds for a connection, and for every answer
SUCCESS, WARNINGS = 0x0000, range(0xB000, 0xC000)


@dataclass(frozen=True)
class Archive:
    """Where to send.

    Attributes
    ----------
    title
        The application entity's title, at most 16 characters.
    host, port
        Where it listens.
    """

    title: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Archive:
        """Read AET@HOST:PORT.

        Raises
        ------
        InputError
            If it is something else, or pynetdicom is not installed.
        """
        found = re.fullmatch(r"([^@\\\x00-\x1f]{1,16})@(\[[^]]+\]|[^:@]+):(\d{1,5})", text)
        if found is None or not 0 < int(found[3]) < 65536:
            raise InputError(f"{text}: an archive is AET@HOST:PORT, such as PACS@10.0.0.5:104")
        try:
            import pynetdicom  # noqa: F401 (whether it is there)
        except ImportError as error:
            raise InputError(
                'pynetdicom is missing, which sends DICOM: pip install "mri-qpan[push]"'
            ) from error
        return cls(found[1], found[2].strip("[]"), int(found[3]))

    def __str__(self) -> str:
        """Return what `parse` reads."""
        return f"{self.title}@{self.host}:{self.port}"


def push(files: Sequence[Path], archive: Archive, is_left: Callable[[], bool] = lambda: False) -> None:
    """Send MR images. An archive that has some of them already takes them as the same.

    Parameters
    ----------
    files
        DICOM files.
    archive
        Where to.
    is_left
        Asked before each file whether to stop there.

    Raises
    ------
    ReconError
        If the archive cannot be reached or refuses a file, or `is_left`; those before it are there.
    """
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage
    from pynetdicom import AE

    entity = AE(CALLING)
    entity.connection_timeout = entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = PATIENCE
    entity.add_requested_context(MRImageStorage, ExplicitVRLittleEndian)
    association = entity.associate(archive.host, archive.port, ae_title=archive.title)
    if not association.is_established:
        refused = "refuses us" if association.is_rejected else "cannot be reached, or takes no MR images"
        raise ReconError(f"{archive}: the archive {refused}")
    try:
        for path in files:
            if is_left():
                raise ReconError(f"{path}: not sent to {archive}: interrupted")
            try:
                answer = association.send_c_store(dcmread(path))
            except (OSError, RuntimeError, ValueError, InvalidDicomError) as error:
                raise ReconError(f"{path}: cannot be sent to {archive}: {error}") from error
            status = answer.get("Status")
            if status is None:
                raise ReconError(f"{path}: {archive} does not answer")
            if status != SUCCESS and status not in WARNINGS:
                raise ReconError(f"{path}: {archive} refuses it with status 0x{status:04x}")
    finally:
        association.release()
