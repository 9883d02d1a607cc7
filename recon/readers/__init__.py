"""Readers of raw k-space files; `open_kspace` picks one by what the file holds."""

from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from mri_qpan.errors import InputError
from mri_qpan.recon.readers import arrays, bart, fastmri, ismrmrd, twix
from mri_qpan.recon.readers.bart import check_named_as_bart_does
from mri_qpan.recon.readers.hdf5 import Hdf5Process
from mri_qpan.recon.readers.stream import KSpaceStream

GROUP = "mri_qpan.readers"
"""Entry points of other packages: name a suffix (".dat"), point to a function path -> `KSpaceStream`."""

IMAGES = (".nii", ".nii.gz", ".dcm", ".png", ".jpg", ".tif", ".tiff")

HDF5 = (".h5", ".hdf5", ".mrd")

__all__ = ["KSpaceStream", "is_ismrmrd", "open_kspace", "plugin_for", "raw_suffixes"]


def open_kspace(path: str | Path, dims: str | None = None, memory: int | None = None) -> KSpaceStream:
    """Open a k-space file, its format told from its content.

    Parameters
    ----------
    path
        A file of ISMRMRD's or fastMRI's layout (HDF5), BART's .cfl or .hdr, Siemens' .dat, or what a reader
        installed by another package (entry point group `mri_qpan.readers`) takes.
    dims
        Names of the axes of a .npy or .mat file, and its trajectory (see `arrays.read`).
    memory
        Bytes within which an image of an ISMRMRD file is to be reconstructed (see `ismrmrd.read`).

    Returns
    -------
    Stream of `KSpace`, one an image, in the order of their `Index`; `len()` says how many.

    Raises
    ------
    InputError
        If no reader knows the file, the one that does finds it unusable, or `dims` are missing or too much.
    """
    path = Path(path)
    plugin = plugin_for(path)
    if plugin is not None:
        return plugin.load()(path)
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: a folder, or no ordinary file")
    check_named_as_bart_does(path)
    if path.name.lower().endswith(IMAGES):
        raise InputError(f"{path}: an image by its name, not k-space")
    if path.suffix.lower() in arrays.SUFFIXES:
        return arrays.read(path, dims)
    if path.suffix.lower() == ".npz":
        raise InputError(f"{path}: an archive of arrays: save its k-space as .npy")
    if dims is not None:
        raise InputError(f"{path}: --dims names the axes of .npy and .mat files; this one tells its own")
    if path.suffix in bart.SUFFIXES:
        return bart.read(path)
    if path.suffix.lower() == twix.SUFFIX:
        return twix.read(path)
    process = Hdf5Process(path)
    return fastmri.read(process) if process.kind == "fastmri" else ismrmrd.read(process, memory)


def plugin_for(path: Path) -> EntryPoint | None:
    """Return the reader of another package that takes a file, by its suffix; it goes first."""
    return next((p for p in entry_points(group=GROUP) if path.suffix.lower() == p.name), None)


def is_ismrmrd(path: Path) -> bool:
    """Return whether `open_kspace` takes a file as ISMRMRD; raises `InputError` as it does."""
    if path.suffix.lower() in (*bart.SUFFIXES, *arrays.SUFFIXES, twix.SUFFIX) or plugin_for(path) is not None:
        return False
    process = Hdf5Process(path)
    process.close()
    return process.kind == "ismrmrd"


def raw_suffixes(dims: str | None = None) -> tuple[str, ...]:
    """Return how files end that are likely raw data: which of a folder to take.

    Parameters
    ----------
    dims
        As in `open_kspace`; arrays count only with them.
    """
    plugins = sorted(point.name for point in entry_points(group=GROUP))
    return (*HDF5, bart.SUFFIXES[0], twix.SUFFIX, *plugins, *(arrays.SUFFIXES if dims is not None else ()))
