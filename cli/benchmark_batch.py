"""`mri-qpan benchmark batch`: throughput of batches against the number of workers."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from mri_qpan.errors import InputError

STEM = "benchmark-batch"


def batch(
    file: Annotated[Path, typer.Argument(help="A raw file, as in `mri-qpan recon`.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the tables (Markdown and JSON).")
    ],
    files: Annotated[int, typer.Option(min=1, help="Files of every run with local workers.")] = 24,
    local: Annotated[str, typer.Option(help="Comma-separated numbers of local workers.")] = "1,2",
    cluster: Annotated[
        str, typer.Option(help="Comma-separated numbers of workers of a feigned cluster; '' for none.")
    ] = "4,16,64,256",
    method: Annotated[str | None, typer.Option("--method", "-m", help="As in `mri-qpan recon`.")] = None,
) -> None:
    """Measure files a second of `batch` with local workers, and of a cluster whose workers only sleep."""
    from mri_qpan import models
    from mri_qpan.benchmark import machine
    from mri_qpan.recon.batch import scale
    from mri_qpan.recon.files import check_output_folder, output_folder, staged
    from mri_qpan.recon.recipe import Recipe

    check_output_folder(output)
    recipe = Recipe(method=models.DEFAULT if method is None else method, device="cpu").resolved()
    rates, seconds = scale.measure(
        file.absolute(),
        recipe,
        files=files,
        local=_numbers("--local", local),
        cluster=_numbers("--cluster", cluster),
        progress=lambda words: typer.echo(words, err=True),
    )
    command = shlex.join(["mri-qpan", *sys.argv[1:]])
    results = scale.to_json(rates, seconds, file, recipe.method, command, machine.describe(0))
    page = scale.to_markdown(results)
    with staged(output_folder(output)) as stage:
        (stage / f"{STEM}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        (stage / f"{STEM}.md").write_text(page, encoding="utf-8")
    typer.echo(page)


def _numbers(option: str, text: str) -> list[int]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not all(word.isdecimal() and 0 < int(word) <= 1024 for word in words):
        raise InputError(f"{option} {text}: numbers from 1 to 1024, separated by commas")
    return [int(word) for word in words]
