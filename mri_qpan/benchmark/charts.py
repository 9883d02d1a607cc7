"""Charts of the published experiment, drawn with matplotlib (the extra `figures`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mri_qpan.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE = (8.0, 4.8)
"""Inches."""


def charts(results: Mapping[str, Any], published: Mapping[str, Mapping[int, float]]) -> dict[str, Figure]:
    """Draw what `brain.compare` found.

    Parameters
    ----------
    results
        From `brain.compare`.
    published
        Mean PSNR (dB) by method and percent of samples; drawn hollow, since others measured it.

    Returns
    -------
    dict
        By file name without suffix: `psnr-bars` (mean PSNR with its bootstrap interval), `psnr-ratio`
        (against the percent of samples) and, where a contender is a file, `psnr-bytes` (against its size).

    Raises
    ------
    InputError
        Without matplotlib.
    """
    percents = [mask["percent"] for mask in results["masks"]]
    names = [contender["name"] for contender in results["contenders"]]
    found = {(r["contender"], r["percent"]): r for r in results["results"]}
    sizes = {c["name"]: c["bytes"] for c in results["contenders"] if c["bytes"] is not None}
    drawn = {
        "psnr-bars": _bars(names, percents, found, published),
        "psnr-ratio": _ratios(names, percents, found, published),
    }
    if sizes:
        drawn["psnr-bytes"] = _bytes(sizes, percents, found)
    return drawn


def new_figure(x: str, y: str = "mean PSNR / dB") -> tuple[Figure, Any]:
    """Return an empty figure and its axes, labelled.

    Raises
    ------
    InputError
        Without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("charts need matplotlib: pip install 'mri-qpan[figures]'") from error
    figure = Figure(SIZE, layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    return figure, axes


def _bars(
    names: Sequence[str],
    percents: Sequence[int],
    found: Mapping[tuple[str, int], Mapping[str, Any]],
    published: Mapping[str, Mapping[int, float]],
) -> Figure:
    figure, axes = new_figure("samples acquired")
    total = len(names) + len(published)
    width = 0.85 / total
    for index, name in enumerate(names):
        means = [found[name, p]["psnr"] for p in percents]
        intervals = [found[name, p]["psnr_interval"] for p in percents]
        low = [mean - interval[0] for mean, interval in zip(means, intervals, strict=True)]
        high = [interval[1] - mean for mean, interval in zip(means, intervals, strict=True)]
        places = [place + (index - (total - 1) / 2) * width for place in range(len(percents))]
        axes.bar(places, means, width, yerr=[low, high], label=name, error_kw={"elinewidth": 0.8})
    for index, (name, values) in enumerate(published.items(), len(names)):
        known = [(place, values[p]) for place, p in enumerate(percents) if p in values]
        places = [place + (index - (total - 1) / 2) * width for place, _ in known]
        label = f"{name}, published"
        axes.bar(places, [v for _, v in known], width, label=label, color="none", edgecolor=f"C{index}")
    axes.set_xticks(range(len(percents)), [f"{p} %" for p in percents])
    lowest = min(found[name, p]["psnr_interval"][0] for name in names for p in percents)
    axes.set_ylim(bottom=lowest - 1)
    figure.legend(fontsize="x-small", loc="outside upper center", ncols=4)
    return figure


def _ratios(
    names: Sequence[str],
    percents: Sequence[int],
    found: Mapping[tuple[str, int], Mapping[str, Any]],
    published: Mapping[str, Mapping[int, float]],
) -> Figure:
    figure, axes = new_figure("samples acquired / %")
    for name in names:
        axes.plot(percents, [found[name, p]["psnr"] for p in percents], marker="o", label=name)
    for name, values in published.items():
        known = [(p, values[p]) for p in percents if p in values]
        axes.plot(*zip(*known, strict=True), "o--", fillstyle="none", lw=0.8, label=f"{name}, published")
    axes.set_xticks(percents)
    figure.legend(fontsize="x-small", loc="outside upper center", ncols=4)
    return figure


def _bytes(
    sizes: Mapping[str, int],
    percents: Sequence[int],
    found: Mapping[tuple[str, int], Mapping[str, Any]],
) -> Figure:
    figure, axes = new_figure("model file / kB")
    ordered = sorted(sizes, key=lambda name: sizes[name])
    for percent in percents:
        means = [found[name, percent]["psnr"] for name in ordered]
        axes.plot([sizes[name] for name in ordered], means, marker="o", label=f"{percent} % of the samples")
    top = max(percents, key=lambda p: found[ordered[0], p]["psnr"])
    for name in ordered:
        place = (sizes[name], found[name, top]["psnr"])
        axes.annotate(name, place, xytext=(0, 6), textcoords="offset points", fontsize="x-small", ha="center")
    axes.set_xscale("log")
    axes.set_xticks([sizes[name] for name in ordered], [f"{sizes[name] / 1000:.0f}" for name in ordered])
    axes.minorticks_off()
    axes.margins(x=0.12, y=0.1)
    axes.legend(fontsize="x-small")
    return figure
