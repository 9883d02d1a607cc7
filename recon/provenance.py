"""Which command, model, version, mask and input made an output: every output carries it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from mri_qpan._version import __version__
from mri_qpan.methods import Method
from mri_qpan.recon.pipeline import Figures


def provenance(
    source: Path | str, method: Method, figures: Sequence[Figures], undersample: str | None = None
) -> dict[str, object]:
    """Return what made a series, ready for JSON.

    Parameters
    ----------
    source
        The input file, or the words for another origin.
    method
        What reconstructed it.
    figures
        Of every image of the series.
    undersample
        The KIND:RATIO[:SEED] of a retrospective study.
    """
    hashes = list(dict.fromkeys(f.mask_hash for f in figures))
    return {
        "command": shlex.join(["mri-qpan", *sys.argv[1:]]),
        "input": str(source.resolve()) if isinstance(source, Path) else source,
        "method": method.name,
        "model_sha256": method.sha256,
        "engine": method.engine,
        "version": __version__,
        "torch_version": torch.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "undersample": undersample,
        "mask_ratio": sum(f.ratio for f in figures) / len(figures),
        "mask_hash": hashes[0] if len(hashes) == 1 else hashes,
    }


def peak_memory_mib(device: torch.device) -> dict[str, float]:
    """Return the largest memory that this process has held so far, in MiB: "host", and "gpu" on one."""
    peak = {}
    try:
        import resource
    except ImportError:  # not on Windows
        pass
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        peak["host"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
    if device.type == "cuda":
        peak["gpu"] = torch.cuda.max_memory_allocated(device) / 2**20
    return peak
