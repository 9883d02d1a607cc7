"""`mri-qpan watch`: a hot folder."""

from __future__ import annotations

import logging
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from mri_qpan.cli import options
from mri_qpan.cli.logs import start_logging
from mri_qpan.cli.signals import stop_on_sigterm
from mri_qpan.errors import InputError

EPILOG = """
Examples:

  mri-qpan watch incoming -o images

  mri-qpan watch incoming -o images --push PACS@10.0.0.5:104 --log-format json
"""


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("watch", epilog=EPILOG)(watch)


def watch(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Where raw files arrive, in subfolders too.")
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Where the images go, a folder an input; made if missing.",
            show_default=False,
        ),
    ],
    push: Annotated[
        str | None,
        typer.Option(
            metavar="AET@HOST:PORT",
            help="Send the images to a DICOM archive too (C-STORE); what it refuses is sent again later.",
        ),
    ] = None,
    settle: Annotated[
        float,
        typer.Option(min=0, metavar="SECONDS", help="How long a file must not change before it is taken."),
    ] = 5.0,
    method: options.Method = None,
    undersample: options.Undersample = None,
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
    workers: options.Workers = None,
    scheduler: options.Scheduler = None,
    log_format: options.LogFormat = "text",
    metrics_port: options.MetricsPort = None,
    metrics_host: options.MetricsHost = "127.0.0.1",
) -> None:
    """Reconstruct every raw file that arrives in a folder, as `batch` does.

    A file is taken when it is complete: it has not changed for a while and can be opened. One that changes
    later is done again. Ctrl-C ends at once, SIGTERM when what is in hand is done; the next start goes on.
    """
    from mri_qpan.recon.batch.crew import Crew
    from mri_qpan.recon.batch.outbox import Outbox
    from mri_qpan.recon.metrics import FilesMeter, metered
    from mri_qpan.recon.push import Archive
    from mri_qpan.recon.watch import Arrivals, Sender
    from mri_qpan.recon.watch import watch as watch_folder

    start_logging(log_format)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    archive = None if push is None else Archive.parse(push)
    if archive is not None and "dicom" not in formats.split(","):
        formats += ",dicom"
    recipe = options.recipe(
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
    ).resolved()
    command = shlex.join(["mri-qpan", *sys.argv[1:]])
    with (
        stop_on_sigterm() as stop,
        Outbox(output, recipe, command) as outbox,
        metered(FilesMeter, metrics_host, metrics_port) as meter,
    ):
        sender = None if archive is None else Sender(outbox, folder.absolute(), archive)
        arrivals = Arrivals(folder.absolute(), outbox.out, dims, settle)
        crew = partial(Crew, workers, scheduler, device)
        done, failed = watch_folder(arrivals, outbox, crew, sender, stop=stop, meter=meter)
    fields = {"done": done, "failed": failed}
    extra = {"event": "summary", "fields": fields}
    logging.getLogger(__name__).info("stopped: %d done, %d failed", done, failed, extra=extra)
