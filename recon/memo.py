"""What is costly and needed again: kept up to a number of bytes, the longest unused leaving first."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

Value = TypeVar("Value")


class Memo(Generic[Value]):
    """Values by key, safe among threads.

    Parameters
    ----------
    limit
        Bytes to keep.
    size
        Returns a value's bytes.
    """

    def __init__(self, limit: int, size: Callable[[Value], int]) -> None:
        self._limit, self._size = limit, size
        self._kept: OrderedDict[Hashable, Value] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """Return the value of `key`, made if it is not kept. It is shared: do not change it."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        value = make()
        with self._lock:
            self._kept[key] = value
            while len(self._kept) > 1 and sum(map(self._size, self._kept.values())) > self._limit:
                self._kept.popitem(last=False)
        return value


def fingerprint(array: NDArray[Any]) -> tuple[str, tuple[int, ...]]:
    """Return what names an array's values and shape."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest(), array.shape
