"""`mri-qpan demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mri_qpan.methods import Method
    from mri_qpan.recon.demo import Demo

OUTPUT = Path("demo-out")


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("demo")(demo)


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the files go; made if missing.")
    ] = OUTPUT,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            "-m",
            metavar="NAME",
            help="A method to compare, as `mri-qpan recon` has it; repeat for several."
            " Left out: zero-filled, wavelet and the default model.",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="auto|cpu|cuda", help="Where to compute; auto takes a GPU if there is one.")
    ] = "auto",
) -> None:
    """Scan a head phantom, reconstruct it from a quarter of its k-space, and compare.

    The phantom's k-space is analytic, measured by 8 coils with noise. It is written as an ISMRMRD raw file
    with noise scan and readout oversampling, and goes the way of any such file. Written are that file
    (phantom.h5), a picture (demo.png) and all figures (demo.json).
    """
    from rich.console import Console

    from mri_qpan.methods import find_device
    from mri_qpan.recon import demo as demonstration
    from mri_qpan.recon.files import output_folder

    place = find_device(device)
    methods = [_method(name, str(place)) for name in dict.fromkeys(method or _default_methods())]
    folder = output_folder(output)
    with Console(stderr=True).status("") as status:
        made = demonstration.run(folder, methods, device=place, progress=lambda doing: status.update(doing))
    _report(made)


def _default_methods() -> list[str]:
    """Return the methods of the demo; raises `ModelError` where the package has no model."""
    from mri_qpan.errors import ModelError
    from mri_qpan.models import DEFAULT, list_models

    if DEFAULT not in list_models():
        raise ModelError(
            f"this installation has no model {DEFAULT!r}: install a release, or name methods,"
            " as in `mri-qpan demo -m zero-filled -m wavelet`"
        )
    return ["zero-filled", "wavelet", DEFAULT]


def _method(name: str, device: str) -> Method:
    from mri_qpan.methods import get_method
    from mri_qpan.recon.demo import WAVELET

    return WAVELET if name == WAVELET.name else get_method(name, device)


def _report(made: Demo) -> None:
    from rich.console import Console
    from rich.table import Table

    count = len(made.slices)
    table = Table(title=f"Against the fully sampled, noise-free image, mean of {count} slices")
    table.add_column("")
    for heading in ("PSNR / dB", "SSIM", "seconds a slice"):
        table.add_column(heading, justify="right")
    for name in made.methods:
        psnr, ssim, seconds = made.mean(name)
        table.add_row(name, f"{psnr:.2f}", f"{ssim:.4f}", f"{seconds:.2f}")
    Console(highlight=False).print(table)
    if "wavelet" in made.methods:
        typer.echo("The wavelet's regularisation is the one of the highest PSNR on this very scan.")
    for path in made.files:
        typer.echo(f"wrote {path}")
