"""Images to an ISMRMRD file: header, attributes and float32 magnitudes, one series a group."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from mri_qpan.recon.files import from_memory
from mri_qpan.recon.kspace import COUNTERS, Image, ImageSeries, Index
from mri_qpan.recon.writers.window import window_of

SERIES_INDEX = 1


def write_ismrmrd(path: Path, series: ImageSeries) -> None:
    """Write a series as a group of an ISMRMRD (HDF5) file, with the measurement's XML header.

    The group is `image_1`, of a map `image_<its number>`. Pixels are float32 (channel, z, y, x): magnitudes
    in the input's units, or what the map shows.

    Parameters
    ----------
    path
        The file to make; an existing one is replaced.
    series
        What to write.
    """
    import ismrmrd

    window = window_of(series)
    with from_memory(path) as memory, ismrmrd.Dataset(memory, "dataset", mode="w") as dataset:
        if series.xml is not None:
            dataset.write_xml_header(series.xml.encode())
        for number in range(len(series.images)):
            dataset.append_image(f"image_{_series_number(series)}", image_message(series, number, window))


def image_message(
    series: ImageSeries, number: int, window: tuple[float, float], pixels: DTypeLike = np.float32
) -> Any:
    """Return image `number` of a series as an `ismrmrd.Image`, header and attributes filled in.

    Parameters
    ----------
    series
        The series that the image stands in.
    number
        From 0; the header's image_index is one more.
    window
        Intensities (low, high) that a viewer should show as black and white.
    pixels
        Type of the magnitudes: float32, or int16 for a series that is scaled to it.
    """
    import ismrmrd

    image = series.images[number]
    meta = ismrmrd.Meta(_attributes(image, series, window))
    header = _header(series, number)
    header.attribute_string_len = len(meta.serialize().encode())
    return ismrmrd.Image(header, meta=meta, data=series.pixels(image)[None].astype(pixels))


def _header(series: ImageSeries, number: int) -> Any:
    import ismrmrd

    image = series.images[number]
    geometry, stamp = image.geometry, image.stamp
    header = ismrmrd.ImageHeader()
    header.version = 1
    header.measurement_uid = stamp.measurement_uid
    header.field_of_view = geometry.fov
    header.position = geometry.position
    header.read_dir = geometry.read_dir
    header.phase_dir = geometry.phase_dir
    header.slice_dir = geometry.slice_dir
    header.patient_table_position = geometry.table_position
    for counter in COUNTERS:
        setattr(header, counter, getattr(image.index, counter))
    header.acquisition_time_stamp = stamp.acquisition_time_stamp
    header.physiology_time_stamp = stamp.physiology_time_stamp
    header.user_int = stamp.user_int
    header.user_float = stamp.user_float
    angle = series.quantity is not None and series.quantity.angle
    header.image_type = ismrmrd.IMTYPE_PHASE if angle else ismrmrd.IMTYPE_MAGNITUDE
    header.image_index = number + 1
    header.image_series_index = _series_number(series)
    _set_flags(header, [i.index for i in series.images], number)
    return header


def _series_number(series: ImageSeries) -> int:
    return SERIES_INDEX if series.quantity is None else series.quantity.series


def _set_flags(header: Any, indices: list[Index], number: int) -> None:
    """Set FIRST_IN_ and LAST_IN_ of every counter, counters nested as `Index` orders them, and the images."""
    import ismrmrd

    for depth, counter in enumerate(COUNTERS, start=1):
        group = _group(COUNTERS[:depth])
        here = group(indices[number])
        if number == 0 or group(indices[number - 1]) != here:
            header.set_flag(getattr(ismrmrd, f"IMAGE_FIRST_IN_{counter.upper()}"))
        if number + 1 == len(indices) or group(indices[number + 1]) != here:
            header.set_flag(getattr(ismrmrd, f"IMAGE_LAST_IN_{counter.upper()}"))


def _group(counters: tuple[str, ...]) -> Callable[[Index], tuple[int, ...]]:
    return lambda index: tuple(getattr(index, counter) for counter in counters)


def _attributes(image: Image, series: ImageSeries, window: tuple[float, float]) -> dict[str, Any]:
    (low, high), provenance = window, series.provenance
    method = str(provenance["method"])
    return {
        "DataRole": "Image" if series.quantity is None else series.quantity.role,
        "ImageProcessingHistory": ["mri-qpan", str(provenance["version"]), method],
        "SeriesDescriptionAdditional": method,
        "SequenceDescriptionAdditional": method,
        "ImageComments": f"mri-qpan {provenance['version']} {method}",
        "ImageRowDir": [f"{v:.18f}" for v in image.geometry.read_dir],
        "ImageColumnDir": [f"{v:.18f}" for v in image.geometry.phase_dir],
        "WindowCenter": f"{(low + high) / 2:.6g}",
        "WindowWidth": f"{high - low:.6g}",
        "Keep_image_geometry": "1",
        "Provenance": json.dumps(provenance),
    }
