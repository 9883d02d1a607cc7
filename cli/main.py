"""The `mri-qpan` command: its verbs, and how errors reach a person."""

import sys
from typing import Annotated, Any

import typer

from mri_qpan._version import __version__
from mri_qpan.cli import (
    batch,
    benchmark,
    demo,
    export,
    info,
    mask,
    models,
    openrecon,
    pics,
    recon,
    send,
    serve,
    stream,
    train,
    watch,
)
from mri_qpan.errors import MriQpanError
from mri_qpan.recon.memory import keep_memory

INTERRUPTED = 130

UsageError: Any = typer.BadParameter.__base__
"""Whatever Typer raises at a wrong command line: Click's class, or that of the Click it carries within."""

app = typer.Typer(
    name="mri-qpan",
    help="Undersampled MR k-space to images with a quantized proximal averaging network (Q-PAN+).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"mri-qpan {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Undersampled MR k-space to images with a quantized proximal averaging network (Q-PAN+)."""
    keep_memory()


for module in (
    recon, batch, watch, pics, serve, send, stream, openrecon, demo, info, mask, models, export, train,
    benchmark,
):  # fmt: skip
    module.register(app)


def run() -> None:
    """Run the command line: errors of ours end in one line on stderr and their exit code."""
    try:
        code = app(standalone_mode=False)
    except MriQpanError as error:
        typer.echo(f"mri-qpan: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:  # a full disk, a folder in a file's place: nobody's fault in here
        where = f"{error.filename}: " if error.filename else ""
        typer.echo(f"mri-qpan: {where}{error.strerror or error}", err=True)
        sys.exit(1)
    except UsageError as error:
        error.show()
        sys.exit(error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    if code == INTERRUPTED:  # which newer Typers return for Ctrl-C themselves
        typer.echo("mri-qpan: interrupted", err=True)
    sys.exit(code if isinstance(code, int) else 0)
