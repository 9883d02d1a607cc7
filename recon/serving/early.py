"""When the calibration region of an image that still arrives is complete, so that its maps can be made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mri_qpan.recon.coils import NARROWEST_CALIBRATION, WIDEST_CALIBRATION
from mri_qpan.recon.kspace import Index
from mri_qpan.recon.readers.mrd_header import MrdHeader


@dataclass
class _Run:
    """Lines of one image near the k-space centre, counted from it."""

    seen: set[int] = field(default_factory=set)
    before: tuple[int, int] | None = None  # the run around the centre when the region was taken for complete

    @property
    def ends(self) -> tuple[int, int]:
        """First line of the run of lines around the centre, and the one after its last."""
        low = high = 0
        while high in self.seen:
            high += 1
        while low - 1 in self.seen:
            low -= 1
        return low, high


class Early:
    """Watches the lines of images in two dimensions.

    Scanners take the lines around the centre one after the other: the first that does not extend their run
    ends it. Where that proves wrong, no more is foretold.

    Parameters
    ----------
    header
        Of the session.
    """

    def __init__(self, header: MrdHeader) -> None:
        self._centres = [
            encoding.step_1.center if encoding.step_1 is not None else encoding.encoded.matrix[1] // 2
            for encoding in header.encodings
        ]
        self._runs: dict[Index, _Run] = {}
        self._wrong = False

    def note(self, index: Index, acquisition: Any, calibrated: bool) -> bool:
        """Take note of an imaging line; return whether, as far as can be told, the region is complete.

        Parameters
        ----------
        index
            The line's image.
        acquisition
            The line.
        calibrated
            Whether the image has calibration lines of its own, which come first.
        """
        idx = acquisition.idx
        several = idx.kspace_encode_step_2 or idx.average or acquisition.traj.size
        if self._wrong or several or index.encoding >= len(self._centres):
            return False
        first = index not in self._runs
        run = self._runs.setdefault(index, _Run())
        if calibrated:
            return first
        low, high = run.ends
        place = idx.kspace_encode_step_1 - self._centres[index.encoding]
        if abs(place) <= WIDEST_CALIBRATION // 2:
            run.seen.add(place)
        still = run.ends == (low, high)
        if run.before is None and still and high - low >= NARROWEST_CALIBRATION:
            run.before = (low, high)
            return True
        return False

    def end(self, index: Index) -> None:
        """Forget an image, which is complete."""
        run = self._runs.pop(index, None)
        if run is not None and run.before is not None and run.ends != run.before:
            self._wrong = True
