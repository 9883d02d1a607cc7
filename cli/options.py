"""The options that `recon`, `batch` and `watch` share: how to reconstruct a file, and what to write."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mri_qpan.recon.recipe import Recipe

FORMATS = "ismrmrd,nifti,png"

Method = Annotated[
    str | None,
    typer.Option(
        "--method",
        "-m",
        metavar="NAME",
        help="A shipped model (see `mri-qpan models`), a .safetensors file, a classical method"
        " (zero-filled, cg-sense, wavelet, tv, paisa), or FILE.py:FUNCTION. Left out: the default model.",
    ),
]
Undersample = Annotated[
    str | None,
    typer.Option(
        metavar="KIND:RATIO[:SEED]|FILE",
        help="For a fully sampled file: leave samples out, reconstruct, and compare with the full image."
        " lines:0.25 keeps a quarter of the lines, poisson:4x:7 a quarter of the samples with seed 7;"
        " `mri-qpan mask` knows the kinds. Or a mask's file (.npy, .mat, .cfl, .png), as it writes them.",
    ),
]
Maps = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Coil sensitivity maps to use instead of estimated ones: .npy, complex, (coil, y, x)"
        " or (coil, z, y, x), z counting the slices of 2-D ones, or (set, coil, z, y, x), or BART's .cfl.",
    ),
]
Dims = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,NAME...",
        help="Axes of a .npy or .mat file in their order, such as slice,coil,y,x; x is the readout."
        " Of: repetition, contrast, phase, set, slice, average, coil, z, y, x. A variable of a .mat file may"
        " stand before them: data:coil,y,x. Along a trajectory: sample and readout for x and y, then"
        " @VARIABLE:MATRIX (or @FILE.npy:MATRIX) of kx + i ky, in cycles a pixel or over the field of view:"
        " data:sample,readout,coil@k:256.",
    ),
]
Coils = Annotated[
    str,
    typer.Option(
        metavar="auto|all|N",
        help="Compress the channels to N virtual ones: faster with large coil arrays, at some loss."
        " Geometrically, with a mixture for each place along the readout, where readouts are complete."
        " auto: of 16 channels and more, as many as hold 99.5 % of the power above the noise, 8 at least.",
    ),
]
HardDc = Annotated[
    bool,
    typer.Option(
        "--hard-dc",
        help="Put the acquired samples, noise included, back into every coil's k-space. Refused along a"
        " trajectory.",
    ),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Refuse measurements unlike those that the model was trained on.")
]
Uncertainty = Annotated[
    int,
    typer.Option(
        min=0,
        metavar="N",
        help="Write maps of noise too, from N reconstructions with the measurement's noise added once"
        " more: the standard deviation of every pixel, the SNR (SNR-like where the method is not linear)"
        " and, for cg-sense, the g-factor. 20 or more tell something.",
    ),
]
PartialFourier = Annotated[
    str,
    typer.Option(
        metavar="auto|pocs|none",
        help="Where one side of k-space was not acquired to its end (asymmetric echo, partial Fourier):"
        " fill that edge by POCS, or leave it as the method made it. auto fills it after the classical"
        " methods; networks do better without.",
    ),
]
Phase = Annotated[
    bool,
    typer.Option(
        "--phase",
        help="Write the phase too, in radians, as a series of its own (ismrmrd, nifti, png, dicom). With"
        " several coils it is relative to the strongest virtual one.",
    ),
]
Memory = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="MIB",
        help="Memory for the reconstruction of an image: 3-D ISMRMRD data that need more are worked in"
        " parts along the readout. Left out: half of this machine's, which the workers of batch share.",
    ),
]
Report = Annotated[
    bool, typer.Option("--report", help="Write a page (.html) to look at and to judge every image by.")
]
Formats = Annotated[
    str,
    typer.Option(
        "--format",
        "-f",
        metavar="NAME[,NAME...]",
        help="What to write: ismrmrd, nifti, png (a contact sheet), animation (a GIF of phases or"
        " repetitions), dicom, fastmri; complex-valued, cfl and npy.",
    ),
]
Device = Annotated[
    str, typer.Option(metavar="auto|cpu|cuda", help="Where to compute; auto takes a GPU if there is one.")
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="Files at once. Left out: one a GPU, else one a core where memory allows."
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        metavar="tcp://HOST:PORT",
        help="A Dask scheduler that runs already, of dask-jobqueue or Kubernetes for one: its workers do the"
        " work, in folders of the same names. Left out: workers on this machine.",
    ),
]
MetricsPort = Annotated[
    int | None,
    typer.Option(
        min=0, max=65535, metavar="PORT", help="Answer Prometheus (GET /metrics) on this port; 0: a free one."
    ),
]
MetricsHost = Annotated[
    str, typer.Option(metavar="ADDRESS", help="Address that --metrics-port listens on; 0.0.0.0 is every one.")
]
LogFormat = Annotated[
    str,
    typer.Option(
        "--log-format", metavar="text|json", help="What is said on stderr: for people, or a JSON a line."
    ),
]


def recipe(
    *,
    method: str | None,
    undersample: str | None,
    maps: Path | None,
    formats: str,
    device: str,
    coils: str,
    dims: str | None,
    hard_dc: bool,
    partial_fourier: str,
    strict: bool,
    phase: bool,
    memory: int | None,
    report: bool,
    uncertainty: int,
) -> Recipe:
    """Return what the shared options ask for."""
    from mri_qpan import models
    from mri_qpan.recon.compression import parse_number
    from mri_qpan.recon.recipe import Recipe

    return Recipe(
        method=models.DEFAULT if method is None else method,
        undersample=undersample,
        maps=maps,
        formats=tuple(name.strip() for name in formats.split(",")),
        device=device,
        compress=parse_number(coils),
        dims=dims,
        hard_dc=hard_dc,
        partial_fourier=partial_fourier,
        strict=strict,
        phase=phase,
        memory=None if memory is None else memory << 20,
        report=report,
        replicas=uncertainty,
    )
