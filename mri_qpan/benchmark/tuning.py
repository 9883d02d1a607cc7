"""The best regularisation weight in few reconstructions."""

from __future__ import annotations

import math
from collections.abc import Callable

STEP = 10**0.5


def tune(score: Callable[[float], float], start: float, evaluations: int) -> float:
    """Climb to the weight of the highest score: steps of a half decade, then parabolas through the top three.

    Parameters
    ----------
    score
        To maximise, with one maximum over the logarithm of its argument.
    start
        First guess, positive.
    evaluations
        How often `score` may be called, at least 1.

    Returns
    -------
    float
        The best weight that was tried.
    """
    tried: dict[float, float] = {}

    def at(exponent: float) -> float:
        if exponent not in tried:
            tried[exponent] = score(10**exponent)
        return tried[exponent]

    best = math.log10(start)
    step = math.log10(STEP)
    at(best)
    while len(tried) < evaluations:
        best = max(tried, key=lambda e: tried[e])
        lower, upper = (
            max((e for e in tried if e < best), default=None),
            min((e for e in tried if e > best), default=None),
        )
        if upper is None:
            at(best + step)
        elif lower is None:
            at(best - step)
        else:
            following = _vertex(lower, best, upper, tried)
            if min(abs(following - e) for e in tried) < step / 16:
                break
            at(following)
    return 10 ** max(tried, key=lambda e: tried[e])


def _vertex(lower: float, middle: float, upper: float, values: dict[float, float]) -> float:
    """Return where the parabola through three points, the middle one highest, has its top."""
    left, right = middle - lower, upper - middle
    rise, fall = values[middle] - values[lower], values[middle] - values[upper]
    bottom = 2 * (left * fall + right * rise)
    return middle if bottom <= 0 else middle - (left**2 * fall - right**2 * rise) / bottom
