"""The speed benchmark's results as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mri_qpan.benchmark.speed.processes import quartiles, slopes

PHANTOM = "head phantom"
WHAT = {"pixels": "pixel", "coils": "coil", "slices": "slice"}


def to_markdown(results: Mapping[str, Any]) -> str:
    """Return the report: the machine, then a section for each part that was measured."""
    machine = "; ".join(f"{name} {value}" for name, value in results["machine"].items())
    parts = ["# What a reconstruction costs", f"```\n{results['command']}\n```", machine + "."]
    sections = {
        "engines": _engines,
        "bart": _bart,
        "starts": _starts,
        "commands": _commands,
        "sizes": _sizes,
    }
    for name, section in sections.items():
        if name in results:
            parts += section(results)
    return "\n\n".join(parts) + "\n"


def _engines(results: Mapping[str, Any]) -> list[str]:
    rows = results["engines"]["rows"]
    threads = results["settings"]["threads"]
    matrix = " x ".join(str(n) for n in results["settings"]["matrix"])
    cells: dict[tuple[str, str], dict[int, Any]] = {}
    for row in rows:
        cells.setdefault((row["model"], row["engine"]), {})[row["threads"]] = row
    table = []
    for (model, engine), by_threads in cells.items():
        error = next(iter(by_threads.values()))["error"]
        words = [f"{model}", engine]
        for count in threads:
            words.append(_milliseconds(by_threads[count]["seconds"]) if count in by_threads else "")
        for count in threads:
            rate = 1 / quartiles(by_threads[count]["seconds"])[0] if count in by_threads else None
            words.append("" if rate is None else f"{rate:.1f}")
        table.append([*words, "" if error is None else f"{error:.1e}"])
    many = [_threads(count) for count in threads]
    head = ["model", "engine", *(f"ms, {m}" for m in many), *(f"slices/s, {m}" for m in many), "error"]
    text = [
        f"## One {matrix} slice, one coil",
        f"From A^H y and A^H A to the image (onnx, openvino: from the samples), medians with quartiles over "
        f"{results['settings']['rounds']} rounds through everything, interleaved; error: the norm of what "
        "differs from the same model's float32 engine, over its image's norm. onnx and openvino run the "
        "exported graph: float32 weights, DFTs as matrix products, A^H y within. Published style: the "
        "arithmetic of ISTA-Net+ in plain PyTorch, written anew here, with random weights.",
        _table(head, table),
    ]
    faster = _faster(rows, threads)
    if faster:
        text += ["How many times faster the fastest engine of each model is:", faster]
    if results["engines"]["skipped"]:
        lines = dict.fromkeys(
            f"- {skip['model']}, {skip['engine']}: {skip['reason']}" for skip in results["engines"]["skipped"]
        )
        text += ["Not run:", "\n".join(lines)]
    return text


def _faster(rows: Sequence[Mapping[str, Any]], threads: Sequence[int]) -> str:
    """Return a table of ratios of medians: each model's fastest engine against the yardsticks and float32."""
    yardsticks = list(dict.fromkeys(row["model"] for row in rows if row["error"] is None))
    models = list(dict.fromkeys(row["model"] for row in rows if row["error"] is not None))
    table = []
    for model in models:
        for count in threads:
            medians = {
                (row["model"], row["engine"]): quartiles(row["seconds"])[0]
                for row in rows
                if row["threads"] == count
            }
            own = {engine: value for (name, engine), value in medians.items() if name == model}
            if not own:
                continue
            best = min(own, key=lambda engine: own[engine])
            others = [medians.get((name, "eager float32")) for name in yardsticks] + [own.get("float32")]
            table.append(
                [model, str(count), best, *("" if t is None else f"{t / own[best]:.1f}" for t in others)]
            )
    return _table(["model", "threads", "fastest", *yardsticks, "its own float32"], table) if table else ""


def _bart(results: Mapping[str, Any]) -> list[str]:
    text = [f"## A slice of {results['bart'][0]['coils']} coils, maps given: BART's `pics` beside it"]
    text.append(
        "From samples and maps in memory to the magnitude image in memory, medians with quartiles over "
        f"{len(results['bart'][0]['outcomes'][0]['seconds'])} rounds; in "
        "brackets BART's own clock, without starting its process and exchanging files. Its wavelet's weight "
        "is tuned for the PSNR of this very image. "
        f"Input: {_input(results['bart'][0]['input'])}, {results['bart'][0]['mask']}."
    )
    for entry in results["bart"]:
        peers = [o for o in entry["outcomes"] if o["inner_seconds"]]
        inner = quartiles(peers[0]["inner_seconds"])[0] if peers else None
        table = []
        for outcome in entry["outcomes"]:
            median = quartiles(outcome["seconds"])[0]
            clock = _milliseconds(outcome["seconds"])
            if outcome["inner_seconds"]:
                clock += f" [{1000 * quartiles(outcome['inner_seconds'])[0]:.0f}]"
            ratio = "" if inner is None or outcome in peers else f"{inner / median:.1f}"
            table.append([outcome["method"], f"{outcome['psnr']:.2f}", clock, ratio])
        head = ["method", "PSNR", f"ms, {_threads(entry['threads'])}", "times faster than BART's own clock"]
        text.append(_table(head, table))
    if not any(o["inner_seconds"] for o in results["bart"][0]["outcomes"]):
        text.append("BART is not installed here: no command `bart` on the PATH.")
    return text


def _input(name: str) -> str:
    return f"{name} (synthetic, with the maps that it was made with)" if name == PHANTOM else name


def _starts(results: Mapping[str, Any]) -> list[str]:
    table = []
    for row in results["starts"]:
        if "reason" in row:
            table.append([row["model"], row["engine"], row["reason"], "", "", "", ""])
            continue
        weights = ", ".join(f"{kind} {size:,}" for kind, size in row["weights"].items())
        peak = f"{row['peak'] / 1e6:.0f}" if row["peak"] else ""
        table.append(
            [
                *(row["model"], row["engine"], f"{row['first']:.2f}", f"{row['second']:.2f}", peak),
                *(f"{row['disk']:,}", weights),
            ]
        )
    head = ["model", "engine", "s, first process", "s, second", "peak MB", "file, bytes", "weights, bytes"]
    return [
        "## Cold starts and memory",
        "From the start of a process to its first image of one slice of one coil, with PyTorch's import and "
        f"{_threads(results['settings']['threads'][-1])}; the first of "
        "each engine finds no compiled code (TORCHINDUCTOR_CACHE_DIR empty), the second what the first left. "
        "Peak: of the second process, all libraries within. Weights: of the convolutions, as the file packs "
        "them and as types hold them.",
        _table(head, table),
    ]


def _commands(results: Mapping[str, Any]) -> list[str]:
    table = [[label, _seconds(seconds)] for label, seconds in results["commands"].items()]
    return ["## Commands, each in a fresh process", _table(["command", "s"], table)]


def _sizes(results: Mapping[str, Any]) -> list[str]:
    text = [
        "## Cost against size",
        f"{results['settings']['sized']}, {_threads(results['settings']['threads'][-1])}, each size in a "
        "process of its own, samples and operator within the time; memory: how far the process's peak rises "
        "above what it holds after a first small slice. Slices are worked one after the other.",
    ]
    for label, points in results["sizes"].items():
        table = [
            [
                f"{p['matrix']} x {p['matrix']}",
                str(p["coils"]),
                str(p["slices"]),
                f"{p['seconds']:.3g}",
                f"{p['memory'] / 1e6:.0f}",
            ]
            for p in points
        ]
        fit = slopes(points, label)
        text.append(_table(["matrix", "coils", "slices", "s", "MB"], table))
        text.append(
            f"Each {WHAT[label]} more: {1e3 * fit['seconds']:.3g} ms and {fit['memory'] / 1e3:.3g} kB; "
            f"time grows as {label} to the power {fit['power']:.2f}."
        )
    return text


def _milliseconds(seconds: Sequence[float]) -> str:
    middle, low, high = (1000 * t for t in quartiles(seconds))
    return f"{middle:.1f} ({low:.1f} to {high:.1f})"


def _seconds(seconds: Sequence[float]) -> str:
    return "{:.2f} ({:.2f} to {:.2f})".format(*quartiles(seconds))


def _threads(count: int) -> str:
    return f"{count} thread" if count == 1 else f"{count} threads"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
