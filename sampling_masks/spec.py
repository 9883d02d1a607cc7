"""Kinds by name, and masks in one word: KIND:RATIO[:SEED]."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points

import numpy as np

from mri_qpan.sampling_masks.errors import MaskError
from mri_qpan.sampling_masks.geometry import Mask, check_ratio, check_seed, check_shape
from mri_qpan.sampling_masks.lines import equispaced, lines, partial
from mri_qpan.sampling_masks.poisson import poisson
from mri_qpan.sampling_masks.radial import radial
from mri_qpan.sampling_masks.random2d import random2d
from mri_qpan.sampling_masks.summary import ratio_from_acceleration

Maker = Callable[[Sequence[int], float, int | None, int], Mask]

_MAKERS: dict[str, Maker] = {
    "random2d": random2d,
    "lines": lines,
    "poisson": poisson,
    "radial": radial,
    "equispaced": equispaced,
    "partial": partial,
}

KINDS = tuple(_MAKERS)
"""Names of this package's kinds."""

GROUP = "mri_qpan.masks"
"""Entry points of other packages: name a kind, point to a function (shape, ratio, calib, seed) -> mask, with
the arguments of `make_mask`. It may raise `MaskError`."""


def kind_names() -> list[str]:
    """Return the names that `make_mask` knows: this package's kinds and those that other packages bring."""
    return [*KINDS, *sorted({point.name for point in entry_points(group=GROUP)} - set(KINDS))]


def make_mask(
    kind: str, shape: Sequence[int], ratio: float, *, calib: int | None = None, seed: int = 0
) -> Mask:
    """Make a sampling mask.

    Parameters
    ----------
    kind
        One of `kind_names`.
    shape
        (y, x) or (z, y, x). Line kinds acquire whole rows y along x. Of a volume with z > 1, random2d,
        poisson and radial sample the plane (z, y), with x complete.
    ratio
        Fraction to acquire, in (0, 1]; an acceleration R is the ratio 1 / R.
    calib
        Number of central lines, or side of the central block, that is complete. None: the kind's default.
    seed
        The same seed gives the same mask on every machine.

    Returns
    -------
    Mask
        bool, `shape`, zero frequency at n // 2; its ratio is within 0.5 percentage points of `ratio` (another
        package's kind promises that itself).

    Raises
    ------
    MaskError
        If an argument makes no sense or the ratio cannot be reached; the message says why.
    """
    return _maker(kind)(shape, ratio, calib, seed)


def parse_spec(text: str) -> tuple[str, float, int]:
    """Read "KIND:RATIO[:SEED]", where RATIO is 0.25, 25% or 4x, into (kind, ratio, seed).

    Raises
    ------
    MaskError
        If `text` is not of that form.
    """
    parts = text.strip().split(":")
    if len(parts) not in (2, 3):
        raise MaskError(f"{text!r} is not KIND:RATIO[:SEED], such as lines:0.25 or poisson:4x:7")
    kind = parts[0].strip()
    _maker(kind)
    seed = parts[2].strip() if len(parts) == 3 else "0"
    if not (seed.isascii() and seed.isdigit()):
        raise MaskError(f"the seed in {text!r} is a whole number from 0, got {seed!r}")
    return kind, _read_ratio(parts[1].strip()), check_seed(int(seed))


def _maker(kind: str) -> Maker:
    if kind not in _MAKERS:
        for point in entry_points(group=GROUP, name=kind):
            return _foreign(point)
        raise MaskError(f"unknown kind of mask {kind!r}: choose from {', '.join(kind_names())}")
    return _MAKERS[kind]


def _foreign(point: EntryPoint) -> Maker:
    """Return another package's maker, whose failures and odd masks end in a `MaskError`."""

    def make(shape: Sequence[int], ratio: float, calib: int | None, seed: int) -> Mask:
        sizes, wanted, start = check_shape(shape), check_ratio(ratio), check_seed(seed)
        try:
            made = np.asarray(point.load()(sizes, wanted, calib, start))
        except MaskError:
            raise
        except Exception as error:  # someone else's code
            raise MaskError(f"mask kind {point.name!r} failed: {type(error).__name__}: {error}") from error
        if made.shape != sizes or made.dtype != bool:
            raise MaskError(
                f"mask kind {point.name!r} returned {made.dtype} of shape {made.shape}, not bool of {sizes}"
            )
        if not made.any():
            raise MaskError(f"mask kind {point.name!r} returned a mask without a sample")
        return made

    return make


def _read_ratio(text: str) -> float:
    number, unit = (text[:-1], text[-1]) if text[-1:] in ("%", "x") else (text, "")
    try:
        value = float(number)
    except ValueError:
        raise MaskError(f"a ratio is written 0.25, 25% or 4x, got {text!r}") from None
    if unit == "x" and value >= 1:
        value = ratio_from_acceleration(value)
    elif unit == "x":
        raise MaskError(f"an acceleration is at least 1x, got {text!r}")
    elif unit == "%":
        value /= 100
    elif value > 1:
        raise MaskError(f"the ratio {text!r} is above 1: did you mean {text}% or {text}x?")
    return check_ratio(value)
