"""The report of a reconstruction: one HTML page that needs nothing but itself."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture

from mri_qpan.recon.geometry import voxel_size
from mri_qpan.recon.pipeline import Result, Views

MOST = 48
"""Images on a page; of more, a page shows these many, evenly spread."""

MAPS = 16
ERROR_GAIN = 5
DECADES = 4.0
QUANTILE = 0.99
SIDE = 384  # pixels of the longer side of an image


@dataclass(frozen=True)
class Shown:
    """One image's part of the page: its heading, and pictures (PNG) by name."""

    heading: str
    figures: dict[str, str]
    pictures: dict[str, bytes]
    aspect: float


def show(result: Result, views: Views, maps: bool) -> Shown:
    """Draw one image's pictures; `maps` draws its coil maps too."""
    index, figures = result.image.index, result.figures
    middle = np.abs(result.image.data[result.image.data.shape[0] // 2])
    white = float(np.quantile(middle, QUANTILE)) or 1.0
    pictures = {
        "zero-filled": _grey(views.zero_filled / white),
        "reconstructed": _grey(middle / white),
        "difference": _grey(ERROR_GAIN * np.abs(middle - views.zero_filled) / white),
        "mask": _grey(views.mask.astype(np.float32)),
    }
    if views.residual is not None:
        pictures["residual"] = _grey(_decades(views.residual, views.loudest))
    if maps:
        pictures["maps"] = _grey(_montage(views.mps))
    counters = [f"{name} {getattr(index, name) + 1}" for name in ("repetition", "contrast", "phase", "set")]
    named = [words for words in counters if not words.endswith(" 1")]
    dx, dy, _ = voxel_size(result.image.geometry, result.image.data.shape)
    partial = figures.partial_fourier
    return Shown(
        heading=", ".join([f"slice {index.slice + 1}", *named]),
        figures=({} if partial is None else {"partial Fourier": str(partial)})
        | {
            "k-space acquired": f"{figures.ratio:.1%}",
            "mask": figures.mask_hash,
            "|Ax − y| / |y|": f"{figures.residual:.2%}",
            "noise of a sample over the image's maximum, at most": f"{views.noise:.3f}",
            "seconds for coil maps": f"{figures.maps_seconds:.2f}",
            "seconds for the image": f"{figures.recon_seconds:.2f}",
        },
        pictures=pictures,
        aspect=middle.shape[1] * dx / (middle.shape[0] * dy),
    )


def page(record: dict[str, Any], shown: Sequence[Shown]) -> str:
    """Return the page.

    Parameters
    ----------
    record
        What the JSON beside it holds.
    shown
        Every image's part, in order.
    """
    picked = [shown[i] for i in np.unique(np.linspace(0, len(shown) - 1, min(MOST, len(shown))).astype(int))]
    number = "1 image" if len(shown) == 1 else f"{len(shown)} images"
    words = number + (f", {len(picked)} of them shown" if len(picked) < len(shown) else "")
    template = (resources.files("mri_qpan.recon") / "report.html").read_text(encoding="utf-8")
    parts = {
        "TITLE": escape(f"{record['input'].rpartition('/')[2]}: {record['method']}"),
        "SUMMARY": _table(_summary(record) | {"images": words}),
        "WARNINGS": _list("warning", record["warnings"]),
        "NOTES": _list("note", record["notes"]),
        "IMAGES": "\n".join(_section(entry) for entry in picked),
        "METRICS": _metrics(record.get("metrics")),
        "RECORD": escape(json.dumps(record, indent=1)),
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
    picture = Picture.fromarray(np.round(255 * np.clip(values, 0, 1)).astype(np.uint8))
    if max(picture.size) > SIDE:
        scale = SIDE / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Picture.Resampling.BOX)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


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
