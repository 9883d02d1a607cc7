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

ROW = 0.24
"""Inches that a bar takes, with its name."""

BASE = "zero-filled"
"""The contender above which PSNR is drawn against the percent of samples."""

MARKERS = "os^DvPX*<>ph"
"""Of families of models."""

STYLES = {"-3bit": "--", "-2bit": "-.", "-1bit": ":"}
"""Lines of quantized models; full precision has a plain one."""


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
        By file name without suffix: `psnr-bars` (mean PSNR with its bootstrap interval, a panel a percent),
        `psnr-ratio` (above zero-filling's, against the percent of samples) and, where a contender is a file,
        `psnr-bytes` (against its size, a line for the precisions of each network).

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


def check_matplotlib() -> None:
    """Raise `InputError` where matplotlib is missing: what is measured for charts takes minutes."""
    _empty(SIZE)


def _empty(size: tuple[float, float]) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("charts need matplotlib: pip install 'mri-qpan[figures]'") from error
    return Figure(size, layout="constrained")


def new_figure(x: str, y: str = "mean PSNR / dB") -> tuple[Figure, Any]:
    """Return an empty figure and its axes, labelled.

    Raises
    ------
    InputError
        Without matplotlib.
    """
    figure = _empty(SIZE)
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
    rows = [*names, *(f"{name}, published" for name in published)]
    figure = _empty((2.0 + 2.4 * len(percents), 1.0 + ROW * len(rows)))
    panels = figure.subplots(1, len(percents), sharey=True, squeeze=False)[0]
    for percent, axes in zip(percents, panels, strict=True):
        known = [(row, found[name, percent]) for row, name in enumerate(names) if (name, percent) in found]
        means = [result["psnr"] for _, result in known]
        intervals = [result["psnr_interval"] for _, result in known]
        low = [mean - interval[0] for mean, interval in zip(means, intervals, strict=True)]
        high = [interval[1] - mean for mean, interval in zip(means, intervals, strict=True)]
        axes.barh([row for row, _ in known], means, xerr=[low, high], error_kw={"elinewidth": 0.8})
        theirs = [(row, v[percent]) for row, v in enumerate(published.values(), len(names)) if percent in v]
        axes.barh([row for row, _ in theirs], [v for _, v in theirs], color="none", edgecolor="C0")
        axes.set_xlim(left=min(interval[0] for interval in intervals) - 1)
        axes.set_title(f"{percent} % of the samples", fontsize="small")
        axes.set_xlabel("mean PSNR / dB")
        axes.grid(alpha=0.3, axis="x")
        axes.set_axisbelow(True)
    panels[0].set_yticks(range(len(rows)), rows, fontsize="x-small")
    panels[0].set_ylim(len(rows) - 0.4, -0.6)  # the first on top
    return figure


def _ratios(
    names: Sequence[str],
    percents: Sequence[int],
    found: Mapping[tuple[str, int], Mapping[str, Any]],
    published: Mapping[str, Mapping[int, float]],
) -> Figure:
    # From 20 to 50 % all gain 6 dB; what sets them apart shows above zero-filling.
    base = {p: found[BASE, p]["psnr"] if BASE in names else 0.0 for p in percents}
    label = f"mean PSNR above {BASE} / dB" if BASE in names else "mean PSNR / dB"
    figure, axes = new_figure("samples acquired / %", label)
    names = [name for name in names if name != BASE]
    families = dict.fromkeys(map(_family, names))
    looks = dict(zip(families, zip(_colours(len(families)), cycle(MARKERS), strict=False), strict=True))
    for name in names:
        colour, marker = looks[_family(name)]
        style = next((line for end, line in STYLES.items() if name.endswith(end)), "-")
        known = [(p, found[name, p]["psnr"] - base[p]) for p in percents if (name, p) in found]
        axes.plot(*_columns(known), style, color=colour, marker=marker, ms=4, lw=1, label=name)
    for (name, values), marker in zip(published.items(), cycle(MARKERS), strict=False):
        known = [(p, values[p] - base[p]) for p in percents if p in values]
        label = f"{name}, published"
        axes.plot(*_columns(known), marker, color="grey", fillstyle="none", ms=5, lw=0, label=label)
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
            known = [(sizes[n], found[n, percent]["psnr"]) for n in names if (n, percent) in found]
            axes.plot(*_columns(known), marker=marker, color=f"C{index}")
    for index, percent in enumerate(percents):
        axes.plot([], [], color=f"C{index}", label=f"{percent} % of the samples")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda size, _: f"{size / 1000:g}")
    axes.grid(alpha=0.3, which="minor", axis="x")
    axes.margins(y=0.1)
    figure.legend(fontsize="x-small", loc="outside upper center", ncols=4)
    return figure


def _columns(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in pairs], [y for _, y in pairs]


def _colours(count: int) -> list[Any]:
    """Return colours of which no two are alike, up to twenty (a family's: its marker tells it too)."""
    from matplotlib import colormaps

    return [colormaps["tab20"](index % 20) for index in range(count)]


def _family(name: str) -> str:
    """Return what a network is called at full precision: "brain-pan+" of "brain-q-pan+-3bit"."""
    return re.sub(r"-(fp|\dbit)$", "", name.replace("-q-", "-", 1))
