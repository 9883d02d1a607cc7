"""Who computes in a server: complete images first, what is done ahead when none waits."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

POLL = 0.02  # seconds between two looks whether there is something better to do

Made = TypeVar("Made")
_Work = tuple["Future[Any]", Callable[[], Any]]


class Turns:
    """Work of all sessions, done by the few threads that call `compute`.

    Sessions do not compute themselves: every thread that does has OpenMP threads of its own, and where these
    are more than cores, OpenMP lets them sleep between any two loops. On two cores an image then took up to
    twice as long.
    """

    def __init__(self) -> None:
        self._images: deque[_Work] = deque()
        self._ahead: deque[_Work] = deque()
        self._ended = False
        self._changed = threading.Condition()

    def image(self, work: Callable[[], Made]) -> Made:
        """Have an image's work done and return what it returns, or raise what it raises."""
        found: Made = self._ask(self._images, work).result()
        return found

    def spare(self, work: Callable[[], None], still: Callable[[], bool]) -> None:
        """Have work done that no image waits for; not at all if `still` ends before it is begun."""
        future = self._ask(self._ahead, work)
        while not wait([future], POLL).done:
            if not still() and future.cancel():
                return
        future.result()

    def compute(self) -> None:
        """Do work as it comes, until `end`."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._images or self._ahead or self._ended)
                if not self._images and not self._ahead:
                    return
                future, work = (self._images or self._ahead).popleft()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as error:
                    future.set_exception(error)

    def end(self) -> None:
        """Let `compute` return when all that was asked for is done."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _ask(self, queue: deque[_Work], work: Callable[[], Made]) -> Future[Made]:
        future: Future[Made] = Future()
        with self._changed:
            queue.append((future, work))
            self._changed.notify()
        return future
