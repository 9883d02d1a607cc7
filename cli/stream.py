"""`mri-qpan stream`: MRD 2 through pipes."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from mri_qpan.cli import options
from mri_qpan.errors import InputError, ReconError

EPILOG = """
Examples:

  mri-qpan stream < raw.mrd > images.mrd

  python -m mrd.tools.phantom | mri-qpan stream | python -m mrd.tools.export_png_images
"""


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("stream", epilog=EPILOG)(stream)


def stream(
    method: options.Method = None,
    coils: options.Coils = "auto",
    hard_dc: options.HardDc = False,
    memory: Annotated[
        float,
        typer.Option(
            min=0.01, max=1e6, metavar="GIB", help="Samples that may wait until an image is complete."
        ),
    ] = 4.0,
    device: options.Device = "auto",
) -> None:
    """Reconstruct an MRD 2 stream (mrd-python) from standard input to standard output.

    An image leaves as soon as its last line is there; images in the stream go through as they are.
    """
    from mri_qpan import models
    from mri_qpan.methods import find_device, get_method
    from mri_qpan.recon.compression import parse_number
    from mri_qpan.recon.job import Job
    from mri_qpan.recon.serving.mrd2 import reconstruct_stream

    if sys.stdin.isatty() or sys.stdout.isatty():
        raise InputError(
            "an MRD 2 stream comes from, and goes to, a pipe or file: mri-qpan stream < IN > OUT"
        )
    place = find_device(device)
    chosen = get_method(models.DEFAULT if method is None else method, place)
    job = Job(chosen, place, compress=parse_number(coils), hard_dc=hard_dc)
    images, failures, passed = reconstruct_stream(
        sys.stdin.buffer,
        sys.stdout.buffer,
        job,
        round(memory * 2**30),
        lambda words: typer.echo(f"mri-qpan: {words}", err=True),
    )
    further = f", {passed} passed on" if passed else ""
    typer.echo(f"mri-qpan: {images} images, {failures} failures{further}", err=True)
    if failures:
        raise ReconError(f"{failures} of {images + failures} images failed")
    if not images + passed:
        raise InputError("the stream held no image")
