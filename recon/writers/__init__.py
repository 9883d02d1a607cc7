"""Images to files: the formats by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

from mri_qpan.errors import OptionError
from mri_qpan.recon.kspace import ImageSeries
from mri_qpan.recon.writers.animation import write_animation
from mri_qpan.recon.writers.arrays import write_cfl_pair, write_fastmri, write_npy
from mri_qpan.recon.writers.dicom import write_dicom
from mri_qpan.recon.writers.ismrmrd import write_ismrmrd
from mri_qpan.recon.writers.nifti import write_nifti
from mri_qpan.recon.writers.png import write_png, write_study_png

__all__ = [
    "DEFAULT",
    "FORMATS",
    "Format",
    "find_formats",
    "write_animation",
    "write_dicom",
    "write_ismrmrd",
    "write_nifti",
    "write_png",
    "write_study_png",
]

GROUP = "mri_qpan.writers"
"""Entry points of other packages: name a format, point to a `Format`."""


@dataclass(frozen=True)
class Format:
    """A file format for images.

    Attributes
    ----------
    suffix
        What follows a series' name.
    write
        Called with (path that ends in the suffix, series). It may make several files beside that path; it
        raises `ReconError` for a series that the format cannot hold.
    """

    suffix: str
    write: Callable[[Path, ImageSeries], None]


FORMATS = {
    "ismrmrd": Format(".h5", write_ismrmrd),
    "nifti": Format(".nii.gz", write_nifti),
    "png": Format(".png", write_png),
    "animation": Format(".gif", write_animation),
    "dicom": Format(".dcm", write_dicom),
    "fastmri": Format(".fastmri.h5", write_fastmri),
    "cfl": Format(".cfl", write_cfl_pair),
    "npy": Format(".npy", write_npy),
}

DEFAULT = ("ismrmrd", "nifti", "png")


def find_formats(names: Sequence[str]) -> dict[str, Format]:
    """Return formats by name, the package's own and those that other packages bring.

    Raises
    ------
    OptionError
        If a name is unknown.
    """
    known = FORMATS | {
        point.name: point.load() for point in entry_points(group=GROUP) if point.name not in FORMATS
    }
    unknown = [name for name in names if name not in known]
    if unknown:
        raise OptionError(f"no format called {unknown[0]!r}: choose from {', '.join(known)}")
    return {name: known[name] for name in names}
