"""The images of a session as the messages that a scanner takes: int16, one scale for the series."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ismrmrd
import numpy as np
from numpy.typing import NDArray

from mri_qpan.errors import MriQpanError
from mri_qpan.recon.familiar import noise_level
from mri_qpan.recon.job import Job
from mri_qpan.recon.kspace import ImageSeries, Index, KSpace
from mri_qpan.recon.partial_fourier import Edge
from mri_qpan.recon.pipeline import Result, blank, reconstruct
from mri_qpan.recon.prepare import prepare
from mri_qpan.recon.provenance import provenance
from mri_qpan.recon.readers.ismrmrd import images_of
from mri_qpan.recon.serving.ends import Ends
from mri_qpan.recon.serving.mrd_stream import head_of
from mri_qpan.recon.serving.session import Lines
from mri_qpan.recon.writers.ismrmrd import image_message
from mri_qpan.recon.writers.window import display_range

HEAD = ismrmrd.hdf5.acquisition_header_dtype

WHITE = 4095
"""Pixel of the first image's 99.9th percentile; later images have eight times that before they saturate."""

LARGEST_NUMBER = 65535  # of an image: its field has 16 bits

NOISE = 64
"""Largest standard deviation of noise in pixels: else a first slice in air would leave no room for others."""

log = logging.getLogger(__name__)


class _Memory:
    """Acquisitions in memory, as `readers.ismrmrd` reads those of a file."""

    def __init__(self, path: Path, xml: str, acquisitions: list[Any]) -> None:
        self.path, self.name, self.names, self.xml = path, "stream", ["stream"], xml
        self.waveforms = 0  # the server counts them
        self._acquisitions = acquisitions
        self.heads: NDArray[np.void] = np.frombuffer(b"".join(map(head_of, acquisitions)), HEAD)

    def samples(self, rows: NDArray[np.intp], field: str = "data") -> list[NDArray[np.float32]]:
        """Return the numbers of a field of acquisitions."""
        arrays = [getattr(self._acquisitions[int(row)], field) for row in rows]
        return [np.ascontiguousarray(array).view(np.float32).ravel() for array in arrays]

    def close(self) -> None:
        """Nothing is open."""


class Painter:
    """Reconstructs images and makes the messages that a scanner takes: int16, one scale for the series.

    Parameters
    ----------
    job
        How to reconstruct.
    xml
        The ISMRMRD header.
    peer
        Where the samples came from, for messages and provenance.
    """

    def __init__(self, job: Job, xml: str, peer: str) -> None:
        self._job, self._xml, self._peer = job, xml, Path(peer)
        self._scale: dict[int, float] = {}  # by encoding, too
        self._edges: dict[int, Edge] = {}  # by encoding, whose images are one series
        self._ends = Ends(xml, peer)
        self._told: set[str] = set()
        self.count = 0

    def begin(self, lines: Lines) -> None:
        """Make the maps of an image whose calibration region is complete, and remember them.

        What cannot be done now is done, or told of, when the image is complete.
        """
        job = self._job
        try:
            for kspace in images_of(_Memory(self._peer, self._xml, lines.acquisitions))[1]:
                if kspace.index == lines.index and kspace.coord is None:
                    prepare(kspace, sets=None, compress=job.compress)
        except MriQpanError:
            return

    def _reconstruct(self, kspace: KSpace) -> Result:
        if kspace.blank:
            return blank(kspace)
        job = self._job
        return reconstruct(
            kspace,
            job.method,
            device=job.device,
            compress=job.compress,
            hard_dc=job.hard_dc,
            partial_fourier=job.partial_fourier,
            edge=self._edges.get(kspace.index.encoding),
        )

    def _tell_once(self, note: str, index: Index, tell: Callable[[str], None]) -> None:
        """Tell a note that no earlier image had, whatever its numbers."""
        gist = re.sub(r"\d+", "#", note)
        if gist not in self._told:
            self._told.add(gist)
            counters = (f"{name} {value}" for name, value in asdict(index).items() if value)
            words = f"{', '.join(counters) or 'first image'}: {note}"
            log.info("%s: %s", self._peer, words)
            tell(words)

    def paint(self, lines: Lines, tell: Callable[[str], None]) -> Iterator[Any]:
        """Yield the messages with the images of some lines; warnings, and notes not yet told, go to `tell`.

        Raises
        ------
        MriQpanError
            If the lines make no image, or it cannot be reconstructed.
        """
        job = self._job
        for kspace in images_of(_Memory(self._peer, self._xml, lines.acquisitions))[1]:
            if kspace.index != lines.index:
                continue  # of a calibration line that is an image's too
            result = self._reconstruct(kspace)
            edge = result.figures.partial_fourier
            if edge is not None and edge.decides:
                self._edges.setdefault(kspace.index.encoding, edge)
            for note in result.notes:
                self._tell_once(note, kspace.index, tell)
            for warning in result.warnings:
                tell(f"warning: {warning}")
            magnitude = np.abs(result.image.data)
            scale = self._scale.get(kspace.index.encoding, 0.0)
            if not scale and magnitude.any():
                scale = WHITE / (float(np.quantile(magnitude, 0.999)) or 1.0)
                noise = noise_level(kspace)
                scale = min(scale, NOISE / noise) if noise else scale
                self._scale[kspace.index.encoding] = scale
            brightest = np.iinfo(np.int16).max
            pixels = np.minimum(np.rint(magnitude * scale), brightest)
            if (clipped := int((pixels == brightest).sum())) > 0:
                tell(f"warning: {clipped} pixels are too bright for the scale of the series' first image")
            image = replace(result.image, data=pixels.astype(np.complex64))
            origin = provenance(f"MRD stream from {self._peer}", job.method, [result.figures]) | {
                "pixel_scale": scale
            }
            series = ImageSeries([image], self._xml, origin)
            message = image_message(series, 0, display_range([image]), np.int16)
            self.count += 1
            message.image_index = 1 + (self.count - 1) % LARGEST_NUMBER
            message.image_series_index = 1 + kspace.index.encoding
            message.clear_all_flags()
            for flag in self._ends.flags(kspace.index, lines.ended):
                message.set_flag(flag)
            yield message
