"""What a network met in training, as ranges of statistics: the yardstick of `recon.familiar`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from mri_qpan.likeness import WORDS, statistics
from mri_qpan.networks import Network, ProximalNetwork
from mri_qpan.networks.contraction import of_contraction
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
        seen_by_network = {"moved": network.reconstruct(adjoint, encoding.normal)[1]}
        if isinstance(network, ProximalNetwork):
            seen_by_network |= of_contraction(network.contraction(adjoint, encoding.normal))
        scale = robust_scale(adjoint)
        for index in range(len(adjoint)):
            found = statistics(
                case.kspace[index].cpu().numpy(),
                case.mask[index].cpu().numpy(),
                adjoint[index].cpu().numpy(),
                float(scale[index]),
            )
            found |= {name: float(values[index]) for name, values in seen_by_network.items()}
            for name in WORDS.keys() & found.keys():
                seen.setdefault(name, []).append(found[name])
    return {
        name: (round(min(seen[name]), DIGITS), round(max(seen[name]), DIGITS))
        for name in WORDS
        if name in seen
    }
