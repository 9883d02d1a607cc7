"""How a measurement's noise scan stands to the noise of its images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mri_qpan.recon.readers.mrd_kinds import Measurement


def noise_scale(measurement: Measurement, head: np.void) -> float:
    """Return the noise power of an unaveraged sample over that of a sample of the noise scan.

    Noise power goes with the receiver bandwidth: dwell_noise / dwell_image, over the noise scan's relative
    bandwidth (Kellman and McVeigh, Magn Reson Med 54:1439, 2005).

    Parameters
    ----------
    measurement
        With a noise scan.
    head
        Header of one of the image's acquisitions.
    """
    bandwidth = measurement.header.relative_noise_bandwidth or 0.0
    return (_dwell_ratio(measurement, head) or 1.0) / (bandwidth if bandwidth > 0 else 1.0)


def noise_notes(measurement: Measurement, head: np.void) -> list[str]:
    """Return what is assumed of the noise of an image, in words; arguments as `noise_scale`'s."""
    if not measurement.noise.any():
        if head["active_channels"] > 1:
            return ["no noise scan: the channels are taken as equally noisy and uncorrelated"]
    elif _dwell_ratio(measurement, head) is None:
        return ["no dwell times: the noise scan is taken as of the image's bandwidth"]
    return []


def _dwell_ratio(measurement: Measurement, head: np.void) -> float | None:
    dwell = float(head["sample_time_us"])
    noise = np.unique(measurement.heads["sample_time_us"][measurement.noise])
    return float(noise[0]) / dwell if noise.size == 1 and noise[0] > 0 and dwell > 0 else None
