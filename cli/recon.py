"""`mri-qpan recon`."""

from __future__ import annotations

from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mri_qpan.cli import options
from mri_qpan.cli.signals import TERMINATED, stop_on_sigterm
from mri_qpan.errors import InputError, MriQpanError, ReconError, exit_code

if TYPE_CHECKING:
    from mri_qpan.recon.job import Job

METRIC_HEADINGS = {"psnr": "PSNR / dB", "ssim": "SSIM", "nmse": "NMSE", "hfen": "HFEN"}

EPILOG = """
Examples:

  mri-qpan recon scan.h5

  mri-qpan recon scan.h5 --method wavelet --output images

  mri-qpan recon scan.h5 --format dicom,png

  mri-qpan recon full.h5 --undersample lines:0.25 --output study

Exit codes: 0 all done, 1 a reconstruction failed, 2 wrong usage, 3 bad input, 4 some of several files failed,
143 stopped by a signal.
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
    method: options.Method = None,
    undersample: options.Undersample = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the images go; made if missing.")
    ] = Path(),
    maps: options.Maps = None,
    dims: options.Dims = None,
    coils: options.Coils = "auto",
    hard_dc: options.HardDc = False,
    partial_fourier: options.PartialFourier = "auto",
    strict: options.Strict = False,
    uncertainty: options.Uncertainty = 0,
    phase: options.Phase = False,
    memory: options.Memory = None,
    report: options.Report = False,
    formats: options.Formats = options.FORMATS,
    device: options.Device = "auto",
) -> None:
    """Reconstruct images from raw k-space.

    Writes, for every FILE, into the output folder and under FILE's name with the method's: the images in
    every --format, and a report of what was done (.json).
    """
    _check_names(files)
    job = options.recipe(
        method=method,
        undersample=undersample,
        maps=maps,
        formats=formats,
        device=device,
        coils=coils,
        dims=dims,
        hard_dc=hard_dc,
        partial_fourier=partial_fourier,
        strict=strict,
        phase=phase,
        memory=memory,
        report=report,
        uncertainty=uncertainty,
    ).job()
    folder = _folder(output)
    failures: list[MriQpanError] = []
    with stop_on_sigterm() as stop:
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
        raise typer.Exit(exit_code(failures, len(files)))


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


def _check_names(files: list[Path]) -> None:
    seen: dict[str, Path] = {}
    for path in files:
        other = seen.setdefault(path.stem, path)
        if other is not path:
            raise InputError(f"{other} and {path} would write outputs of one name: reconstruct them apart")


def _folder(output: Path) -> Path:
    from mri_qpan.recon.files import output_folder

    return output_folder(output)


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
        _print_metrics(record["metrics"], sum("metrics" in image for image in images))


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
