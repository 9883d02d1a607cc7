"""Charts of the published experiment, drawn with matplotlib (the extra `figures`)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

from mri_qpan.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE = (8.0, 4.8)
"""Inches."""

MARKERS = "os^Dv"
"""Of families of models."""


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
        (against the percent of samples) and, where a contender is a file, `psnr-bytes` (against its size, a
        line for the precisions of each network).

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
    width, colours = 0.85 / total, _colours(total)
    for index, name in enumerate(names):
        means = [found[name, p]["psnr"] for p in percents]
        intervals = [found[name, p]["psnr_interval"] for p in percents]
        low = [mean - interval[0] for mean, interval in zip(means, intervals, strict=True)]
        high = [interval[1] - mean for mean, interval in zip(means, intervals, strict=True)]
        places = [place + (index - (total - 1) / 2) * width for place in range(len(percents))]
        axes.bar(
            places,
            means,
            width,
            yerr=[low, high],
            label=name,
            color=colours[index],
            error_kw={"elinewidth": 0.8},
        )
    for index, (name, values) in enumerate(published.items(), len(names)):
        known = [(place, values[p]) for place, p in enumerate(percents) if p in values]
        places = [place + (index - (total - 1) / 2) * width for place, _ in known]
        label = f"{name}, published"
        axes.bar(places, [v for _, v in known], width, label=label, color="none", edgecolor=colours[index])
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
    axes.set_prop_cycle(color=_colours(len(names) + len(published)))
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
    families: dict[str, list[str]] = {}
    for name in sorted(sizes, key=lambda name: sizes[name]):
        families.setdefault(_family(name), []).append(name)
    for (family, names), marker in zip(families.items(), cycle(MARKERS), strict=False):
        axes.plot([], [], marker=marker, color="grey", label=family)
        for index, percent in enumerate(percents):
            means = [found[name, percent]["psnr"] for name in names]
            axes.plot([sizes[name] for name in names], means, marker=marker, color=f"C{index}")
    for index, percent in enumerate(percents):
        axes.plot([], [], color=f"C{index}", label=f"{percent} % of the samples")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda size, _: f"{size / 1000:g}")
    axes.grid(alpha=0.3, which="minor", axis="x")
    axes.margins(y=0.1)
    figure.legend(fontsize="x-small", loc="outside upper center", ncols=4)
    return figure


def _colours(count: int) -> list[Any]:
    """Return colours of which no two are alike, up to twenty."""
    from matplotlib import colormaps

    return [colormaps["tab20"](index % 20) for index in range(count)]


def _family(name: str) -> str:
    """Return what a network is called at full precision: "brain-pan+" of "brain-q-pan+-3bit"."""
    return re.sub(r"-(fp|\dbit)$", "", name.replace("-q-", "-", 1))
