"""An MRD server for hours: many sessions, good and damaged, and what it holds on to after each."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mri_qpan.errors import InputError, ReconError
from mri_qpan.recon.load import Address, one_image, run, served, wrong_images
from mri_qpan.recon.serving.mrd_stream import ConfigFile, HeaderText, MrdWriter

WARM = 0.2
"""Share of the samples that are left out at the start: allocators and caches fill up first."""

ENDING = 1.0
"""Seconds for the thread of a session whose client has left already."""


@dataclass(frozen=True)
class Held:
    """What the server held after some sessions: resident memory, threads, open files."""

    sessions: int
    memory_mib: float
    threads: int
    files: int


@dataclass
class Soak:
    """What a soak came to.

    Attributes
    ----------
    good, damaged
        Sessions of either kind.
    wrong
        Images of good sessions that were missing or not what the first session got.
    seconds
        All of it.
    held
        Samples, evenly over the sessions.
    """

    good: int = 0
    damaged: int = 0
    wrong: int = 0
    seconds: float = 0.0
    held: list[Held] = field(default_factory=list)

    @property
    def growth_mib(self) -> float:
        """Memory gained over the settled samples, from a line through them."""
        settled = self.held[int(WARM * len(self.held)) :]
        if len(settled) < 2:
            return 0.0
        sessions = np.array([s.sessions for s in settled], float)
        slope = float(np.polyfit(sessions, [s.memory_mib for s in settled], 1)[0])
        return slope * float(sessions[-1] - sessions[0])


def soak(
    path: Path,
    method: str,
    sessions: int,
    *,
    damaged: float = 0.5,
    slices: int = 1,
    seed: int = 0,
    progress: Callable[[Held], None] = lambda held: None,
) -> Soak:
    """Hold session after session with one `mri-qpan serve`.

    Parameters
    ----------
    path
        An ISMRMRD file with the lines of one image.
    method
        What the server reconstructs with.
    sessions
        How many.
    damaged
        Share of them whose bytes are flipped, cut, doubled or replaced at random.
    slices
        How often a good session sends the image.
    seed
        Of the damage.
    progress
        Called with every sample of what the server holds.

    Raises
    ------
    InputError
        If the file cannot be used.
    ReconError
        If the server does not start, ends, or does not answer a good session.
    """
    xml, lines = one_image(path)
    rng = np.random.default_rng(seed)
    whole = session_bytes(xml, lines)
    found, started = Soak(), time.perf_counter()
    every = max(1, sessions // 50)
    with served(method, 1) as (address, process):
        reference: NDArray[Any] | None = None
        for number in range(sessions):
            if reference is not None and rng.random() < damaged:
                found.damaged += 1
                _pour(address, mutated(whole, rng))
            else:
                client = run(address, xml, lines, slices, 0.0)
                if client.failure is not None or len(client.received) < slices:
                    raise ReconError(f"session {number}: {client.failure or 'images are missing'}")
                reference = client.received[0][1] if reference is None else reference
                found.good += 1
                found.wrong += wrong_images(client, reference, slices)
            if (number + 1) % every == 0:
                usual = found.held[-1].threads if found.held else 0
                found.held.append(_held(process, number + 1, usual))
                progress(found.held[-1])
    found.seconds = time.perf_counter() - started
    return found


def mutated(stream: bytes, rng: np.random.Generator) -> bytes:
    """Return a stream with some bytes flipped, a part cut out, doubled or made of noise, and often no end."""
    damaged = bytearray(stream)
    for _ in range(int(rng.integers(0, 5))):
        # Half of all damage near the start, where configs, lengths and the header are.
        most = len(damaged) if rng.random() < 0.5 else min(len(damaged), 4096)
        place = int(rng.integers(most))
        length = int(rng.integers(1, 64))
        kind = int(rng.integers(5))
        if kind == 0:
            damaged[place] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del damaged[place : place + length]
        elif kind == 2:
            damaged[place:place] = damaged[place : place + length]
        elif kind == 3:
            damaged[place : place + length] = rng.bytes(length)
        else:
            damaged[place : place + 4] = struct.pack("<I", int(rng.choice([0, 2**16, 2**31, 2**32 - 1])))
        if not damaged:
            return b""
    return bytes(damaged[: int(rng.integers(len(damaged) + 1))] if rng.random() < 0.5 else damaged)


def session_bytes(xml: str, lines: Sequence[Any]) -> bytes:
    """Return what a good session sends."""

    class Kept:
        def __init__(self) -> None:
            self.parts: list[bytes] = []

        def send(self, data: memoryview) -> int:
            self.parts.append(bytes(data))
            return len(data)

    kept: Any = Kept()
    writer = MrdWriter(kept)
    for message in (ConfigFile("default"), HeaderText(xml), *lines):
        writer.serialize(message)
    writer.close()
    return b"".join(kept.parts)


def _pour(address: Address, data: bytes) -> None:
    """Send bytes and read whatever comes back, to the end."""
    try:
        connection = socket.create_connection(address, timeout=60)
    except OSError as error:
        raise ReconError(f"the server cannot be reached any more: {error}") from error
    with connection, suppress(OSError):
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(2**16):
            pass


def _held(process: int, sessions: int, usual: int) -> Held:
    """Return what the server holds; the threads of the last sessions are given a moment to end."""
    deadline = time.monotonic() + ENDING
    while (held := _held_now(process, sessions)).threads > usual > 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    return held


def _held_now(process: int, sessions: int) -> Held:
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
        values = dict(line.split(":", 1) for line in lines)
        files = len(list(Path(f"/proc/{process}/fd").iterdir()))
        memory = int(values["VmRSS"].split()[0]) / 1024
        return Held(sessions, memory, int(values["Threads"]), files)
    except (OSError, KeyError) as error:
        raise InputError(
            "the server is gone, or this is no Linux, whose /proc tells what it holds"
        ) from error


def to_json(found: Soak) -> dict[str, Any]:
    """Return all figures, ready for JSON."""
    return asdict(found) | {"growth_mib": found.growth_mib}
