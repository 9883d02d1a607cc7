"""Charts of the speed benchmark (the extra `figures`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mri_qpan.benchmark.charts import new_figure
from mri_qpan.benchmark.speed.processes import quartiles, slopes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def charts(results: Mapping[str, Any]) -> dict[str, Figure]:
    """Draw `speed-engines` and `speed-pixels`, `-coils`, `-slices`: by file name without suffix.

    Raises
    ------
    InputError
        Without matplotlib.
    """
    drawn = {}
    if "engines" in results:
        drawn["speed-engines"] = _engines(results["engines"]["rows"], results["settings"]["threads"])
    for label, points in results.get("sizes", {}).items():
        drawn[f"speed-{label}"] = _size(label, points)
    return drawn


def _engines(rows: list[dict[str, Any]], threads: list[int]) -> Figure:
    figure, axes = new_figure("ms a slice, median and quartiles", "")
    names = list(dict.fromkeys(f"{row['model']}, {row['engine']}" for row in rows))
    figure.set_figheight(1.5 + 0.28 * len(names))
    height = 0.8 / len(threads)
    for index, count in enumerate(threads):
        chosen = [row for row in rows if row["threads"] == count]
        places = [names.index(f"{row['model']}, {row['engine']}") + index * height for row in chosen]
        found = [quartiles(row["seconds"]) for row in chosen]
        middle = [1000 * m for m, _, _ in found]
        spread = [[1000 * (m - low) for m, low, _ in found], [1000 * (high - m) for m, _, high in found]]
        axes.barh(places, middle, height, xerr=spread, label=f"{count} threads", error_kw={"elinewidth": 0.8})
    axes.set_yticks([place + 0.4 - height / 2 for place in range(len(names))], names, fontsize="x-small")
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.legend(fontsize="x-small")
    return figure


def _size(label: str, points: list[dict[str, Any]]) -> Figure:
    figure, axes = new_figure(label, "seconds")
    grows = [p["matrix"] ** 2 if label == "pixels" else p[label] for p in points]
    power = slopes(points, label)["power"]
    axes.plot(grows, [p["seconds"] for p in points], marker="o", label=f"seconds, power {power:.2f}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(grows, [f"{p['matrix']}²" if label == "pixels" else str(p[label]) for p in points])
    axes.minorticks_off()
    beside = axes.twinx()
    beside.plot(grows, [p["memory"] / 1e6 for p in points], "s--", color="C1", label="memory")
    beside.set_ylabel("peak memory / MB")
    beside.set_ylim(bottom=0)
    figure.legend(fontsize="x-small", loc="outside upper center", ncols=2)
    return figure
