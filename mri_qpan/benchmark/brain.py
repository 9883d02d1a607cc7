"""The published experiment: real images in [0, 1], one coil, no noise, pseudo-radial masks.

Protocol of Nareddy et al., Table 4 (ISTA-Net's CS-MRI experiment): the input is Re F^H M F x; the output is
clipped to [0, 1]; PSNR is 20 log10(255 / RMSE) of each image on the scale 0 to 255, then averaged.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image

from mri_qpan import metrics
from mri_qpan.benchmark.charts import BASE
from mri_qpan.benchmark.figures import comparison
from mri_qpan.encoding import Encoding, RealEncoding, Reconstructor
from mri_qpan.errors import OptionError
from mri_qpan.networks import Network
from mri_qpan.sampling_masks import mask_hash, ratio_of

FORMAT = 1
WHITE = 255.0
RESAMPLES = 10_000

PUBLISHED: dict[str, dict[int, float]] = {
    "ADMM-Net": {20: 37.17, 30: 39.84, 40: 41.56, 50: 43.00},
    "ISTA-Net": {20: 38.30, 30: 40.52, 40: 42.12, 50: 43.60},
    "ISTA-Net+": {20: 38.73, 30: 40.89, 40: 42.52, 50: 44.09},
    "PAN+": {20: 38.90, 30: 41.02, 40: 42.71, 50: 44.29},
    "Q-PAN+ 1 bit": {20: 38.17, 30: 40.36, 40: 42.41, 50: 43.84},
    "Q-PAN+ 2 bit": {20: 38.55, 30: 40.76, 40: 42.60, 50: 44.29},
    "Q-PAN+ 3 bit": {20: 39.13, 30: 41.32, 40: 43.04, 50: 44.41},
}
"""Mean PSNR (dB) on the 50 brain images by percent of samples, as the paper prints it (one model a ratio)."""

PUBLISHED_MASKS = {20: "8a8e6601d4b5", 30: "00a4fbba4f99", 40: "3520b12f0dbd", 50: "99dce2986a0e"}
"""Hashes of the published masks (`mask_hash`) by percent of samples."""

PUBLISHED_IMAGES = "ac52ec54852b"
"""Of the 50 images: the SHA-256 of theirs, each to 12 digits, sorted and joined, to 12 digits."""

EXPLANATION = """\
Mean PSNR in dB with its 95 % bootstrap interval over the images; SSIM and NMSE by ratio from left to right;
seconds are the median of a slice, averaged over ratios; steps are those of all trainings on the way, those
of the model that it started from (named) included, and, where they are fewer than its recipe plans
(undertrained), those of the last one. Those called "a model a ratio" are so, their bytes those of all; the
others are one model for all ratios. PAN++ is not the paper's: PAN+ whose layers hand their features on, and
whose last image gets the measured samples back as they are.
{}"""

SAME = """\
Published rows are the paper's own figures (Nareddy et al., Table 4), from one model a ratio. The models
called brain-… are trained, as the published ones were, on the very masks of the table; the others know
neither these masks nor real images."""

OTHERS = """\
These are not the published images and masks, so no published figure stands beside them; the models called
brain-… are trained on the published masks alone, the others on neither these nor real images."""

TRAINING = (
    "recipe",
    "steps",
    "planned_steps",
    "minutes",
    "init",
    "steps_before",
    "own_steps_before",
    "minutes_before",
    "machine",
)
"""What the table's values repeat of a model's card."""


@dataclass(frozen=True)
class Contender:
    """A method of the table.

    Attributes
    ----------
    name
        What the table calls it.
    run
        Takes A^H y and x -> A^H A x of one image; or one such by percent of samples: the others are left out.
    real
        Whether it takes real images; a complex one gets the same samples and gives a magnitude.
    size
        Bytes of its model files, None without one.
    stated
        Printed with its results: hash, engine, training.
    """

    name: str
    run: Reconstructor | Mapping[int, Reconstructor]
    real: bool = True
    size: int | None = None
    stated: Mapping[str, Any] | None = None

    def at(self, percent: int) -> Reconstructor | None:
        """Return what reconstructs from `percent` of the samples, None where nothing does."""
        return self.run.get(percent) if isinstance(self.run, Mapping) else self.run


def zero_filled() -> Contender:
    """Return Re F^H M F x itself."""
    return Contender(BASE, lambda adjoint, normal: adjoint)


def contenders(loaded: Sequence[tuple[Network[Any], int]]) -> list[Contender]:
    """Return a contender for each model, given with the bytes of its file.

    Models of one recipe for one ratio each ("x-20" trained at 20 %, "x-30" at 30 %) make one contender. Of
    models of one name each is called after its file's SHA-256 too.

    Raises
    ------
    OptionError
        If a model is given twice.
    """
    found: list[Contender] = []
    families: dict[str, dict[int, tuple[Network[Any], int]]] = {}
    for model, size in loaded:
        percent = _only_percent(model)
        if percent is None:
            real = model.config.channels == 1
            found.append(Contender(model.name, model, real, size, _stated(model)))
        else:
            families.setdefault(model.name.removesuffix(f"-{percent}"), {})[percent] = model, size
    for name, members in families.items():
        found.append(
            Contender(
                f"{name}, a model a ratio",
                {percent: model for percent, (model, _) in members.items()},
                size=sum(size for _, size in members.values()),
                stated={"models": {str(percent): _stated(model) for percent, (model, _) in members.items()}},
            )
        )
    names = [one.name for one in found]
    # A recipe trained anew makes a model of the same name.
    told = [_told_apart(one) if names.count(one.name) > 1 else one for one in found]
    names = [one.name for one in told]
    if twice := [name for name in names if names.count(name) > 1]:
        raise OptionError(f"the model {twice[0]} is named twice")
    return told


def _told_apart(contender: Contender) -> Contender:
    digest = (contender.stated or {}).get("sha256", "")
    return replace(contender, name=f"{contender.name} {digest[:6]}".strip())


def _only_percent(model: Network[Any]) -> int | None:
    """Return the percent of samples that a real model was trained for, where it was for one alone."""
    low, high = model.card["training"].get("ratios", (0, 1))
    percent = round(100 * low)
    alone = model.config.channels == 1 and low == high and model.name.endswith(f"-{percent}")
    return percent if alone else None


def _stated(model: Network[Any]) -> dict[str, Any]:
    training = {key: model.card["training"].get(key) for key in TRAINING}
    return {"sha256": model.sha256[:12], "engine": model.engine, "training": training}


@dataclass(frozen=True)
class Picture:
    """A test image in [0, 1], (y, x) float32, with its name and the SHA-256 of its file."""

    name: str
    sha256: str
    image: NDArray[np.float32]


def score(reference: NDArray[Any], image: NDArray[Any]) -> dict[str, float]:
    """Return PSNR (dB), SSIM and NMSE of an image, clipped to [0, 1], on the scale 0 to 255."""
    pair = WHITE * np.asarray(reference, np.float64), WHITE * np.clip(image, 0, 1).astype(np.float64)
    return {
        "psnr": metrics.psnr(*pair, data_range=WHITE),
        "ssim": metrics.ssim(*pair, data_range=WHITE),
        "nmse": metrics.nmse(*pair),
    }


def compare(
    pictures: Sequence[Picture],
    masks: Mapping[int, NDArray[np.bool_]],
    contenders: Sequence[Contender],
    *,
    threads: int,
    progress: Callable[[str], None] = lambda words: None,
) -> dict[str, Any]:
    """Reconstruct every image under every mask by every contender, and time each run.

    Contenders take turns on every image, after one warm-up each, so that a busy machine slows all of them.

    Parameters
    ----------
    pictures
        Test images of one shape.
    masks
        Centred masks (y, x) by percent of samples.
    contenders
        What reconstructs.
    threads
        PyTorch's threads; set for the whole process.
    progress
        Told in words what is done next, len(pictures) * len(masks) times.

    Returns
    -------
    dict
        Ready for JSON: `images`, `masks` (with hash and true ratio), `contenders`, and `results`, one for
        each contender and mask with its values by image, means, the 95 % bootstrap interval of the mean PSNR,
        and the median seconds of a slice.
    """
    torch.set_num_threads(threads)
    for contender in contenders:
        for percent in masks if isinstance(contender.run, Mapping) else [next(iter(masks))]:
            if contender.at(percent) is not None:
                reconstruct(contender, pictures[0].image, masks[percent], percent)
    results = []
    for percent, mask in masks.items():
        present = [contender for contender in contenders if contender.at(percent) is not None]
        values: dict[str, list[dict[str, float]]] = {c.name: [] for c in present}
        for picture in pictures:
            progress(f"{percent} %: {picture.name}")
            for contender in present:
                image, seconds = reconstruct(contender, picture.image, mask, percent)
                values[contender.name].append({**score(picture.image, image), "seconds": seconds})
        results += [_result(name, percent, found) for name, found in values.items()]
    return {
        "format": FORMAT,
        "images": [{"name": p.name, "sha256": p.sha256} for p in pictures],
        "masks": [
            {"percent": percent, "hash": mask_hash(mask), "ratio": ratio_of(mask)}
            for percent, mask in masks.items()
        ],
        "contenders": [{"name": c.name, "bytes": c.size, **(c.stated or {})} for c in contenders],
        "results": results,
    }


@torch.inference_mode()
def reconstruct(
    contender: Contender, image: NDArray[np.float32], mask: NDArray[np.bool_], percent: int
) -> tuple[NDArray[Any], float]:
    """Return what a contender makes of an image's samples, (y, x), and the seconds it took."""
    run = contender.at(percent)
    assert run is not None
    where = torch.from_numpy(mask)[None]
    x = torch.from_numpy(image)[None]
    encoding: RealEncoding | Encoding = RealEncoding(where)
    kspace = encoding.forward(x)
    if not contender.real:
        encoding = Encoding(where)
    started = time.perf_counter()
    found = run(encoding.adjoint(kspace), encoding.normal)[0]
    seconds = time.perf_counter() - started
    return (found if contender.real else found.abs()).numpy(), seconds


def _result(name: str, percent: int, values: list[dict[str, float]]) -> dict[str, Any]:
    psnr = np.array([value["psnr"] for value in values])
    low, high = bootstrap(psnr)
    return {
        "contender": name,
        "percent": percent,
        "psnr": float(psnr.mean()),
        "psnr_interval": [low, high],
        "ssim": fmean(value["ssim"] for value in values),
        "nmse": fmean(value["nmse"] for value in values),
        "seconds": median(value["seconds"] for value in values),
        "images": values,
    }


def bootstrap(values: NDArray[np.float64], seed: int = 0) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean of `values`, from 10,000 resamples."""
    rng = np.random.default_rng(seed)
    means = values[rng.integers(len(values), size=(RESAMPLES, len(values)))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def to_markdown(results: Mapping[str, Any]) -> str:
    """Return the report: command, machine, the table with the published rows beside ours, masks, images."""
    percents = [mask["percent"] for mask in results["masks"]]
    head = f"| method | {' | '.join(f'{p} %' for p in percents)} | SSIM | NMSE | s a slice | bytes | steps |"
    lines = [head, "|---" * (len(percents) + 6) + "|"]
    for contender in results["contenders"]:
        cells = [_find(results, contender["name"], p) for p in percents]
        means = [
            f"{c['psnr']:.2f} ({c['psnr_interval'][0]:.2f} to {c['psnr_interval'][1]:.2f})" if c else ""
            for c in cells
        ]
        known = [cell for cell in cells if cell]
        ssim = " / ".join(f"{cell['ssim']:.4f}" for cell in known)
        nmse = " / ".join(f"{cell['nmse']:.5f}" for cell in known)
        seconds = f"{fmean(cell['seconds'] for cell in known):.3g}" if known else ""
        size = "" if contender["bytes"] is None else f"{contender['bytes']:,}"
        lines.append(
            f"| {contender['name']} | {' | '.join(means)} | {ssim} | {nmse} | {seconds} | {size} "
            f"| {_trained(contender)} |"
        )
    peers = published(results)
    for name, figures in peers.items():
        means = [f"{figures[p]:.2f}" if p in figures else "" for p in percents]
        lines.append(f"| {name}, published | {' | '.join(means)} | | | | | |")
    masks = [f"- {m['percent']} %: {m['hash']}, {m['ratio']:.2%} of the samples" for m in results["masks"]]
    images = ", ".join(f"{i['name']} {i['sha256']}" for i in results["images"])
    machine = "; ".join(f"{name} {value}" for name, value in results["machine"].items())
    parts = [
        "# The published experiment",
        f"```\n{results['command']}\n```",
        f"{machine}.",
        EXPLANATION.format(SAME if peers else OTHERS),
        "\n".join(lines),
        "## Masks",
        "\n".join(masks),
        "## Images",
        f"{images}.",
    ]
    return "\n\n".join(parts) + "\n"


def published(results: Mapping[str, Any]) -> dict[str, dict[int, float]]:
    """Return the published figures (`PUBLISHED`) if images and masks are those they hold for, else none."""
    hashes = "".join(sorted(image["sha256"] for image in results["images"]))
    masks = all(PUBLISHED_MASKS.get(mask["percent"]) == mask["hash"] for mask in results["masks"])
    images = hashlib.sha256(hashes.encode()).hexdigest()[:12] == PUBLISHED_IMAGES
    return PUBLISHED if masks and images else {}


def example(
    pictures: Sequence[Picture],
    masks: Mapping[int, NDArray[np.bool_]],
    contenders: Sequence[Contender],
    results: Mapping[str, Any],
) -> Image:
    """Draw the most typical case at the fewest samples: images in a row, five times their errors below.

    The case is the one whose PSNR by the last contender is the median, so that nobody picks a pretty one.
    """
    percent = min(masks)
    present = [contender for contender in contenders if contender.at(percent) is not None]
    last = (_find(results, present[-1].name, percent) or {})["images"]
    chosen = int(np.argsort([value["psnr"] for value in last])[len(last) // 2])
    truth = pictures[chosen].image
    drawn = []
    for contender in present:
        image = np.clip(reconstruct(contender, truth, masks[percent], percent)[0], 0, 1)
        drawn.append((f"{contender.name}  {score(truth, image)['psnr']:.2f} dB", image))
    return comparison(truth, drawn)


def _trained(contender: Mapping[str, Any]) -> str:
    """Return the steps of a contender's training; of each, where it is a model a ratio."""
    alone = contender.get("models")
    if alone is None:
        return _steps(contender.get("training"))
    return "; ".join(f"{percent} %: {_steps(one['training'])}" for percent, one in alone.items())


def _steps(training: Mapping[str, Any] | None) -> str:
    if not training or training["steps"] is None:  # a model of someone else's need not tell
        return ""
    before, planned = training["steps_before"] or 0, training["planned_steps"] or 0
    steps = training["steps"] + before
    source = (training["init"] or "").split(" ")[0]
    went_on = source == training["recipe"]
    # Of the steps before, only those of the same recipe count towards its plan.
    own = training["steps"] + (training.get("own_steps_before") or 0)
    notes = [f"from {source}"] if source and not went_on else []
    if went_on and steps > own:
        notes.append(f"{steps - own:,} of them another model's, that it came from")
    if own < planned:
        notes.append(f"undertrained: {own:,} of {planned:,} planned")
    return f"{steps:,} ({'; '.join(notes)})" if notes else f"{steps:,}"


def _find(results: Mapping[str, Any], name: str, percent: int) -> dict[str, Any] | None:
    found = (r for r in results["results"] if r["contender"] == name and r["percent"] == percent)
    return next(found, None)
