"""One file in, its outputs in a folder: read, reconstruct image by image, write all or nothing."""

from __future__ import annotations

import errno
import json
import os
import re
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mri_qpan.errors import InputError, MriQpanError, ReconError
from mri_qpan.methods import Method
from mri_qpan.recon.compression import Number
from mri_qpan.recon.files import staged
from mri_qpan.recon.geometry import place_notes
from mri_qpan.recon.kspace import PHASE, ImageSeries, KSpace
from mri_qpan.recon.maps import maps_of
from mri_qpan.recon.memory import budget
from mri_qpan.recon.partial_fourier import Edge
from mri_qpan.recon.pipeline import Result, blank, reconstruct
from mri_qpan.recon.provenance import peak_memory_mib
from mri_qpan.recon.readers import open_kspace
from mri_qpan.recon.readers.mrd_slabs import Slabs
from mri_qpan.recon.record import Record, check_replaced, earlier_outputs, record_of, seconds_of
from mri_qpan.recon.report import Shown, page, show
from mri_qpan.recon.slabs import reconstruct_slabs, study_slabs
from mri_qpan.recon.study import Study, Undersampling, study
from mri_qpan.recon.writers import DEFAULT, FORMATS, Format, find_formats, write_study_png
from mri_qpan.recon.writers.dicom import leftovers, version

PHASED = ("ismrmrd", "nifti", "png", "dicom")
"""Formats that phases are written in: the others hold complex images, or nothing but magnitudes."""

BAD_NAMES = (errno.ENAMETOOLONG, errno.EILSEQ)
"""What a file system says of one file's name, not of its state."""

Progress = Callable[[int, int], None]


class StoppedError(ReconError):
    """The job was told to stop before the file in hand was done; nothing was written for that file."""


class WriteError(ReconError):
    """The outputs cannot be written: the disk is full or fails, which the next file would find too."""


@dataclass(frozen=True)
class Job:
    """How to reconstruct a file.

    Attributes
    ----------
    method
        What reconstructs.
    device
        Where.
    undersampling
        Leave samples of a full measurement out and compare with the full image; None takes it as it is.
    mps
        Coil sensitivities to use instead of estimated ones (see `maps.load_maps`).
    compress, hard_dc, partial_fourier
        See `pipeline.reconstruct`.
    strict
        Refuse measurements unlike those that the model was trained on, instead of a warning.
    phase
        Write series of the phase too, in the formats that hold magnitudes alone.
    report
        Write an HTML page too.
    replicas
        Number of pseudo-replicas for maps of noise (`recon.noise`); 0 makes none.
    dims
        Names of the axes of .npy and .mat files.
    memory
        Bytes for the reconstruction of an image: 3-D ones of ISMRMRD files that need more are worked in
        parts. None: `memory.budget`.
    formats
        What to write (see `writers.find_formats`).
    command
        What the user typed, for the record; None takes this process's command line.
    """

    method: Method
    device: torch.device
    undersampling: Undersampling | None = None
    mps: NDArray[np.complex64] | None = None
    compress: Number = "auto"
    hard_dc: bool = False
    partial_fourier: str = "auto"
    strict: bool = False
    phase: bool = False
    report: bool = False
    replicas: int = 0
    dims: str | None = None
    memory: int | None = None
    formats: dict[str, Format] = field(default_factory=lambda: find_formats(DEFAULT))
    command: str | None = None


@dataclass(frozen=True)
class Done:
    """One image, with its study if there is one."""

    result: Result
    study: Study | None
    shown: list[Shown] | None


Edges = dict[int, Edge]
"""What became of the missing edge of k-space, by encoding, whose images are one series."""

Spread = Callable[[int, int, Edges], list[list[Done]]]
"""Has the images from one up to another made elsewhere by `reconstruct_images`: pieces, in their order."""


def output_stem(path: Path, method: Method) -> str:
    """Return what the outputs of an input file are called, suffixes aside."""
    return f"{path.stem}_{re.sub(r'[^A-Za-z0-9.+-]', '_', method.name)}"


def reconstruct_file(
    path: Path,
    folder: Path,
    job: Job,
    *,
    stop: Event | None = None,
    progress: Progress = lambda done, total: None,
    spread: Spread | None = None,
) -> Record:
    """Reconstruct all images of a k-space file and write them into `folder`.

    Written are `<stem>_<method>` with the suffix of every format, a `.json` and, with `job.report`, an
    `.html`; where a file holds several encodings, `_encoding<n>` follows the method. All of them are moved
    into place when all are complete; whatever goes wrong before leaves `folder` as it was. Planes of a longer
    DICOM series of the same name, from a run before, go.

    Parameters
    ----------
    path
        The k-space file.
    folder
        An existing folder.
    job
        How to reconstruct.
    stop
        When set, the image in hand is finished; then `StoppedError` is raised unless it was the last.
    progress
        Called with the images done and their total, at the start and after each.
    spread
        What makes all images but the first, elsewhere; they come out the same.

    Returns
    -------
    dict
        What the JSON holds.

    Raises
    ------
    InputError
        If the file cannot be used, no output can have its name, or one would replace what is no output.
    ReconError
        If an image fails, the outputs cannot be written (`WriteError`), or `stop` came first
        (`StoppedError`).
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the files in it, such as {path / '*.h5'}")
    started = time.perf_counter()
    stream = open_kspace(path, job.dims, _memory(job))
    stem, beside = output_stem(path, job.method), _json_path(folder, path, job)
    check_replaced(beside, [beside.name, *(stem + kind.suffix for kind in job.formats.values())])
    total = len(stream)
    done: list[Done] = []
    edges: Edges = {}
    progress(0, total)
    read_seconds = time.perf_counter() - started
    while len(done) < total:
        if done and spread is not None:
            done += _spread(path, job, spread, total, edges)
            break
        if stop is not None and stop.is_set():
            raise StoppedError(
                f"{path}: stopped after image {len(done)} of {total}; nothing was written for it"
            )
        moment = time.perf_counter()
        kspace = next(stream)
        read_seconds += time.perf_counter() - moment
        done.append(_one(path, kspace, job, not done, edges))
        progress(len(done), total)
    if not any(one.result.figures.ratio for one in done):
        raise InputError(f"{path}: every sample is zero, there is nothing to reconstruct")
    record = record_of(path, job, done)
    moment = time.perf_counter()
    try:
        with staged(folder) as stage:
            record |= _write(stage / stem, done, stream.xml, record, job)
            record["seconds"] = seconds_of(done, read_seconds, time.perf_counter() - moment)
            record["peak_memory_mib"] = peak_memory_mib(job.device)
            pages = [d.shown for d in done if d.shown is not None]
            if pages:
                html = _json_path(stage, path, job).with_suffix(".html")
                record["outputs"].append(html.name)
                # The record names the input, and names need not be UTF-8.
                html.write_text(page(record, pages), encoding="utf-8", errors="backslashreplace")
            check_replaced(beside, record["outputs"])
            left = leftovers(folder, record["outputs"])
            stale = earlier_outputs(beside) - set(record["outputs"]) - {plane.name for plane in left}
            stale = {name for name in stale if os.path.lexists(folder / name)}
            if stale:
                record["notes"].append(f"of an earlier run, and not of this one: {', '.join(sorted(stale))}")
            _json_path(stage, path, job).write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")
        for plane, known in left.items():
            with suppress(FileNotFoundError):
                if version(plane) == known:
                    plane.unlink()
    except OSError as error:
        if error.errno in BAD_NAMES:
            reason = (error.strerror or "").lower()
            raise InputError(
                f"{path}: its outputs cannot be called after it ({reason}): rename the file"
            ) from error
        words = error.strerror or f"{error} (is the disk full?)"
        raise WriteError(f"{path}: cannot write to {folder}: {words}") from error
    return record


def reconstruct_images(path: Path, job: Job, start: int, stop: int, edges: Edges) -> list[Done]:
    """Reconstruct the images of a file from `start`, not the first, up to `stop`.

    Parameters
    ----------
    path, job
        As of `reconstruct_file`.
    start, stop
        Which images, in the stream's order.
    edges
        As the images before left them.

    Raises
    ------
    InputError, ReconError
        As `reconstruct_file` does.
    """
    stream = open_kspace(path, job.dims, _memory(job))
    known = dict(edges)
    return [_one(path, kspace, job, False, known) for kspace in islice(stream, start, stop)]


def _spread(path: Path, job: Job, spread: Spread, total: int, edges: Edges) -> list[Done]:
    """Return all images but the first, made elsewhere as they would have been here."""
    done: list[Done] = []
    known = set(edges)
    for piece in spread(1, total, edges):
        if known != set(edges):  # an image before these decided for their series, which they did not know
            start = 1 + len(done)
            piece = reconstruct_images(path, job, start, start + len(piece), edges)
        for one in piece:
            _note_edge(one, edges)
        done += piece
    if len(done) != total - 1:
        raise ReconError(
            f"{path}: {1 + len(done)} of its {total} images were found again: it changed meanwhile"
        )
    return done


def _note_edge(done: Done, edges: Edges) -> None:
    edge = done.result.figures.partial_fourier
    if edge is not None and edge.decides:
        edges.setdefault(done.result.image.index.encoding, edge)


def _one(path: Path, kspace: KSpace, job: Job, first: bool, edges: Edges) -> Done:
    """Reconstruct one image, the first of the file or a later one, and note what it decides.

    An error says which image of which file it was.
    """
    done = _reconstruct(path, kspace, job, first, edges.get(kspace.index.encoding))
    _note_edge(done, edges)
    return done


def _reconstruct(path: Path, kspace: KSpace, job: Job, first: bool, edge: Edge | None) -> Done:
    names = ("device", "compress", "hard_dc", "partial_fourier", "replicas")
    options: dict[str, Any] = {name: getattr(job, name) for name in names}
    options |= {"views": job.report, "contraction": job.report or job.strict, "edge": edge}
    compared = assumed = None
    try:
        if kspace.blank:
            result = blank(kspace)
            if job.strict:
                raise ReconError(f"refused as --strict asks: {result.warnings[0]}")
            return Done(result, None, None)
        if job.mps is not None:
            options["mps"], assumed = maps_of(job.mps, kspace)
        if job.undersampling is not None:
            if isinstance(kspace, Slabs):
                compared = study_slabs(kspace, job.method, job.undersampling, _memory(job), **options)
            else:
                compared = study(kspace, job.method, job.undersampling, **options)
            result = compared.result
        elif isinstance(kspace, Slabs):
            result = reconstruct_slabs(kspace, job.method, _memory(job), **options)
        else:
            result = reconstruct(kspace, job.method, **options)
        if assumed is not None:
            result = replace(result, notes=(*result.notes, assumed))
        if job.strict and result.warnings:
            raise ReconError(f"refused as --strict asks: {result.warnings[0]}")
        if result.views is None:
            return Done(result, compared, None)
        # Drawn at once: the pictures of a long series are smaller than what they show.
        shown = show(result, result.views, maps=first)
        result = replace(result, views=None)
        return Done(result, None if compared is None else replace(compared, result=result), shown)
    except MriQpanError as error:
        raise type(error)(f"{path}: slice {kspace.index.slice}: {error}") from error


def _memory(job: Job) -> int:
    return budget() if job.memory is None else job.memory


def _json_path(folder: Path, path: Path, job: Job) -> Path:
    return folder / f"{output_stem(path, job.method)}.json"


def _write(stem: Path, done: list[Done], xml: str | None, record: Record, job: Job) -> Record:
    """Write images and sheets of every encoding; return the names written and the notes with any new one.

    Raises
    ------
    ReconError
        If no format can hold them.
    """
    encodings: dict[int, list[Done]] = defaultdict(list)
    for d in done:
        encodings[d.result.image.index.encoding].append(d)
    # What was assumed goes with every file: a pixel "taken as 1 mm" is measured far from the record.
    origin = {key: value for key, value in record.items() if key != "images"}
    notes = list(record["notes"])
    for encoding, members in encodings.items():
        series = ImageSeries([d.result.image for d in members], xml, origin)
        notes += place_notes(series.images)
        studies = [d.study for d in members if d.study is not None]
        name = stem.name if len(encodings) == 1 else f"{stem.name}_encoding{encoding}"
        notes += _write_series(stem.with_name(name), series, studies, job.formats)
        quantities = dict.fromkeys(quantity for d in members for quantity in d.result.maps)
        shown = {q: [d.result.maps[q] for d in members if q in d.result.maps] for q in quantities}
        if job.phase:
            shown[PHASE] = series.images
        for quantity, maps in shown.items():
            formats = {n: f for n, f in job.formats.items() if quantity is not PHASE or n in PHASED}
            named = origin | {"method": f"{origin['method']} {quantity.name}"}
            written = ImageSeries(maps, xml, named, quantity)
            notes += _write_series(stem.with_name(f"{name}_{quantity.suffix}"), written, [], formats)
    names = sorted(path.name for path in stem.parent.iterdir())
    if not names:
        raise ReconError("; ".join(note for note in notes if note not in record["notes"]))
    return {"outputs": [*names, f"{stem.name}.json"], "notes": notes}


def _write_series(
    stem: Path, series: ImageSeries, studies: list[Study], formats: dict[str, Format]
) -> list[str]:
    """Write a series in every format; return notes on formats that cannot hold it."""
    notes = []
    for words, kind in formats.items():
        path = stem.with_name(stem.name + kind.suffix)
        try:
            if studies and kind is FORMATS["png"]:
                write_study_png(path, series, studies)
            else:
                kind.write(path, series)
        except ReconError as error:
            path.unlink(missing_ok=True)
            notes.append(f"no {words} file: {error}")
    return notes
