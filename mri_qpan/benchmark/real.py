"""The real-data protocol: measurements undersampled, every method on the same samples and coil maps."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from mri_qpan import metrics
from mri_qpan.benchmark.case import Case, Outcome
from mri_qpan.benchmark.peers import Method, Parameters
from mri_qpan.benchmark.tuning import tune

FLOOR = 0.2
"""Highest noise floor that is tried, of the reference's maximum."""


def psnr_with_floor(reference: NDArray[Any], image: NDArray[Any]) -> float:
    """Return the PSNR of sqrt(image^2 + f^2) for the f >= 0 that fits the reference best.

    A measured magnitude has a noise floor; the networks' images have it (`networks.floor`), those of other
    methods do not. With one fitted, knowing the answer, nobody is ahead for that alone.
    """
    top = float(reference.max())

    def lost(floor: float) -> float:
        return -metrics.psnr(reference, np.sqrt(np.square(image) + np.float32((floor * top) ** 2)))

    found = minimize_scalar(lost, bounds=(0, FLOOR), method="bounded", options={"xatol": 1e-4})
    return max(metrics.psnr(reference, image), -float(found.fun))


METRICS: dict[str, Callable[[NDArray[Any], NDArray[Any]], float]] = {
    "psnr": metrics.psnr,
    "psnr_floor": psnr_with_floor,
    "ssim": metrics.ssim,
    "nmse": metrics.nmse,
    "hfen": metrics.hfen,
}

Tuned = Mapping[tuple[str, str], Parameters]
"""Parameters found before, by the case's key and the method's name."""


@dataclass(frozen=True)
class Compared:
    """A case with what every method made of it, and the images themselves by the method's name."""

    case: Case
    outcomes: list[Outcome]
    images: dict[str, NDArray[np.float32]]


def compare(
    cases: Sequence[Case],
    methods: Sequence[Method],
    *,
    rounds: int,
    evaluations: int,
    threads: int,
    tuned: Tuned | None = None,
    progress: Callable[[str], None] = lambda words: None,
) -> list[Compared]:
    """Tune, reconstruct and time.

    First every method reconstructs every case, with its weight tuned for the PSNR of that very case; that run
    gives the quality and warms the method up. Then come `rounds` timed rounds over all cases and methods, so
    that whatever slows the machine down for a while hits all of them.

    Parameters
    ----------
    cases, methods
        What to reconstruct and by what.
    rounds
        Timed runs of each method on each case.
    evaluations
        Reconstructions spent on a search for the weight of one method on one case.
    threads
        PyTorch's threads; set for the whole process.
    tuned
        Parameters to take instead of tuning, where the case and the method's fixed parameters are the same;
        of the same slice under another mask, the weight is the first guess.
    progress
        Told in words what is done next; called len(cases) * len(methods) * (1 + rounds) times.
    """
    torch.set_num_threads(threads)
    known = tuned or {}
    guesses: dict[str, float | None] = {}
    compared = []
    for case in cases:
        outcomes, images = [], {}
        for method in methods:
            progress(f"{case.name}, {case.mask_spec}: {method.name}")
            parameters = _known(method, case, known)
            given = parameters is not None
            if parameters is None:
                guess = _guess(method, case, known) or guesses.get(method.name)
                parameters, images[method.name] = _tune(method, case, evaluations, guess)
                guesses[method.name] = parameters.get("lamda")
            else:
                images[method.name] = method.run(case, parameters).image
            outcomes.append(Outcome(method.name, dict(parameters), score(case, images[method.name]), given))
        compared.append(Compared(case, outcomes, images))
    for turn in range(rounds):
        for entry in compared:
            for method, outcome in zip(methods, entry.outcomes, strict=True):
                progress(f"timing round {turn + 1} of {rounds}: {entry.case.name}, {method.name}")
                _time(method, entry.case, outcome)
    return compared


def score(case: Case, image: NDArray[np.float32]) -> dict[str, float]:
    """Return all metrics of a magnitude image against the case's reference."""
    return {name: metric(case.reference, image) for name, metric in METRICS.items()}


def _known(method: Method, case: Case, tuned: Tuned) -> Parameters | None:
    found = tuned.get((case.key, method.name))
    if found is None or any(found.get(name) != value for name, value in method.fixed.items()):
        return None
    return found


def _guess(method: Method, case: Case, tuned: Tuned) -> float | None:
    """Return a weight found before for this slice under another mask."""
    slice_ = case.key.rpartition(":")[0]
    for (key, name), parameters in tuned.items():
        if name == method.name and key.rpartition(":")[0] == slice_ and "lamda" in parameters:
            return float(parameters["lamda"])
    return None


def _tune(
    method: Method, case: Case, evaluations: int, guess: float | None
) -> tuple[Parameters, NDArray[np.float32]]:
    """Return the best parameters for this case, and their image.

    The weight is sought with the first of the method's choices; the others are tried at that weight, and the
    weight is sought again where one of them is better.
    """
    if method.start is None:
        return method.fixed, method.run(case, method.fixed).image
    tried: list[tuple[float, Parameters, NDArray[np.float32]]] = []

    def psnr(choice: Parameters, lamda: float) -> float:
        parameters = {**method.fixed, **choice, "lamda": float(f"{lamda:.6g}")}
        image = method.run(case, parameters).image
        tried.append((metrics.psnr(case.reference, image), parameters, image))
        return tried[-1][0]

    first, *others = method.choices
    lamda = tune(partial(psnr, first), guess or method.start, evaluations)
    best = max(entry[0] for entry in tried)
    for choice in others:
        if psnr(choice, lamda) > best:
            tune(partial(psnr, choice), lamda, evaluations)
    return max(tried, key=lambda entry: entry[0])[1:]


def _time(method: Method, case: Case, outcome: Outcome) -> None:
    started = time.perf_counter()
    shot = method.run(case, outcome.parameters)
    outcome.seconds.append(time.perf_counter() - started)
    if shot.inner_seconds is not None:
        outcome.inner_seconds.append(shot.inner_seconds)
