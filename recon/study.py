"""Retrospective studies: leave samples of a full measurement out and compare with the full image."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mri_qpan import metrics
from mri_qpan.errors import InputError, OptionError
from mri_qpan.methods import Method
from mri_qpan.recon.compression import Number, mix, mix_maps
from mri_qpan.recon.geometry import centre
from mri_qpan.recon.kspace import Image, KSpace
from mri_qpan.recon.partial_fourier import Edge
from mri_qpan.recon.pipeline import Complex, Result, solve, to_image, to_torch, with_noise_maps
from mri_qpan.recon.prepare import Prepared, checked, condition, prepare
from mri_qpan.sampling_masks import SUFFIXES, MaskError, load_mask, make_mask, parse_spec, ratio_of
from mri_qpan.scaling import Level

METRICS = {"psnr": metrics.psnr, "ssim": metrics.ssim, "nmse": metrics.nmse, "hfen": metrics.hfen}


def is_mask_file(spec: str) -> bool:
    """Return whether the words of `--undersample` name a file."""
    return Path(spec).suffix.lower() in SUFFIXES


@dataclass(frozen=True)
class Undersampling:
    """Which samples to keep: a kind of mask, its ratio and seed, and the words that asked for it.

    `given` is the mask of a file instead, (y, x) or (z, y, x).
    """

    spec: str
    kind: str
    ratio: float
    seed: int
    given: NDArray[np.bool_] | None = None

    @classmethod
    def parse(cls, spec: str) -> Undersampling:
        """Read KIND:RATIO[:SEED], or the mask in a file of a kind that `load_mask` knows.

        Raises
        ------
        InputError
            If `spec` is neither.
        """
        try:
            if is_mask_file(spec):
                mask = load_mask(spec)
                return cls(spec, "file", ratio_of(mask), 0, mask)
            return cls(spec, *parse_spec(spec))
        except MaskError as error:
            raise OptionError(f"--undersample: {error}") from error

    def mask(self, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """Return the mask (z, y, x); a slice's is that of its (y, x).

        Raises
        ------
        InputError
            If no mask of that kind and ratio fits the matrix, or the one given does not.
        """
        wanted = shape[1:] if shape[0] == 1 else shape
        if self.given is not None:
            if self.given.shape != tuple(wanted):
                given, matrix = (" x ".join(map(str, sides)) for sides in (self.given.shape, wanted))
                raise InputError(f"--undersample {self.spec}: a mask of {given} for a matrix of {matrix}")
            return self.given.reshape(shape)
        try:
            return make_mask(self.kind, wanted, self.ratio, seed=self.seed).reshape(shape)
        except MaskError as error:
            raise InputError(f"--undersample {self.spec}: {error}") from error


@dataclass(frozen=True)
class Study:
    """A reconstruction beside what it should be.

    Attributes
    ----------
    method
        Name of the method.
    reference
        The fully sampled image, coils combined with the maps of the undersampled one.
    zero_filled
        A^H y of the undersampled samples.
    result
        The method's image and figures.
    metrics
        PSNR (dB), SSIM, NMSE and HFEN of the magnitudes for "zero-filled" and the method.
    """

    method: str
    reference: Image
    zero_filled: Image
    result: Result
    metrics: dict[str, dict[str, float]]


def study(
    kspace: KSpace,
    method: Method,
    undersampling: Undersampling,
    *,
    device: torch.device | str = "cpu",
    mps: Complex | None = None,
    compress: Number = None,
    hard_dc: bool = False,
    partial_fourier: str = "auto",
    views: bool = False,
    contraction: bool = False,
    replicas: int = 0,
    kept: NDArray[np.bool_] | None = None,
    level: Level | None = None,
    floor: float = 0.0,
    zero_phase: Complex | None = None,
    edge: Edge | None = None,
) -> Study:
    """Undersample a fully sampled measurement, reconstruct it and compare.

    The mask is made on the matrix without readout oversampling. Coil maps are estimated from the samples
    that are left, as they would be of an undersampled measurement.

    Parameters
    ----------
    kspace
        The samples of one slice or slab, all of them.
    method
        What to study.
    undersampling
        Which samples to keep.
    device
        Where the method runs.
    mps
        Coil sensitivities (coil, z, y, x) to use instead of estimated ones.
    compress, hard_dc, partial_fourier, views, contraction, replicas, level, floor, zero_phase, edge
        See `pipeline.reconstruct`.
    kept
        The mask itself (z, y, x), of a part of an image that it was made for.

    Raises
    ------
    InputError
        If `kspace` is not fully sampled, or no mask of that kind and ratio fits its matrix.
    ReconError
        If the method fails.
    """
    started = time.perf_counter()
    mps = None if mps is None else checked(mps, kspace)
    full, mixer = condition(replace(kspace, calib=None, calib_mask=None), compress)
    if kspace.coord is not None:
        raise InputError("--undersample makes masks of a grid: these samples lie along a trajectory")
    check_full(full.mask)
    if mps is not None:
        mps = np.ascontiguousarray(mps[..., centre(mps.shape[-1:], full.data.shape[3:])[0]])
        mps = mps if mixer is None else mix_maps(mixer, mps)
    if zero_phase is not None and mixer is not None:
        zero_phase = mix(mixer, zero_phase)
    kept = undersampling.mask(full.mask.shape) if kept is None else kept
    partial = replace(full, data=full.data * kept, mask=kept, calib=None, calib_mask=None)
    prepared = prepare(partial, mps=mps, sets=None, floor=floor, zero_phase=zero_phase)
    seconds = time.perf_counter() - started
    options: dict[str, Any] = {
        "device": device,
        "hard_dc": hard_dc,
        "partial_fourier": partial_fourier,
        "level": level,
    }
    shown: dict[str, Any] = {"views": views, "contraction": contraction, "edge": edge}
    result = solve(prepared, kspace, method, maps_seconds=seconds, **shown, **options)
    if replicas:
        result = with_noise_maps(result, prepared, kspace, method, replicas, **options)
    zero_filled = _combined(prepared, kspace)
    reference = _combined(replace(prepared, data=full.data, mask=full.mask), kspace)
    return compared(method.name, reference, zero_filled, result)


def compared(method: str, reference: Image, zero_filled: Image, result: Result) -> Study:
    """Return a study with its metrics."""
    images = {"zero-filled": zero_filled, method: result.image}
    figures = {name: _compare(reference, image) for name, image in images.items()}
    return Study(method, reference, zero_filled, result, figures)


def check_full(mask: NDArray[np.bool_]) -> None:
    """Raise `InputError` if a mask leaves samples out."""
    if not mask.all():
        raise InputError(
            f"--undersample needs a fully sampled measurement, and {ratio_of(mask):.1%} of this one's"
            " matrix is filled: reconstruct it without --undersample"
        )


@torch.inference_mode()
def _combined(prepared: Prepared, kspace: KSpace) -> Image:
    """Return A^H y."""
    encoding, samples = to_torch(prepared, "cpu")
    return to_image(encoding.adjoint(samples), prepared, kspace)


def _compare(reference: Image, image: Image) -> dict[str, float]:
    pair = np.abs(reference.data), np.abs(image.data)
    return {name: metric(*pair) for name, metric in METRICS.items()}
