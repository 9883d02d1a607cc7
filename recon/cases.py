"""Benchmark cases from files: fully sampled measurements, and magnitude images as a single coil."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mri_qpan.benchmark.brain import Picture
from mri_qpan.benchmark.case import Case, magnitude
from mri_qpan.errors import InputError, OptionError
from mri_qpan.fourier import fft_numpy, ifft_numpy
from mri_qpan.recon.kspace import KSpace
from mri_qpan.recon.prepare import condition, prepare
from mri_qpan.recon.readers import open_kspace
from mri_qpan.sampling_masks import MaskError, load_mask, make_mask, parse_spec, ratio_of

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
SMALLEST = 7  # the window of SSIM

Complex = NDArray[np.complex64]


def names_of(paths: Sequence[Path]) -> list[str]:
    """Return what to call each input: its own name, after as many of its folders' as tell it from others.

    Raises
    ------
    OptionError
        If one is given twice.
    """
    whole = [path.resolve() for path in paths]
    twice = [path for path, real in zip(paths, whole, strict=True) if whole.count(real) > 1]
    if twice:
        raise OptionError(f"{twice[0]} is given twice")
    bare = [path if path.is_dir() else path.with_suffix("") for path in whole]
    # Of one folder's files that only their suffixes tell apart, the suffixes stay.
    told = [b if bare.count(b) == 1 else w for b, w in zip(bare, whole, strict=True)]
    names = []
    for own in told:
        depth = 1
        while [other.parts[-depth:] for other in told].count(own.parts[-depth:]) > 1:
            depth += 1
        names.append("/".join(own.parts[-depth:]))
    return names


def cases(
    path: Path, specs: Sequence[str], *, count: int, dims: str | None = None, name: str = ""
) -> Iterator[Case]:
    """Make the benchmark cases of one input, every slice under every mask.

    Parameters
    ----------
    path
        A fully sampled 2-D k-space file; a magnitude image (8-bit or 16-bit grey), or a folder of them.
    specs
        Masks as "KIND:RATIO[:SEED]".
    count
        How many images to take of a folder, in the order of their names, spread evenly.
    dims
        Axes of a .npy or .mat file (see `readers.open_kspace`).
    name
        What to call the input (`names_of`); "" takes the file's, or the folder's.

    Yields
    ------
    Case
        Of a measurement, coil maps come from the samples left by the mask; an image has one coil of
        unit sensitivity and no phase.

    Raises
    ------
    InputError
        If the input cannot be read, is not fully sampled, or a mask does not fit it.
    """
    name = name or names_of([path])[0]
    if path.is_dir():
        for image in _spread(_images(path), count):
            yield from _image_cases(image, name, f"{name}/{image.stem}", specs)
    elif path.suffix.lower() in IMAGE_SUFFIXES:
        yield from _image_cases(path, name, name, specs)
    else:
        yield from _measured_cases(path, name, specs, dims)


def read_pictures(folder: Path, count: int | None = None) -> list[Picture]:
    """Read the grey images of a folder, in the order of their names, for the published experiment.

    Raises
    ------
    InputError
        If there are none, one cannot be read, or they differ in size.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    # 12 bits in 16 would have a peak far below 1, and a PSNR far too high.
    pictures = [Picture(p.stem, _sha256(p), _read_image(p, ("L",))) for p in _images(folder)[:count]]
    for picture in pictures:
        if picture.image.shape != pictures[0].image.shape:
            raise InputError(f"{folder}: {picture.name} and {pictures[0].name} differ in size")
    return pictures


def read_masks(folder: Path, percents: str, shape: tuple[int, ...]) -> dict[int, NDArray[np.bool_]]:
    """Read the published masks `mask_<percent>.mat` of a folder, by percent.

    Raises
    ------
    InputError
        If `percents` ("20,30") is no list of whole numbers, or a mask is missing, damaged or of another
        shape.
    """
    masks = {}
    for word in percents.split(","):
        if not (word.strip().isdecimal() and word.isascii()):
            raise OptionError(f"ratios: {word.strip()!r} is no whole number of percent")
        path = folder / f"mask_{int(word)}.mat"
        try:
            mask = load_mask(path)
        except MaskError as error:
            raise InputError(str(error)) from error
        if mask.shape != shape:
            raise InputError(f"{path}: its shape is {mask.shape}, the images' {shape}")
        masks[int(word)] = mask
    return masks


def _measured_cases(path: Path, group: str, specs: Sequence[str], dims: str | None) -> Iterator[Case]:
    source = _sha256(path)
    stream = open_kspace(path, dims)
    several = len(stream) > 1
    for number, kspace in enumerate(stream):
        full, _ = condition(kspace)
        if full.coord is not None:
            raise InputError(f"{path}: a benchmark needs samples on a grid, these lie along a trajectory")
        if full.mask.shape[0] > 1 or not full.mask.all():
            raise InputError(
                f"{path}: a benchmark needs fully sampled 2-D slices; this is a matrix (z, y, x) of "
                f"{full.mask.shape}, {ratio_of(full.mask):.1%} of it acquired"
            )
        name = f"{group}/{number}" if several else group
        for spec in specs:
            yield _measured_case(full, group, name, source, spec)


def _measured_case(full: KSpace, group: str, name: str, source: str, spec: str) -> Case:
    mask = _mask(spec, full.mask.shape[1:])
    kept = replace(full, data=full.data * mask, mask=mask[None], calib=None, calib_mask=None)
    mps = prepare(kept, sets=None).mps[..., 0, :, :]
    combined = (mps.conj() * ifft_numpy(full.data[:, 0], (-2, -1))).sum(-3)
    return Case(group, name, source, spec, kept.data[:, 0], mask, mps, magnitude(combined, mps))


def _image_cases(path: Path, group: str, name: str, specs: Sequence[str]) -> Iterator[Case]:
    image = _read_image(path)
    full = fft_numpy(image[None], (-2, -1))
    source = _sha256(path)
    for spec in specs:
        mask = _mask(spec, image.shape)
        yield Case(group, name, source, spec, full * mask, mask, np.ones_like(full), image)


def _read_image(path: Path, modes: tuple[str, ...] = ("L", "I;16")) -> NDArray[np.float32]:
    """Return a grey image with 1 at the top of its range."""
    try:
        with Image.open(path) as image:
            if image.mode not in modes:
                kinds = " or ".join({"L": "8-bit", "I;16": "16-bit"}[mode] for mode in modes)
                raise InputError(f"{path}: not an {kinds} grey image (mode {image.mode})")
            top = 255 if image.mode == "L" else 65535
            pixels = (np.asarray(image, np.float32) / top).astype(np.float32)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: cannot be read as an image") from error
    if min(pixels.shape) < SMALLEST or not pixels.any():
        raise InputError(f"{path}: black, or smaller than {SMALLEST} x {SMALLEST}: it has no SSIM or PSNR")
    return pixels


def _images(folder: Path) -> list[Path]:
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise InputError(f"{folder}: no images ({', '.join(IMAGE_SUFFIXES)}) in this folder")
    return found


def _spread(paths: list[Path], count: int) -> list[Path]:
    """Return `count` of the paths at even distances, the first one first."""
    count = min(count, len(paths))
    return [paths[i * len(paths) // count] for i in range(count)]


def _mask(spec: str, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    try:
        kind, ratio, seed = parse_spec(spec)
    except MaskError as error:
        raise OptionError(f"mask {spec}: {error}") from error
    try:
        return make_mask(kind, shape, ratio, seed=seed)
    except MaskError as error:
        raise InputError(f"mask {spec}: {error}") from error


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
