"""What a network met in training, as ranges of statistics: the yardstick of `recon.familiar`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from mri_qpan.likeness import statistics
from mri_qpan.networks import Network
from mri_qpan.scaling import robust_scale
from mri_qpan.training.simulate import Case

DIGITS = 4


@torch.inference_mode()
def ranges_of(
    network: Network[Any], cases: Iterable[Case], device: torch.device
) -> dict[str, tuple[float, float]]:
    """Return the lowest and the highest value of every statistic of `likeness` among measurements.

    Parameters
    ----------
    network
        Trained; complex images.
    cases
        Simulated measurements as those of its training.
    device
        Where it is.
    """
    seen: dict[str, list[float]] = {}
    for case in cases:
        case = case.to(device)
        encoding = case.encoding()
        adjoint = encoding.adjoint(case.kspace)
        moved = network.reconstruct(adjoint, encoding.normal)[1]
        scale = robust_scale(adjoint)
        for index in range(len(adjoint)):
            found = statistics(
                case.kspace[index].cpu().numpy(),
                case.mask[index].cpu().numpy(),
                adjoint[index].cpu().numpy(),
                float(scale[index]),
            )
            for name, value in {**found, "moved": float(moved[index])}.items():
                seen.setdefault(name, []).append(value)
    return {name: (round(min(values), DIGITS), round(max(values), DIGITS)) for name, values in seen.items()}
