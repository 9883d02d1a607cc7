"""`mri-qpan recon`."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mri_qpan.errors import InputError, MriQpanError, ReconError

if TYPE_CHECKING:
    from mri_qpan.recon.job import Job

PART_FAILED = 4
TERMINATED = 128 + signal.SIGTERM
METRIC_HEADINGS = {"psnr": "PSNR / dB", "ssim": "SSIM", "nmse": "NMSE", "hfen": "HFEN"}

EPILOG = """
Examples:

  mri-qpan recon scan.h5

  mri-qpan recon scan.h5 --method wavelet --output images

  mri-qpan recon scan.h5 --format dicom,png

  mri-qpan recon full.h5 --undersample lines:0.25 --output study

Exit codes: 0 all done, 1 a reconstruction failed, 2 wrong usage, 3 bad input, 4 some of several files failed.
"""


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("recon", epilog=EPILOG)(recon)


def recon(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="Raw k-space: ISMRMRD or fastMRI files (.h5), Siemens' .dat, BART's .cfl, or .npy and .mat"
            " with --dims.",
            show_default=False,
        ),
    ],
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            "-m",
            metavar="NAME",
            help="A shipped model (see `mri-qpan models`), a .safetensors file, a classical method"
            " (zero-filled, cg-sense, wavelet, tv, paisa), or FILE.py:FUNCTION. Left out: the default model.",
        ),
    ] = None,
    undersample: Annotated[
        str | None,
        typer.Option(
            metavar="KIND:RATIO[:SEED]",
            help="For a fully sampled file: leave samples out, reconstruct, and compare with the full image."
            " lines:0.25 keeps a quarter of the lines, poisson:4x:7 a quarter of the samples with seed 7;"
            " `mri-qpan mask` knows the kinds.",
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the images go; made if missing.")
    ] = Path(),
    maps: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Coil sensitivity maps to use instead of estimated ones: .npy, complex, (coil, y, x)"
            " or (coil, z, y, x), or BART's .cfl.",
        ),
    ] = None,
    dims: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME...",
            help="Axes of a .npy or .mat file in their order, such as slice,coil,y,x; x is the readout."
            " Of: repetition, contrast, phase, set, slice, coil, z, y, x.",
        ),
    ] = None,
    coils: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Compress the channels to N virtual ones: faster with large coil arrays, at some loss."
            " Geometrically, with a mixture for each place along the readout, where readouts are complete.",
        ),
    ] = None,
    hard_dc: Annotated[
        bool,
        typer.Option(
            "--hard-dc", help="Put the acquired samples, noise included, back into every coil's k-space."
        ),
    ] = False,
    partial_fourier: Annotated[
        str,
        typer.Option(
            metavar="auto|pocs|none",
            help="Where one side of k-space was not acquired to its end (asymmetric echo, partial Fourier):"
            " fill that edge by POCS, or leave it as the method made it. auto fills it after the classical"
            " methods; networks do better without.",
        ),
    ] = "auto",
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Refuse measurements unlike those that the model was trained on."),
    ] = False,
    uncertainty: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Write maps of noise too, from N reconstructions with the measurement's noise added once"
            " more: the standard deviation of every pixel, the SNR (SNR-like where the method is not linear)"
            " and, for cg-sense, the g-factor. 20 or more tell something.",
        ),
    ] = 0,
    phase: Annotated[
        bool,
        typer.Option(
            "--phase",
            help="Write the phase too, in radians, as a series of its own (ismrmrd, nifti, png, dicom). With"
            " several coils it is relative to the strongest virtual one.",
        ),
    ] = False,
    memory: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="MIB",
            help="Memory for the reconstruction of an image: 3-D ISMRMRD data that need more are worked in"
            " parts along the readout. Left out: half of this machine's.",
        ),
    ] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Write a page (.html) to look at and to judge every image by.")
    ] = False,
    formats: Annotated[
        str,
        typer.Option(
            "--format",
            "-f",
            metavar="NAME[,NAME...]",
            help="What to write: ismrmrd, nifti, png (a contact sheet), animation (a GIF of phases or"
            " repetitions), dicom, fastmri; complex-valued, cfl and npy.",
        ),
    ] = "ismrmrd,nifti,png",
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda", help="Where to compute; auto takes a GPU if there is one.")
    ] = "auto",
) -> None:
    """Reconstruct images from raw k-space.

    Writes, for every FILE, into the output folder and under FILE's name with the method's: the images in
    every --format, and a report of what was done (.json).
    """
    from mri_qpan.recon.partial_fourier import check_mode

    _check_names(files)
    if uncertainty == 1:
        raise InputError("--uncertainty 1: a standard deviation needs at least 2 reconstructions")
    job = replace(
        _job(method, undersample, maps, formats, device),
        compress=coils,
        dims=dims,
        hard_dc=hard_dc,
        partial_fourier=check_mode(partial_fourier),
        strict=strict,
        phase=phase,
        memory=None if memory is None else memory << 20,
        report=report,
        replicas=uncertainty,
    )
    folder = _folder(output)
    failures: list[MriQpanError] = []
    with _stop_on_sigterm() as stop:
        for number, path in enumerate(files):
            if stop.is_set():
                typer.echo(
                    f"mri-qpan: stopped before {path}; files not done: {len(files) - number}", err=True
                )
                raise typer.Exit(TERMINATED)
            failure = _one_file(path, folder, job, stop)
            if failure is not None:
                typer.echo(f"mri-qpan: {failure}", err=True)
                failures.append(failure)
    if failures and stop.is_set():
        raise typer.Exit(TERMINATED)
    if failures:
        raise typer.Exit(_exit_code(failures, len(files)))


def _one_file(path: Path, folder: Path, job: Job, stop: Event) -> MriQpanError | None:
    """Reconstruct a file and say so; whatever is wrong with it must not stop the others."""
    try:
        record = _with_progress(path, folder, job, stop)
    except MriQpanError as error:
        return type(error)(str(error))  # without its traceback, which would keep the whole file in memory
    except Exception as error:
        return ReconError(f"{path}: {type(error).__name__}: {error}")
    _report(path, folder, record)
    return None


def _exit_code(failures: list[MriQpanError], files: int) -> int:
    if len(failures) < files:
        return PART_FAILED
    codes = {failure.exit_code for failure in failures}
    return codes.pop() if len(codes) == 1 else ReconError.exit_code


def _check_names(files: list[Path]) -> None:
    seen: dict[str, Path] = {}
    for path in files:
        other = seen.setdefault(path.stem, path)
        if other is not path:
            raise InputError(f"{other} and {path} would write outputs of one name: reconstruct them apart")


def _job(
    method: str | None,
    undersample: str | None,
    maps: Path | None,
    formats: str,
    device: str,
) -> Job:
    from mri_qpan import models
    from mri_qpan.methods import find_device, get_method
    from mri_qpan.recon.job import Job, load_maps
    from mri_qpan.recon.study import Undersampling
    from mri_qpan.recon.writers import find_formats

    place = find_device(device)
    wanted = find_formats([name.strip() for name in formats.split(",")])
    return Job(
        method=get_method(models.DEFAULT if method is None else method, place),
        device=place,
        undersampling=None if undersample is None else Undersampling.parse(undersample),
        mps=None if maps is None else load_maps(maps),
        formats=wanted,
    )


def _folder(output: Path) -> Path:
    from mri_qpan.recon.files import output_folder

    return output_folder(output)


@contextmanager
def _stop_on_sigterm() -> Iterator[Event]:
    """Turn SIGTERM into a word that is heeded between images."""
    stop = Event()

    def note(signum: int, frame: FrameType | None) -> None:
        stop.set()

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)


def _with_progress(path: Path, folder: Path, job: Job, stop: Event) -> dict[str, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from mri_qpan.recon.job import reconstruct_file

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("images"),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(path.name, total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        return reconstruct_file(path, folder, job, stop=stop, progress=show)


def _report(path: Path, folder: Path, record: dict[str, Any]) -> None:
    """Print what was made of a file."""
    images, seconds = record["images"], record["seconds"]
    matrices = sorted({" x ".join(map(str, image["matrix_zyx"])) for image in images})
    number = "1 image" if len(images) == 1 else f"{len(images)} images"
    method = f"{record['method']} on {record['device']}"
    typer.echo(f"{path}: {number} of {', '.join(matrices)} (z, y, x) by {method}")
    hashes = record["mask_hash"]
    mask = f"mask {hashes}" if isinstance(hashes, str) else f"{len(hashes)} masks"
    typer.echo(f"  {record['mask_ratio']:.1%} of k-space ({mask}), |Ax - y|/|y| {record['residual']:.1%}")
    typer.echo("  seconds: " + ", ".join(f"{name} {value:.2f}" for name, value in seconds.items()))
    for warning in record["warnings"]:
        typer.echo(f"  warning: {warning}")
    for note in record["notes"]:
        typer.echo(f"  note: {note}")
    for name in record["outputs"]:
        typer.echo(f"  wrote {folder / name}")
    if "metrics" in record:
        _print_metrics(record["metrics"], len(images))


def _print_metrics(metrics: dict[str, dict[str, float | None]], images: int) -> None:
    from rich.console import Console
    from rich.table import Table

    mean = f", mean of {images}" if images > 1 else ""
    table = Table(title=f"Against the fully sampled image{mean}")
    table.add_column("")
    for heading in METRIC_HEADINGS.values():
        table.add_column(heading, justify="right")
    for method, figures in metrics.items():
        table.add_row(method, *(_number(name, figures[name]) for name in METRIC_HEADINGS))
    Console(highlight=False).print(table)


def _number(name: str, value: float | None) -> str:
    if value is None:
        return "inf"
    return f"{value:.2f}" if name == "psnr" else f"{value:.4f}"
