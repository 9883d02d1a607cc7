"""A scanner's session: acquisitions come in one by one, an image leaves as soon as its lines are there."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import ismrmrd

from mri_qpan.errors import InputError
from mri_qpan.recon.kspace import COUNTERS, Index
from mri_qpan.recon.readers.mrd_header import parse_header, parse_xml, text_of
from mri_qpan.recon.readers.mrd_kinds import NON_IMAGING
from mri_qpan.recon.serving.early import Early
from mri_qpan.recon.serving.ends import ended_by
from mri_qpan.recon.serving.partitions import Partitions

SAMPLE = 8
"""Bytes of a sample."""

OVERHEAD = 1600
"""Bytes that an acquisition takes beside its samples."""


@dataclass(frozen=True)
class Lines:
    """The acquisitions of one image, with the session's noise and calibration scans.

    `ended` are the counters of which the image is the last by its readouts' flags.
    """

    index: Index
    acquisitions: list[Any]
    ended: frozenset[str] = frozenset()


class Session:
    """Sorts acquisitions into images.

    Parameters
    ----------
    xml
        The ISMRMRD header.
    peer
        Whom messages name.
    most
        Bytes of samples to hold at once.

    Attributes
    ----------
    skipped
        Acquisitions so far of kinds that make no image, such as navigators.
    late
        Lines so far of images that were complete already: made again if they are many, else left out.

    Raises
    ------
    InputError
        If the header is of no use.
    """

    def __init__(self, xml: str, peer: str, most: int) -> None:
        header = parse_header(xml, peer)
        self._early = Early(header)
        self._encodings = header.encodings
        self._slices = _last(xml, peer, "slice") + 1
        self._slabs: dict[Index, Partitions] = {}
        self._matrices = [encoding.encoded.matrix for encoding in header.encodings]
        self._calibrated: Index | None = None
        self._most = most
        self._averages = _last(xml, peer, "average")
        self._noise: list[Any] = []
        # By what calibrates together, then by repetition.
        self._calibration: dict[tuple[int, ...], dict[int, list[Any]]] = {}
        self._waiting: dict[Index, list[Any]] = {}
        self._complete: dict[Index, int] = {}
        self._held = 0
        self.skipped = 0
        self.late = 0

    def add(self, acquisition: Any) -> list[Lines]:
        """Take an acquisition and return the images that are complete with it.

        Raises
        ------
        InputError
            If the session would hold too much, as it is or when an image's matrix is filled.
        """
        self._check_matrix(acquisition)
        index = None
        if acquisition.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT):
            self._hold(acquisition, self._noise)
        elif any(acquisition.is_flag_set(flag) for flag in NON_IMAGING.values()):
            self.skipped += 1
        elif _is_calibration_alone(acquisition):
            self._keep_calibration(acquisition)
        else:
            counters = (getattr(acquisition.idx, name) for name in COUNTERS)
            index = Index(acquisition.encoding_space_ref, *counters)
            self._hold(acquisition, self._waiting.setdefault(index, []))
            if index.encoding < len(self._encodings):
                slab = self._slabs.setdefault(
                    index, Partitions(self._encodings[index.encoding], self._slices)
                )
                slab.note(acquisition.idx.kspace_encode_step_2, acquisition.idx.average)
            if self._early.note(index, acquisition, bool(self._calibration_of(index))):
                self._calibrated = index
        ended = self._after(acquisition, index)
        if ended:
            ended[-1] = replace(ended[-1], ended=ended_by(acquisition))
        return ended

    def calibrated(self) -> Lines | None:
        """Return, once, the lines so far of an image whose calibration region has just become complete."""
        index, self._calibrated = self._calibrated, None
        lines = None if index is None else self._waiting.get(index)
        return None if index is None or lines is None else self._with_scans(index, lines)

    def rest(self) -> list[Lines]:
        """Return the images whose last line was not flagged."""
        found = self._take(sorted(self._waiting))
        if found:
            found[-1] = replace(found[-1], ended=frozenset(COUNTERS))
        return found

    def _check_matrix(self, acquisition: Any) -> None:
        if acquisition.encoding_space_ref >= len(self._matrices):
            return
        matrix = self._matrices[acquisition.encoding_space_ref]
        shown = " x ".join(map(str, matrix))
        size = SAMPLE * acquisition.active_channels * math.prod(matrix)
        if size > self._most:
            raise InputError(
                f"a matrix of {shown} in {acquisition.active_channels} channels takes {size} bytes, "
                f"{self._most} are allowed (`serve --memory`)"
            )

    def _hold(self, acquisition: Any, where: list[Any]) -> None:
        self._held += _size(acquisition)
        if self._held > self._most:
            raise InputError(f"more than {self._most} bytes of samples without a complete image")
        where.append(acquisition)

    def make_room(self, acquisition: Any) -> list[Lines]:
        """Return the images of earlier repetitions if the session would hold too much with an acquisition.

        To be asked before `add`: no more of them comes, and what `add` refuses ends the session.
        """
        if self._held + _size(acquisition) <= self._most:
            return []
        now = acquisition.idx.repetition
        return self._take([index for index in sorted(self._waiting) if index.repetition < now])

    def _keep_calibration(self, acquisition: Any) -> None:
        """Keep a calibration line; those of earlier repetitions as long as an image waits that needs them."""
        idx = acquisition.idx
        key = (acquisition.encoding_space_ref, idx.slice, idx.contrast, idx.phase, idx.set)
        kept = self._calibration.setdefault(key, {})
        if idx.repetition not in kept:
            same = (i for i in self._waiting if (i.encoding, i.slice) == key[:2])
            oldest = min((i.repetition for i in same), default=idx.repetition)
            needed = max((r for r in kept if r <= oldest), default=oldest)
            for repetition in [r for r in kept if r < needed]:
                self._held -= sum(map(_size, kept.pop(repetition)))
        self._hold(acquisition, kept.setdefault(idx.repetition, []))

    def _after(self, acquisition: Any, index: Index | None) -> list[Lines]:
        # Every average ends its slice, and may end its repetition; images need them all.
        if index is not None and acquisition.idx.average < self._averages:
            return []
        in_slice = index is not None and acquisition.is_flag_set(ismrmrd.ACQ_LAST_IN_SLICE)
        if acquisition.is_flag_set(ismrmrd.ACQ_LAST_IN_MEASUREMENT):
            ended = sorted(self._waiting)
        elif acquisition.is_flag_set(ismrmrd.ACQ_LAST_IN_REPETITION):
            now = acquisition.idx.repetition
            ended = [i for i in sorted(self._waiting) if i.repetition == now]
        elif index is not None and in_slice and self._completes(index, acquisition):
            ended = [index]
        else:
            ended = []
        if in_slice and index is not None:
            # Of interleaved slices each may be flagged so; those with fewer lines still arrive.
            least = len(self._waiting[index])
            ended = [i for i in ended if i == index or len(self._waiting[i]) >= least]
        return self._take(ended)

    def _completes(self, index: Index, acquisition: Any) -> bool:
        """Return whether a line flagged as its slice's last is its image's: every partition's may be."""
        slab = self._slabs.get(index)
        idx = acquisition.idx
        return slab is None or slab.complete(idx.kspace_encode_step_2, idx.average)

    def _take(self, indices: list[Index]) -> list[Lines]:
        found = []
        for index in indices:
            lines = self._waiting.pop(index)
            self._early.end(index)
            self._slabs.pop(index, None)
            self._held -= sum(map(_size, lines))
            before = self._complete.get(index)
            if before is not None:
                self.late += len(lines)
                if 2 * len(lines) < before:
                    continue  # a few stragglers make no image
            self._complete[index] = len(lines)
            found.append(self._with_scans(index, lines))
            self._keep_shared(index, lines)
        return found

    def _keep_shared(self, index: Index, lines: list[Any]) -> None:
        """Keep an image's own lines that calibrate with those between them, for later repetitions."""
        key = (index.encoding, index.slice, index.contrast, index.phase, index.set)
        kept = self._calibration.get(key, {}).get(index.repetition)
        if not kept:
            return
        for line in lines:
            if line.is_flag_set(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING):
                alone = deepcopy(line)
                alone.clear_flag(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING)
                alone.set_flag(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION)
                self._hold(alone, kept)

    def _with_scans(self, index: Index, lines: list[Any]) -> Lines:
        return Lines(index, [*self._noise, *self._calibration_of(index), *lines])

    def _calibration_of(self, index: Index) -> list[Any]:
        found = []
        for key, kept in self._calibration.items():
            if key[:2] == (index.encoding, index.slice):
                # Its own repetition's, or those of the last before it that had any.
                before = [repetition for repetition in kept if repetition <= index.repetition]
                found += kept[max(before) if before else min(kept)]
        return found


def _is_calibration_alone(acquisition: Any) -> bool:
    """Return whether a line calibrates only: scanners may set both flags on lines that serve for both."""
    both = acquisition.is_flag_set(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING)
    return acquisition.is_flag_set(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION) and not both


def _size(acquisition: Any) -> int:
    return int(acquisition.data.nbytes + acquisition.traj.nbytes) + OVERHEAD


def _last(xml: str, peer: str, counter: str) -> int:
    """Return the largest number that a counter takes by the header's limits, 0 where it does not say."""
    encodings = parse_xml(xml, peer).findall("encoding")
    found = [text_of(encoding, f"encodingLimits/{counter}/maximum") or "" for encoding in encodings]
    return max((_whole(text) for text in found), default=0)


def _whole(text: str) -> int:
    """Return the number that a text says; "1.0" occurs, and what is none says nothing."""
    try:
        return int(float(text))
    except (ValueError, OverflowError):
        return 0
