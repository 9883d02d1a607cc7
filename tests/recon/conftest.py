"""A server, or an archive, for every test that asks."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from archives import Orthanc, start_orthanc
from mrd_sessions import broken, zero_filled

from mri_qpan.recon.serving.server import Server, Settings


@pytest.fixture
def serve() -> Iterator[Callable[..., tuple[str, int]]]:
    """Start servers: `serve(patience=…)` returns an address."""
    started: list[tuple[Server, threading.Thread]] = []

    def start(**options: Any) -> tuple[str, int]:
        jobs = {"default": zero_filled, "broken": broken}
        server = Server(Settings(**({"jobs": jobs, "default": "default", "port": 0} | options)))
        thread = threading.Thread(target=server.serve)
        thread.start()
        started.append((server, thread))
        return server.address

    yield start
    for server, thread in started:
        server.stop()
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """A fresh Orthanc."""
    yield from start_orthanc(tmp_path_factory.mktemp("orthanc"))
