"""k-space to image: prepare, scale, reconstruct by any method, unscale, crop."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mri_qpan.encoding import Encoding, Normal, Reconstructor
from mri_qpan.errors import InputError, ReconError
from mri_qpan.networks import Network, ProximalNetwork
from mri_qpan.networks.contraction import of_contraction
from mri_qpan.noncartesian import NonCartesian
from mri_qpan.recon import familiar, noise
from mri_qpan.recon.compression import Number
from mri_qpan.recon.geometry import centre
from mri_qpan.recon.kspace import Image, KSpace, Quantity
from mri_qpan.recon.partial_fourier import UNKNOWN, Edge, edge_signal, fill_edge
from mri_qpan.recon.prepare import Prepared, prepare
from mri_qpan.recon.views import Views, take_views
from mri_qpan.sampling_masks import mask_hash, ratio_of
from mri_qpan.scaling import Level, robust_scale

Complex = NDArray[np.complex64]


@dataclass(frozen=True)
class Figures:
    """What is measured of one reconstruction.

    Attributes
    ----------
    ratio
        Fraction of the prepared k-space matrix that was acquired.
    mask_hash
        Names the sampling mask.
    residual
        Data consistency |P F S x - y| / |y|: about the noise level for a good reconstruction.
    maps_seconds, recon_seconds
        Time of the preparation with its coil maps, and of the method.
    partial_fourier
        How the edge of k-space that was never acquired was filled, None without one.
    coils
        Channels reconstructed from: virtual ones, where they were compressed.
    """

    ratio: float
    mask_hash: str
    residual: float
    maps_seconds: float
    recon_seconds: float
    partial_fourier: Edge | None = None
    coils: int = 1


@dataclass(frozen=True)
class Result:
    """An image, its figures, what preparation assumed or did, and what its model was not trained for.

    `likeness` are the statistics that are held against the model's training (`familiar.measure`). `maps` are
    those of what the measurement's noise does to it, if asked for (`recon.noise`).
    `level` is what the method took for that of A^H y.
    """

    image: Image
    figures: Figures
    notes: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    likeness: dict[str, float] = field(default_factory=dict)
    views: Views | None = None
    maps: dict[Quantity, Image] = field(default_factory=dict)
    level: Level | None = None


def blank(kspace: KSpace) -> Result:
    """Return the zero image of an image of which nothing was measured, with a warning; its ratio is 0.

    A slice beyond the object that some tool cleared, or one that was never written, is no reason to lose the
    others.
    """
    pixels = np.zeros(kspace.recon_shape, np.complex64)
    image = Image(pixels, kspace.geometry, kspace.index, kspace.stamp)
    words = f"slice {kspace.index.slice}: every sample is zero, and so is its image"
    return Result(image, Figures(0.0, "", 0.0, 0.0, 0.0), kspace.notes, (words,))


def reconstruct(
    kspace: KSpace,
    method: Reconstructor,
    *,
    device: torch.device | str = "cpu",
    mps: Complex | None = None,
    compress: Number = None,
    hard_dc: bool = False,
    partial_fourier: str = "auto",
    views: bool = False,
    contraction: bool = False,
    replicas: int = 0,
    level: Level | None = None,
    floor: float = 0.0,
    zero_phase: Complex | None = None,
    edge: Edge | None = None,
) -> Result:
    """Reconstruct one image.

    Parameters
    ----------
    kspace
        The samples of one slice or slab.
    method
        A network, a solver or a function of one's own: (A^H y, x -> A^H A x) -> x, as `get_method` returns.
        It sees images scaled to a robust maximum of 1.
    device
        Where it runs.
    mps
        Coil sensitivities (coil, z, y, x) on the prepared matrix instead of estimated ones.
    compress
        Number of virtual channels to compress the channels to (see `compression.Number`); None keeps all.
    hard_dc
        Put the acquired samples back into the k-space of every coil and combine the coils again. With one
        coil they then agree exactly; with several, as far as their maps and noise let them. On a grid alone.
    partial_fourier
        What fills an edge of k-space that was never acquired, see `partial_fourier.fill_edge`.
    views
        Keep what a report shows.
    contraction
        Work a network once more, in float32, for its contraction figures (`networks.contraction`).
    replicas
        Reconstruct so many copies with the measurement's noise added once more, for maps of what it does.
    level
        Of the image that this is a part of; None: its own. Its `scale` is what the method sees as 1.
    floor
        See `coils.slab_maps`.
    zero_phase
        See `prepare.prepare`.
    edge
        What became of such an edge before in the series (see `partial_fourier.plan_edge`).

    Returns
    -------
    Result
        The image has `kspace.recon_shape` and the input's intensity units.

    Raises
    ------
    InputError
        If the samples cannot be used, or are to be put back (`hard_dc`) along a trajectory.
    ReconError
        If the method fails: out of memory, values that are not finite.
    """
    if hard_dc and kspace.coord is not None:
        raise InputError("--hard-dc: samples along a trajectory cannot be put back: leave it out")
    started = time.perf_counter()
    prepared = prepare(kspace, mps=mps, sets=None, compress=compress, floor=floor, zero_phase=zero_phase)
    seconds = time.perf_counter() - started
    options: dict[str, Any] = {
        "device": device,
        "hard_dc": hard_dc,
        "partial_fourier": partial_fourier,
        "level": level,
    }
    shown: dict[str, Any] = {"views": views, "contraction": contraction, "edge": edge}
    result = solve(prepared, kspace, method, maps_seconds=seconds, **shown, **options)
    if not replicas:
        return result
    return with_noise_maps(result, prepared, kspace, method, replicas, **options)


def with_noise_maps(
    result: Result,
    prepared: Prepared,
    kspace: KSpace,
    method: Reconstructor,
    replicas: int,
    *,
    device: torch.device | str = "cpu",
    hard_dc: bool = False,
    partial_fourier: str = "auto",
    level: Level | None = None,
) -> Result:
    """Add maps of what the measurement's noise does to the image (see `recon.noise`)."""
    edge = result.figures.partial_fourier

    def again(replica: Prepared) -> NDArray[np.complex64]:
        options: dict[str, Any] = {"hard_dc": hard_dc, "partial_fourier": partial_fourier, "level": level}
        # A replica's noise is twice the measurement's: it must not decide again.
        return solve(replica, kspace, method, device=device, edge=edge, **options).image.data

    linear = getattr(method, "linear", False) and (edge is None or edge.filled_by != "pocs")
    # Acquired samples put back are no least-squares solution any more, nor is an edge filled by POCS.
    inverts = getattr(method, "least_squares", False) and linear and not hard_dc
    found, notes = noise.noise_maps(
        result.image.data,
        prepared,
        kspace.noise_covariance,
        again,
        replicas,
        linear=linear,
        least_squares=inverts,
    )
    maps = {quantity: replace(result.image, data=pixels) for quantity, pixels in found.items()}
    return replace(result, maps=maps, notes=(*result.notes, *notes))


@torch.inference_mode()
def solve(
    prepared: Prepared,
    kspace: KSpace,
    method: Reconstructor,
    *,
    device: torch.device | str = "cpu",
    maps_seconds: float = 0.0,
    hard_dc: bool = False,
    partial_fourier: str = "auto",
    views: bool = False,
    contraction: bool = False,
    level: Level | None = None,
    edge: Edge | None = None,
) -> Result:
    """Run `method` on prepared samples; `kspace` says where the image lies. Else as `reconstruct`."""
    started = time.perf_counter()
    encoding, samples = to_torch(prepared, device)
    sets = prepared.mps.ndim == 5
    adjoint = encoding.adjoint(samples)
    unit = robust_scale(adjoint) if level is None else torch.full((), level.scale, device=adjoint.device)
    seen = None if level is None else level._replace(scale=1.0)
    try:
        image, settled = _apply(method, adjoint / unit, encoding.normal, sets, seen)
        image = unit * image
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        on_cpu = torch.device(device).type == "cpu"
        advice = "less --memory works 3-D data in parts" if on_cpu else "use another --device"
        raise ReconError(f"out of memory on {device}: {advice}") from error
    if not bool(torch.isfinite(torch.view_as_real(image)).all()):
        raise ReconError("the method returned values that are not finite: it diverged on these data")
    assert encoding.mps is not None
    notes = list(prepared.notes)
    filled = None
    if prepared.coord is None:
        signal = _edge_signal(prepared, kspace.noise_covariance)
        name = getattr(method, "name", "")
        image, filled = fill_edge(image, prepared.mask, partial_fourier, name, signal, edge)
    if filled is not None:
        notes.append(f"partial Fourier: {filled}")
    elif prepared.coord is not None and getattr(method, "name", "") == "zero-filled":
        # Of A^H A the largest eigenvalue is 1, not the mean: it gets the brightness that fits the samples.
        image = image * (image.abs().square().sum() / (image.conj() * encoding.normal(image)).sum().real)
    # Where no coil sees anything, no sample says what the image is.
    image = image * (encoding.mps != 0).any(dim=2 if sets else 1)
    if hard_dc:
        before = _residual(encoding, image, samples)
        image = image + adjoint - encoding.normal(image)
        notes.append(f"acquired samples put back: |Ax - y|/|y| was {before:.2%}")
    residual = _residual(encoding, image, samples)
    mask = prepared.mask[0] if prepared.mask.shape[0] == 1 else prepared.mask
    figures = Figures(
        ratio=ratio_of(mask),
        mask_hash=mask_hash(mask),
        residual=residual,
        maps_seconds=maps_seconds,
        recon_seconds=time.perf_counter() - started,
        partial_fourier=filled,
        coils=len(prepared.data),
    )
    card = getattr(getattr(method, "run", method), "card", None)
    strange = familiar.centre_missed(prepared.mask)
    likeness: dict[str, float] = {}
    if card is not None:
        network = getattr(method, "run", method)
        if contraction and isinstance(network, ProximalNetwork):
            near = network.contraction(adjoint / unit, encoding.normal, seen)
            settled |= {name: float(values.max()) for name, values in of_contraction(near).items()}
        likeness = familiar.measure(prepared, adjoint, float(unit.max()), settled)
        strange += familiar.warnings(card, prepared, float(unit.max()), likeness)
    shown = None
    if views:
        apart = None if isinstance(encoding, NonCartesian) else encoding.forward(image) - samples
        zero_filled = to_image(adjoint, prepared, kspace)
        on_grid = None if apart is None else samples
        shown = take_views(prepared, zero_filled, on_grid, apart, float(unit.max()))
    return Result(
        to_image(image, prepared, kspace),
        figures,
        tuple(notes),
        tuple(strange),
        likeness,
        shown,
        level=level or Level(float(unit.max()), (_norm(adjoint) / float(unit.max())) ** 2 / adjoint.numel()),
    )


def _edge_signal(prepared: Prepared, covariance: Complex | None) -> float:
    """Return `partial_fourier.edge_signal`, for noise that is at most what the outermost samples hold."""
    sigma = familiar.noise_level(prepared)
    if covariance is None:
        return UNKNOWN * edge_signal(prepared.data, prepared.mask, sigma)
    return edge_signal(prepared.data, prepared.mask, min(sigma, noise.level(covariance)))


def _apply(
    method: Reconstructor, adjoint: torch.Tensor, normal: Normal, sets: bool, level: Level | None
) -> tuple[torch.Tensor, dict[str, float]]:
    """Call a method, and ask a network how far it has settled.

    Sets of maps (a batch of one, set, y, x) stand where it takes images one by one.

    That is the batch for a solver, whose spatial axes are all that follow, and beside it for a network,
    which scales every entry of a batch on its own.
    """
    network = getattr(method, "run", method)
    if isinstance(network, Network):
        image, moved = network.reconstruct(adjoint, normal, level)
        return image, {"moved": float(moved.max())}
    if not sets or isinstance(network, torch.nn.Module):
        return method(adjoint, normal), {}
    return method(adjoint[0], lambda image: normal(image[None])[0])[None], {}


def to_torch(prepared: Prepared, device: torch.device | str) -> tuple[Encoding | NonCartesian, torch.Tensor]:
    """Return A and y in torch with a batch of one; a single slice loses its z axis."""
    if prepared.coord is not None:
        slice_alone = prepared.mps.shape[1] == 1
        maps = prepared.mps[:, 0] if slice_alone else prepared.mps
        along = NonCartesian(prepared.coord, maps, prepared.weights, device)
        stack = not slice_alone and prepared.coord.shape[1] == 2
        return along, along.measured(prepared.data[:, :, 0] if stack else prepared.data[:, 0, 0])
    mask, mps, data = prepared.mask, prepared.mps, prepared.data
    if mask.shape[0] == 1:
        mask, mps, data = mask[0], mps[..., 0, :, :], data[:, 0]
    encoding = Encoding(_batch(mask, device), _batch(mps, device))
    return encoding, _batch(data, device)


def to_image(image: torch.Tensor, prepared: Prepared, kspace: KSpace) -> Image:
    """Return a batch of one as an `Image`, cropped about its centre to the matrix to deliver.

    Of several sets of maps, the magnitude is the root sum of squares and the phase the first set's.
    """
    sets = image[0].reshape(-1, *prepared.mask.shape).cpu().numpy()
    volume = sets[0]
    if len(sets) > 1:
        volume = np.linalg.norm(sets, axis=0) * np.exp(1j * np.angle(volume))
    cropped = np.ascontiguousarray(volume[centre(volume.shape, prepared.recon_shape)], dtype=np.complex64)
    return Image(cropped, kspace.geometry, kspace.index, kspace.stamp)


def _batch(array: NDArray[np.generic], device: torch.device | str) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))[None].to(device)


def _residual(encoding: Encoding | NonCartesian, image: torch.Tensor, samples: torch.Tensor) -> float:
    size = _norm(samples)
    if size == 0:
        if bool(samples.any()):
            raise ReconError("the samples are too small for single precision: scale them up")
        raise ReconError("all samples are zero: there is no signal to reconstruct")
    return _norm(encoding.forward(image) - samples) / size


def _norm(values: torch.Tensor) -> float:
    """Return the norm of complex values: of real numbers torch is faster."""
    return float(torch.linalg.vector_norm(torch.view_as_real(values)))


def _is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """Return whether memory was short: on a CPU torch says so in words alone."""
    return isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(
        error
    )
