"""What a server, a batch or a hot folder does, as Prometheus scrapes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mri_qpan.errors import InputError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

LATENCIES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0)
FILE_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)


class Meter:
    """Hears what happens, and makes nothing of it."""

    def session(self, change: int) -> None:
        """Take note that a session began (1) or ended (-1)."""

    def waiting(self, change: int) -> None:
        """Take note of images, or files, more or fewer that wait or are in hand."""

    def done(self, seconds: float) -> None:
        """Take note of an image that left, so long after its last readout; or of a file, with its time."""

    def failed(self) -> None:
        """Take note of an error."""


class ServerMeter(Meter):
    """Counts what an MRD server does.

    Parameters
    ----------
    registry
        Where.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        self._sessions = Counter("mri_qpan_sessions", "Sessions begun.", registry=registry)
        self._open = Gauge("mri_qpan_sessions_open", "Sessions in hand.", registry=registry)
        self._waiting = Gauge(
            "mri_qpan_images_waiting", "Complete images that wait or are reconstructed.", registry=registry
        )
        self._images = Counter("mri_qpan_images", "Images sent.", registry=registry)
        self._errors = Counter("mri_qpan_errors", "Errors that clients were told of.", registry=registry)
        self._latency = Histogram(
            "mri_qpan_image_latency_seconds",
            "From the last readout of an image until it was sent.",
            buckets=LATENCIES,
            registry=registry,
        )

    def session(self, change: int) -> None:
        """Count a session's begin or end."""
        self._open.inc(change)
        self._sessions.inc(max(change, 0))

    def waiting(self, change: int) -> None:
        """Count images into and out of the queues."""
        self._waiting.inc(change)

    def done(self, seconds: float) -> None:
        """Count an image."""
        self._images.inc()
        self._latency.observe(seconds)

    def failed(self) -> None:
        """Count an error."""
        self._errors.inc()


class FilesMeter(Meter):
    """Counts the files of a batch or a hot folder.

    Parameters
    ----------
    registry
        Where.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        self._waiting = Gauge("mri_qpan_files_waiting", "Files that wait or are in hand.", registry=registry)
        self._files = Counter("mri_qpan_files", "Files done.", registry=registry)
        self._errors = Counter("mri_qpan_errors", "Files that failed.", registry=registry)
        self._seconds = Histogram(
            "mri_qpan_file_seconds", "Work on a file.", buckets=FILE_SECONDS, registry=registry
        )

    def waiting(self, change: int) -> None:
        """Count files into and out of the queue."""
        self._waiting.inc(change)

    def done(self, seconds: float) -> None:
        """Count a file."""
        self._files.inc()
        self._seconds.observe(seconds)

    def failed(self) -> None:
        """Count an error."""
        self._errors.inc()


@contextmanager
def metered(kind: type[ServerMeter] | type[FilesMeter], host: str, port: int | None) -> Iterator[Meter]:
    """Lend a meter, and answer GET /metrics on a port as long as it is lent.

    This process's memory, processor time and open files are told too.

    Parameters
    ----------
    kind
        What is counted.
    host
        Address to listen on.
    port
        0 takes a free one; None listens nowhere, and the meter counts nothing.

    Raises
    ------
    InputError
        If prometheus_client is not installed or the address cannot be used.
    """
    if port is None:
        yield Meter()
        return
    try:
        from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
    except ImportError as error:
        raise InputError('--metrics-port needs prometheus_client: pip install "mri-qpan[metrics]"') from error
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    meter = kind(registry)
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise InputError(
            f"--metrics-port: cannot listen on {host}:{port}: {error.strerror or error}"
        ) from error
    try:
        yield meter
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
