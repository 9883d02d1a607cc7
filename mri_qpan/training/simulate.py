"""From a bank image to a simulated measurement: phase, coils, noise, sampling mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from mri_qpan import fourier
from mri_qpan.encoding import Encoding, RealEncoding
from mri_qpan.sampling_masks import make_mask, spokes
from mri_qpan.training import views
from mri_qpan.training.bank import Bank

KINDS = {"lines": 0.4, "random2d": 0.15, "poisson": 0.1, "radial": 0.15, "equispaced": 0.15, "partial": 0.05}
"""Share of each kind of mask; 1-D lines are what scanners measure most."""

COILS = {1: 0.4, 2: 0.1, 4: 0.35, 8: 0.15}
"""Share of each number of coils; few are cheap, and a SENSE image looks alike for any."""

MIN_NOISE, MAX_NOISE = 1e-3, 0.1
"""Range of the noise's standard deviation in every coil image, where the object's maximum is 1."""

CALIBRATED = 0.7
"""Share of measurements with coils whose maps come from their own samples."""

Calibrate = Callable[[NDArray[np.complex64], NDArray[np.bool_], float], NDArray[np.complex64]]
"""(k-space (coil, y, x), mask (y, x), standard deviation of the noise of a sample) -> maps (coil, y, x)."""

NOISELESS = 0.15
"""Share of measurements without added noise."""

SHADED, BRIGHT, TWO_TISSUES = 0.3, 0.4, 0.2
"""Shares of images with a coil's uneven brightness, bright vessels, and two tissues out of phase."""


@dataclass(frozen=True)
class Case:
    """A simulated measurement, batched.

    Attributes
    ----------
    kspace
        (batch, coil, y, x) complex64, zeros where not sampled.
    mask
        (batch, y, x) bool.
    mps
        (batch, coil, y, x) complex64: the maps that the reconstruction is given. None: the published
        experiment, whose images are real.
    target
        (batch, y, x) complex64: the image that the fully sampled measurement gives with `mps`, noise
        included. It is what a study compares against, and asks a network to keep what was measured.
        In the published experiment the image itself, float32 in [0, 1].
    """

    kspace: Tensor
    mask: Tensor
    mps: Tensor | None
    target: Tensor

    def encoding(self) -> Encoding | RealEncoding:
        """Return the operator that measured."""
        return RealEncoding(self.mask) if self.mps is None else Encoding(self.mask, self.mps)

    def to(self, device: torch.device | str) -> Case:
        """Return the case on `device`."""
        kspace, mask, target = (
            t.to(device, non_blocking=True) for t in (self.kspace, self.mask, self.target)
        )
        mps = None if self.mps is None else self.mps.to(device, non_blocking=True)
        return Case(kspace, mask, mps, target)


class Simulation(Dataset[Case]):
    """One batch a training step, drawn from (seed, step) alone, so that a resumed training sees the same.

    Parameters
    ----------
    bank
        Images.
    sizes
        Matrices (y, x) to draw from, one a batch.
    pixels
        Images a batch are as many as fit these pixels, at least one.
    ratios
        Lowest and highest sampling ratio.
    seed
        Of everything random.
    steps
        Length.
    published
        Measure real images with pseudo-radial masks, as in the published experiment, instead of complex ones
        with coils, noise and masks of every kind.
    numbers, noise, enlarge, turned, extracted
        See `Recipe.spokes`, `Recipe.noise`, `Recipe.enlarge`, `Recipe.turned` and `Recipe.extracted`.
    shares
        How often to draw each group, by name; None: by the square root of its number of images.
    calibrate
        Estimates coil maps as a reconstruction will, so that a network learns to live with their errors.
        None: the true maps with made-up errors alone.
    """

    def __init__(
        self,
        bank: Bank,
        sizes: list[tuple[int, int]],
        pixels: int,
        ratios: tuple[float, float],
        seed: int,
        steps: int,
        published: bool = False,
        numbers: tuple[int, ...] = (),
        shares: dict[str, float] | None = None,
        calibrate: Calibrate | None = None,
        noise: float = 0.0,
        enlarge: float = 1.0,
        turned: float = 0.0,
        extracted: float = 0.0,
    ) -> None:
        self._noise, self._enlarge = noise, enlarge
        self._turned, self._extracted = turned, extracted
        self._bank = bank
        self._numbers = numbers
        self._calibrate = calibrate
        self._published = published
        self._sizes = sizes
        self._pixels = pixels
        self._ratios = ratios
        self._seed = seed
        self._steps = steps
        names = sorted(set(bank.groups))
        counts = {name: bank.groups.count(name) for name in names}
        # The square root lets a small data set be seen more often than its share, without wearing it out.
        share = shares or {name: count**0.5 for name, count in counts.items()}
        weights = np.array([share[group] / counts[group] for group in bank.groups])
        self._probabilities = weights / weights.sum()

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> Case:
        rng = np.random.default_rng([self._seed, step])
        shape = self._sizes[rng.integers(len(self._sizes))]
        coils = int(rng.choice(list(COILS), p=list(COILS.values())))
        count = max(1, self._pixels // (shape[0] * shape[1]))
        images = [
            self._bank.images[i] for i in rng.choice(len(self._bank.images), count, p=self._probabilities)
        ]
        if self._published:
            seen = [self._view(augment(np.abs(i), shape, rng, self._enlarge), rng) for i in images]
            return collate([measure_real(view, self._radial(shape, rng)) for view in seen])
        return collate([simulate(i, shape, coils, self._ratios, rng, self._calibrate) for i in images])

    def _view(self, image: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        if self._noise:
            image = views.noisy(image, self._noise, rng)
        if rng.random() < self._turned:
            image = views.turned(image, rng)
        if rng.random() < self._extracted:
            image = views.extracted(image, rng)
        return views.window(image, rng)

    def _radial(self, shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.bool_]:
        if self._numbers:
            return spokes(shape, int(rng.choice(self._numbers)))
        return make_mask("radial", shape, rng.uniform(*self._ratios), seed=int(rng.integers(2**31)))


def collate(cases: list[Case]) -> Case:
    """Join cases of one size and number of coils into a batch."""
    kspace, mask, target = (
        torch.cat([getattr(c, name) for c in cases]) for name in ("kspace", "mask", "target")
    )
    maps = [c.mps for c in cases if c.mps is not None]
    return Case(kspace, mask, torch.cat(maps) if maps else None, target)


def simulate(
    image: NDArray[Any],
    shape: tuple[int, int],
    coils: int,
    ratios: tuple[float, float],
    rng: np.random.Generator,
    calibrate: Calibrate | None = None,
) -> Case:
    """Simulate the measurement of an augmented view of `image`.

    Parameters
    ----------
    image
        (y, x) magnitude, or complex with its measured phase.
    shape
        Matrix (y, x) of the simulated image.
    coils
        Number of coils.
    ratios
        Lowest and highest sampling ratio.
    rng
        Of everything random.
    calibrate
        See `Simulation`.
    """
    view = augment(image, shape, rng)
    if rng.random() < SHADED:
        view = shade(view, rng)
    if rng.random() < BRIGHT:
        view = brighten_vessels(view, rng)
    if rng.random() < TWO_TISSUES:
        view = dephase_bright(view, rng)
    if not np.iscomplexobj(image):
        view = view * np.exp(1j * smooth_phase(shape, rng)).astype(np.complex64)
    kinds = {k: p for k, p in KINDS.items() if coils > 1 or k != "equispaced"}
    weights = np.array(list(kinds.values()))
    kind = str(rng.choice(list(kinds), p=weights / weights.sum()))
    return measure(view, random_maps(shape, coils, rng), kind, rng.uniform(*ratios), rng, calibrate)


def measure(
    image: NDArray[np.complex64],
    maps: NDArray[np.complex64],
    kind: str,
    ratio: float,
    rng: np.random.Generator,
    calibrate: Calibrate | None = None,
) -> Case:
    """Measure a complex image (y, x) through maps (coil, y, x) with noise of random level."""
    shape = (image.shape[0], image.shape[1])
    ratio = max(1, round(ratio * shape[0])) / shape[0]  # whole lines, so that every matrix can have it
    mask = make_mask(kind, shape, ratio, seed=int(rng.integers(2**31)))
    kspace = fourier.fft_numpy(maps * image, (-2, -1))
    level = 0.0
    if rng.random() > NOISELESS:
        level = MIN_NOISE * (MAX_NOISE / MIN_NOISE) ** rng.random()
        noise = rng.standard_normal((2, *kspace.shape), dtype=np.float32)
        kspace = kspace + np.complex64(level / np.sqrt(2)) * (noise[0] + 1j * noise[1])
    given = _estimated(maps, image, rng) if len(maps) > 1 else maps
    if len(maps) > 1 and calibrate is not None and rng.random() < CALIBRATED:
        known = level * rng.integers(2)  # many files do not tell the noise
        found = calibrate((kspace * mask).astype(np.complex64), mask, known)
        if found.any():  # else noise hides every kernel
            given = found
    target = (given.conj() * fourier.ifft_numpy(kspace, (-2, -1))).sum(0)
    return Case(
        torch.from_numpy((kspace * mask).astype(np.complex64))[None],
        torch.from_numpy(mask)[None],
        torch.from_numpy(given)[None],
        torch.from_numpy(target)[None],
    )


def measure_real(image: NDArray[np.float32], mask: NDArray[np.bool_]) -> Case:
    """Measure a real image (y, x) in [0, 1] as the published experiment does: one coil, no noise."""
    sampled = torch.from_numpy(mask)[None]
    target = torch.from_numpy(np.ascontiguousarray(image, np.float32))[None]
    return Case(RealEncoding(sampled).forward(target), sampled, None, target)


def augment(
    image: NDArray[Any], shape: tuple[int, int], rng: np.random.Generator, enlarge: float = 1.0
) -> NDArray[Any]:
    """Flip, rotate, resize, crop or pad to `shape`, and bend the grey scale; the result's maximum is 1."""
    if rng.random() < 0.5:
        image = image.T
    image = image[:: rng.choice([-1, 1]), :: rng.choice([-1, 1])]
    fit = max(image.shape[0] / shape[0], image.shape[1] / shape[1])
    # Between the whole field of view shrunk (or enlarged) into the matrix and the image's own resolution.
    factor = rng.uniform(min(1.0, max(fit, 1 / enlarge)), max(1.0, fit))
    if abs(factor - 1) > 0.02:
        image = _resize(image, (round(image.shape[0] / factor), round(image.shape[1] / factor)))
    image = _place(image, shape, rng)
    magnitude = np.abs(image)
    peak = max(float(magnitude.max()), 1e-6)
    if rng.random() < 0.4:
        exponent = rng.uniform(0.7, 1.4)
        image = image * ((magnitude + 1e-6) / peak) ** (exponent - 1)
        peak = max(float(np.abs(image).max()), 1e-6)
    return image / peak


def shade(image: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """Return `image` (y, x) under a smooth brightness as of a surface coil; its maximum is 1."""
    coarse = torch.from_numpy(rng.standard_normal((1, 1, 3, 3)).astype(np.float32))
    field = F.interpolate(coarse, image.shape, mode="bicubic", align_corners=True)[0, 0].numpy()
    shaded = image * np.exp(np.float32(rng.uniform(0.2, 0.8)) * field)
    return shaded / max(float(np.abs(shaded).max()), 1e-6)


def brighten_vessels(image: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """Return `image` (y, x) with a few small spots several times brighter, as blood that flows in.

    Each has a phase of its own, as flow gives it. Their aliases are as bright as tissue, and no image without
    them shows a network such aliases.
    """
    places = np.argwhere(np.abs(image) > 0.1)
    if not len(places):
        return image
    y, x = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in image.shape), indexing="ij")
    gain, phase = np.ones(image.shape, np.float32), np.zeros(image.shape, np.float32)
    for at_y, at_x in places[rng.integers(len(places), size=rng.integers(1, 7))]:
        width = rng.uniform(0.6, 3.0, 2)
        angle = rng.uniform(0, np.pi)
        along = (y - at_y) * np.cos(angle) + (x - at_x) * np.sin(angle)
        across = (x - at_x) * np.cos(angle) - (y - at_y) * np.sin(angle)
        spot = np.exp(-0.5 * ((along / width[0]) ** 2 + (across / width[1]) ** 2)).astype(np.float32)
        gain += np.float32(rng.uniform(1, 8)) * spot
        phase += np.float32(rng.uniform(-np.pi, np.pi)) * spot
    return (image * gain * np.exp(1j * phase)).astype(np.complex64)


def dephase_bright(image: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """Return `image` (y, x), tissue at most 1, whose brightest parts have a phase of their own, as fat."""
    edge, angle = rng.uniform(0.3, 0.8), rng.uniform(-np.pi, np.pi)
    share = 1 / (1 + np.exp(-(np.abs(image) - edge) / 0.03))
    return (image * np.exp(1j * angle * share)).astype(np.complex64)


def _resize(image: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    parts = np.stack([image.real, image.imag]) if np.iscomplexobj(image) else image[None]
    tensor = torch.from_numpy(np.ascontiguousarray(parts, np.float32))[None]
    small = F.interpolate(tensor, shape, mode="bicubic", antialias=True, align_corners=False)[0].numpy()
    return small[0] + 1j * small[1] if np.iscomplexobj(image) else small[0].clip(0)


def _place(image: NDArray[Any], shape: tuple[int, int], rng: np.random.Generator) -> NDArray[Any]:
    """Crop or pad each axis to `shape` at a random offset."""
    for axis, size in enumerate(shape):
        n = image.shape[axis]
        if n >= size:
            start = int(rng.integers(n - size + 1))
            image = image.take(range(start, start + size), axis)
        else:
            before = int(rng.integers(size - n + 1))
            widths = [(0, 0), (0, 0)]
            widths[axis] = (before, size - n - before)
            image = np.pad(image, widths)
    return image


def smooth_phase(shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return a random smooth phase (y, x) in rad: an offset, a slope and a few slow waves."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij")
    slope = rng.uniform(-1, 1, 2) * np.pi * rng.choice([0.2, 1.0])
    phase = rng.uniform(-np.pi, np.pi) + slope[0] * y + slope[1] * x
    coarse = rng.standard_normal((1, 1, *rng.integers(3, 7, 2))).astype(np.float32)
    waves = F.interpolate(torch.from_numpy(coarse), shape, mode="bicubic", align_corners=True)[0, 0].numpy()
    return (phase + rng.choice([0.1, 0.5, 1.0]) * waves).astype(np.float32)


def random_maps(shape: tuple[int, int], coils: int, rng: np.random.Generator) -> NDArray[np.complex64]:
    """Return smooth random sensitivities (coil, y, x) of loops around the object, root sum of squares 1."""
    if coils == 1:
        return np.ones((1, *shape), np.complex64)
    y, x = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij")
    start = rng.uniform(0, 2 * np.pi)
    maps = np.empty((coils, *shape), np.complex64)
    for coil in range(coils):
        angle = start + 2 * np.pi * (coil + rng.uniform(-0.3, 0.3)) / coils
        radius, width = rng.uniform(1.0, 1.6), rng.uniform(0.5, 1.1)
        dy, dx = y - radius * np.sin(angle), x - radius * np.cos(angle)
        magnitude = (1 + (dy**2 + dx**2) / width**2) ** -1.5
        phase = rng.uniform(-np.pi, np.pi) + rng.uniform(-1.5, 1.5) * y + rng.uniform(-1.5, 1.5) * x
        maps[coil] = magnitude * np.exp(1j * (phase + np.arctan2(dy, dx) * rng.uniform(0, 0.5)))
    return maps / np.sqrt((np.abs(maps) ** 2).sum(0))


def _estimated(
    maps: NDArray[np.complex64], image: NDArray[np.complex64], rng: np.random.Generator
) -> NDArray[np.complex64]:
    """Return `maps` as a calibration would find them: slightly wrong, and often cut to the object."""
    if rng.random() < 0.5:
        shape = maps.shape[1:]
        coarse = rng.standard_normal((2 * len(maps), 1, 5, 5)).astype(np.float32)
        error = F.interpolate(torch.from_numpy(coarse), shape, mode="bicubic", align_corners=True).numpy()
        error = error.reshape(2, len(maps), *shape)
        maps = maps + np.complex64(rng.uniform(0, 0.01)) * (error[0] + 1j * error[1])
        maps = maps / np.sqrt((np.abs(maps) ** 2).sum(0))
    if rng.random() < 0.5:
        magnitude = torch.from_numpy(np.abs(image).astype(np.float32))[None, None]
        near = F.max_pool2d(F.avg_pool2d(magnitude, 7, 1, 3), 9, 1, 4)[0, 0].numpy()
        maps = maps * (near > 0.03)
    return maps.astype(np.complex64)
