"""Muon: momentum whose matrices are replaced by their nearest semi-orthogonal one.

Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; the step's size as in
Liu et al., "Muon is scalable for LLM training", 2025, so that AdamW's learning rates carry over.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic whose iteration drives singular values to about 1 (Jordan et al.)."""

ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Muon for convolution weights (out, in, y, x), each worked as a matrix (out, in y x).

    Parameters
    ----------
    params
        The weights, or groups of them.
    lr
        Learning rate: the root mean square of a step is 0.2 `lr`.
    momentum
        Of the gradient's running mean (Nesterov).
    weight_decay
        Decoupled, times `lr`.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 1e-4,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Take one step."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for weights in by_shape.values():
                self._step_together(weights, group["lr"], group["momentum"], group["weight_decay"])

    def _step_together(self, weights: list[Tensor], lr: float, momentum: float, decay: float) -> None:
        updates = []
        for p in weights:
            state = self.state[p]
            if not state:
                state["momentum"] = torch.zeros_like(p)
            assert p.grad is not None
            mean = state["momentum"].lerp_(p.grad, 1 - momentum)
            updates.append(torch.lerp(p.grad, mean, momentum).flatten(1))
        matrices = orthogonalised(torch.stack(updates))
        size = 0.2 * max(matrices.shape[1:]) ** 0.5
        for p, matrix in zip(weights, matrices, strict=True):
            p.mul_(1 - lr * decay).add_(matrix.reshape(p.shape), alpha=-lr * size)


def orthogonalised(matrices: Tensor) -> Tensor:
    """Return matrices (batch, m, n) with all singular values moved to about 1 (0.7 to 1.2)."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-12)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
