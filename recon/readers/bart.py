"""BART's .cfl/.hdr pairs to `KSpace`.

Of BART's 16 dimensions, 0 to 3 are x, y, z and the coil; echoes (5), time (10), a second time (11), levels
(12) and slices (13) become contrasts, repetitions, phases, sets and slices, averages (14) are averaged. As in
`bart pics`, what is zero in every coil was not measured.
"""

from pathlib import Path

from mri_qpan.bart import open_cfl
from mri_qpan.errors import InputError
from mri_qpan.recon.readers.arrays import stream
from mri_qpan.recon.readers.stream import KSpaceStream

SUFFIXES = (".cfl", ".hdr")
COUNTERS = {14: "average", 13: "slice", 12: "set", 11: "phase", 10: "repetition", 5: "contrast"}
"""As they lie in memory."""

NOTE = "BART's files tell neither field of view nor position: pixels taken as 1 mm"


def read(path: Path) -> KSpaceStream:
    """Read the images of Cartesian k-space in BART's format.

    Parameters
    ----------
    path
        Its .cfl or .hdr file.

    Returns
    -------
    Stream of `KSpace`, one for each index of the dimensions above the coils'.

    Raises
    ------
    InputError
        If the pair is damaged, other dimensions are in use, or the samples are non-Cartesian.
    """
    array = open_cfl(path.with_suffix(""))
    sizes = [*reversed(array.shape), *[1] * (16 - array.ndim)]
    nx, ny, nz, coils = sizes[:4]
    odd = [d for d, n in enumerate(sizes) if n > 1 and d > 3 and d not in COUNTERS]
    if odd:
        raise InputError(
            f"{path}: dimension {odd[0]} has size {sizes[odd[0]]}; k-space of images uses 0 to 3, 5 and "
            "10 to 14: is this another kind of array?"
        )
    if nx == 1 and nz > 1:
        raise InputError(
            f"{path}: {ny} samples along {nz} trajectories: not Cartesian; use `mri-qpan pics -t`"
        )
    named = array.reshape(*(sizes[d] for d in COUNTERS), coils, nz, ny, nx)
    return stream(named, [*COUNTERS.values(), "coil", "z", "y", "x"], path, NOTE)


def check_named_as_bart_does(path: Path) -> None:
    """Tell who leaves the suffix of a .cfl out, as BART's commands do, what to write."""
    samples = path.with_name(f"{path.name}.cfl")
    if not path.exists() and samples.is_file():
        raise InputError(f"{path}: no such file, but {samples.name}: give its suffix too")
