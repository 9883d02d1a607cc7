"""The demonstration: a phantom's scan through the same reader, preparation and pipeline as a real one."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mri_qpan import metrics
from mri_qpan.methods import Method
from mri_qpan.phantom import Phantom, coil_covariance, combined, noise
from mri_qpan.phantom_head import FOV, head
from mri_qpan.recon.files import staged
from mri_qpan.recon.geometry import centre
from mri_qpan.recon.kspace import Geometry, Index, KSpace
from mri_qpan.recon.pipeline import Figures, solve
from mri_qpan.recon.prepare import condition, prepare
from mri_qpan.recon.provenance import provenance
from mri_qpan.recon.readers import open_kspace
from mri_qpan.recon.writers.demo_png import write_demo_png
from mri_qpan.recon.writers.ismrmrd_raw import draw_noise_scan, write_raw
from mri_qpan.sampling_masks import make_mask
from mri_qpan.solvers import Wavelet

THICKNESS = 5.0
OVERSAMPLING = 2

WAVELET = Method("wavelet", Wavelet(lamda=1.4e-3, iterations=25))
"""The demo's wavelet reconstruction, with the weight and the number of iterations of the highest PSNR on this
very scan, out of 3e-4 to 1.6e-2 and 10 to 100: the peer gets its best."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Protocol:
    """How the phantom is scanned.

    Attributes
    ----------
    matrix
        Pixels (y, x).
    coils, slices
        Their numbers.
    ratio
        Share of the phase-encoding lines that are acquired, variable density.
    calib
        Lines at the centre that are all acquired.
    sigma
        Standard deviation of a complex sample's noise, of a mean coil, where fat has an intensity of 0.9.
    seed
        Of sampling and noise.
    """

    matrix: tuple[int, int] = (256, 256)
    coils: int = 8
    slices: int = 3
    ratio: float = 0.25
    calib: int = 24
    sigma: float = 0.012
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """One slice by one method.

    Attributes
    ----------
    image
        Magnitude (y, x).
    psnr, ssim
        Against the reference.
    figures
        The pipeline's.
    """

    image: NDArray[np.float32]
    psnr: float
    ssim: float
    figures: Figures


@dataclass(frozen=True)
class Slice:
    """One slice: the reference (y, x), the measured samples (y, x), and each method's outcome by name."""

    reference: NDArray[np.float32]
    mask: NDArray[np.bool_]
    outcomes: dict[str, Outcome]


@dataclass(frozen=True)
class Demo:
    """What a demo made: how it was scanned, the slices, the methods' names in order, the files written."""

    protocol: Protocol
    slices: list[Slice]
    methods: list[str]
    files: list[Path]

    def mean(self, method: str) -> tuple[float, float, float]:
        """Return PSNR (dB) and SSIM by `method`, means over the slices, and the median of their seconds."""
        outcomes = [s.outcomes[method] for s in self.slices]
        values = [(o.psnr, o.ssim, o.figures.recon_seconds) for o in outcomes]
        psnr, ssim, _ = np.mean(values, axis=0)
        # The first slice pays for loading and warming up.
        return float(psnr), float(ssim), float(np.median(values, axis=0)[2])


def run(
    folder: Path,
    methods: Sequence[Method],
    *,
    protocol: Protocol | None = None,
    device: torch.device | str = "cpu",
    progress: Progress = lambda doing: None,
) -> Demo:
    """Scan the phantom, reconstruct the scan by every method and compare with what it would be in full.

    Written are `phantom.h5` (the raw data), `demo.png` (the middle slice) and `demo.json` (all figures).

    Parameters
    ----------
    folder
        An existing folder.
    methods
        What reconstructs.
    protocol
        Of the scan; None for the default one.
    device
        Where the methods run.
    progress
        Told what is being done.
    """
    plan = protocol or Protocol()
    progress("scanning the phantom")
    raw = folder / "phantom.h5"
    truth = scan(raw, plan)
    slices = []
    for number, (kspace, full) in enumerate(zip(open_kspace(raw), truth, strict=True), start=1):
        progress(f"preparing slice {number} of {plan.slices}")
        slices.append(_compare(kspace, full, methods, device, progress))
    files = [raw, folder / "demo.png", folder / "demo.json"]
    demo = Demo(plan, slices, [method.name for method in methods], files)
    with staged(folder) as stage:
        _write_json(stage / "demo.json", demo, raw, methods)
        write_demo_png(stage / "demo.png", demo)
    return demo


def scan(path: Path, protocol: Protocol) -> list[KSpace]:
    """Write the phantom's undersampled, noisy measurement; return the full, noise-free k-space of slices."""
    phantom = head(protocol.coils, protocol.slices)
    ny, nx = protocol.matrix
    full = phantom.kspace((ny, OVERSAMPLING * nx), (FOV[0], OVERSAMPLING * FOV[1]))
    covariance = coil_covariance(protocol.coils, protocol.sigma)
    noisy = full + noise(full.shape, covariance, protocol.seed)
    mask = make_mask("lines", full.shape[2:], protocol.ratio, calib=protocol.calib, seed=protocol.seed)[None]
    calib_mask = np.zeros_like(mask)
    calib_mask[:, ny // 2 - protocol.calib // 2 : ny // 2 - protocol.calib // 2 + protocol.calib] = True
    truth = [_slice(phantom, full, z, protocol) for z in range(protocol.slices)]
    measured = [
        replace(s, data=data * mask, mask=mask, calib=data * calib_mask, calib_mask=calib_mask)
        for s, data in zip(truth, noisy.transpose(1, 0, 2, 3)[:, :, None], strict=True)
    ]
    write_raw(path, measured, noise=draw_noise_scan(covariance, protocol.seed + 1))
    return truth


def _slice(phantom: Phantom, full: NDArray[np.complex64], z: int, protocol: Protocol) -> KSpace:
    return KSpace(
        data=full[:, z : z + 1],
        mask=np.ones((1, *full.shape[2:]), np.bool_),
        recon_shape=(1, *protocol.matrix),
        geometry=Geometry(fov=(FOV[1], FOV[0], THICKNESS), position=(0.0, 0.0, phantom.offsets[z])),
        index=Index(slice=z),
    )


def _compare(
    kspace: KSpace, full: KSpace, methods: Sequence[Method], device: torch.device | str, progress: Progress
) -> Slice:
    """Reconstruct a slice by every method; `full` has its noise-free samples."""
    # The reference sees the same whitening and crop; its coils' root sum of squares needs no maps.
    truth, _ = condition(replace(full, noise_covariance=kspace.noise_covariance))
    reference = combined(truth.data)[centre(truth.data.shape[1:], kspace.recon_shape)][0]
    started = time.perf_counter()
    prepared = prepare(kspace)
    seconds = time.perf_counter() - started
    outcomes = {}
    for method in methods:
        progress(f"{method.name}, slice {kspace.index.slice + 1}")
        result = solve(prepared, kspace, method, device=device, maps_seconds=seconds)
        image = np.abs(result.image.data[0])
        psnr, ssim = metrics.psnr(reference, image), metrics.ssim(reference, image)
        outcomes[method.name] = Outcome(image, psnr, ssim, result.figures)
    return Slice(reference, prepared.mask[0], outcomes)


def _write_json(path: Path, demo: Demo, raw: Path, methods: Sequence[Method]) -> None:
    record = []
    for method in methods:
        outcomes = [s.outcomes[method.name] for s in demo.slices]
        psnr, ssim, _ = demo.mean(method.name)
        slices = [{"psnr": o.psnr, "ssim": o.ssim, **asdict(o.figures)} for o in outcomes]
        origin = provenance(raw, method, [o.figures for o in outcomes])
        record.append(origin | {"psnr": psnr, "ssim": ssim, "slices": slices})
    path.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")
