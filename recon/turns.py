"""Who computes in a server: complete images first, what is done ahead when none waits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

POLL = 0.02  # seconds between two looks whether there is something better to do


class Turns:
    """Places for the threads of all sessions.

    Parameters
    ----------
    places
        How many compute at once.
    """

    def __init__(self, places: int) -> None:
        self._free, self._images = places, 0
        self._changed = threading.Condition()

    @contextmanager
    def image(self) -> Iterator[None]:
        """Hold a place for an image."""
        with self._changed:
            self._images += 1
            self._changed.wait_for(lambda: self._free > 0)
            self._images -= 1
            self._free -= 1
        with self._place():
            yield

    @contextmanager
    def spare(self, still: Callable[[], bool]) -> Iterator[bool]:
        """Hold a place that no image waits for, as soon as there is one; False if `still` ends before."""
        with self._changed:
            while still() and not (self._free > 0 and self._images == 0):
                self._changed.wait(POLL)
            free = still() and self._free > 0
            self._free -= free
        if not free:
            yield False
            return
        with self._place():
            yield True

    @contextmanager
    def _place(self) -> Iterator[None]:
        try:
            yield
        finally:
            with self._changed:
                self._free += 1
                self._changed.notify_all()
