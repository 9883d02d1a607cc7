"""Orthanc, a DICOM archive that nobody here wrote."""

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Orthanc:
    """An archive's address on the web, and where it takes C-STORE."""

    web: str
    port: int

    def ask(self, what: str) -> Any:
        """What its REST interface answers."""
        with urllib.request.urlopen(self.web + what, timeout=20) as answer:
            return json.load(answer)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_orthanc(folder: Path) -> Iterator[Orthanc]:
    """An Orthanc that keeps its files in `folder`, until the generator goes on."""
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
    if program is None:
        pytest.skip("Orthanc is not installed")
    port, dicom = free_port(), free_port()
    settings = {
        "StorageDirectory": str(folder),
        "IndexDirectory": str(folder),
        "HttpPort": port,
        "DicomPort": dicom,
        "DicomAet": "ARCHIVE",
        "DicomCheckCalledAet": True,
        "DicomAlwaysAllowStore": True,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    log = (folder / "log.txt").open("w")
    process = subprocess.Popen([program, str(folder / "settings.json")], stdout=log, stderr=log)
    archive = Orthanc(f"http://127.0.0.1:{port}", dicom)
    try:
        for _ in range(300):
            try:
                archive.ask("/system")
                break
            except OSError:
                time.sleep(0.1)
        else:
            pytest.fail("Orthanc did not start: " + (folder / "log.txt").read_text()[-2000:])
        yield archive
    finally:
        process.terminate()
        process.wait(20)
        log.close()
