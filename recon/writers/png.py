"""Contact sheets: all images of a series on one page, and studies against a reference side by side."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from mri_qpan.recon.geometry import voxel_size
from mri_qpan.recon.kspace import Image, ImageSeries, Index
from mri_qpan.recon.study import Study
from mri_qpan.recon.upright import Turn, turns_of, upright
from mri_qpan.recon.writers.window import display_range, window_of

PAGE_WIDTH = 2048
LARGEST_TILE = 512
ERROR_GAIN = 5
FONT_SIZE = 16
LINE_HEIGHT = 20
MARGIN = 8
WHITE, GREY = 255, 170

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Tile:
    """One picture of a sheet: grey values 0 to 1 (y, x), its width over height in mm, and lines below it."""

    pixels: NDArray[np.float32]
    aspect: float
    lines: tuple[str, ...]


def write_png(path: Path, series: ImageSeries) -> None:
    """Write all images of a series as one labelled 8-bit contact sheet in one window.

    Planes are turned as a radiologist looks at them (`upright`), with the field of view's proportions.

    Parameters
    ----------
    path
        The file to make.
    series
        What to show.
    """
    low, high = window_of(series)
    names = varying([image.index for image in series.images])
    turned = map(upright, series.images, turns_of(series.images))
    planes = [(image, z) for image in turned for z in range(image.data.shape[0])]
    columns = math.ceil(math.sqrt(len(planes)))
    labels, remarks = fitting_labels(planes, names, columns)
    tiles = [
        Tile((series.pixels(image)[z] - low) / (high - low), aspect_of(image), (words,))
        for (image, z), words in zip(planes, labels, strict=True)
    ]
    rows = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
    white = [] if series.quantity is None else [f"white: {high:.3g}"]
    _save(path, rows, series, [*white, *remarks])


def write_study_png(path: Path, series: ImageSeries, studies: Sequence[Study]) -> None:
    """Write reference, zero-filled, method and five times the error, a row a slice, with figures.

    Parameters
    ----------
    path
        The file to make.
    series
        The reconstructed images of the studies, for their provenance.
    studies
        What to show; one window for all, the reference's.
    """
    high = display_range([study.reference for study in studies])[1]
    names = varying([study.reference.index for study in studies])
    turns = turns_of([study.reference for study in studies])
    rows = [
        _study_row(study, turn, z, high, names)
        for study, turn in zip(studies, turns, strict=True)
        for z in range(study.reference.data.shape[0])
    ]
    _save(path, rows, series)


def _study_row(study: Study, turn: Turn, z: int, high: float, names: list[str]) -> list[Tile]:
    method = study.method
    turned = [upright(i, turn) for i in (study.reference, study.zero_filled, study.result.image)]
    reference, zero_filled, image = (np.abs(i.data[z]) / high for i in turned)
    aspect = aspect_of(turned[0])
    return [
        Tile(reference, aspect, ("fully sampled", label(study.reference, z, names))),
        Tile(zero_filled, aspect, ("zero-filled", _figures(study.metrics["zero-filled"]))),
        Tile(image, aspect, (method, _figures(study.metrics[method]))),
        Tile(ERROR_GAIN * np.abs(image - reference), aspect, (f"{ERROR_GAIN} x error of {method}", "")),
    ]


def _figures(metrics: dict[str, float]) -> str:
    return f"PSNR {metrics['psnr']:.2f} dB   SSIM {metrics['ssim']:.3f}"


def aspect_of(image: Image) -> float:
    """Return the width over the height of an image, in mm."""
    nz, ny, nx = image.data.shape
    dx, dy, _ = voxel_size(image.geometry, (nz, ny, nx))
    return (nx * dx) / (ny * dy)


def varying(indices: list[Index]) -> list[str]:
    """Return the counters, the slice aside, that differ among images."""
    names = ("encoding", "repetition", "contrast", "phase", "set")
    return [name for name in names if len({getattr(index, name) for index in indices}) > 1]


def label(image: Image, z: int, names: list[str]) -> str:
    """Return which plane this is, with the counters `names`."""
    place = f"slice {image.index.slice + 1}" if image.data.shape[0] == 1 else f"z {z + 1}"
    return ", ".join([place, *counted(image.index, names)])


def counted(index: Index, names: list[str]) -> list[str]:
    """Return the counters `names` of an image, from 1, in words."""
    return [f"{name} {getattr(index, name) + 1}" for name in names]


def fitting_labels(
    planes: Sequence[tuple[Image, int]], names: list[str], columns: int, page_width: int = PAGE_WIDTH
) -> tuple[list[str], list[str]]:
    """Return what stands below the pictures of a sheet, and what to say of it above them.

    Numbers alone where words would run into each other, and nothing where numbers do.

    Parameters
    ----------
    planes
        Images and which of their planes each picture shows.
    names
        The counters that labels have.
    columns, page_width
        Of the sheet.
    """
    side = _side(columns, page_width)
    room = max(_size(aspect_of(image), side)[0] for image, _ in planes)
    font = ImageFont.load_default(FONT_SIZE)
    words = [label(image, z, names) for image, z in planes]
    numbers = ["/".join(re.findall(r"\d+", line)) for line in words]
    order = "/".join(["slice" if planes[0][0].data.shape[0] == 1 else "z", *names])
    for labels, said in ((words, []), (numbers, [f"below each: {order}"])):
        if max(map(font.getlength, labels)) <= room:
            return labels, said
    return [""] * len(planes), ["too many to label"]


def _save(path: Path, rows: list[list[Tile]], series: ImageSeries, remarks: Sequence[str] = ()) -> None:
    info = PngInfo()
    info.add_text("Software", f"mri-qpan {series.provenance['version']}")
    info.add_text("Comment", json.dumps(series.provenance))
    sheet(rows, [*title(series), *remarks]).save(path, format="PNG", pnginfo=info)


def title(series: ImageSeries) -> list[str]:
    """Return what stands above a page: the input, the method, the mask."""
    origin = series.provenance
    name, ratio = Path(str(origin["input"])).name, origin["mask_ratio"]
    assert isinstance(ratio, float)
    found = origin["mask_hash"]
    masks = [found] if isinstance(found, str) else found
    assert isinstance(masks, list)
    words = f"mask {masks[0]}" if len(masks) == 1 else f"{len(masks)} masks"
    return [name, str(origin["method"]), f"{ratio:.1%} of k-space", words]


def sheet(rows: list[list[Tile]], parts: list[str], page_width: int = PAGE_WIDTH) -> Picture.Image:
    """Return a page of labelled pictures, its title in parts above them that wrap where they must."""
    columns = max(len(row) for row in rows)
    side = _side(columns, page_width)
    tiles = [tile for row in rows for tile in row]
    sizes = [_size(tile.aspect, side) for tile in tiles]
    width, height = max(w for w, _ in sizes), max(h for _, h in sizes)
    caption = max(len(tile.lines) for tile in tiles) * LINE_HEIGHT
    step = (width + MARGIN, height + caption + MARGIN)
    font = ImageFont.load_default(FONT_SIZE)
    heading = _wrapped(parts, columns * step[0] - MARGIN, font)
    top = len(heading) * LINE_HEIGHT + 2 * MARGIN
    page = Picture.new("L", (columns * step[0] + MARGIN, len(rows) * step[1] + top))
    draw = ImageDraw.Draw(page)
    for number, line in enumerate(heading):
        draw.text((MARGIN, MARGIN + number * LINE_HEIGHT), line, WHITE, font)
    for r, row in enumerate(rows):
        for c, tile in enumerate(row):
            x, y = MARGIN + c * step[0], top + r * step[1]
            page.paste(_picture(tile, side), (x, y))
            for number, line in enumerate(tile.lines):
                shade = GREY if number else WHITE
                draw.text((x, y + height + 2 + number * LINE_HEIGHT), line, shade, font)
    return page


def _wrapped(parts: list[str], width: int, font: Font) -> list[str]:
    """Join parts into lines that are no wider than `width` pixels, unless one part alone is."""
    lines = parts[:1]
    for part in parts[1:]:
        longer = f"{lines[-1]}   {part}"
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(part)
    return lines


def _side(columns: int, page_width: int) -> int:
    """Return the side in pixels of the square that a tile has."""
    return min(LARGEST_TILE, page_width // columns - MARGIN)


def _size(aspect: float, side: int) -> tuple[int, int]:
    """Return the width and height in pixels that a tile fills of a square."""
    return max(1, round(side * min(1.0, aspect))), max(1, round(side / max(1.0, aspect)))


def _picture(tile: Tile, side: int) -> Picture.Image:
    grey = np.round(255 * np.clip(tile.pixels, 0, 1)).astype(np.uint8)
    return Picture.fromarray(grey).resize(_size(tile.aspect, side), Picture.Resampling.BICUBIC)
