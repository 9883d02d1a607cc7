"""`mri-qpan openrecon-label`: what OpenRecon asks of a container."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

EPILOG = """
Then, with Docker, from the checkout's root:

  docker build -f docs/deploy/Dockerfile --build-arg OPENRECON_LABEL=$(base64 -w0 label.json) -t mri-qpan .
"""


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("openrecon-label", epilog=EPILOG)(openrecon_label)


def openrecon_label(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The JSON to write.")],
    config_dir: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="The site's own configs, as in `mri-qpan serve`.")
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where `serve` listens in it.")] = 9002,
) -> None:
    """Write the label of a container that runs `mri-qpan serve`: version, needs, configs."""
    from mri_qpan import models
    from mri_qpan.cli.serve import config_names
    from mri_qpan.recon.files import output_folder, staged
    from mri_qpan.recon.serving.openrecon import KEY, label

    names = config_names(models.DEFAULT, config_dir)
    text = json.dumps(label(names, port), indent=2) + "\n"
    with staged(output_folder(output.parent)) as stage:
        (stage / output.name).write_text(text, encoding="utf-8")
    typer.echo(f"{output}: base64 of it is the image's label {KEY}")
