"""Readers of raw k-space files; `open_kspace` picks one by what the file holds."""

from pathlib import Path

from mri_qpan.recon.readers.ismrmrd import KSpaceStream, read


def open_kspace(path: str | Path) -> KSpaceStream:
    """Open a k-space file, its format told from its content.

    Parameters
    ----------
    path
        An ISMRMRD (HDF5) file; other formats are refused.

    Returns
    -------
    Iterator of `KSpace`, one an image, in the order of their `Index`; `len()` says how many.

    Raises
    ------
    InputError
        If no reader knows the file, or the one that does finds it unusable.
    """
    return read(path)
