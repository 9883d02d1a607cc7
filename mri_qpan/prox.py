"""The penalties' proximal operators and a trained layer as SigPy `Prox`, for any step size.

`sigpy.prox.L1Reg` is the l1 norm's. At unit step these equal `mri_qpan.penalties`, which names the source;
for a step alpha they are those of alpha times the penalty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sigpy import backend, prox

from mri_qpan.models import DEFAULT, load_model
from mri_qpan.networks import ProximalNetwork
from mri_qpan.scaling import robust_scale


class MCPReg(prox.Prox):
    r"""Proximal operator of the minimax-concave penalty (Zhang 2010), the firm threshold.

    Parameters
    ----------
    shape
        Input's shape; real or complex.
    lamda
        Threshold, positive; or one for every entry.
    gamma
        Knot in units of `lamda`, above 1; a step `alpha` must stay below it.

    Raises
    ------
    ValueError
        If a parameter is out of its range; when called, if the step is.
    """

    def __init__(self, shape: Sequence[int], lamda: Any, gamma: float = 3.0) -> None:
        if not (np.all(np.asarray(lamda) > 0) and gamma > 1):
            raise ValueError(f"MCP needs lamda > 0 and gamma > 1, got {lamda} and {gamma}")
        self.lamda = lamda
        self.gamma = gamma
        super().__init__(shape)

    def _prox(self, alpha: float, input: Any) -> Any:
        if not np.all(np.asarray(alpha) < self.gamma):
            raise ValueError(f"MCP's proximal operator needs a step below gamma = {self.gamma}, got {alpha}")
        with (device := backend.get_device(input)):
            magnitude = abs(input)
            soft = device.xp.maximum(magnitude - alpha * self.lamda, 0)
            return _rescale(input, magnitude, self.gamma / (self.gamma - alpha) * soft)


class SCADReg(prox.Prox):
    r"""Proximal operator of the smoothly clipped absolute deviation (Fan and Li 2001).

    Parameters
    ----------
    shape
        Input's shape; real or complex.
    lamda
        Threshold, positive; or one for every entry.
    a
        Outer knot in units of `lamda`, above 2; a step `alpha` must stay below a - 1.

    Raises
    ------
    ValueError
        If a parameter is out of its range; when called, if the step is.
    """

    def __init__(self, shape: Sequence[int], lamda: Any, a: float = 3.7) -> None:
        if not (np.all(np.asarray(lamda) > 0) and a > 2):
            raise ValueError(f"SCAD needs lamda > 0 and a > 2, got {lamda} and {a}")
        self.lamda = lamda
        self.a = a
        super().__init__(shape)

    def _prox(self, alpha: float, input: Any) -> Any:
        if not np.all(np.asarray(alpha) < self.a - 1):
            raise ValueError(f"SCAD's proximal operator needs a step below a - 1 = {self.a - 1}, got {alpha}")
        with (device := backend.get_device(input)):
            xp = device.xp
            magnitude = abs(input)
            soft = xp.maximum(magnitude - alpha * self.lamda, 0)
            middle = ((self.a - 1) * magnitude - self.a * alpha * self.lamda) / (self.a - 1 - alpha)
            return _rescale(input, magnitude, xp.maximum(soft, middle))


class ProximalAverage(prox.Prox):
    """The weighted mean of proximal operators (Zhong and Kwok 2014; PAISA's Eq. 7).

    Parameters
    ----------
    proxs
        Proximal operators of one shape.
    weights
        Their weights, positive with sum 1; equal by default.

    Raises
    ------
    ValueError
        If the shapes differ or the weights do not average.
    """

    def __init__(self, proxs: Sequence[prox.Prox], weights: Sequence[float] | None = None) -> None:
        if not proxs or any(list(p.shape) != list(proxs[0].shape) for p in proxs):
            raise ValueError(
                f"a proximal average needs operators of one shape, got {[p.shape for p in proxs]}"
            )
        weights = [1 / len(proxs)] * len(proxs) if weights is None else list(weights)
        if len(weights) != len(proxs) or min(weights) <= 0 or not np.isclose(sum(weights), 1):
            raise ValueError(f"weights must be {len(proxs)} positive numbers of sum 1, got {weights}")
        self.proxs = list(proxs)
        self.weights = weights
        super().__init__(proxs[0].shape)

    def _prox(self, alpha: float, input: Any) -> Any:
        with backend.get_device(input):
            return sum(w * p(alpha, input) for w, p in zip(self.weights, self.proxs, strict=True))


class QPanReg(prox.Prox):
    """One layer f of a trained network as a plug-and-play prior, for any SigPy App that takes a `proxg`.

    The operator is (x + alpha lamda f(x)) / (1 + alpha lamda), one fixed-point step of regularization by
    denoising (Romano, Elad and Milanfar, SIAM J Imaging Sci 2017;10:1804).

    Parameters
    ----------
    shape
        Input's shape, (y, x) or (..., y, x), whose (y, x) planes are worked one by one, at one scale; real
        or complex.
    lamda
        Weight, positive; the step `alpha`, a number or one for every entry, multiplies it.
    model
        Name of a shipped model or path of a model file, of a PAN network for complex images.
    layer
        Which, from 0; negative ones count from the last.

    Notes
    -----
    The layer sees its input over a robust maximum of its magnitude, so the operator scales with its input. It
    works on the CPU in float32. f is no gradient of a known function and no contraction: images get better
    for some 5 / lamda iterations without acceleration, fewer with it, and may drift later, so choose
    `accelerate=False` and stop there. `mri_qpan.app.QPanRecon` runs all layers, as trained, and is better.

    Raises
    ------
    ValueError
        If `lamda`, `shape` or `layer` is out of its range or the network is of another kind.
    ModelError
        If the model cannot be used.
    """

    def __init__(
        self, shape: Sequence[int], lamda: float = 0.05, model: str = DEFAULT, layer: int = 2
    ) -> None:
        if not lamda > 0:
            raise ValueError(f"lamda must be positive, got {lamda}")
        if len(shape) < 2:
            raise ValueError(f"the shape must end with (y, x), got {tuple(shape)}")
        network = load_model(model, engine="float32")
        if not isinstance(network, ProximalNetwork) or network.config.channels != 2:
            raise ValueError(f"{model} is no PAN network for complex images")
        if not -len(network.layers) <= layer < len(network.layers):
            raise ValueError(f"{model} has {len(network.layers)} layers, there is no layer {layer}")
        self.lamda = lamda
        self._network = network
        self._layer = layer
        super().__init__(shape)

    def _prox(self, alpha: Any, input: Any) -> Any:
        home = backend.get_device(input)
        values = np.asarray(backend.to_device(input, backend.cpu_device))
        wide = values.astype(np.complex128)  # of any scale
        peak = float(np.abs(wide).max(initial=0)) or 1.0
        image = torch.from_numpy((wide / peak).astype(np.complex64))
        scale = robust_scale(image[None])[0]
        worked = (self._network.proximal_step(self._layer, image / scale) * scale).numpy()
        worked = worked.astype(np.complex128) * peak
        weight = np.asarray(backend.to_device(alpha, backend.cpu_device), np.float64) * self.lamda
        found = worked if np.iscomplexobj(values) else worked.real
        regular = (values + weight * found) / (1 + weight)
        # Rounded to integers the prior would be lost.
        kind = values.dtype if values.dtype.kind in "fc" else np.float64
        return backend.to_device(regular.astype(kind, copy=False), home)


def _rescale(input: Any, magnitude: Any, shrunk: Any) -> Any:
    """Give `input` the magnitude min(magnitude, shrunk): neither penalty ever enlarges a value."""
    xp = backend.get_array_module(input)
    ratio = xp.minimum(magnitude, shrunk) / xp.where(magnitude > 0, magnitude, 1)
    ratio = xp.where(xp.isinf(magnitude), 1, ratio)
    return input * ratio.astype(xp.result_type(magnitude.dtype, xp.float32))  # integers have no such ratio
