"""Cine and dynamic series as an animated GIF: browsers, slides and viewers play it; its palette is 256 greys.

Timing follows the file where it says what a frame lasts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image as Picture

from mri_qpan.errors import InputError, ReconError
from mri_qpan.recon.kspace import Image, ImageSeries
from mri_qpan.recon.readers.mrd_header import Element, parse_xml, text_of
from mri_qpan.recon.upright import turns_of, upright
from mri_qpan.recon.writers.moments import TICK_MS, counts_ticks, one_shot
from mri_qpan.recon.writers.png import Tile, aspect_of, fitting_labels, sheet, title, varying
from mri_qpan.recon.writers.window import display_range

WIDTH = 1024
UNSTATED_MS = 100.0
SHORTEST_TR_MS = 10.0  # shorter ones are those of lines, not of frames
SHOWN_MS = (20.0, 1000.0)  # players take less for 100 ms; and nobody waits longer
GIF_MS = 10  # GIF counts hundredths of a second

Time = tuple[int, int]
Place = tuple[int, int, int, int]


def write_animation(path: Path, series: ImageSeries) -> None:
    """Write a cine or dynamic series as an animated GIF that repeats for ever.

    A frame shows every slice, contrast and set of one repetition and phase, labelled, all frames in one
    window. Frames last what `frame_time` finds, no less than 20 ms and no more than a second. The frame says
    the time that it stands for.

    Parameters
    ----------
    path
        The file to make.
    series
        What to show.

    Raises
    ------
    ReconError
        If it has one frame alone.
    """
    frames: dict[Time, dict[Place, Image]] = {}
    for image in map(upright, series.images, turns_of(series.images)):
        i = image.index
        for z in range(image.data.shape[0]):
            frames.setdefault((i.repetition, i.phase), {})[i.contrast, i.set, i.slice, z] = image
    if len(frames) < 2:
        raise ReconError("one repetition and one phase: nothing moves")
    header = Element("none")
    if series.xml is not None:
        try:
            header = parse_xml(series.xml, str(path))
        except InputError as error:
            raise ReconError(str(error)) from error
    step, source = frame_time(series.images, header)
    pictures = _pictures(series, frames, None if source is None else step, source)
    first = next(pictures)
    first.save(
        path,
        format="GIF",
        save_all=True,
        append_images=pictures,
        duration=_durations(step, len(frames)),
        loop=0,
        comment=json.dumps(series.provenance).encode(),
    )


def frame_time(images: Sequence[Image], header: Element) -> tuple[float, str | None]:
    """Return how long a frame of a series lasts in ms, and what says so: 100 ms and None where nothing does.

    The time stamps do where their unit is known (Siemens), else the sequence's TR. Of repetitions it is the
    frame's only where one shot measures an image (`one_shot`), of phases unless it is that of a line.

    Parameters
    ----------
    images
        Of several phases, or of several repetitions.
    header
        The ISMRMRD header.
    """
    phases = len({image.index.phase for image in images}) > 1
    if counts_ticks(header):
        stamps: dict[int, int] = {}
        for image in images:
            number = image.index.phase if phases else image.index.repetition
            stamp = image.stamp.physiology_time_stamp[0] if phases else image.stamp.acquisition_time_stamp
            stamps.setdefault(number, stamp)
        steps = [(stamps[b] - stamps[a]) / (b - a) for a, b in pairwise(sorted(stamps))]
        if min(steps) > 0:
            return TICK_MS * median(steps), "time stamps"
    if not phases and not one_shot(header, images[0].index.encoding):
        return UNSTATED_MS, None
    try:
        tr = float(text_of(header, "sequenceParameters/TR") or 0)
    except ValueError:
        tr = 0.0
    return (tr, "TR") if SHORTEST_TR_MS <= tr < float("inf") else (UNSTATED_MS, None)


def _durations(step: float, count: int) -> list[int]:
    """Return the frames' durations in whole hundredths of a second, in ms, that keep pace with `step`."""
    shown = min(max(step, SHOWN_MS[0]), SHOWN_MS[1])
    ends = [GIF_MS * int(i * shown / GIF_MS + 0.5) for i in range(count + 1)]
    return [b - a for a, b in pairwise(ends)]


def _pictures(
    series: ImageSeries, frames: dict[Time, dict[Place, Image]], step: float | None, source: str | None
) -> Iterator[Picture.Image]:
    high = display_range(series.images)[1]
    places = sorted({place for frame in frames.values() for place in frame})
    shared = [
        name for name in varying([i.index for i in series.images]) if name not in ("repetition", "phase")
    ]
    examples = {place: frame[place] for frame in frames.values() for place in frame}
    columns = int(np.ceil(np.sqrt(len(places))))
    said = (
        f"frame time not stated, {UNSTATED_MS:g} ms taken"
        if step is None
        else f"frame time {step:.4g} ms ({source})"
    )
    labels, remarks = fitting_labels([(examples[p], p[-1]) for p in places], shared, columns, WIDTH)
    heading = [*title(series), said, *remarks]
    for number, (time, frame) in enumerate(sorted(frames.items()), start=1):
        tiles: list[Tile] = []
        for place, words in zip(places, labels, strict=True):
            image, z = examples[place], place[-1]
            pixels = (
                np.abs(frame[place].data[z]) if place in frame else np.zeros(image.data.shape[1:], np.float32)
            )
            # The frame's line under the first picture alone, where it may be wider than a small one.
            line = "" if tiles else _moment(number, len(frames), time, step)
            tiles.append(Tile(pixels / high, aspect_of(image), (words, line)))
        rows = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
        yield sheet(rows, heading, WIDTH)


def _moment(number: int, count: int, time: Time, step: float | None) -> str:
    """Return a line that no two frames share: Pillow would join equal frames."""
    when = "" if step is None else f", {(number - 1) * step:.0f} ms"
    return f"frame {number} of {count}{when}: repetition {time[0] + 1}, phase {time[1] + 1}"
