"""Fixed validation cases and the figures that decide between models."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mri_qpan.networks import Network
from mri_qpan.sampling_masks import spokes
from mri_qpan.training import views
from mri_qpan.training.bank import Bank
from mri_qpan.training.simulate import (
    Calibrate,
    Case,
    augment,
    brighten_vessels,
    dephase_bright,
    measure,
    measure_real,
    random_maps,
    smooth_phase,
)

PLAN = (("lines", 0.25), ("lines", 0.33), ("random2d", 0.2), ("equispaced", 0.33), ("radial", 0.3))
COILS = (1, 4, 8)
PER_GROUP = 6
SHAPE = (192, 192)
PUBLISHED_SPOKES = (55, 85, 117, 152)
PUBLISHED_SHAPE = (256, 256)
BRAIN_NOISE = 0.02


@dataclass(frozen=True)
class Score:
    """Mean figures over the validation cases.

    PSNR in dB: of magnitudes against the target's maximum; in the published experiment, of images clipped
    to [0, 1].
    """

    psnr: float
    psnr_zero_filled: float
    psnr_one_coil: float
    psnr_coils: float

    def figures(self) -> dict[str, float]:
        """Return the figures by name, rounded to a thousandth."""
        return {name: round(value, 3) for name, value in asdict(self).items()}


def validation_cases(
    bank: Bank,
    published: bool = False,
    calibrate: Calibrate | None = None,
    names: tuple[str, ...] = (),
    numbers: tuple[int, ...] = PUBLISHED_SPOKES,
    brains: bool = False,
) -> list[Case]:
    """Make the cases: the same for every training on one bank with the same arguments.

    Images come from the bank's groups, `PER_GROUP` each; masks and coils take turns, and
    so do bright vessels and tissues out of phase.

    Parameters
    ----------
    bank
        Images.
    published
        Cases of the published experiment.
    calibrate
        Estimates coil maps, as in `simulate.Simulation`.
    names
        Groups to take images from. None named: all that end in "/val".
    numbers
        Published experiment: numbers of spokes, which take turns.
    brains
        Published experiment: each image also with noise and as the brain alone (`views.extracted`).
    """
    cases: list[Case] = []
    heads: list[tuple[NDArray[Any], NDArray[np.bool_]]] = []
    groups = sorted(set(names) or {group for group in bank.groups if group.endswith("/val")})
    for group in groups:
        images = bank.of({group}).images
        for image in images[:: max(1, len(images) // PER_GROUP)][:PER_GROUP]:
            index = len(cases)
            rng = np.random.default_rng([2026, index])
            kind, ratio = PLAN[index % len(PLAN)]
            coils = COILS[index % len(COILS)]
            if published:
                mask = spokes(PUBLISHED_SHAPE, numbers[index % len(numbers)])
                head = augment(np.abs(image), PUBLISHED_SHAPE, rng)
                cases.append(measure_real(head, mask))
                heads.append((head, mask))
                continue
            view = augment(image, SHAPE, rng)
            if index % 2:
                view = brighten_vessels(view, rng)
            if index % 4 > 1:
                view = dephase_bright(view, rng)
            if not np.iscomplexobj(image):
                view = view * np.exp(1j * smooth_phase(SHAPE, rng)).astype(np.complex64)
            if kind == "equispaced" and coils == 1:
                kind = "lines"
            cases.append(measure(view, random_maps(SHAPE, coils, rng), kind, ratio, rng, calibrate))
    for index, (head, mask) in enumerate(heads if brains else []):
        rng = np.random.default_rng([2027, index])
        cases.append(measure_real(views.extracted(views.noisy(head, BRAIN_NOISE, rng), rng), mask))
    return cases


@torch.inference_mode()
def evaluate(
    network: Network[Any], cases: list[Case], device: torch.device, picture: Path | None = None
) -> Score:
    """Reconstruct every case and return the mean figures.

    Parameters
    ----------
    network
        Any network; its mode is left as it is.
    cases
        From `validation_cases`.
    device
        Where `network` is.
    picture
        PNG to write: target, zero-filled, reconstruction and five times the error, a row for some cases.
    """
    figures = []
    rows: list[NDArray[Any]] = []
    for index, case in enumerate(cases):
        case = case.to(device)
        encoding = case.encoding()
        adjoint = encoding.adjoint(case.kspace)
        image = network(adjoint, encoding.normal)
        figures.append((_psnr(case.target, image), _psnr(case.target, adjoint), case.kspace.shape[1] == 1))
        if index % 5 == 0 and len(rows) < 5:
            rows.append(_row(case.target, adjoint, image))
    if picture is not None and rows:
        Image.fromarray(np.concatenate(rows)).save(picture)
    psnr, zero_filled, single = (np.array(column) for column in zip(*figures, strict=True))
    return Score(
        float(psnr.mean()),
        float(zero_filled.mean()),
        _mean(psnr[single]),
        _mean(psnr[~single]),
    )


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if values.size else float("nan")


def _psnr(target: Tensor, image: Tensor) -> float:
    if not target.is_complex():
        return float(-10 * torch.log10((image.clamp(0, 1) - target).square().mean().clamp_min(1e-20)))
    reference = target.abs()
    error = (image.abs() - reference).square().mean()
    return float(20 * torch.log10(reference.max()) - 10 * torch.log10(error.clamp_min(1e-20)))


def _row(target: Tensor, zero_filled: Tensor, image: Tensor) -> NDArray[np.uint8]:
    reference = target[0].abs()
    error = 5 * (image[0].abs() - reference).abs()
    row = torch.cat([reference, zero_filled[0].abs(), image[0].abs(), error], dim=1) / reference.max()
    return (row.clamp(0, 1) * 255).byte().cpu().numpy()
