"""`mri-qpan batch`: many files, resumable, on many workers."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mri_qpan.cli import options
from mri_qpan.cli.logs import start_logging
from mri_qpan.cli.signals import TERMINATED, stop_on_sigterm
from mri_qpan.errors import PART_FAILED, InputError

if TYPE_CHECKING:
    from rich.console import Console

    from mri_qpan.recon.batch.run import Summary


EPILOG = """
Examples:

  mri-qpan batch scans/ -o images

  mri-qpan batch list.txt -o images --method wavelet --format dicom

  mri-qpan batch scans/ -o images --scheduler tcp://node1:8786

Run the same command again after whatever end: what is done is kept, the rest is done. A file is done again
when it, the model or an option has changed.

Exit codes: 0 all done, 1 workers or the output folder were lost, 2 wrong usage, 3 bad input, 4 files failed,
143 stopped before all were done.
"""


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("batch", epilog=EPILOG)(batch)


def batch(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT...",
            help="Raw k-space as in `mri-qpan recon`: files; folders, of which all raw files are taken; or"
            " lists (.txt) with a path a line.",
            show_default=False,
        ),
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
    """Reconstruct many files, several at a time, and go on after an interruption.

    Writes what `recon` does into a folder of its own for every input, which appears when it is complete. A
    file that fails is named at the end with its reason; the others go on. SIGTERM finishes what is in hand.
    """
    from rich.console import Console

    from mri_qpan.recon.batch.crew import Crew
    from mri_qpan.recon.batch.inputs import find_inputs
    from mri_qpan.recon.batch.outbox import Outbox
    from mri_qpan.recon.batch.run import run_batch
    from mri_qpan.recon.metrics import FilesMeter, metered

    console = Console(stderr=True)
    start_logging(log_format, console)
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
    sources, troubles = find_inputs(inputs, output, dims)
    if not sources and not troubles:
        raise InputError(f"no raw files in {', '.join(map(str, inputs))}")
    command = shlex.join(["mri-qpan", *sys.argv[1:]])
    crew = partial(Crew, workers, scheduler, device)
    with (
        stop_on_sigterm() as stop,
        Outbox(output, recipe, command) as outbox,
        metered(FilesMeter, metrics_host, metrics_port) as meter,
        _progress(console, log_format) as progress,
    ):
        summary = run_batch(sources, troubles, outbox, crew, stop=stop, progress=progress, meter=meter)
    _report(summary, log_format)
    if summary.left and stop.is_set():
        raise typer.Exit(TERMINATED)
    if summary.failures:
        raise typer.Exit(PART_FAILED)


@contextmanager
def _progress(console: Console, log_format: str) -> Iterator[Callable[[int, int], None]]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("files"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    shown = console.is_terminal and log_format == "text"
    with Progress(*columns, console=console, transient=True, disable=not shown) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _report(summary: Summary, log_format: str) -> None:
    """Print, or log, what a batch came to."""
    counts = {
        "done": len(summary.done),
        "done before": summary.kept,
        "failed": len(summary.failures),
        "not begun": summary.left,
    }
    if log_format == "json":
        fields = {name.replace(" ", "_"): number for name, number in counts.items()}
        extra = {"event": "summary", "fields": fields}
        logging.getLogger(__name__).info(
            ", ".join(f"{number} {name}" for name, number in counts.items()), extra=extra
        )
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from mri_qpan.recon.batch.inputs import text_of

    console = Console(highlight=False)
    table = Table()
    for name in counts:
        table.add_column(name, justify="right")
    table.add_row(*map(str, counts.values()))
    console.print(table)
    if summary.failures:
        failed = Table(title="Failed", title_justify="left")
        failed.add_column("input", overflow="fold")
        failed.add_column("reason", overflow="fold")
        for path, reason in summary.failures:
            where = text_of(path)
            failed.add_row(Text(where), Text(reason.removeprefix(f"{where}: ")))
        console.print(failed)
