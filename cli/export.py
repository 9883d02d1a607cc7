"""`mri-qpan export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mri_qpan.models.store import Model


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("export")(export)


def export(
    model: Annotated[str, typer.Argument(help="A shipped model or a .safetensors file.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FILE", help="What to write: FILE.onnx, FILE.pt2 or FILE.h."),
    ],
) -> None:
    """Write a trained network for other software, in the format of the file's suffix.

    FILE.onnx: the whole reconstruction, k-space, coil maps and mask in, image out, for ONNX Runtime and
    others. FILE.pt2: the same as a torch.export program. FILE.h: the packed K-bit weights with a decoder in
    C99. The first two are run on a phantom and compared with the network before they are handed over.
    """
    from mri_qpan import export as exporting
    from mri_qpan.recon.files import output_folder, staged

    with staged(output_folder(output.parent)) as stage:
        made = stage / output.name
        network = exporting.export(model, made)
        size = made.stat().st_size
        found = "" if made.suffix == ".h" else _checked(made, network)
    typer.echo(f"wrote {output}: {network.name}, {size:,} bytes{found}")


def _checked(path: Path, network: Model) -> str:
    from mri_qpan.export import check, graph

    kind = f", ONNX opset {graph.OPSET}" if path.suffix == ".onnx" else ""
    return f"{kind}, within {check.error(path, network):.1e} of the network"
