"""Images to NIfTI: magnitudes, or maps, with the affine of the scanner's axes."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from mri_qpan.errors import InputError, ReconError
from mri_qpan.recon.geometry import LPS_TO_RAS, SPACING_TOLERANCE_MM, stack, volumes
from mri_qpan.recon.kspace import Image, ImageSeries
from mri_qpan.recon.readers.mrd_header import parse_xml
from mri_qpan.recon.writers.animation import frame_time

SCANNER_ANATOMICAL = 1
TEXT_COMMENT = 6


def write_nifti(path: Path, series: ImageSeries) -> None:
    """Write float32 pixels (x, y, slice[, time]) as NIfTI-1; `.nii.gz` compresses.

    Repetitions, contrasts, phases and sets become the fourth dimension, in this order; its step in seconds is
    given where the file tells it (see `animation.frame_time`), else 0. The affine follows `recon.geometry`,
    turned from LPS to NIfTI's RAS axes. Slices staggered within their planes make a sheared one, which a
    qform cannot hold: its code is 0 then.

    Parameters
    ----------
    path
        The file to make, `.nii` or `.nii.gz`.
    series
        What to write.

    Raises
    ------
    ReconError
        If the slices do not make one volume (not parallel, not evenly spaced, beside each other, or differing
        in time).
    """
    stacks = [stack(images) for images in volumes(series.images)]
    affine = stacks[0][1]
    for images, other in stacks:
        if len(images) != len(stacks[0][0]) or not np.allclose(other, affine, atol=1e-3):
            raise ReconError("the repetitions or contrasts differ in their slices: no single volume")
    pixels = np.stack([_pixels(series, images) for images, _ in stacks], axis=-1)
    nifti = nib.Nifti1Image(pixels[..., 0] if len(stacks) == 1 else pixels, LPS_TO_RAS @ affine)
    nifti.header.set_xyzt_units("mm", "sec")
    if len(stacks) > 1:
        nifti.header["pixdim"][4] = _seconds(path, series)
    nifti.set_sform(nifti.affine, SCANNER_ANATOMICAL)
    nifti.set_qform(nifti.affine, SCANNER_ANATOMICAL)
    missed = np.abs(nifti.get_qform() - nifti.affine)[:3, :3] @ nifti.shape[:3]
    if missed.max() > SPACING_TOLERANCE_MM:
        nifti.set_qform(None)
    origin = series.provenance
    nifti.header["descrip"] = f"mri-qpan {origin['version']} {origin['method']}".encode()[:79]
    provenance = json.dumps(origin).encode()
    nifti.header.extensions.append(nib.nifti1.Nifti1Extension(TEXT_COMMENT, provenance))
    nib.save(nifti, path)


def _seconds(path: Path, series: ImageSeries) -> float:
    """Return how long a volume of the fourth dimension lasts, 0 where that is not known or not its sense."""
    found = [i.index for i in series.images]
    index = np.array([(i.repetition, i.contrast, i.phase, i.set) for i in found])
    repeated, contrast, moving, sets = np.ptp(index, axis=0) > 0
    if series.xml is None or contrast or sets or (repeated and moving):
        return 0.0
    try:
        step, source = frame_time(series.images, parse_xml(series.xml, str(path)))
    except InputError:  # a header that is no XML says nothing
        return 0.0
    return step / 1000 if source is not None else 0.0


def _pixels(series: ImageSeries, images: list[Image]) -> NDArray[np.float32]:
    """Return the pixels (x, y, slice) of images (z, y, x)."""
    return np.concatenate([series.pixels(image) for image in images]).transpose(2, 1, 0)
