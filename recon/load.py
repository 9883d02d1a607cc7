"""How an MRD server bears many clients: latency, throughput, memory, and whether each image is right."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
from numpy.typing import NDArray

from mri_qpan.errors import InputError, ReconError
from mri_qpan.recon.readers.hdf5 import Hdf5Process
from mri_qpan.recon.readers.ismrmrd import IsmrmrdFile
from mri_qpan.recon.serving.client import messages_of
from mri_qpan.recon.serving.mrd_stream import ConfigFile, HeaderText, MrdReader, MrdWriter, head_of

Address = tuple[str, int]

TOLERANCE = 0.02
"""Of an image, relative; that of any other slice is at least a tenth away."""


@dataclass(frozen=True)
class Load:
    """What a number of clients at once came to.

    Attributes
    ----------
    clients, slices, interval
        Clients, slices that each sent, and the seconds over which it spread the lines of one.
    seconds
        From the first byte to the last image.
    latencies
        Seconds from the last readout of each slice to its image.
    memory_mib
        Largest memory that the server had held by then; None where it cannot be known.
    wrong
        Images that were missing, mixed up or not what a client alone gets.
    """

    clients: int
    slices: int
    interval: float
    seconds: float
    latencies: list[float]
    memory_mib: float | None
    wrong: int


@dataclass
class _Client:
    sent: list[float] = field(default_factory=list)
    received: dict[int, tuple[float, NDArray[Any]]] = field(default_factory=dict)
    failure: Exception | None = None


@contextmanager
def served(method: str, workers: int) -> Iterator[tuple[Address, int]]:
    """Run `mri-qpan serve` as a process of its own; yield its address and process id.

    Raises
    ------
    ReconError
        If it does not start.
    """
    command = [sys.executable, "-m", "mri_qpan.cli", "serve", "--port", "0", "-m", method]
    command += ["--workers", str(workers), "--clients", "64"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        said = process.stdout.readline()
        found = re.search(r"listening on (\S+):(\d+)", said)
        if found is None:
            raise ReconError(f"mri-qpan serve did not start: {said.strip() or 'it said nothing'}")
        yield (found.group(1), int(found.group(2))), process.pid
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def load(
    path: Path,
    method: str,
    clients: Sequence[int],
    slices: int,
    workers: int,
    interval: float = 0.0,
    progress: Callable[[str], None] = lambda words: None,
) -> list[Load]:
    """Let several clients at once send a one-image file as a series of slices.

    Parameters
    ----------
    path
        An ISMRMRD file with the lines of one image.
    method
        What the server reconstructs with.
    clients
        Numbers of clients to try.
    slices
        How often each client sends the image, as slice 0, 1, …, the n-th time n + 1 times as strong.
    workers
        Images that the server reconstructs at once.
    interval
        Seconds over which the lines of a slice are spread evenly, as a scanner takes them, with no pause
        between slices; 0 sends as fast as the server takes them.
    progress
        Called with words before each number.

    Raises
    ------
    InputError
        If the file cannot be used.
    ReconError
        If the server does not start, or a client fails.
    """
    xml, lines = one_image(path)
    found = []
    with served(method, workers) as (address, process):
        alone = run(address, xml, lines, 1, 0.0)  # which also warms the server up
        if 0 not in alone.received:
            raise ReconError(f"{path}: a single client got no image: try `mri-qpan send`")
        reference = alone.received[0][1]
        for number in clients:
            progress(f"{number} clients")
            started = time.perf_counter()
            threads, states = [], [_Client() for _ in range(number)]
            for state in states:
                thread = threading.Thread(
                    target=_attempt, args=(state, address, xml, lines, slices, interval)
                )
                threads.append(thread)
                thread.start()
            for thread in threads:
                thread.join()
            seconds = time.perf_counter() - started
            failed = [state.failure for state in states if state.failure is not None]
            if failed:
                raise ReconError(f"a client failed: {failed[0]}")
            latencies = [t - s.sent[i] for s in states for i, (t, _) in s.received.items() if i < slices]
            wrong = sum(wrong_images(state, reference, slices) for state in states)
            found.append(Load(number, slices, interval, seconds, latencies, _peak_mib(process), wrong))
    return found


def one_image(path: Path) -> tuple[str, list[Any]]:
    """Return the header and the acquisitions of a file with one image; raises `InputError` otherwise."""
    file = IsmrmrdFile(Hdf5Process(path))
    lines = list(messages_of(file))
    file.close()
    if any(int(a.idx.slice) or int(a.idx.repetition) for a in lines):
        raise InputError(f"{path}: the load test sends one image many times, and this file has several")
    return file.xml, lines


def _attempt(
    state: _Client, address: Address, xml: str, lines: list[Any], slices: int, interval: float
) -> None:
    try:
        done = run(address, xml, lines, slices, interval, state)
        if len(done.received) < slices:
            raise ReconError(f"{len(done.received)} of {slices} images came")
    except (OSError, InputError, ReconError) as error:
        state.failure = error


def run(
    address: Address, xml: str, lines: list[Any], slices: int, interval: float, state: _Client | None = None
) -> _Client:
    """Be one client, to the end."""
    client = state or _Client()
    with socket.create_connection(address, timeout=300) as connection:
        listener = threading.Thread(target=_listen, args=(connection, client))
        listener.start()
        writer = MrdWriter(connection)
        writer.serialize(ConfigFile("default"))
        writer.serialize(HeaderText(xml))
        started = time.perf_counter()
        for number in range(slices):
            for position, line in enumerate(lines):
                due = started + (number + position / len(lines)) * interval
                time.sleep(max(0.0, due - time.perf_counter()))
                writer.serialize(_as_slice(line, number, position + 1 == len(lines)))
            client.sent.append(time.perf_counter())
        writer.close()
        listener.join()
    return client


def _as_slice(line: Any, number: int, last: bool) -> Any:
    copy = ismrmrd.Acquisition(head_of(line))
    copy.data[:], copy.traj[:] = line.data * (number + 1), line.traj
    copy.idx.slice = number
    for flag in (ismrmrd.ACQ_LAST_IN_SLICE, ismrmrd.ACQ_LAST_IN_REPETITION, ismrmrd.ACQ_LAST_IN_MEASUREMENT):
        copy.clear_flag(flag)
    if last:
        copy.set_flag(ismrmrd.ACQ_LAST_IN_SLICE)
    return copy


def _listen(connection: socket.socket, client: _Client) -> None:
    try:
        for message in MrdReader(connection):
            if isinstance(message, ismrmrd.Image):
                client.received[int(message.slice)] = (time.perf_counter(), message.data[0, 0].astype(float))
    except (OSError, InputError) as error:
        client.failure = error


def wrong_images(client: _Client, reference: NDArray[Any], slices: int) -> int:
    """Return how many images are missing, or not the reference times one more than their slice.

    Rounding may move the border of the coil maps by a pixel, so single pixels do not decide.
    """
    wrong = 0
    for number in range(slices):
        if number not in client.received:
            wrong += 1
            continue
        image = client.received[number][1]
        expected = np.minimum(reference * (number + 1), np.iinfo(np.int16).max)
        wrong += bool(np.linalg.norm(image - expected) > TOLERANCE * np.linalg.norm(expected))
    return wrong


def _peak_mib(process: int) -> float | None:
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return None if found is None else int(found.group(1)) / 1024


def to_markdown(
    loads: Sequence[Load], path: Path, method: str, workers: int, command: str, machine: dict[str, str]
) -> str:
    """Return a page with the figures.

    Parameters
    ----------
    loads
        From `load`.
    path, method, workers
        What was sent, and how the server worked.
    command, machine
        How and on what it was measured.
    """
    rows = []
    interval = loads[0].interval
    pace = "as fast as the server takes them"
    if interval:
        pace = f"the lines of each spread over {interval:g} s as a scanner takes them"
    for found in loads:
        median, high = np.percentile(found.latencies, (50, 99))
        memory = "?" if found.memory_mib is None else f"{found.memory_mib:.0f}"
        images = found.clients * found.slices
        rows.append(
            f"| {found.clients} | {images} | {images / found.seconds:.2f} | {median:.2f} | {high:.2f} "
            f"| {memory} | {found.wrong} |"
        )
    where = "; ".join(f"{name} {value}" for name, value in machine.items() if name != "threads a method")
    return (
        "# An MRD server under load\n\n"
        f"```\n{command}\n```\n\n{where}.\n\n"
        f"Each client sends `{path.name}` {loads[0].slices} times over TCP as slices of one series, {pace}, "
        f"all clients at once; the server reconstructs with {method}, {workers} at a time. Clients and "
        "server share the machine. Latency is from the last readout of a slice to its image, waiting for "
        "earlier slices included; an image is wrong that is missing, or not its own slice's.\n\n"
        "| clients | images | images a second | latency, median (s) | 99 % (s) | server (MiB) | wrong |\n"
        "|---|---|---|---|---|---|---|\n" + "\n".join(rows) + "\n"
    )
