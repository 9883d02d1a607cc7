"""When the images of a series were measured, as far as the time stamps of its readouts say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from mri_qpan.recon.kspace import Image, Index
from mri_qpan.recon.readers.mrd_header import Element, text_of

TICK_MS = 2.5  # of the time stamps of Siemens' scanners, as their converters write them; others do not say


def counts_ticks(header: Element) -> bool:
    """Return whether time stamps count `TICK_MS`, by the vendor in an ISMRMRD header."""
    vendor = text_of(header, "acquisitionSystemInformation/systemVendor") or ""
    return "siemens" in vendor.lower()


def one_shot(header: Element, encoding: int) -> bool:
    """Return whether an ISMRMRD header says that one echo train measures an image: the TR is then its time.

    Parameters
    ----------
    header
        The root.
    encoding
        Which of its encodings the image has.
    """
    found = header.findall("encoding")
    if encoding >= len(found) or found[encoding].find("encodingLimits/kspace_encoding_step_1") is None:
        return False
    described = found[encoding]
    counters = ("kspace_encoding_step_1", "kspace_encoding_step_2", "average")
    try:
        train = float(text_of(described, "echoTrainLength") or 0)
        lines = math.prod(_span(described, f"encodingLimits/{counter}") for counter in counters)
        factors = described.findall("parallelImaging/accelerationFactor/*")
        times = math.prod(float(factor.text or 1) for factor in factors)
    except ValueError:  # what is no number says nothing
        return False
    return 1 <= lines <= train * times


def _span(described: Element, limits: str) -> float:
    """Return how many values a counter takes, 1 where the header has no limits of it."""
    first, last = (text_of(described, f"{limits}/{end}") for end in ("minimum", "maximum"))
    return float(last or 0) - float(first or 0) + 1


def trigger_times(images: Sequence[Image], header: Element) -> dict[Index, float]:
    """Return the time of every image of a cine after its heart beat's trigger, in ms.

    Parameters
    ----------
    images
        Of a series.
    header
        The ISMRMRD header.

    Returns
    -------
    By index. Empty where the series has one phase alone, the stamps' unit is not known, or they do not rise
    from phase to phase, as those of no trigger do not.
    """
    beats: dict[Index, dict[int, int]] = {}
    for image in images:
        place = replace(image.index, phase=0)
        beats.setdefault(place, {})[image.index.phase] = image.stamp.physiology_time_stamp[0]
    several = max((len(beat) for beat in beats.values()), default=0) > 1
    rising = all(a < b for beat in beats.values() for a, b in pairwise(beat[p] for p in sorted(beat)))
    if not (several and rising and counts_ticks(header)):
        return {}
    return {image.index: TICK_MS * image.stamp.physiology_time_stamp[0] for image in images}
