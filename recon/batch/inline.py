"""A crew of one: tasks worked in the caller's thread, without Dask."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

from mri_qpan.recon.batch.work import Outcome, Task, perform


class Inline:
    """Works a task when asked for what is finished; otherwise as `crew.Crew`."""

    def __init__(self, work: Callable[[Task], Outcome] = perform) -> None:
        self._work, self._tasks = work, deque[Task]()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    @property
    def number(self) -> int:
        """Return one."""
        return 1

    @property
    def in_hand(self) -> int:
        """Return how many tasks wait."""
        return len(self._tasks)

    def has_room(self) -> bool:
        """Return whether another task can be submitted."""
        return not self._tasks

    def submit(self, task: Task) -> None:
        """Take a task."""
        self._tasks.append(task)

    def recall(self) -> list[Task]:
        """Return the tasks that wait, which are then not worked."""
        tasks, self._tasks = list(self._tasks), deque()
        return tasks

    def finished(self, seconds: float) -> Outcome | None:
        """Work the next task and return what came of it; None without one."""
        return self._work(self._tasks.popleft()) if self._tasks else None
