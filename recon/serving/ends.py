"""Which image of a stream is the first or last of its repetition, contrast, phase, set and slice."""

from __future__ import annotations

from collections import Counter
from typing import Any

import ismrmrd

from mri_qpan.errors import InputError
from mri_qpan.recon.kspace import COUNTERS, Index
from mri_qpan.recon.readers.mrd_header import parse_xml, text_of


def ended_by(acquisition: Any) -> frozenset[str]:
    """Return the counters that an acquisition is flagged as the last of."""
    if acquisition.is_flag_set(ismrmrd.ACQ_LAST_IN_MEASUREMENT):
        return frozenset(COUNTERS)
    flags = {counter: getattr(ismrmrd, f"ACQ_LAST_IN_{counter.upper()}") for counter in COUNTERS}
    return frozenset(counter for counter, flag in flags.items() if acquisition.is_flag_set(flag))


class Ends:
    """Flags images in the order in which they are sent.

    The first of its kind is known. The last is where the scanner flagged its readouts so, or where the
    header's limits say how many there are and so many have been sent.

    Parameters
    ----------
    xml
        The ISMRMRD header.
    where
        Whom messages name.
    """

    def __init__(self, xml: str, where: str) -> None:
        encodings = parse_xml(xml, where).findall("encoding")
        self._sizes = [
            {name: _size(encoding, f"encodingLimits/{name}") for name in COUNTERS} for encoding in encodings
        ]
        self._sent: Counter[tuple[int, ...]] = Counter()

    def flags(self, index: Index, ended: frozenset[str]) -> list[int]:
        """Return the IMAGE_FIRST_IN_ and IMAGE_LAST_IN_ flags of the next image.

        Parameters
        ----------
        index
            The image's.
        ended
            What it is the last of by its readouts' flags (`ended_by`).
        """
        found = []
        values = [getattr(index, counter) for counter in COUNTERS]
        sizes = self._sizes[index.encoding] if index.encoding < len(self._sizes) else {}
        for depth, counter in enumerate(COUNTERS, start=1):
            group = (index.encoding, *values[:depth])
            self._sent[group] += 1
            if self._sent[group] == 1:
                found.append(getattr(ismrmrd, f"IMAGE_FIRST_IN_{counter.upper()}"))
            inner = [sizes.get(name) for name in COUNTERS[depth:]]
            number = 1
            for size in inner:
                number *= size or 0  # where a limit is missing, no number is the last
            if counter in ended or self._sent[group] == number:
                found.append(getattr(ismrmrd, f"IMAGE_LAST_IN_{counter.upper()}"))
        return found


def _size(encoding: Any, path: str) -> int | None:
    """Return how many values a counter takes, by its limits."""
    try:
        low, high = (float(text_of(encoding, f"{path}/{end}") or "nan") for end in ("minimum", "maximum"))
        return max(1, int(high - low) + 1)
    except (ValueError, OverflowError, InputError):
        return None
