"""`mri-qpan pics`."""

import shlex
import sys
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mri_qpan.errors import InputError, OptionError

if TYPE_CHECKING:
    from mri_qpan.recon import pics as work

PIPE = Path("-")
IGNORED = "Taken as `bart pics` takes them, without effect (told on stderr, but for -d)"


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("pics")(pics)


def pics(
    kspace: Annotated[
        Path,
        typer.Argument(
            help="k-space, .cfl/.hdr without suffix; - for a pipe, of any one input (`bart CMD -- … - |`)."
        ),
    ],
    sensitivities: Annotated[Path, typer.Argument(help="Coil maps of `bart ecalib`.")],
    output: Annotated[Path, typer.Argument(help="Image to write; - for a pipe.")],
    regularization: Annotated[
        list[str] | None,
        typer.Option(
            "-R", help="Q:MODEL, the network: a shipped name or a .safetensors file. Others: ignored."
        ),
    ] = None,
    pattern: Annotated[Path | None, typer.Option("-p", help="Pattern or weights.")] = None,
    trajectory: Annotated[Path | None, typer.Option("-t", help="k-space trajectory.")] = None,
    rescale: Annotated[
        bool, typer.Option("-S", help="Keep the samples' scale; without it the image is divided as BART's.")
    ] = False,
    scale: Annotated[
        float | None, typer.Option("-w", help="Divide the image by this instead; 0: as BART's.", min=0.0)
    ] = None,
    gpu: Annotated[bool, typer.Option("-g", help="Use the GPU.")] = False,
    iterations: Annotated[int | None, typer.Option("-i", rich_help_panel=IGNORED)] = None,
    strength: Annotated[float | None, typer.Option("-r", rich_help_panel=IGNORED)] = None,
    norm: Annotated[int | None, typer.Option("-l", rich_help_panel=IGNORED)] = None,
    step: Annotated[float | None, typer.Option("-s", rich_help_panel=IGNORED)] = None,
    block: Annotated[int | None, typer.Option("-b", rich_help_panel=IGNORED)] = None,
    rho: Annotated[float | None, typer.Option("-u", rich_help_panel=IGNORED)] = None,
    inner: Annotated[int | None, typer.Option("-C", rich_help_panel=IGNORED)] = None,
    debug: Annotated[int | None, typer.Option("-d", rich_help_panel=IGNORED)] = None,
    start: Annotated[Path | None, typer.Option("-W", rich_help_panel=IGNORED)] = None,
    wavelet: Annotated[str | None, typer.Option("--wavelet", rich_help_panel=IGNORED)] = None,
    no_spinning: Annotated[bool, typer.Option("-n", rich_help_panel=IGNORED)] = False,
    overlapping: Annotated[bool, typer.Option("-N", rich_help_panel=IGNORED)] = False,
    ist: Annotated[bool, typer.Option("-I", rich_help_panel=IGNORED)] = False,
    eigenvalue: Annotated[bool, typer.Option("-e", rich_help_panel=IGNORED)] = False,
    admm: Annotated[bool, typer.Option("-m", rich_help_panel=IGNORED)] = False,
    primal_dual: Annotated[bool, typer.Option("-a", rich_help_panel=IGNORED)] = False,
    shift: Annotated[bool, typer.Option("-K", rich_help_panel=IGNORED)] = False,
    low_memory: Annotated[bool, typer.Option("-U", "--lowmem", rich_help_panel=IGNORED)] = False,
) -> None:
    """Reconstruct BART's arrays in the place of `bart pics`: same arguments, same files.

    Looped dimensions (5 and up) are worked one by one, several sets of maps together. The image is where
    `bart fft -u -i` puts it: `bart pics` 0.8 shifts those of odd sides, and turns the sign of others (62).
    """
    from mri_qpan import bart
    from mri_qpan._version import __version__
    from mri_qpan.methods import find_device, require_complex
    from mri_qpan.models import DEFAULT, load_model
    from mri_qpan.recon import pics as work
    from mri_qpan.recon.files import output_folder, staged

    model = DEFAULT
    unused = [
        flag
        for flag, value in {
            "-i": iterations, "-r": strength, "-l": norm, "-s": step, "-b": block, "-u": rho, "-C": inner,
            "-W": start, "--wavelet": wavelet,
        }.items()
        if value is not None
    ]  # fmt: skip
    flags = {
        "-n": no_spinning, "-N": overlapping, "-I": ist, "-e": eigenvalue, "-m": admm, "-a": primal_dual,
        "-K": shift, "-U": low_memory,
    }  # fmt: skip
    unused += [flag for flag, given in flags.items() if given]
    for term in regularization or []:
        kind, _, name = term.partition(":")
        if kind == "Q" and not _is_number(name):  # BART's own Q is followed by a weight
            model = name or DEFAULT
        else:
            unused.append(f"-R {term}")
    if unused:
        typer.echo(f"mri-qpan pics: {model} has no use for {', '.join(unused)}", err=True)
    piped = output == PIPE
    if output.name in ("", ".."):
        raise OptionError(f"{output}: the output is the name of a file, without suffix")
    if scale is not None and not isfinite(scale):
        raise OptionError(f"-w {scale}: it is a finite number")
    if not piped:
        output_folder(output.parent)
    if [kspace, sensitivities, pattern, trajectory].count(PIPE) > 1:
        raise InputError("only one of the inputs can come from a pipe (-)")
    if gpu and find_device("auto").type == "cpu":
        raise InputError("-g: no GPU found by this PyTorch, leave it out")
    device = find_device("cuda" if gpu else "cpu")
    network = load_model(model, device)
    require_complex(network)
    arrays = work.Arrays(
        _read(kspace),
        _read(sensitivities),
        None if pattern is None else _read(pattern),
        None if trajectory is None else _read(trajectory),
    )
    image = work.reconstruct(arrays, network, device)
    if not image.any():  # as `bart pics` gives it too
        typer.echo("mri-qpan pics: no sample above zero, or none in the pattern: the image is zero", err=True)
    if not rescale:
        image = image / (scale or work.scaling(arrays))
    files = " ".join(f"<{path}" for path in (trajectory, pattern, sensitivities, kspace) if path is not None)
    made_by = [
        "# Command",
        f"mri-qpan pics {shlex.join(sys.argv[2:])} ",
        "# Files",
        f" >{output} {files}",
        "# Creator",
        f"mri-qpan {__version__} {network.name} {network.sha256[:12]}",
    ]
    if piped:
        bart.write_pipe(sys.stdout.buffer, image, made_by)
        return
    with staged(output.parent) as stage:
        bart.write_cfl(stage / output.name, image, made_by)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read(path: Path) -> "work.Complex":
    """Return an array of a file, or of the pipe, with all of BART's dimensions."""
    from mri_qpan import bart
    from mri_qpan.recon import pics as work

    return work.full(bart.read_pipe(sys.stdin.buffer) if path == PIPE else bart.read_cfl(path))
