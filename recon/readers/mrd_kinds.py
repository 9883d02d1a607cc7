"""What kinds of acquisitions an ISMRMRD measurement has, by their flags, and which make which image."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ismrmrd import constants
from numpy.typing import NDArray

from mri_qpan.errors import InputError
from mri_qpan.recon.kspace import COUNTERS, Index
from mri_qpan.recon.readers.mrd_header import MrdHeader, parse_header

Rows = NDArray[np.intp]
Heads = NDArray[np.void]

PHASE_CORRECTION = "phase correction"
NON_IMAGING = {
    "navigator": constants.ACQ_IS_NAVIGATION_DATA,
    PHASE_CORRECTION: constants.ACQ_IS_PHASECORR_DATA,
    "HP feedback": constants.ACQ_IS_HPFEEDBACK_DATA,
    "dummy": constants.ACQ_IS_DUMMYSCAN_DATA,
    "real-time feedback": constants.ACQ_IS_RTFEEDBACK_DATA,
    "surface coil correction": constants.ACQ_IS_SURFACECOILCORRECTIONSCAN_DATA,
    "phase stabilisation reference": constants.ACQ_IS_PHASE_STABILIZATION_REFERENCE,
    "phase stabilisation": constants.ACQ_IS_PHASE_STABILIZATION,
}


@dataclass(frozen=True)
class Measurement:
    """What stands in an ISMRMRD file, samples aside.

    Attributes
    ----------
    path, dataset
        The file and the name of its group.
    xml, header
        The ISMRMRD header as text, and parsed.
    heads
        Header of every acquisition, structured array of ISMRMRD's fields.
    noise, calibration, imaging
        True for the acquisitions of that kind, (acquisitions,); a line can be calibration and imaging.
    reverse
        True for the acquisitions whose readout runs backwards.
    skipped
        How many acquisitions each non-imaging kind has.
    notes
        What was assumed, in words.
    """

    path: Path
    dataset: str
    xml: str
    header: MrdHeader
    heads: Heads
    noise: NDArray[np.bool_]
    calibration: NDArray[np.bool_]
    imaging: NDArray[np.bool_]
    reverse: NDArray[np.bool_]
    skipped: dict[str, int]
    notes: tuple[str, ...]


def classify(
    path: Path, names: list[str], name: str, xml: str, heads: Heads, waveforms: int = 0
) -> Measurement:
    """Sort acquisitions by their flags; raises `InputError` if the header (XML) is of no use.

    Parameters
    ----------
    path, names, name
        The file, its datasets, and the one that is read.
    xml, heads
        The ISMRMRD header, and the headers of all acquisitions.
    waveforms
        How many waveforms lie beside them.
    """
    parsed = parse_header(xml, str(path))
    flags = heads["flags"]
    noise = _is_set(flags, constants.ACQ_IS_NOISE_MEASUREMENT)
    skipped = np.zeros(len(heads), bool)
    counts = {}
    for kind, bit in NON_IMAGING.items():
        found = _is_set(flags, bit) & ~noise
        skipped |= found
        if found.any():
            counts[kind] = int(found.sum())
    notes = []
    if len(names) > 1:
        notes.append(f"several datasets ({', '.join(names)}): {name!r} was read")
    if waveforms:
        notes.append(f"{waveforms} waveforms (of physiological signals) were not used")
    both = _is_set(flags, constants.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING)
    calibration = (both | _is_set(flags, constants.ACQ_IS_PARALLEL_CALIBRATION)) & ~noise & ~skipped
    return Measurement(
        path=path,
        dataset=name,
        xml=xml,
        header=parsed,
        heads=heads,
        noise=noise,
        calibration=calibration,
        imaging=(both | ~calibration) & ~noise & ~skipped,
        reverse=_is_set(flags, constants.ACQ_IS_REVERSE),
        skipped=counts,
        notes=(*notes, *parsed.notes),
    )


def unused(skipped: dict[str, int]) -> list[str]:
    """Say which kinds of acquisitions no image uses, and what that may do to it."""
    if not skipped:
        return []
    words = f"not used: {', '.join(f'{count} {kind}' for kind, count in skipped.items())} acquisitions"
    ghost = "; readouts of both directions may leave a ghost" if PHASE_CORRECTION in skipped else ""
    return [words + ghost]


def group(measurement: Measurement) -> dict[Index, Rows]:
    """Return the imaging acquisitions of every image, in the order of `Index`."""
    rows = np.flatnonzero(measurement.imaging)
    if not rows.size:
        kinds = {"noise": int(measurement.noise.sum()), "calibration": int(measurement.calibration.sum())}
        shown = ", ".join(f"{n} {kind}" for kind, n in (kinds | measurement.skipped).items() if n)
        raise InputError(
            f"{measurement.path}: no imaging acquisitions (found {shown or 'none at all'}): "
            "check that the right measurement of the scan was exported"
        )
    keys = index_keys(measurement.heads[rows])
    unique, inverse = np.unique(keys, axis=0, return_inverse=True)
    order = np.argsort(inverse.ravel(), kind="stable")
    edges = np.cumsum(np.bincount(inverse.ravel()))[:-1]
    groups = np.split(rows[order], edges)
    return {Index(*map(int, key)): group for key, group in zip(unique, groups, strict=True)}


def index_keys(heads: Heads) -> NDArray[np.int64]:
    """Return the counters that tell images apart, (acquisitions, 6), in the order of `key_of`."""
    idx = heads["idx"]
    counters = [idx[name] for name in COUNTERS]
    return np.stack([heads["encoding_space_ref"], *counters], axis=1).astype(np.int64)


def key_of(index: Index) -> tuple[int, ...]:
    """Return the row of `index_keys` that the acquisitions of an image have."""
    return index.encoding, index.repetition, index.contrast, index.phase, index.set, index.slice


def _is_set(flags: NDArray[np.uint64], bit: int) -> NDArray[np.bool_]:
    return (flags & np.uint64(1 << (bit - 1))) != 0
