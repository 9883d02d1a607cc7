"""What is measured from outside a process: cold starts, commands, and cost against size."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mri_qpan import bart, models
from mri_qpan.benchmark.speed.engines import ENGINES, Progress, weights_in_memory, why_not
from mri_qpan.benchmark.speed.problem import Problem
from mri_qpan.errors import ReconError
from mri_qpan.models.store import Model

COMPILED_START = models.DEFAULT
"""The one model whose compiled and exported engines are started cold: they start alike for all."""

Points = Sequence[Mapping[str, int]]


def series(matrix: int) -> dict[str, list[dict[str, int]]]:
    """Return the sizes measured, by what grows.

    One coil from half to four times the matrix; 1 to 32 coils on it; 1 to 256 slices of half of it.
    """
    one = {"matrix": matrix, "coils": 1, "slices": 1}
    return {
        "pixels": [{**one, "matrix": round(factor * matrix)} for factor in (0.5, 1, 2, 4)],
        "coils": [{**one, "coils": count} for count in (1, 2, 4, 8, 16, 32)],
        "slices": [{**one, "matrix": matrix // 2, "slices": count} for count in (1, 4, 16, 64, 256)],
    }


def starts(names: Sequence[str], problem: Problem, threads: int, progress: Progress) -> list[dict[str, Any]]:
    """Time fresh processes from their start to their first image, each twice, the second with warm caches.

    Parameters
    ----------
    names
        Models.
    problem
        The slice.
    threads
        Of each process.
    progress
        Told in words what is done next.

    Returns
    -------
    list
        For each model and engine `first` and `second` (s), `peak` memory (bytes), the file's `disk` bytes and
        `weights`, bytes of the weights by type; or `reason`, why it failed.
    """
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="mri-qpan-") as name:
        folder = Path(name)
        problem.save(folder / "slice.npz")
        environment = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
        for model_name in names:
            model = models.load_model(model_name)
            for engine in _cold_engines(model_name, model):
                progress(f"cold start: {model.name}, {engine}")
                if engine == "onnx":
                    from mri_qpan.export import export

                    export(model_name, folder / f"{Path(model_name).stem}.onnx")
                job = {"job": "start", "model": _absolute(model_name), "engine": engine, "threads": threads}
                job |= {"input": str(folder / "slice.npz"), "folder": name}
                try:
                    timed = [_child(job, folder, environment) for _ in range(2)]
                except ReconError as error:  # such as a compiler that is missing
                    found.append({"model": model.name, "engine": engine, "reason": str(error)})
                    continue
                found.append(
                    {
                        "model": model.name,
                        "engine": engine,
                        "first": timed[0]["wall"],
                        "second": timed[1]["wall"],
                        "peak": timed[1]["peak"],
                        "disk": models.model_path(model_name).stat().st_size,
                        "weights": dict(weights_in_memory(model)),
                    }
                )
    return found


def _cold_engines(name: str, model: Model) -> list[str]:
    """Return the engine that "auto" takes, and float32; of the default model our others and ONNX's too."""
    if name != COMPILED_START:
        return list(dict.fromkeys([model.engine, "float32"]))
    runs = [e for e in ENGINES if e != "openvino" and not why_not(e, model)]
    return [e for e in runs if e != "fused" or model.engine == "fused"]


def commands(problem: Problem, rounds: int, progress: Progress) -> dict[str, list[float]]:
    """Time commands in fresh processes, interleaved (s, a run each).

    Parameters
    ----------
    problem
        The slice that `mri-qpan recon` gets, as .cfl; it finds coil maps itself.
    rounds
        Runs of each.
    progress
        Told in words what is done next.
    """
    command = [sys.executable, "-m", "mri_qpan.cli"]
    with tempfile.TemporaryDirectory(prefix="mri-qpan-") as name:
        folder = Path(name)
        bart.write_cfl(folder / "slice", problem.kspace[:, None])
        lines = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "python -c 'import mri_qpan'": [sys.executable, "-c", "import mri_qpan"],
            "mri-qpan --help": [*command, "--help"],
            "mri-qpan recon, one slice": [*command, "recon", "slice.cfl", "-o", "out"],
        }
        seconds: dict[str, list[float]] = {label: [] for label in lines}
        for _ in range(rounds):
            for label, words in lines.items():
                progress(label)
                seconds[label].append(_run(words, folder, {})[0])
    return seconds


def sizes(
    name: str, spec: str, threads: int, points: Mapping[str, Points], progress: Progress
) -> dict[str, list[dict[str, Any]]]:
    """Reconstruct every size in a process of its own: seconds and the rise of its peak memory (bytes).

    Parameters
    ----------
    name
        A model.
    spec
        The mask.
    threads
        Of each process.
    points
        As `series` returns them.
    progress
        Told in words what is done next.
    """
    measured: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="mri-qpan-") as folder:
        for label, wanted in points.items():
            measured[label] = []
            for point in wanted:
                progress(f"size: {point['matrix']} x {point['matrix']}, {point['coils']} coils, {label}")
                job = {"job": "size", "model": _absolute(name), "threads": threads, "mask": spec}
                job |= {"repeats": 3 if point["slices"] == 1 else 1, **point}
                result = _child(job, Path(folder), {})
                measured[label].append({**point, "seconds": result["seconds"], "memory": result["memory"]})
    return measured


def slopes(points: Sequence[Mapping[str, Any]], label: str) -> dict[str, float]:
    """Fit seconds and bytes of memory against what grows, by least squares.

    Returns
    -------
    dict
        `seconds` and `memory` for each more pixel, coil or slice; `power`, the exponent of time's fit by a
        power of it.
    """
    grows = np.array([p["matrix"] ** 2 if label == "pixels" else p[label] for p in points], float)
    seconds, memory = (np.array([p[key] for p in points], float) for key in ("seconds", "memory"))
    return {
        "seconds": float(np.polyfit(grows, seconds, 1)[0]),
        "memory": float(np.polyfit(grows, memory, 1)[0]),
        "power": float(np.polyfit(np.log(grows), np.log(np.maximum(seconds, 1e-9)), 1)[0]),
    }


def _absolute(name: str) -> str:
    """Return a model's name, or its file's whole path: a child runs in another folder."""
    return name if name in models.list_models() else str(models.model_path(name).resolve())


def _child(job: Mapping[str, Any], folder: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    words = [sys.executable, "-m", "mri_qpan.benchmark.speed.child", json.dumps(job)]
    wall, said = _run(words, folder, environment)
    return {"wall": wall, **json.loads(said.splitlines()[-1])}


def _run(words: Sequence[str], folder: Path, environment: Mapping[str, str]) -> tuple[float, str]:
    """Run a command and return how long it took, and what it said."""
    started = time.perf_counter()
    done = subprocess.run(
        words, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - started
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ReconError(f"{' '.join(words[1:4])} failed ({done.returncode}): {last}")
    return seconds, done.stdout


def quartiles(seconds: Sequence[float]) -> tuple[float, float, float]:
    """Return median, lower and upper quartile; NaN without a value."""
    if not seconds:
        return math.nan, math.nan, math.nan
    low, middle, high = (float(v) for v in np.percentile(seconds, (25, 50, 75)))
    return middle, low, high
