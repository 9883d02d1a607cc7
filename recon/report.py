"""The report of a reconstruction: one HTML page that needs nothing but itself."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture

from mri_qpan.recon.geometry import voxel_size
from mri_qpan.recon.kspace import Quantity
from mri_qpan.recon.pipeline import Result
from mri_qpan.recon.upright import Turn, turn_of, upright
from mri_qpan.recon.views import Views

MOST = 48
"""Images on a page; of more, a page shows these many, evenly spread."""

MAPS = 16
ERROR_GAIN = 5
DECADES = 4.0
QUANTILE = 0.99
SIDE = 384  # pixels of the longer side of an image

ROUND = (1, 1.5, 2, 3, 4, 5, 6, 8, 10)
"""Tops of scales, over a power of ten."""

VIRIDIS = (
    (68, 1, 84),
    (71, 44, 122),
    (59, 81, 139),
    (44, 113, 142),
    (33, 144, 141),
    (39, 173, 129),
    (92, 200, 99),
    (170, 220, 50),
    (253, 231, 37),
)
"""Of maps of noise, evenly spaced: equal steps look equal, to eyes that do not tell red from green too."""


@dataclass(frozen=True)
class Scaled:
    """A map of noise in colours: its picture (PNG), caption, and the value at the top of its scale."""

    picture: bytes
    caption: str
    top: float


@dataclass(frozen=True)
class Shown:
    """One plane's part of the page: its heading, figures, pictures (PNG) by name, and maps of noise."""

    heading: str
    figures: dict[str, str]
    pictures: dict[str, bytes]
    aspect: float
    noise: tuple[Scaled, ...] = ()


def show(result: Result, views: Views, maps: bool) -> list[Shown]:
    """Draw one image's pictures.

    Parameters
    ----------
    result, views
        The image and what is shown beside it.
    maps
        Draw its coil maps too.

    Returns
    -------
    A slab's central plane, with its k-space and figures, then its others in order.
    """
    turn, turned = turn_of(result.image.geometry), upright(result.image)
    volume = turned.data
    middle = volume.shape[0] // 2
    white = float(np.quantile(np.abs(volume[middle]), QUANTILE)) or 1.0
    tops = [_round_top(image.data[middle]) for image in result.maps.values()]
    dx, dy, _ = voxel_size(turned.geometry, volume.shape)
    found = []
    for plane in sorted(views.planes, key=lambda plane: (plane != middle, plane)):
        image = np.abs(volume[plane])
        zero_filled = turn.apply(views.zero_filled[views.planes.index(plane)])
        pictures = {
            "zero-filled": _grey(zero_filled / white),
            "reconstructed": _grey(image / white),
            "difference": _grey(ERROR_GAIN * np.abs(image - zero_filled) / white),
        }
        if plane == middle:
            pictures |= _middle(views, turn if maps else None)
        noise = tuple(
            Scaled(_coloured(turn.apply(shown.data[plane].real) / top), _caption(quantity, white), top)
            for (quantity, shown), top in zip(result.maps.items(), tops, strict=True)
        )
        number = f", plane {plane + 1} of {volume.shape[0]}" if volume.shape[0] > 1 else ""
        found.append(
            Shown(
                heading=_heading(result) + number,
                figures=_figures(result, views) if plane == middle else {},
                pictures=pictures,
                aspect=volume.shape[2] * dx / (volume.shape[1] * dy),
                noise=noise,
            )
        )
    return found


def _middle(views: Views, maps: Turn | None) -> dict[str, bytes]:
    """Draw what is shown of the central plane alone, its coil maps where they are given a turn."""
    pictures = {"mask": _grey(views.mask.astype(np.float32))}
    if views.residual is not None and views.samples is not None:
        largest = float(np.linalg.norm(views.samples, axis=0).max())
        pictures["residual"] = _grey(_decades(np.linalg.norm(views.residual, axis=0), largest))
    if maps is not None:
        pictures["maps"] = _grey(_montage(maps.apply(views.mps)))
    return pictures


def _heading(result: Result) -> str:
    index = result.image.index
    counters = [f"{name} {getattr(index, name) + 1}" for name in ("repetition", "contrast", "phase", "set")]
    named = [words for words in counters if not words.endswith(" 1")]
    return ", ".join([f"slice {index.slice + 1}", *named])


def _figures(result: Result, views: Views) -> dict[str, str]:
    figures = result.figures
    partial = figures.partial_fourier
    return ({} if partial is None else {"partial Fourier": str(partial)}) | {
        "k-space acquired": f"{figures.ratio:.1%}",
        "mask": figures.mask_hash,
        "|Ax − y| / |y|": f"{figures.residual:.2%}",
        "noise of a sample over the image's maximum, at most": f"{views.noise:.3f}",
        **_settled(result.likeness),
        "seconds for coil maps": f"{figures.maps_seconds:.2f}",
        "seconds for the image": f"{figures.recon_seconds:.2f}",
    }


def _settled(likeness: dict[str, float]) -> dict[str, str]:
    """Return how far a network has settled, in words; nothing of other methods."""
    words = {} if "moved" not in likeness else {"last layer moved the image by": f"{likeness['moved']:.2%}"}
    if "further" in likeness:
        etas = f"{likeness['eta1']:.2f} + {likeness['eta2']:.2f}"
        words |= {
            "one more layer would move it by": f"{likeness['further']:.2%}",
            "of the last step one more would leave (eta1 + eta2)": etas,
        }
    return words


def _caption(quantity: Quantity, white: float) -> str:
    unit = "no unit" if quantity.pure else f"in the image's units, of which {white:.3g} is its white"
    return f"{quantity.name}: {quantity.meaning} ({unit})"


def page(record: dict[str, Any], shown: Sequence[Sequence[Shown]]) -> str:
    """Return the page.

    Parameters
    ----------
    record
        What the JSON beside it holds.
    shown
        Every image's parts, in order.
    """
    several = max((len(parts) for parts in shown), default=1)
    most = min(max(1, MOST // several), len(shown))
    picked = [shown[i] for i in np.unique(np.linspace(0, len(shown) - 1, most).astype(int))]
    number = "1 image" if len(shown) == 1 else f"{len(shown)} images"
    words = number + (f", {len(picked)} of them shown" if len(picked) < len(shown) else "")
    template = (resources.files("mri_qpan.recon") / "report.html").read_text(encoding="utf-8")
    parts = {
        "TITLE": escape(f"{record['input'].rpartition('/')[2]}: {record['method']}"),
        "SUMMARY": _table(_summary(record) | {"images": words}),
        "WARNINGS": _list("warning", record["warnings"]),
        "NOTES": _list("note", record["notes"]),
        "IMAGES": "\n".join(_section(entry) for entries in picked for entry in entries),
        "METRICS": _metrics(record.get("metrics")),
        "RECORD": escape(json.dumps(record, indent=1)),
        "COLOURS": ", ".join(f"rgb{tuple(colour)}" for colour in VIRIDIS),
    }
    for name, text in parts.items():
        template = template.replace(f"<!--{name}-->", text)
    return template


def _summary(record: dict[str, Any]) -> dict[str, str]:
    seconds = ", ".join(f"{name} {value:.2f}" for name, value in record.get("seconds", {}).items())
    model = f" (model {record['model_sha256'][:12]})" if record["model_sha256"] else ""
    found = {
        "input": record["input"],
        "method": f"{record['method']}{model} on {record['device']}, engine {record['engine'] or 'none'}",
        "mri-qpan": record["version"],
        "command": record["command"],
        "made": record["created"],
        "k-space acquired": f"{record['mask_ratio']:.1%}",
        "|Ax − y| / |y|": f"{record['residual']:.2%}",
    }
    return found | ({"seconds": seconds} if seconds else {})


def _section(shown: Shown) -> str:
    def image(name: str, alt: str) -> str:
        return f'<img src="{_data(shown.pictures[name])}" alt="{escape(alt)}">'

    side = f"style='aspect-ratio:{shown.aspect:.4f}'"
    blocks = [
        f"<figure class='slider' {side}>{image('zero-filled', 'zero-filled')}"
        f"<div class='top'>{image('reconstructed', 'reconstructed')}</div>"
        "<input type='range' min='0' max='100' value='50' aria-label='zero-filled or reconstructed'></figure>"
        "<figcaption>reconstructed | zero-filled</figcaption>",
        f"<figure {side}>{image('difference', 'difference')}</figure>"
        f"<figcaption>{ERROR_GAIN} × difference of the two</figcaption>",
    ]
    blocks += [_scaled(entry, side) for entry in shown.noise]
    if "mask" in shown.pictures:
        blocks.append(
            f"<figure>{image('mask', 'sampling mask')}</figure><figcaption>samples acquired</figcaption>"
        )
    if "residual" in shown.pictures:
        blocks.append(
            f"<figure>{image('residual', 'residual')}</figure>"
            f"<figcaption>|Ax − y|, black {DECADES:g} decades below the largest sample</figcaption>"
        )
    if "maps" in shown.pictures:
        blocks.append(f"<figure>{image('maps', 'coil maps')}</figure><figcaption>coil maps</figcaption>")
    tiles = "".join(f"<div class='tile'>{block}</div>" for block in blocks)
    head = f"<h2>{escape(shown.heading)}</h2>{_table(shown.figures)}"
    return f"<section>{head}<div class='row'>{tiles}</div></section>"


def _scaled(entry: Scaled, side: str) -> str:
    """Return a map of noise with its scale."""
    name = escape(entry.caption.partition(":")[0])
    marks = "".join(f"<span>{entry.top * share:.3g}</span>" for share in (0, 0.5, 1))
    return (
        f'<figure {side}><img src="{_data(entry.picture)}" alt="{name}"></figure>'
        f"<div class='scale'><div class='bar'></div>{marks}</div>"
        f"<figcaption>{escape(entry.caption)}</figcaption>"
    )


def _table(rows: dict[str, str]) -> str:
    cells = "".join(f"<tr><th>{escape(k)}</th><td>{escape(str(v))}</td></tr>" for k, v in rows.items())
    return f"<table>{cells}</table>"


def _list(kind: str, entries: Sequence[str]) -> str:
    return "".join(f"<p class='{kind}'>{kind}: {escape(entry)}</p>" for entry in entries)


def _metrics(metrics: dict[str, dict[str, float | None]] | None) -> str:
    if not metrics:
        return ""
    names = list(next(iter(metrics.values())))
    head = "".join(f"<th>{escape(name.upper())}</th>" for name in names)
    rows = "".join(
        f"<tr><th>{escape(method)}</th>"
        + "".join(f"<td>{'∞' if values[n] is None else format(values[n], '.4g')}</td>" for n in names)
        + "</tr>"
        for method, values in metrics.items()
    )
    return f"<h2>Against the fully sampled image</h2><table><tr><th></th>{head}</tr>{rows}</table>"


def _data(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _grey(values: NDArray[Any]) -> bytes:
    """Return an 8-bit PNG of values from 0 (black) to 1 (white), no larger than it needs to be."""
    return _png(Picture.fromarray(np.round(255 * np.clip(values, 0, 1)).astype(np.uint8)))


def _png(picture: Picture.Image) -> bytes:
    if max(picture.size) > SIDE:
        scale = SIDE / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Picture.Resampling.BOX)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _coloured(values: NDArray[Any]) -> bytes:
    """Return a PNG of values from 0 to 1 in the colours of `VIRIDIS`, black where there is none (0)."""
    places = np.linspace(0, 1, len(VIRIDIS))
    channels = [np.interp(values, places, [colour[c] for colour in VIRIDIS]) for c in range(3)]
    colours = np.where(values[..., None] > 0, np.stack(channels, axis=-1), 0)
    return _png(Picture.fromarray(np.round(colours).astype(np.uint8)))


def _round_top(values: NDArray[Any]) -> float:
    """Return a round number that nearly all values other than 0 are below: slices then share their scale."""
    seen = np.abs(values[values != 0])
    largest = float(np.quantile(seen, QUANTILE)) if seen.size else 1.0
    decade = 10.0 ** math.floor(math.log10(largest))
    return decade * min(step for step in ROUND if step * decade >= largest * (1 - 1e-9))


def _decades(values: NDArray[Any], largest: float) -> NDArray[Any]:
    """Return values on a logarithmic scale: 1 at the largest sample, 0 so many decades below."""
    tiny = 10.0**-DECADES
    return np.asarray(1 + np.log10(np.maximum(values / (largest or 1.0), tiny)) / DECADES)


def _montage(mps: NDArray[Any]) -> NDArray[Any]:
    """Return the magnitudes of coil maps (coil, y, x) side by side."""
    chosen = mps[:MAPS]
    columns = int(np.ceil(np.sqrt(len(chosen))))
    rows = -(-len(chosen) // columns)
    _, ny, nx = chosen.shape
    sheet = np.zeros((rows * ny, columns * nx), np.float32)
    for number, coil in enumerate(chosen):
        y, x = divmod(number, columns)
        sheet[y * ny : (y + 1) * ny, x * nx : (x + 1) * nx] = coil
    return sheet
