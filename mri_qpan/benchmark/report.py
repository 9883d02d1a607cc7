"""A benchmark's results as JSON and as Markdown tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan
from pathlib import Path
from statistics import fmean, median
from typing import Any

from mri_qpan.benchmark.peers import Method, Parameters
from mri_qpan.benchmark.real import METRICS, Compared
from mri_qpan.errors import InputError
from mri_qpan.sampling_masks import mask_hash

FORMAT = 1


@dataclass(frozen=True)
class Row:
    """A method's means over groups of cases.

    Attributes
    ----------
    psnr_floor
        See `real.psnr_with_floor`; NaN of a benchmark that did not have it yet.
    gain
        PSNR above the classical method that is best on average over the same cases, dB.
    gain_each
        PSNR above the best classical method of each group and mask, averaged, dB: never more than `gain`.
    seconds, inner_seconds
        Median of a slice; the latter without process and files, None where there are none.
    """

    method: str
    classical: bool
    psnr: float
    psnr_floor: float
    ssim: float
    nmse: float
    hfen: float
    gain: float
    gain_each: float
    seconds: float | None
    inner_seconds: float | None


def to_json(
    compared: Sequence[Compared],
    methods: Sequence[Method],
    *,
    command: str,
    machine: Mapping[str, str],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Return all values of a benchmark as what `json` can write."""
    return {
        "format": FORMAT,
        "command": command,
        "machine": dict(machine),
        "settings": dict(settings),
        "methods": [{"name": m.name, "classical": m.classical, **m.fixed} for m in methods],
        "cases": [_case(entry) for entry in compared],
    }


def read_tuned(path: Path) -> dict[tuple[str, str], Parameters]:
    """Return the parameters found by an earlier benchmark, from its JSON file.

    Raises
    ------
    InputError
        If the file is not the JSON of a benchmark.
    """
    try:
        cases = json.loads(path.read_text(encoding="utf-8"))["cases"]
        return {(case["key"], o["method"]): o["parameters"] for case in cases for o in case["outcomes"]}
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not the JSON file of `mri-qpan benchmark real`") from error


def rows(results: Mapping[str, Any], *, mask: str | None = None, group: str | None = None) -> list[Row]:
    """Return a row a method: means over all groups and masks, or over those of one mask or one group.

    Several slices of a group count as one: their mean.
    """
    cases = [
        case
        for case in results["cases"]
        if (mask is None or case["mask"] == mask) and (group is None or case["group"] == group)
    ]
    cells = list(dict.fromkeys((case["group"], case["mask"]) for case in cases))
    by_cell = [[case for case in cases if (case["group"], case["mask"]) == cell] for cell in cells]
    names = [method["name"] for method in results["methods"]]
    means = {name: _means(by_cell, name) for name in names}
    classical = {method["name"] for method in results["methods"] if method["classical"]}
    average = {name: fmean(cell["psnr"] for cell in means[name]) for name in names}
    best = max(average[name] for name in classical)
    best_each = [max(means[name][i]["psnr"] for name in classical) for i in range(len(cells))]
    return [
        Row(
            method=name,
            classical=name in classical,
            **{metric: fmean(cell[metric] for cell in means[name]) for metric in METRICS},
            gain=average[name] - best,
            gain_each=average[name] - fmean(best_each),
            seconds=_seconds(cases, name, "seconds"),
            inner_seconds=_seconds(cases, name, "inner_seconds"),
        )
        for name in names
    ]


def to_markdown(results: Mapping[str, Any]) -> str:
    """Return the report: command, machine, inputs, masks, tables and tuned parameters."""
    groups, masks = _distinct(results, "group"), _distinct(results, "mask")
    parts = [
        "# Real measurements, retrospectively undersampled",
        f"```\n{results['command']}\n```",
        _machine(results),
        _protocol(results),
        "## Mean over all inputs and masks",
        _table(rows(results)),
        *_sections(results, "mask", masks),
        *_sections(results, "group", groups),
        "## Inputs and masks",
        _inputs(results),
        "## Parameters",
        _parameters(results),
    ]
    return "\n\n".join(parts) + "\n"


def _protocol(results: Mapping[str, Any]) -> str:
    settings = results["settings"]
    tuned = [o for case in results["cases"] for o in case["outcomes"] if "lamda" in o["parameters"]]
    given = sum(o.get("given", False) for o in tuned)
    earlier = (
        f";\n{given} of the {len(tuned)} weights were found by searches of earlier runs, with their coil maps"
        if given
        else ""
    )
    return f"""\
Every method gets the same samples, mask and coil maps (ESPIRiT, from the calibration region of the
undersampled samples). The reference is the fully sampled image combined with those maps. The weight of every
classical method is tuned for the PSNR of each slice and mask
({settings["evaluations"]} reconstructions a search{earlier}); a network has nothing to tune. PSNR, SSIM, NMSE
and HFEN compare magnitudes over the whole image; the data range is the reference's maximum. PSNR + floor: of
the image with that constant noise floor, added in quadrature, which fits the reference best, since networks
give their images one and the others do not. Seconds are those of one slice, from samples and maps in memory
to the image in memory: the median over masks and {settings["rounds"]} round(s) through all methods after a
warm-up; in brackets BART's own clock, without starting its process and exchanging files. Gain is the PSNR
above the classical method that is best on average / above the best one of each input and mask, in dB."""


def _case(entry: Compared) -> dict[str, Any]:
    case = entry.case
    return {
        "key": case.key,
        "group": case.group,
        "name": case.name,
        "sha256": case.source,
        "mask": case.mask_spec,
        "mask_hash": mask_hash(case.mask),
        "ratio": case.ratio,
        "matrix": list(case.mask.shape),
        "coils": case.mps.shape[-3],
        "map_sets": case.sets,
        "outcomes": [
            {
                "method": outcome.method,
                "parameters": outcome.parameters,
                **outcome.metrics,
                "given": outcome.given,
                "seconds": outcome.seconds,
                "inner_seconds": outcome.inner_seconds,
            }
            for outcome in entry.outcomes
        ],
    }


def _outcome(case: Mapping[str, Any], method: str) -> dict[str, Any]:
    return next(outcome for outcome in case["outcomes"] if outcome["method"] == method)


def _means(by_cell: list[list[dict[str, Any]]], method: str) -> list[dict[str, float]]:
    return [
        {metric: fmean(_outcome(case, method).get(metric, nan) for case in cell) for metric in METRICS}
        for cell in by_cell
    ]


def _seconds(cases: list[dict[str, Any]], method: str, clock: str) -> float | None:
    """Return the mean over groups of the median over a group's slices, masks and rounds."""
    groups = dict.fromkeys(case["group"] for case in cases)
    times = [
        [t for case in cases if case["group"] == group for t in _outcome(case, method)[clock]]
        for group in groups
    ]
    return fmean(median(t) for t in times) if all(times) else None


def _distinct(results: Mapping[str, Any], name: str) -> list[str]:
    return list(dict.fromkeys(case[name] for case in results["cases"]))


def _sections(results: Mapping[str, Any], name: str, values: list[str]) -> list[str]:
    if len(values) == 1:
        return []
    return [part for v in values for part in (f"## {v}", _table(rows(results, **{name: v})))]


def _table(table: list[Row]) -> str:
    head = "| method | PSNR | PSNR + floor | SSIM | NMSE | HFEN | s a slice | gain |"
    lines = [head, "|" + 8 * "---|"]
    for row in table:
        name = row.method if row.classical else f"**{row.method}**"
        lines.append(
            f"| {name} | {row.psnr:.2f} | {'' if isnan(row.psnr_floor) else f'{row.psnr_floor:.2f}'} "
            f"| {row.ssim:.4f} | {row.nmse:.4f} | {row.hfen:.3f} | {clock(row)} "
            f"| {row.gain:+.2f} / {row.gain_each:+.2f} |"
        )
    return "\n".join(lines)


def clock(row: Row) -> str:
    """Return a row's seconds in words: "0.52", or "1.31 (1.28)" with the inner clock."""
    if row.seconds is None:
        return ""
    outer = f"{row.seconds:.3g}"
    return outer if row.inner_seconds is None else f"{outer} ({row.inner_seconds:.3g})"


def _machine(results: Mapping[str, Any]) -> str:
    return "; ".join(f"{name} {value}" for name, value in results["machine"].items()) + "."


def _inputs(results: Mapping[str, Any]) -> str:
    head = "| input | SHA-256 | matrix | coils | sets of maps | mask | hash | ratio |"
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    for case in results["cases"]:
        matrix = " x ".join(str(n) for n in case["matrix"])
        lines.append(
            f"| {case['name']} | {case['sha256']} | {matrix} | {case['coils']} | {case['map_sets']} "
            f"| {case['mask']} | {case['mask_hash']} | {case['ratio']:.2%} |"
        )
    return "\n".join(lines)


def _parameters(results: Mapping[str, Any]) -> str:
    lines = ["| method | parameters |", "|---|---|"]
    for method in results["methods"]:
        fixed = {name: value for name, value in method.items() if name not in ("name", "classical")}
        lines.append(f"| {method['name']} | {_words(fixed)} |")
    tuned = [
        m["name"]
        for m in results["methods"]
        if "lamda" in _outcome(results["cases"][0], m["name"])["parameters"]
    ]
    if not tuned:
        return "\n".join(lines)
    lines += ["", "Tuned:", "", f"| input | mask | {' | '.join(tuned)} |", "|" + "---|" * (2 + len(tuned))]
    fixed_names = {name for method in results["methods"] for name in method}
    for case in results["cases"]:
        cells = [
            _words({n: v for n, v in _outcome(case, name)["parameters"].items() if n not in fixed_names})
            for name in tuned
        ]
        lines.append(f"| {case['name']} | {case['mask']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _words(parameters: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in parameters.items()
    )
