"""`mri-qpan train`."""

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("train")(train)


def train(
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="A shipped recipe's name, or a .toml file.")],
    data: Annotated[
        Path,
        typer.Option("--data", help="Folder with one folder a data set, or an image bank (.npz)."),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Folder for checkpoint, logs and model; resumed if it has one."),
    ],
    init: Annotated[
        Path | None, typer.Option("--init", help="Model file to start from (recipes with an init need one).")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option("--minutes", help="End after this much training time.", min=0.01)
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    save_bank: Annotated[
        Path | None, typer.Option("--save-bank", help="Only build the image bank, write it here and stop.")
    ] = None,
) -> None:
    """Train a network, or go on with a training that was stopped.

    Exit codes: 0 trained, 1 a file could not be written, 2 wrong usage, 3 bad input, 143 stopped by a
    signal, its checkpoint written.

    Under torchrun, one process a GPU: torchrun --nproc-per-node 4 -m mri_qpan.cli train …
    """
    import torch
    import torch.distributed as dist
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from mri_qpan.errors import InputError, OptionError
    from mri_qpan.methods import find_device
    from mri_qpan.recon import coils
    from mri_qpan.training import bank as banks
    from mri_qpan.training import loop
    from mri_qpan.training import recipe as recipes

    plan = recipes.load(recipe)
    if not data.exists():
        raise InputError(f"{data}: no such folder or image bank")
    if output.exists() and not output.is_dir():
        raise OptionError(f"{output}: not a folder, which --output takes")
    if save_bank is not None and not save_bank.parent.is_dir():
        raise OptionError(f"{save_bank}: its folder does not exist")

    def tell(line: str) -> None:
        typer.echo(f"mri-qpan: {line}", err=True)

    images = banks.build(data, tell) if data.is_dir() else banks.Bank.load(data)
    if save_bank is not None:
        images.save(save_bank)
        typer.echo(f"{save_bank}: {len(images.images)} images")
        return
    if plan.init is not None and init is None and not (output / "checkpoint.safetensors").exists():
        raise InputError(f"recipe {plan.name} starts from the model of {plan.init}: give it with --init")
    place = find_device(device)
    distributed = dist.is_torchelastic_launched()
    if distributed:
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
        if place.type == "cuda":
            place = torch.device("cuda", dist.get_rank() % torch.cuda.device_count())
            torch.cuda.set_device(place)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    quiet = distributed and dist.get_rank() > 0
    with Progress(*columns, transient=True, disable=quiet) as progress:
        task = progress.add_task(plan.name, total=plan.steps)
        model = loop.train(
            plan,
            images,
            output,
            device=place,
            schedule=loop.Schedule(minutes=minutes),
            init=init,
            calibrate=coils.maps_of_slice,
            report=lambda step, steps, loss: progress.update(task, completed=step),
        )
    if distributed:
        dist.destroy_process_group()
    if not quiet:
        typer.echo(f"model: {model}")
