"""Whom Q-PAN+ is measured against: SigPy's own apps, BART's `pics` and the solvers of this package.

Every method is called alike, with a `Case` and its parameters, and does the whole way from samples, mask and
coil maps in memory to a magnitude image in memory. Each classical one with a weight has it tuned.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sigpy import linop, prox
from sigpy.app import LinearLeastSquares
from sigpy.mri import app
from torch import Tensor

from mri_qpan import bart
from mri_qpan.benchmark.case import Case, magnitude
from mri_qpan.encoding import Encoding, Normal, Reconstructor
from mri_qpan.errors import ReconError
from mri_qpan.linop import sense
from mri_qpan.scaling import robust_scale
from mri_qpan.solvers import PAISA, TotalVariation

Parameters = Mapping[str, Any]


class Shot(NamedTuple):
    """A magnitude image (y, x), and the seconds inside a foreign process where there was one."""

    image: NDArray[np.float32]
    inner_seconds: float | None = None


@dataclass(frozen=True)
class Method:
    """Something that reconstructs a case.

    Attributes
    ----------
    name
        What tables call it.
    run
        Takes the case and all parameters.
    classical
        Whether the networks have to beat it.
    fixed
        Parameters stated beside the results, such as the iterations.
    choices
        Sets of parameters to choose from by tuning.
    start
        First guess of the tuned weight `lamda`; None: there is nothing to tune.
    """

    name: str
    run: Callable[[Case, Parameters], Shot]
    classical: bool = True
    fixed: Parameters = field(default_factory=dict)
    choices: tuple[Parameters, ...] = ({},)
    start: float | None = None


def classical(threads: int) -> list[Method]:
    """Return zero-filling, SigPy's apps and BART's `pics`, the latter only where BART is installed.

    SigPy's TV takes a dual step (`sigma`) and BART's an ADMM penalty (`rho`) that bring it closer to the
    solution in 100 iterations than the defaults do (by up to 3 dB on a multi-coil head).

    Parameters
    ----------
    threads
        For BART's process; the others run on PyTorch's threads (SigPy on NumPy's: its FFTs use one).
    """
    return [
        Method("zero-filled", _zero_filled),
        Method("CG-SENSE (SigPy)", _sigpy(app.SenseRecon), fixed={"iterations": 30}, start=1e-2),
        Method("wavelet (SigPy)", _sigpy(app.L1WaveletRecon), fixed={"iterations": 100}, start=2e-3),
        Method(
            "TV (SigPy)",
            _sigpy(app.TotalVariationRecon),
            fixed={"iterations": 100, "sigma": 0.05},
            start=4e-3,
        ),
        *(_bart_methods(threads) if bart.available() else []),
    ]


def own_solvers() -> list[Method]:
    """Return this package's own iterative solvers, as further methods to compare with."""
    return [
        Method("TV (ours)", _ours(TotalVariation), fixed={"iterations": 100}, start=4e-3),
        Method("PAISA (ours)", _ours(PAISA), fixed={"iterations": 100}, start=1e-2),
    ]


def network(name: str, reconstructor: Reconstructor, **stated: Any) -> Method:
    """Return a trained network as a method; `stated` is printed with its results (bits, hash, …)."""

    def run(case: Case, parameters: Parameters) -> Shot:
        return Shot(_reconstruct(case, reconstructor))

    return Method(name, run, classical=False, fixed=stated)


def _zero_filled(case: Case, parameters: Parameters) -> Shot:
    encoding, samples = _encoding(case)
    return Shot(magnitude(encoding.adjoint(samples)[0].numpy(), case.mps))


def _ours(solver: Callable[..., Reconstructor]) -> Callable[[Case, Parameters], Shot]:
    def run(case: Case, parameters: Parameters) -> Shot:
        def one_by_one(adjoint: Tensor, normal: Normal) -> Tensor:
            """Let sets of maps stand where a solver takes a batch."""
            if case.sets == 1:
                return solver(**parameters)(adjoint, normal)
            return solver(**parameters)(adjoint[0], lambda image: normal(image[None])[0])

        return Shot(_reconstruct(case, one_by_one))

    return run


@torch.inference_mode()
def _reconstruct(case: Case, method: Reconstructor) -> NDArray[np.float32]:
    encoding, samples = _encoding(case)
    adjoint = encoding.adjoint(samples)
    scale = robust_scale(adjoint)
    return magnitude((scale * method(adjoint / scale, encoding.normal))[0].numpy(), case.mps)


def _encoding(case: Case) -> tuple[Encoding, Tensor]:
    mask, mps, kspace = (torch.from_numpy(a)[None] for a in (case.mask, case.mps, case.kspace))
    return Encoding(mask, mps), kspace


def _sigpy(kind: Callable[..., Any]) -> Callable[[Case, Parameters], Shot]:
    def run(case: Case, parameters: Parameters) -> Shot:
        encoding, samples = _encoding(case)
        scale = np.float32(robust_scale(encoding.adjoint(samples)).item())
        build = kind if case.sets == 1 else _with_sets(kind)
        options = {name: value for name, value in parameters.items() if name not in ("lamda", "iterations")}
        # SigPy's soft threshold divides 0 by 0 on its way to the right answer.
        with np.errstate(invalid="ignore"):
            image = build(
                case.kspace / scale,
                case.mps,
                parameters["lamda"],
                weights=case.mask.astype(np.float32),
                max_iter=parameters["iterations"],
                show_pbar=False,
                **options,
            ).run()
        return Shot(magnitude(scale * image, case.mps))

    return run


def _with_sets(kind: Callable[..., Any]) -> Callable[..., Any]:
    """Return the problem and solver of a SigPy app for several sets of maps, which no app knows."""

    def build(
        kspace: NDArray[Any], mps: NDArray[Any], lamda: float, weights: NDArray[Any], **options: Any
    ) -> LinearLeastSquares:
        A = sense(weights > 0, mps)
        if kind is app.SenseRecon:
            return LinearLeastSquares(A, kspace, lamda=lamda, **options)
        if kind is app.L1WaveletRecon:
            W = linop.Wavelet(A.ishape, axes=(-2, -1))
            proxg = prox.UnitaryTransform(prox.L1Reg(W.oshape, lamda), W)
            return LinearLeastSquares(A, kspace, proxg=proxg, **options)
        G = linop.FiniteDifference(A.ishape, axes=(-2, -1))
        return LinearLeastSquares(A, kspace, proxg=prox.L1Reg(G.oshape, lamda), G=G, **options)

    return build


def _bart_methods(threads: int) -> list[Method]:
    def wavelet(case: Case, parameters: Parameters) -> Shot:
        options = ["--wavelet", parameters["wavelet"], "-R", f"W:3:0:{parameters['lamda']:.6g}"]
        return _pics(case, options, parameters["iterations"], threads)

    def total_variation(case: Case, parameters: Parameters) -> Shot:
        options = ["-u", f"{parameters['rho']:g}", "-R", f"T:3:0:{parameters['lamda']:.6g}"]
        return _pics(case, options, parameters["iterations"], threads)

    return [
        Method(
            "wavelet (BART pics)",
            wavelet,
            fixed={"iterations": 100},
            choices=({"wavelet": "dau2"}, {"wavelet": "haar"}),
            start=3e-3,
        ),
        Method(
            "TV (BART pics)",
            total_variation,
            fixed={"iterations": 100, "rho": 0.05},
            start=5e-3,
        ),
    ]


def _pics(case: Case, options: list[str], iterations: int, threads: int) -> Shot:
    with tempfile.TemporaryDirectory(prefix="mri-qpan-") as name:
        folder = Path(name)
        bart.write_cfl(folder / "kspace", case.kspace[:, None])
        bart.write_cfl(folder / "mps", case.mps[..., None, :, :])
        bart.write_cfl(folder / "mask", case.mask)
        files = ["-p", "mask", "kspace", "mps", "image"]
        printed = bart.run(["pics", "-d4", "-S", "-i", str(iterations), *options, *files], folder, threads)
        image = magnitude(np.squeeze(bart.read_cfl(folder / "image")), case.mps)
    found = re.search(r"Total Time: ([0-9.]+)", printed)
    if found is None:
        raise ReconError("bart pics did not say how long it took (no 'Total Time'): another version of BART?")
    return Shot(image, float(found.group(1)))
