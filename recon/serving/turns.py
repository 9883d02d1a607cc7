"""Who computes in a server: complete images first, what is done ahead when none waits."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import Any, TypeVar

POLL = 0.02  # seconds between two looks whether there is something better to do

AWAKE = 0.2  # seconds: on Windows a wait without an end keeps Ctrl-C waiting too

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
        """Have an image's work done and return what it returns, or raise what it raises.

        Raises
        ------
        RuntimeError
            After `end`: nobody would do it.
        """
        found: Made = self._ask(self._images, work)[0].result()
        return found

    def spare(self, work: Callable[[], None], still: Callable[[], bool]) -> None:
        """Have work done that no image waits for; not at all if `still` ends before its turn comes."""
        entry = self._ask(self._ahead, lambda: work() if still() else None)
        future = entry[0]
        while not wait([future], POLL).done:
            if not still() and future.cancel():
                with self._changed, suppress(ValueError):
                    self._ahead.remove(entry)  # or it would hold a session's samples
                return
        future.result()

    def compute(self) -> None:
        """Do work as it comes, until `end`."""
        while True:
            entry = self._next()
            if entry is None:
                return
            _do(*entry)
            del entry  # and with it the image's samples

    def end(self) -> None:
        """Let `compute` return when all that was asked for is done, and refuse what is asked for later."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def abandon(self) -> None:
        """End with what waits undone: who asked for it is told."""
        with self._changed:
            for future, _ in (*self._images, *self._ahead):
                future.cancel()
        self.end()

    def _ask(self, queue: deque[_Work], work: Callable[[], Any]) -> _Work:
        entry: _Work = (Future(), work)
        with self._changed:
            if self._ended:
                raise RuntimeError("the server has ended")
            queue.append(entry)
            self._changed.notify()
        return entry

    def _next(self) -> _Work | None:
        with self._changed:
            while not (self._images or self._ahead):
                if self._ended:
                    return None
                self._changed.wait(AWAKE)
            return (self._images or self._ahead).popleft()


def _do(future: Future[Any], work: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)
        if isinstance(error, KeyboardInterrupt):  # whoever computes is to end
            raise
