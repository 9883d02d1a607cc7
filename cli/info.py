"""`mri-qpan info`: what is in a k-space file, in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mri_qpan.recon.describe import Axis, Sampling
    from mri_qpan.recon.kspace import Index
    from mri_qpan.recon.readers.mrd_header import MrdHeader
    from mri_qpan.recon.readers.mrd_kinds import Measurement
    from mri_qpan.recon.readers.mrd_plan import Plan

Row = tuple[str, str]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("info")(info)


def info(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE…", help="Raw k-space files: ISMRMRD, fastMRI, Siemens twix, BART, arrays."
        ),
    ],
    dims: Annotated[
        str | None, typer.Option(metavar="NAME,NAME...", help="Axes of .npy and .mat files, as for recon.")
    ] = None,
) -> None:
    """Say what is in a k-space file: matrix, coils, images, sampling, calibration, noise scan, oddities."""
    from mri_qpan.errors import MriQpanError, exit_code
    from mri_qpan.recon.readers import is_ismrmrd
    from mri_qpan.recon.readers.ismrmrd import inspect

    failures: list[MriQpanError] = []
    for number, file in enumerate(files):
        try:
            rows = list(_rows(inspect(file)) if is_ismrmrd(file) else _array_rows(file, dims))
        except MriQpanError as error:
            typer.echo(f"mri-qpan: {error}", err=True)
            failures.append(error)
            continue
        width = max(len(name) for name, _ in rows) + 2
        typer.echo("\n" * (number > len(failures)) + str(file))
        for name, words in rows:
            typer.echo(f"  {name:<{width}}{words}")
    if failures:
        raise typer.Exit(exit_code(failures, len(files)))


def _rows(measurement: Measurement) -> Iterator[Row]:
    from mri_qpan.errors import InputError
    from mri_qpan.recon.readers.mrd_plan import plan
    from mri_qpan.recon.readers.mrd_trajectory import is_along_trajectory

    yield "format", f"ISMRMRD raw data, dataset {measurement.dataset!r}"
    yield from _scanner(measurement.header)
    yield from _acquisitions(measurement)
    yield from _spaces(measurement)
    if is_along_trajectory(measurement):
        yield from _along(measurement)
        return
    try:
        planned = plan(measurement)
    except InputError as error:
        yield from (("note", note) for note in measurement.notes)
        yield "problem", str(error).removeprefix(f"{measurement.path}: ")
        return
    yield from _count(list(planned.images))
    yield from _sampling(planned)
    yield from _noise(measurement)
    notes = dict.fromkeys(note for index in planned.images for note in planned.notes(index))
    yield from (("note", note) for note in notes)


def _along(measurement: Measurement) -> Iterator[Row]:
    """Describe a measurement along a trajectory."""
    from mri_qpan.errors import InputError
    from mri_qpan.recon.readers.mrd_trajectory import plan_trajectory

    try:
        planned = plan_trajectory(measurement)
    except InputError as error:
        yield from (("note", note) for note in measurement.notes)
        yield "problem", str(error).removeprefix(f"{measurement.path}: ")
        return
    yield from _count(list(planned.images))
    first, rows = next(iter(planned.images.items()))
    samples = _span(measurement.heads["number_of_samples"][rows])
    yield "sampling", f"{len(rows)} readouts of {samples} samples along the trajectory"
    yield from _noise(measurement)
    yield from (("note", note) for note in planned.notes(first))


def _array_rows(path: Path, dims: str | None) -> Iterator[Row]:
    """Describe a file of which the images tell: BART's, fastMRI's, Siemens', NumPy's, MATLAB's."""
    from mri_qpan.recon.coils import calibration_region
    from mri_qpan.recon.describe import describe_sampling
    from mri_qpan.recon.readers import open_kspace, plugin_for
    from mri_qpan.recon.readers.mrd_header import parse_header

    stream = open_kspace(path, dims)
    first = next(stream)
    while first.blank and (another := next(stream, None)) is not None:
        first = another
    formats = {".cfl": "BART", ".hdr": "BART", ".npy": "NumPy array", ".mat": "MATLAB array"}
    formats[".dat"] = "Siemens twix"
    plugin = plugin_for(path)
    known = formats.get(path.suffix.lower(), "fastMRI's layout")
    yield "format", known if plugin is None else f"read by {plugin.value}"
    if stream.xml is not None:
        yield from _scanner(parse_header(stream.xml, str(path)))
    yield "channels", str(len(first.data))
    if first.coord is not None:
        yield "acquired", f"{len(first.coord)} samples along a trajectory"
    else:
        yield "acquired", f"{_times(reversed(first.mask.shape))} (x, y, z)"
    size = f"{_times(reversed(first.recon_shape))} (x, y, z), {_times(first.geometry.fov)} mm"
    yield "to deliver", size
    yield from _count(stream.indices)
    if first.blank:
        yield "problem", "every sample is zero"
    elif first.coord is None:
        yield from _pattern(describe_sampling(first.mask), len(stream) > 1)
        if first.calib_mask is None:
            yield "calibration", _block(calibration_region(first.mask), "inside the image")
        else:
            yield "calibration", _block(calibration_region(first.calib_mask), "lines of their own")
    if first.noise_covariance is not None:
        yield "noise scan", "yes: its covariance whitens the channels"
    yield from (("note", note) for note in first.notes)


def _scanner(header: MrdHeader) -> Iterator[Row]:
    strength = f"{header.field_strength:g} T" if header.field_strength else None
    words = [word for word in (header.vendor, header.model, strength) if word and word != "unknown"]
    if words:
        yield "scanner", ", ".join(words)
    if header.protocol:
        yield "protocol", header.protocol


def _acquisitions(measurement: Measurement) -> Iterator[Row]:
    calibration, imaging = measurement.calibration, measurement.imaging
    counts = {
        "imaging": int((imaging & ~calibration).sum()),
        "imaging and calibration": int((imaging & calibration).sum()),
        "calibration": int((calibration & ~imaging).sum()),
        "noise": int(measurement.noise.sum()),
    }
    words = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    skipped = ", ".join(f"{count} {kind}" for kind, count in measurement.skipped.items())
    heads = measurement.heads
    yield "acquisitions", f"{len(heads)}: {words}" + (f"; left out: {skipped}" if skipped else "")
    yield "channels", _span(heads["active_channels"])
    used = heads[imaging] if imaging.any() else heads
    readout = f"{_span(used['number_of_samples'])} samples, echo at {_span(used['center_sample'])}"
    dwell = used["sample_time_us"]
    yield "readout", readout + (f", {_span(dwell)} µs a sample" if dwell.any() else ", dwell time not given")
    discarded = [_span(used[name]) for name in ("discard_pre", "discard_post")]
    if discarded != ["0", "0"]:
        yield "discarded", f"{discarded[0]} samples before, {discarded[1]} after"
    reverse = int(measurement.reverse[imaging].sum())
    if reverse:
        yield "reversed", f"{reverse} lines"


def _spaces(measurement: Measurement) -> Iterator[Row]:
    encodings = measurement.header.encodings
    for number, encoding in enumerate(encodings):
        of = "" if len(encodings) == 1 else f" {number}"
        yield f"trajectory{of}", encoding.trajectory
        for name, space in (("encoded", encoding.encoded), ("to deliver", encoding.recon)):
            fov = "field of view not given" if space.fov is None else _times(space.fov) + " mm"
            yield f"{name}{of}", f"{_times(space.matrix)} (x, y, z), {fov}"
        factors = [e / r for e, r in zip(encoding.encoded.matrix, encoding.recon.matrix, strict=True)]
        over = [f"{f:g}-fold along {axis}" for f, axis in zip(factors, "xyz", strict=True) if f > 1]
        if over:
            yield f"oversampling{of}", ", ".join(over)
        if encoding.acceleration and max(encoding.acceleration) > 1:
            mode = f", calibration {encoding.calibration_mode}" if encoding.calibration_mode else ""
            yield f"protocol says{of}", f"acceleration {_times(encoding.acceleration)} (y, z){mode}"


def _count(indices: list[Index]) -> Iterator[Row]:
    from mri_qpan.recon.kspace import COUNTERS

    names = ("encoding", *COUNTERS)
    counts = {name: len({getattr(index, name) for index in indices}) for name in names}
    words = " x ".join(f"{count} {name}s" for name, count in counts.items() if count > 1)
    yield "images", f"{len(indices)}" + (f" ({words})" if words else "")


def _sampling(planned: Plan) -> Iterator[Row]:
    from mri_qpan.recon.describe import describe_sampling

    first, rows = next(iter(planned.images.items()))
    counts = planned.counts(first, rows)
    yield from _pattern(describe_sampling(counts > 0), len(planned.images) > 1)
    if counts.max() > 1:
        yield "averages", f"up to {counts.max()} a sample"
    yield "calibration", _calibration(planned, first, counts > 0)


def _pattern(found: Sampling, several: bool) -> Iterator[Row]:
    of = " (first image)" if several else ""
    yield "sampling", f"{found.ratio:.1%} of the matrix: {_phase(found)}{of}"
    yield from _extent("partial Fourier", found.y, "y")
    if found.z.size > 1:
        yield from _extent("partial Fourier", found.z, "z")
    yield from _extent("asymmetric echo", found.x, "x")


def _phase(found: Sampling) -> str:
    words = [_lines(found.y, "lines")]
    if found.z.size > 1:
        words.append(_lines(found.z, "partitions"))
    return "; ".join(words)


def _lines(axis: Axis, name: str) -> str:
    if axis.acquired == axis.size:
        return f"all {axis.size} {name}"
    if axis.acquired == axis.last - axis.first + 1:
        return f"{axis.acquired} of {axis.size} {name}, numbers {axis.first} to {axis.last}"
    spacing = f"every {_ordinal(axis.spacing)}" if axis.spacing else "irregular"
    centre = f", {axis.centre} complete at the centre" if axis.centre > 1 else ""
    return f"{axis.acquired} of {axis.size} {name}, {spacing}{centre}"


def _extent(kind: str, axis: Axis, name: str) -> Iterator[Row]:
    if axis.partial < 1:
        end = "low" if axis.missing[0] > axis.missing[1] else "high"
        yield kind, f"{axis.partial:.0%} along {name} (the {end} end was not acquired)"
    if axis.resolution < 1:
        yield "zero filling", f"{axis.resolution:.0%} of the resolution along {name} was acquired"


def _calibration(planned: Plan, index: Index, mask: NDArray[np.bool_]) -> str:
    from mri_qpan.recon.coils import calibration_region

    rows = planned.calibration_rows(index)
    block = calibration_region(planned.counts(index, rows) > 0 if rows.size else mask)
    where = f"{rows.size} lines of its own" if rows.size else "inside the image"
    return _block(block, where)


def _block(block: tuple[slice, slice, slice] | None, where: str) -> str:
    if block is None:
        return "none: the k-space centre was not acquired"
    sizes = _times([part.stop - part.start for part in block[1:]])
    return f"{where}; complete block for coil maps: {sizes} (y, x)"


def _noise(measurement: Measurement) -> Iterator[Row]:
    noise = measurement.heads[measurement.noise]
    if not noise.size:
        yield "noise scan", "none"
        return
    bandwidth = measurement.header.relative_noise_bandwidth
    readouts = "1 readout" if noise.size == 1 else f"{noise.size} readouts"
    words = f"{readouts} of {_span(noise['number_of_samples'])} samples"
    words += f", {_span(noise['sample_time_us'])} µs a sample"
    yield "noise scan", words + (f", relative bandwidth {bandwidth:g}" if bandwidth else "")


def _span(values: NDArray[Any]) -> str:
    low, high = values.min(), values.max()
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _times(values: Iterable[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)


def _ordinal(number: int) -> str:
    return {1: "1st", 2: "2nd", 3: "3rd"}.get(number, f"{number}th")
