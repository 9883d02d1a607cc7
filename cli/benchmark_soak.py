"""`mri-qpan benchmark soak`: an MRD server through many sessions, good and damaged."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer


def soak(
    file: Annotated[Path, typer.Argument(help="ISMRMRD raw data of one image.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the figures (JSON).")],
    sessions: Annotated[int, typer.Option(min=1, help="Sessions, one after the other.")] = 500,
    damaged: Annotated[
        float, typer.Option(min=0, max=1, help="Share of sessions whose bytes are damaged at random.")
    ] = 0.5,
    slices: Annotated[int, typer.Option(min=1, max=8, help="Slices that a good session sends.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the damage.")] = 0,
    method: Annotated[str | None, typer.Option("--method", "-m", help="As in `mri-qpan recon`.")] = None,
) -> None:
    """Hold session after session with `mri-qpan serve`; tell wrong images and what it holds on to."""
    from mri_qpan import models
    from mri_qpan.benchmark import machine
    from mri_qpan.recon import soak as soaking
    from mri_qpan.recon.files import check_output_folder, output_folder, staged

    check_output_folder(output)
    found = soaking.soak(
        file,
        models.DEFAULT if method is None else method,
        sessions,
        damaged=damaged,
        slices=slices,
        seed=seed,
        progress=lambda held: typer.echo(
            f"{held.sessions} sessions: {held.memory_mib:.0f} MiB, {held.threads} threads, {held.files} open",
            err=True,
        ),
    )
    with staged(output_folder(output)) as stage:
        where = {"command": shlex.join(["mri-qpan", *sys.argv[1:]]), "machine": machine.describe(0)}
        text = json.dumps(where | soaking.to_json(found), indent=1) + "\n"
        (stage / "benchmark-soak.json").write_text(text, encoding="utf-8")
    typer.echo(
        f"{found.good} good sessions, {found.damaged} damaged ones in {found.seconds:.0f} s: {found.wrong} "
        f"images wrong; memory {found.held[-1].memory_mib:.0f} MiB, {found.growth_mib:+.1f} MiB over the "
        f"settled sessions, {found.held[-1].threads} threads, {found.held[-1].files} open files"
    )
