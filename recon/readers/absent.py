"""Samples that a file holds as zeros because nobody measured them.

Tools that undersample write zeros, whole lines or single samples; scanners pad asymmetric echoes with them.
Noise in every channel leaves no exact zeros, coarse numbers or a symmetric phantom but a few, which stay
measured.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

FEW = 1 / 50
"""Share of the samples of an image up to which zeros between others are chance."""


class Absent:
    """Samples that are zero in every channel of an image's lines.

    Parameters
    ----------
    counts
        How often each place (z, y, x) is sampled, zeros included.

    Attributes
    ----------
    lines
        Number of lines of zeros alone.
    """

    def __init__(self, counts: NDArray[np.uint16]) -> None:
        self.lines = 0
        self._counts = counts
        self._single = np.zeros_like(counts)

    def note(self, place: tuple[Any, ...], line: NDArray[np.complexfloating[Any, Any]]) -> None:
        """Take account of a line (coil, sample) at its place."""
        zero = ~line.any(axis=0)
        if zero.all():
            self.lines += 1
            self._counts[place] -= 1
        elif zero.any():
            self._single[place] += zero

    def finish(self) -> list[str]:
        """Leave out of the counts what was not measured, and say so."""
        notes = lines_note(self.lines)
        share = self._single.sum() / max(self._counts.sum(), 1)
        if share > FEW:
            self._counts -= self._single
            notes.append(samples_note(share))
        return notes


def lines_note(lines: int) -> list[str]:
    """Say that lines were left out, where some were."""
    return [f"{lines} lines are zero in every channel: taken as not measured"] if lines else []


def samples_note(share: float) -> str:
    """Say that samples of other lines were left out."""
    return f"{share:.1%} of the samples are zero in every channel: taken as not measured"


def zero_ends(measured: NDArray[np.bool_]) -> tuple[int, int]:
    """Return how many samples at the start and at the end of a readout were not measured; few are none."""
    places = np.flatnonzero(measured)
    if not places.size or 1 - (places[-1] + 1 - places[0]) / measured.size <= FEW:
        return 0, 0
    return int(places[0]), int(measured.size - 1 - places[-1])
