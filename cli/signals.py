"""SIGTERM as a word that is heeded when what is in hand is finished."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from types import FrameType

TERMINATED = 128 + signal.SIGTERM


@contextmanager
def stop_on_sigterm() -> Iterator[Event]:
    """Lend an event that SIGTERM sets."""
    stop = Event()

    def note(signum: int, frame: FrameType | None) -> None:
        stop.set()

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)
