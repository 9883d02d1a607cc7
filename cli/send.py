"""`mri-qpan send`: a raw file to an MRD server, images back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mri_qpan.errors import InputError, OptionError

PORT = 9002


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("send")(send)


def send(
    file: Annotated[Path, typer.Argument(help="ISMRMRD raw data.")],
    to: Annotated[
        str, typer.Option(metavar="HOST[:PORT]", help="The MRD server; [ADDRESS]:PORT in IPv6.")
    ] = f"127.0.0.1:{PORT}",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="ISMRMRD file for the images; FILE_images.h5 if not given."
        ),
    ] = None,
    config: Annotated[str, typer.Option(metavar="NAME", help="Reconstruction to ask for.")] = "default",
    patience: Annotated[
        float, typer.Option(min=1, max=1e6, metavar="SECONDS", help="How long the server may be silent.")
    ] = 120.0,
) -> None:
    """Send a raw file to an MRD server (`mri-qpan serve`, or another) and save the images that it returns.

    Exits non-zero if the server cannot be reached, reports an error, leaves early or returns no image (but
    for the configs null and savedataonly); the images that came are saved all the same. A series is a group,
    image_1; its images of another size or data type are in image_1_2, image_1_3, ….
    """
    from mri_qpan.recon.serving import client

    address = _address(to)
    target = file.with_name(f"{file.stem}_images.h5") if output is None else output
    if not target.parent.is_dir():
        raise InputError(f"{target.parent}: no such folder")

    def tell(words: str) -> None:
        typer.echo(f"  server: {words}")

    count = client.send(file, address, config, target, patience=patience, tell=tell)
    where = f" in {target}" if count else " came, none was asked for"
    typer.echo(f"{file}: {count} image{'' if count == 1 else 's'}{where}")


def _address(to: str) -> tuple[str, int]:
    """Return host and port of HOST[:PORT]; an IPv6 address with a port stands in brackets."""
    bracketed, bracket, rest = to[1:].partition("]") if to.startswith("[") else ("", "", "")
    if bracket:
        host, colon, port = bracketed, rest[:1], rest[1:]
        good = rest == "" or colon == ":"
    else:
        host, colon, port = to.partition(":") if to.count(":") == 1 else (to, "", "")
        good = "]" not in to
    port = port if colon else str(PORT)
    if not (good and host and port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise OptionError(f"--to {to}: it is HOST, HOST:PORT or [ADDRESS]:PORT, the port from 1 to 65535")
    return host, int(port)
