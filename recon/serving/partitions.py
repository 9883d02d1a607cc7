"""Which flagged line completes a slab: scanners flag its very last line, or the last of every partition."""

from __future__ import annotations

from collections import Counter

from mri_qpan.recon.readers.mrd_header import EncodingHeader


class Partitions:
    """Watches the lines of one slab.

    Parameters
    ----------
    encoding
        Of the header.
    slices
        How many slices the header tells, 1 where it does not.
    """

    def __init__(self, encoding: EncodingHeader, slices: int) -> None:
        self._low, self._high = _range(encoding, slices)
        self._lines: dict[int, Counter[int]] = {}  # by partition as they came, then by average
        self._ended: set[int] = set()
        self._in_turn = False  # whether the first flag came when no second partition had begun

    def note(self, partition: int, average: int) -> None:
        """Take note of a line."""
        self._lines.setdefault(partition, Counter())[average] += 1

    def complete(self, partition: int, average: int) -> bool:
        """Return whether a line that is flagged as the last of its slice completes the slab."""
        if self._high <= self._low:
            return True
        if not self._ended:
            self._in_turn = len(self._lines) == 1
        self._ended.add(partition)
        open_ = [lines[average] for other, lines in self._lines.items() if other not in self._ended]
        if self._in_turn:
            return not open_ and (len(self._lines) > self._high - self._low or self._at_the_edge())
        # Where partitions take turns line by line, the others still lack just this one.
        here = self._lines[partition][average]
        return not open_ or any(lines != here - 1 for lines in open_)

    def _at_the_edge(self) -> bool:
        """Return whether partitions came in order, and the last possible one did: some may be left out."""
        seen = list(self._lines)
        if 2 * len(seen) <= self._high - self._low + 1:
            return False
        up = seen[-1] >= self._high and seen == sorted(seen)
        return up or (seen[-1] <= self._low and seen == sorted(seen, reverse=True))


def _range(encoding: EncodingHeader, slices: int) -> tuple[int, int]:
    """Return the first and last partition that may come; without limits, slices make slabs improbable."""
    if encoding.step_2 is not None:
        return encoding.step_2.minimum, encoding.step_2.maximum
    return 0, 0 if slices > 1 else encoding.encoded.matrix[2] - 1
