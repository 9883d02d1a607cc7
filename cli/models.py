"""`mri-qpan models`."""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

SHOW, FETCH = "show", "fetch"


class _Verbs(TyperGroup):
    """`models NAME` is `models show NAME`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the verb in where a model's name stands."""
        if args and not args[0].startswith("-") and args[0] not in (SHOW, FETCH):
            args = [SHOW, *args]
        return super().parse_args(ctx, args)


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    verbs = typer.Typer(cls=_Verbs)
    verbs.callback(invoke_without_command=True)(models)
    verbs.command(SHOW)(show)
    verbs.command(FETCH)(fetch)
    app.add_typer(verbs, name="models")


def models(context: typer.Context) -> None:
    """List the models that ship or were fetched; `models NAME` prints one's card."""
    if context.invoked_subcommand is not None:
        return
    from rich.console import Console
    from rich.table import Column, Table

    from mri_qpan.errors import ModelError
    from mri_qpan.models import DEFAULT, list_models, model_path, store

    heads = ("model", "images", "weights", "bytes", "PSNR (dB)", "steps")
    table = Table(
        *[Column(head, no_wrap=True) for head in heads], caption="PSNR: each model's own validation"
    )
    for name in list_models():
        path = model_path(name)
        try:
            header = store.read_header(path)
        except ModelError:  # the others are listed all the same
            table.add_row(name, "damaged", "", f"{path.stat().st_size:,}", "", "")
            continue
        bits = header["config"].get("bits")
        card = header["card"]
        table.add_row(
            f"{name} (default)" if name == DEFAULT else name,
            "real" if header["config"].get("channels") == 1 else "complex",
            "float32" if bits is None else f"{bits} bit",
            f"{path.stat().st_size:,}",
            f"{card['figures'].get('validation', {}).get('psnr', float('nan')):.2f}",
            f"{_steps(card['training']):,}" if "steps" in card["training"] else "",
        )
    Console().print(table)


def _steps(training: dict[str, Any]) -> int:
    """Return the steps of all trainings on the way to a model."""
    total: int = training["steps"] + (training.get("steps_before") or 0)
    return total


def show(
    name: Annotated[str, typer.Argument(help="A model of the list, or a .safetensors file.")],
) -> None:
    """Print a model's card (Markdown)."""
    from mri_qpan.models import model_path
    from mri_qpan.models.card import describe

    typer.echo(describe(model_path(name)), nl=False)


def fetch(
    source: Annotated[str, typer.Argument(help="Path or address (https, http) of a .safetensors file.")],
    sha256: Annotated[str, typer.Option(help="SHA-256 that the file must have.")],
) -> None:
    """Fetch a model that does not ship, so that it is known by its name from then on."""
    from mri_qpan.models.fetch import fetch as get

    path = get(source, sha256)
    typer.echo(f"{path.stem}: {path}")
