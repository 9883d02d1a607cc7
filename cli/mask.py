"""`mri-qpan mask`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mri_qpan.errors import InputError, OptionError

if TYPE_CHECKING:
    from mri_qpan.sampling_masks.geometry import Mask


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("mask")(mask)


def mask(
    source: Annotated[
        str,
        typer.Argument(
            metavar="KIND:RATIO[:SEED] | FILE",
            help="What to make, such as lines:25%, poisson:5x:7 or radial:0.2 (kinds: random2d, lines,"
            " poisson, radial, equispaced, partial, and those of installed plugins); or a mask file to"
            " describe (.npy, .mat, .cfl, .png).",
        ),
    ],
    shape: Annotated[
        str | None, typer.Option(metavar="YxX", help="Size of the mask to make: 256x256, or ZxYxX.")
    ] = None,
    calib: Annotated[
        int | None, typer.Option(help="Lines, or side of a square, complete at the centre. Default: by kind.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the mask: .npy, .mat, .cfl or .png.")
    ] = None,
) -> None:
    """Make a sampling mask, or describe or convert one."""
    from mri_qpan.sampling_masks import SUFFIXES, MaskError, load_mask, save_mask

    if not source.strip():
        raise OptionError("no mask: give one to make, such as lines:0.33, or a file")
    try:
        if Path(source).suffix.lower() in SUFFIXES or Path(source).exists():
            if shape is not None or calib is not None:
                raise OptionError(f"{source} is a file: --shape and --calib are for masks to make")
            try:
                kind, made = Path(source).name, load_mask(source)
            except MaskError as error:
                raise InputError(str(error)) from None
        else:
            kind, made = _make(source, shape, calib)
        if output is not None:
            save_mask(output, made)
        described = _describe(kind, made)
    except MaskError as error:
        raise OptionError(str(error)) from None
    except MemoryError:
        raise InputError(f"{source}: no memory for a mask of that size") from None
    typer.echo(described)
    if output is not None:
        typer.echo(f"written to {output}")


def _make(spec: str, shape: str | None, calib: int | None) -> tuple[str, Mask]:
    from mri_qpan.sampling_masks import make_mask, parse_spec

    kind, ratio, seed = parse_spec(spec)
    if shape is None:
        raise OptionError(f"how large? Say so: mri-qpan mask {spec} --shape 256x256")
    try:
        sizes = tuple(int(size) for size in shape.lower().split("x"))
    except ValueError:
        raise OptionError(f"--shape is YxX or ZxYxX, such as 256x256, not {shape!r}") from None
    return f"{kind}, seed {seed}", make_mask(kind, sizes, ratio, calib=calib, seed=seed)


def _describe(kind: str, made: Mask) -> str:
    from mri_qpan.sampling_masks import mask_hash, ratio_of

    ratio = ratio_of(made)
    text = (
        f"{kind}: {'x'.join(str(n) for n in made.shape)}, {ratio:.2%} of the samples"
        f" ({1 / ratio:.2f}x), hash {mask_hash(made)}"
    )
    if not made[tuple(n // 2 for n in made.shape)]:
        text += "\nnote: the zero frequency, at the centre, is not acquired; is it at a corner of this array?"
    return text
