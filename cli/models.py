"""`mri-qpan models`."""

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("models")(models)


def models(
    name: Annotated[
        str | None, typer.Argument(help="A shipped model or a .safetensors file: print its card.")
    ] = None,
) -> None:
    """List the models that ship with the package, or print one's card (Markdown)."""
    from rich.console import Console
    from rich.table import Table

    from mri_qpan.models import DEFAULT, list_models, model_path, store
    from mri_qpan.models.card import describe

    if name is not None:
        typer.echo(describe(model_path(name)), nl=False)
        return
    table = Table("model", "weights", "bytes", "validation PSNR (dB)", "steps", "")
    for shipped in list_models():
        path = model_path(shipped)
        header = store.read_header(path)
        bits = header["config"].get("bits")
        card = header["card"]
        table.add_row(
            shipped,
            "float32" if bits is None else f"{bits} bit",
            f"{path.stat().st_size:,}",
            f"{card['figures'].get('validation', {}).get('psnr', float('nan')):.2f}",
            str(card["training"].get("steps", "")),
            "default" if shipped == DEFAULT else "",
        )
    Console().print(table)
