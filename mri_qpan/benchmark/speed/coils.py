"""A multi-coil slice with maps given: the networks beside BART's `pics`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mri_qpan import models
from mri_qpan.benchmark import peers
from mri_qpan.benchmark.case import Case
from mri_qpan.benchmark.real import compare
from mri_qpan.benchmark.speed.engines import Progress

WAVELET = "wavelet (BART pics)"
ZERO_FILLED = "zero-filled"
EVALUATIONS = 4
"""Reconstructions that the search for the wavelet's weight takes."""


def beside_bart(
    case: Case, names: Sequence[str], threads: Sequence[int], rounds: int, progress: Progress
) -> list[dict[str, Any]]:
    """Time the networks and, where BART is installed, its wavelet of 100 iterations, interleaved.

    Parameters
    ----------
    case
        The slice, with its reference.
    names
        Models.
    threads
        Numbers of threads; the weight is tuned with the first.
    rounds
        Timed runs of each method.
    progress
        Told in words what is done next.

    Returns
    -------
    list
        For each number of threads what `compare` found, each outcome with `psnr` (dB), `seconds` and
        `inner_seconds`.
    """
    networks = []
    for name in names:
        model = models.load_model(name)
        if model.config.channels == 2:
            networks.append(peers.network(model.name, model, sha256=model.sha256[:12], engine=model.engine))
    tuned: dict[tuple[str, str], peers.Parameters] = {}
    found = []
    for count in threads:
        known = {method.name: method for method in peers.classical(count)}
        methods = [known[name] for name in (ZERO_FILLED, WAVELET) if name in known] + networks
        (compared,) = compare(
            [case],
            methods,
            rounds=rounds,
            evaluations=EVALUATIONS,
            threads=count,
            tuned=tuned,
            progress=progress,
        )
        tuned |= {(case.key, outcome.method): outcome.parameters for outcome in compared.outcomes}
        found.append(
            {
                "threads": count,
                "input": case.name,
                "sha256": case.source,
                "mask": case.mask_spec,
                "coils": case.mps.shape[-3],
                "outcomes": [
                    {
                        "method": outcome.method,
                        "psnr": outcome.metrics["psnr"],
                        "parameters": outcome.parameters,
                        "seconds": outcome.seconds,
                        "inner_seconds": outcome.inner_seconds,
                    }
                    for outcome in compared.outcomes
                ],
            }
        )
    return found
