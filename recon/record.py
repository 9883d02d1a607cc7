"""The record of a run, which lies beside its outputs as JSON, and what earlier runs left there."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mri_qpan.errors import InputError
from mri_qpan.recon.provenance import provenance

if TYPE_CHECKING:
    from mri_qpan.recon.job import Done, Job
    from mri_qpan.recon.study import Study

Record = dict[str, Any]


def record_of(path: Path, job: Job, done: list[Done]) -> Record:
    """Return what is known of a file's images before they are written."""
    results = [d.result for d in done]
    measured = [r.figures for r in results if r.figures.ratio]
    spec = None if job.undersampling is None else job.undersampling.spec
    record: Record = provenance(path, job.method, measured, spec)
    if job.command is not None:
        record["command"] = job.command
    record["device"] = str(job.device)
    record["residual"] = float(np.mean([f.residual for f in measured]))
    record["notes"] = list(dict.fromkeys(note for r in results for note in r.notes))
    record["warnings"] = list(dict.fromkeys(warning for r in results for warning in r.warnings))
    record["images"] = [_image_record(d) for d in done]
    studies = [d.study for d in done if d.study is not None]
    if studies:
        record["metrics"] = _mean_metrics(studies)
    return record


def _image_record(done: Done) -> Record:
    record = asdict(done.result.image.index) | asdict(done.result.figures)
    record["matrix_zyx"] = list(done.result.image.data.shape)
    if done.result.likeness:
        record["likeness"] = done.result.likeness
    if done.study is not None:
        record["metrics"] = _mean_metrics([done.study])
    for quantity, image in done.result.maps.items():
        values = np.abs(image.data)[image.data != 0]
        if values.size:
            quantiles = np.quantile(values, (0.5, 0.99)).tolist()
            record[quantity.suffix] = dict(zip(("median", "percentile_99"), quantiles, strict=True))
    return record


def _mean_metrics(studies: list[Study]) -> dict[str, dict[str, float | None]]:
    return {
        method: {name: _finite(np.mean([s.metrics[method][name] for s in studies])) for name in figures}
        for method, figures in studies[0].metrics.items()
    }


def _finite(value: np.floating[Any]) -> float | None:
    """Return a number that JSON knows: an exact image's PSNR is infinite, null there."""
    return float(value) if math.isfinite(value) else None


def seconds_of(done: list[Done], read: float, write: float) -> dict[str, float]:
    """Return where the time went, those of reading and writing given."""
    return {
        "read": read,
        "maps": sum(d.result.figures.maps_seconds for d in done),
        "recon": sum(d.result.figures.recon_seconds for d in done),
        "write": write,
    }


def earlier_outputs(record: Path) -> set[str]:
    """Return the names of the files that the record of an earlier run lists; none without one."""
    try:
        listed = json.loads(record.read_text(encoding="utf-8"))["outputs"]
        return {str(name) for name in listed}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def check_replaced(record: Path, names: Iterable[str]) -> None:
    """Refuse to replace files beside a record that it does not list: raw data, say, that have such a name.

    Raises
    ------
    InputError
        If one of the names is there.
    """
    known = earlier_outputs(record)
    for name in sorted(set(names) - known):
        if os.path.lexists(record.with_name(name)):
            raise InputError(
                f"{record.with_name(name)} would be replaced, and {record.name} does not say that an earlier"
                " run wrote it: move it away, or choose another --output"
            )
