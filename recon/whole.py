"""The parts of a 3-D image, joined to one: pixels, maps of noise, figures, and what a report shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mri_qpan.errors import InputError
from mri_qpan.fourier import fft_numpy, ifft_numpy
from mri_qpan.recon import noise
from mri_qpan.recon.compression import Number
from mri_qpan.recon.geometry import centre
from mri_qpan.recon.kspace import Image, Quantity
from mri_qpan.recon.partial_fourier import (
    UNKNOWN,
    Edge,
    PartialFourier,
    find_partial_fourier,
    plan_edge,
    pocs,
)
from mri_qpan.recon.pipeline import Complex, Result
from mri_qpan.recon.readers.mrd_slabs import Slabs
from mri_qpan.recon.views import Views
from mri_qpan.sampling_masks import mask_hash, ratio_of


@dataclass(frozen=True)
class Part:
    """A range of x to reconstruct, and the range of it to keep."""

    start: int
    stop: int
    keep: slice

    @property
    def inner(self) -> slice:
        """Where in the part that range lies."""
        return slice(self.keep.start - self.start, self.keep.stop - self.start)


class Whole:
    """Takes the parts of an image one by one.

    An edge of k-space that is missing along the readout is filled in the whole image.

    Parameters
    ----------
    slabs
        The measurement.
    options
        Of `pipeline.reconstruct`.

    Attributes
    ----------
    options
        Those for the next part: the first one decides what all have to have in common.

    Raises
    ------
    InputError
        If the options ask for what needs the whole image at once.
    """

    def __init__(self, slabs: Slabs, options: dict[str, Any]) -> None:
        self._slabs = slabs
        self._mode = str(options.get("partial_fourier", "auto"))
        self._before: Edge | None = options.get("edge")
        self.options = options | {"level": None}
        if slabs.span is not None and options.get("replicas") and self._mode != "none":
            raise InputError(
                "--uncertainty of asymmetric echoes needs all of the image at once, in which POCS fills their"
                " edge: give it more --memory, or --partial-fourier none"
            )
        self._shape = (*slabs.recon_shape[:2], slabs.width)
        self._image = np.zeros(self._shape, np.complex64)
        self._maps: dict[Quantity, Complex] = {}
        self._views: list[tuple[Part, Views]] = []
        self._results: list[Result] = []
        self._norms: list[float] = []

    def add(self, part: Part, result: Result, norm: float) -> None:
        """Take a part; `norm` is that of its samples."""
        if not self._results:
            self.options |= {"level": result.level, "compress": self._coils(result)}
            if result.figures.partial_fourier is not None:
                self.options["edge"] = result.figures.partial_fourier
        self._image[..., part.keep] = result.image.data[..., part.inner]
        for quantity, shown in result.maps.items():
            whole = self._maps.setdefault(quantity, np.zeros(self._shape, np.complex64))
            whole[..., part.keep] = shown.data[..., part.inner]
        if result.views is not None:
            self._views.append((part, _in_image_domain(result.views, part)))
        self._norms.append(norm)
        nothing = replace(result.image, data=np.empty((0, 0, 0), np.complex64))  # the whole has its pixels
        self._results.append(replace(result, image=nothing, maps={}, views=None))

    def _coils(self, first: Result) -> Number:
        """Return the number of virtual channels for all parts: that of the first one."""
        return None if first.figures.coils == self._slabs.imaging.coils else first.figures.coils

    def result(self, method: str) -> Result:
        """Return the image of a method that all parts make."""
        slabs, first = self._slabs, self._results[0]
        mask = acquired(slabs)
        apart = [r.figures.residual * n for r, n in zip(self._results, self._norms, strict=True)]
        edge, notes = self._fill(mask, method)
        figures = replace(
            first.figures,
            ratio=ratio_of(mask),
            mask_hash=mask_hash(mask),
            residual=float(np.linalg.norm(apart) / np.linalg.norm(self._norms)),
            maps_seconds=sum(r.figures.maps_seconds for r in self._results),
            recon_seconds=sum(r.figures.recon_seconds for r in self._results),
            partial_fourier=edge,
        )
        parts = f"worked in {len(self._results)} parts along the readout, to keep within the memory"
        warnings = dict.fromkeys(warning for r in self._results for warning in r.warnings)
        likeness = {name: max(r.likeness[name] for r in self._results) for name in first.likeness}
        return replace(
            first,
            image=placed_at(slabs, self._image),
            figures=figures,
            notes=(*first.notes, *notes, parts),
            warnings=tuple(warnings),
            likeness=likeness,
            maps={quantity: placed_at(slabs, pixels) for quantity, pixels in self._maps.items()},
            views=self._joined_views(mask) if self._views else None,
        )

    def _fill(self, mask: NDArray[np.bool_], method: str) -> tuple[Edge | None, list[str]]:
        """Fill the edge missing along the readout; return all that are missing, and notes."""
        edge = self._results[0].figures.partial_fourier
        if self._slabs.span is None:
            return edge, []
        signal = _readout_signal(self._slabs, find_partial_fourier(mask))
        partial, along = plan_edge(mask, self._mode, method, signal, "x", self._before)
        for z in range(len(self._image) if partial else 0):
            self._image[z] = pocs(torch.from_numpy(self._image[z]), partial).numpy()
        if along is None:
            return edge, []
        found = replace(along, fraction=along.fraction | ({} if edge is None else edge.fraction))
        return found, [f"partial Fourier along the readout: {along}"]

    def _joined_views(self, mask: NDArray[np.bool_]) -> Views:
        """Return the views of all parts as one."""
        across = centre((self._slabs.width,), self._slabs.recon_shape[2:])[0]

        def joined(name: str) -> NDArray[Any]:
            one = getattr(self._views[0][1], name)
            whole = np.zeros((*one.shape[:-1], self._slabs.width), one.dtype)
            for part, views in self._views:
                whole[..., part.keep] = getattr(views, name)
            return whole

        return replace(
            self._views[0][1],
            zero_filled=joined("zero_filled")[..., across],
            mask=mask[len(mask) // 2],
            mps=joined("mps"),
            samples=fft_numpy(joined("samples"), (-1,)),
            residual=fft_numpy(joined("residual"), (-1,)),
            noise=min(views.noise for _, views in self._views),
        )


def acquired(slabs: Slabs) -> NDArray[np.bool_]:
    """Return where samples were acquired, (z, y, x) of the columns that the parts are of."""
    mask = np.repeat(slabs.mask, slabs.width, axis=2)
    if slabs.span is not None:
        mask[..., : slabs.span[0]] = mask[..., slabs.span[1] :] = False
    return mask


def placed_at(slabs: Slabs, data: NDArray[np.complex64]) -> Image:
    """Return pixels of the image, (z, y, x) cropped to what is delivered, where they lie."""
    cropped = np.ascontiguousarray(data[centre(data.shape, slabs.recon_shape)])
    return Image(cropped, slabs.geometry, slabs.index, slabs.stamp)


def _in_image_domain(views: Views, part: Part) -> Views:
    """Return the columns of a part's views that are kept, its k-space transformed along x."""
    assert views.samples is not None
    assert views.residual is not None
    return replace(
        views,
        zero_filled=views.zero_filled[..., part.inner],
        mps=views.mps[..., part.inner],
        samples=ifft_numpy(views.samples, (-1,))[..., part.inner],
        residual=ifft_numpy(views.residual, (-1,))[..., part.inner],
    )


def _readout_signal(slabs: Slabs, found: Sequence[PartialFourier]) -> float:
    """Return `partial_fourier.edge_signal` of the readouts' edge, from the mean power of their samples."""
    assert slabs.span is not None
    start, stop = slabs.span
    for partial in found:
        if partial.direction == "x":
            spectrum = slabs.imaging.spectrum
            half = slabs.width // 2
            distance = np.arange(start, stop) - half
            partners = spectrum[np.abs(distance) > partial.near]
            # All channels together, of one line; noise is at most what the weakest samples hold.
            level = float(spectrum.min())
            if slabs.noise_covariance is not None:
                lines = float(np.median(slabs.imaging.counts[slabs.imaging.counts > 0]))
                level = min(level, lines * slabs.imaging.coils * noise.level(slabs.noise_covariance) ** 2)
            if level > 0:
                known = 1.0 if slabs.noise_covariance is not None else UNKNOWN
                return known * max(0.0, float(partners.mean()) / level - 1) * slabs.imaging.coils
    return float("inf")
