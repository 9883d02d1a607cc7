"""Q-PAN+ as a SigPy `App`, called as SigPy calls its own reconstructions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import sigpy as sp
import torch
from numpy.typing import NDArray
from sigpy.mri import linop

from mri_qpan.encoding import Encoding, from_linop
from mri_qpan.methods import require_complex
from mri_qpan.models import DEFAULT, load_model
from mri_qpan.models.store import Model
from mri_qpan.noncartesian import POWER_STEPS, NonCartesian, balanced, largest_eigenvalue, over_mean

NEAR = 1e-3
"""How far from 1 the norm of maps that are taken as they are may be."""


class QPanRecon(sp.app.App):
    """Reconstruct with a trained network, in place of `sigpy.mri.app.L1WaveletRecon`.

    Parameters
    ----------
    y
        k-space, zero where nothing was measured: (coil, ky, kx) or (coil, kz, ky, kx); with `coord`
        (coil, ..., samples). NumPy or CuPy. With (kz, ky, kx) each (y, x) plane is regularised on its own.
    mps
        Coil sensitivities (coil, y, x) or (coil, z, y, x), of any scale: the image is the one that they ask
        for.
    weights
        Of the data consistency, as in SigPy: a number, or an array that broadcasts against y[0]. None: 1
        where any coil measured, else 0; with `coord` the density compensation of Pipe and Menon (Magn Reson
        Med 1999;41:179). A few layers need all spatial frequencies alike: weights count relative to their
        mean at the same distance from the k-space centre, so that ramps, their squares and ones are the same.
    coord
        Coordinates of non-Cartesian samples (..., samples, ndim) in cycles a field of view, as in SigPy.
    model
        Name of a shipped model, path of a model file, or a model loaded already (then `device` is its own);
        for complex images.
    device
        Where to run it: a `sigpy.Device` or its number, -1 for the CPU.
    show_pbar
        Show a progress bar.

    Raises
    ------
    ValueError
        If `y`, `mps`, `weights` and `coord` do not fit each other, the maps are zero, or anything is not
        finite.
    ModelError, InputError
        If the model cannot be used.

    Examples
    --------
    >>> image = QPanRecon(y, mps).run()  # (y, x) or (z, y, x), on the device of y  # doctest: +SKIP
    """

    def __init__(
        self,
        y: Any,
        mps: Any,
        weights: Any = None,
        coord: Any = None,
        model: str | Path | Model = DEFAULT,
        device: Any = sp.cpu_device,
        show_pbar: bool = True,
    ) -> None:
        self._home = sp.get_device(y)
        y, mps, weights, coord = (
            None if a is None else np.asarray(sp.to_device(a, sp.cpu_device))
            for a in (y, mps, weights, coord)
        )
        _check(y, mps, weights, coord)
        if weights is not None and weights.any():
            # A problem's norm is divided out: of the weights only their ratios count.
            weights = weights / weights.max()
        g = np.float32(norm_of_maps(mps))
        if not 0 < g < np.inf:
            raise ValueError("mps are zero, or not finite")
        # Networks know problems of norm 1: maps over g are the same problem for the image times g.
        g = g if abs(g - 1) > NEAR else np.float32(1)
        mps = mps / g
        number = device if isinstance(device, int) else sp.Device(device).id  # the latter asks for CuPy
        if number >= torch.cuda.device_count():
            raise ValueError(f"no GPU {number} found by this PyTorch: device=-1 is the CPU")
        place = torch.device("cpu" if number < 0 else f"cuda:{number}")
        network = load_model(str(model), place) if isinstance(model, str | Path) else model
        require_complex(network)

        def reconstruct() -> NDArray[np.complex64]:
            if weights is not None and not weights.any():
                return np.zeros(mps.shape[1:], np.complex64)
            adjoint, normal = _problem(y, mps, weights, coord, place)
            with torch.inference_mode():
                image = network(adjoint.to(place), normal)[0].cpu().numpy() / g
            if not np.isfinite(image).all():
                raise ValueError("the image is not finite: y or the weights are beyond single precision")
            return image

        super().__init__(_Once(reconstruct), show_pbar=show_pbar)

    def _output(self) -> Any:
        return sp.to_device(self.alg.x, self._home)


def norm_of_maps(mps: NDArray[Any]) -> float:
    """Return the largest norm over coils of maps (coil, ...) of any scale, one coil after another."""
    power = np.zeros(mps.shape[1:])
    for coil in mps:
        power += np.square(np.abs(coil.astype(np.complex128)))
    return float(np.sqrt(power.max()))


class _Once(sp.alg.Alg):
    """An algorithm of one update: what a network does between its layers is its own."""

    def __init__(self, reconstruct: Any) -> None:
        self._reconstruct = reconstruct
        self.x: NDArray[np.complex64] | None = None
        super().__init__(max_iter=1)

    def _update(self) -> None:
        self.x = self._reconstruct()


def _problem(
    y: NDArray[Any],
    mps: NDArray[Any],
    weights: NDArray[Any] | None,
    coord: NDArray[Any] | None,
    place: torch.device,
) -> tuple[torch.Tensor, Any]:
    """Return A^H y (batched) and A^H A."""
    if coord is None:
        measured = np.any(y != 0, axis=0) if weights is None else np.broadcast_to(weights, y.shape[1:])
        if weights is None or np.isin(measured, (0, 1)).all():
            encoding = Encoding(
                torch.from_numpy(measured.astype(bool))[None].to(place),
                torch.from_numpy(mps.astype(np.complex64))[None].to(place),
            )
            return encoding.adjoint(torch.from_numpy(y.astype(np.complex64))[None].to(place)), encoding.normal
        weights = measured
    if coord is not None:
        if weights is not None:
            weights = balanced(np.broadcast_to(weights, coord.shape[:-1]), coord, mps.shape[1:])
        along = NonCartesian(coord, mps.astype(np.complex64), weights, place)
        return along.adjoint(along.measured(y.astype(np.complex64))), along.normal
    assert weights is not None
    weights = _even(weights)
    A = linop.Sense(mps, weights=weights)
    start = torch.randn(1, *A.ishape, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    # Of weights that are 1 on average the largest eigenvalue may be that of a few samples: its root leaves
    # the others near 1, as networks know them.
    norm = np.sqrt(largest_eigenvalue(from_linop(A)[1], start, POWER_STEPS))
    A = np.sqrt(1 / norm) * A
    adjoint, normal = from_linop(A)
    return adjoint((y * np.sqrt(weights) / np.sqrt(norm)).astype(np.complex64)), normal


def _even(weights: NDArray[Any]) -> NDArray[np.float32]:
    """Return weights on a grid over their mean at the same distance from its centre."""
    used = weights > 0
    found = np.zeros(weights.shape, np.float32)
    found[used] = over_mean(weights[used], np.argwhere(used) - np.array(weights.shape) // 2)
    return found


def _check(
    y: NDArray[Any], mps: NDArray[Any], weights: NDArray[Any] | None, coord: NDArray[Any] | None
) -> None:
    if not y.size:
        raise ValueError(f"y of shape {y.shape} is empty")
    if mps.ndim not in (3, 4):
        raise ValueError(f"mps must be (coil, y, x) or (coil, z, y, x), got shape {mps.shape}")
    if len(y) != len(mps):
        raise ValueError(f"y has {len(y)} coils, mps {len(mps)}")
    if coord is None and y.shape != mps.shape:
        raise ValueError(f"Cartesian y must be shaped as mps: got {y.shape} and {mps.shape}")
    if coord is not None and (coord.shape[:-1] != y.shape[1:] or coord.shape[-1] != mps.ndim - 1):
        raise ValueError(
            f"coord must be {(*y.shape[1:], mps.ndim - 1)} for y of {y.shape} and mps of {mps.shape}, "
            f"got {coord.shape}"
        )
    with np.errstate(over="ignore"):
        if not np.isfinite(y.astype(np.complex64)).all():
            raise ValueError("y must be finite, in single precision too")
    if coord is not None and not np.isfinite(coord).all():
        raise ValueError("coord must be finite")
    if weights is not None:
        if coord is None and weights.ndim == 0 and (y == 0).all(axis=0).any():
            raise ValueError(
                f"weights={weights} counts samples that are zero in all coils as measured: leave it out, or "
                "give an array (there is no lamda here)"
            )
        if not np.isfinite(weights).all() or (weights < 0).any():
            raise ValueError("weights must be finite and not negative")
        try:
            np.broadcast_to(weights, y.shape[1:])
        except ValueError as error:
            raise ValueError(f"weights of {weights.shape} do not fit samples of {y.shape[1:]}") from error
