"""What one slice costs the network: every model, every engine that runs here, interleaved."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mri_qpan import models
from mri_qpan.benchmark.speed.problem import Problem
from mri_qpan.benchmark.speed.yardstick import Yardstick
from mri_qpan.engines import Engine, inplace
from mri_qpan.errors import InputError
from mri_qpan.export import export
from mri_qpan.models.store import Model

PLAIN: Engine = "float32"
"""Whose image every other engine's is held against."""

FAST = "compiled bfloat16"
RUNTIMES = {"onnx": ("onnx", "onnxruntime"), "openvino": ("onnx", "openvino")}
"""Engines that run the exported file, and the packages that each needs."""

ENGINES = ("fused", PLAIN, "compiled", "bfloat16", FAST, *RUNTIMES)
"""fused, float32, bfloat16: as `load_model` has them; compiled: `torch.compile`; onnx, openvino: the exported
file in ONNX Runtime or OpenVINO, which takes samples and does A^H y too, its DFTs as products of matrices."""

YARDSTICKS = {
    "published style, 9 layers, symmetry branch": (9, True),
    "published style, 9 layers": (9, False),
    "published style, 11 layers": (11, False),
}

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Contender:
    """A model (or yardstick) in an engine on some threads; `run` reconstructs the slice."""

    model: str
    engine: str
    threads: int
    run: Callable[[], Tensor]


def why_not(engine: str, model: Model) -> str:
    """Return in words why an engine cannot run a model here, or nothing."""
    if engine in ("bfloat16", FAST) and inplace.fast_dtype("cpu") != torch.bfloat16:
        return "this processor has no bf16 instructions"
    if engine in RUNTIMES:
        missing = [name for name in RUNTIMES[engine] if importlib.util.find_spec(name) is None]
        if missing:
            return f"{' and '.join(missing)} not installed: pip install {' '.join(missing)}"
        if model.config.channels != 2:
            return "models for real images are not exported"
    return ""


def reconstructor(
    name: str, engine: str, threads: int, problem: Problem, folder: Path
) -> Callable[[], Tensor]:
    """Return a call that reconstructs `problem`, ready to be timed.

    Parameters
    ----------
    name
        A shipped model's name or a model file.
    engine
        One of `ENGINES`.
    threads
        Of the engines that are not PyTorch's, which has its own number.
    problem
        The slice.
    folder
        Where exported models lie, or are put.

    Raises
    ------
    ValueError
        If the fused kernel does not fit the model or the machine.
    """
    if engine in RUNTIMES:
        return _exported(name, engine, threads, problem, folder)
    inner: Any = engine.removeprefix("compiled").strip() or PLAIN
    model = models.load_model(name, engine=inner)
    if engine.startswith("compiled"):
        model.compile_step()
    adjoint, normal = problem.operator(model.config.channels)
    return lambda: model(adjoint, normal)


def contenders(
    names: Sequence[str], problem: Problem, threads: Sequence[int], folder: Path
) -> tuple[list[Contender], list[dict[str, str]]]:
    """Return everything that runs here, and what does not with the reason.

    Parameters
    ----------
    names
        Models.
    problem
        The slice, one coil.
    threads
        Numbers of threads.
    folder
        For exported models.
    """
    found, skipped = [], []
    for name in names:
        model = models.load_model(name, engine=PLAIN)
        for engine in ENGINES:
            reason = why_not(engine, model)
            runs: list[Contender] = []
            try:
                if not reason:
                    for count in threads:
                        run = reconstructor(name, engine, count, problem, folder)
                        runs.append(Contender(model.name, engine, count, run))
            except (ValueError, RuntimeError, InputError) as error:
                reason = str(error)
            if reason:
                skipped.append({"model": model.name, "engine": engine, "reason": reason})
            found += runs
    adjoint, _ = problem.operator(1)
    corner = torch.from_numpy(np.fft.ifftshift(problem.mask).astype(np.float32))
    for label, (stages, symmetry) in YARDSTICKS.items():
        torch.manual_seed(0)
        network = Yardstick(stages, symmetry).eval()
        for count in threads:
            run = _plain_call(network, adjoint[:, None], corner)
            found.append(Contender(label, "eager float32", count, run))
    return found, skipped


@torch.inference_mode()
def measure(
    entries: Sequence[Contender], rounds: int, progress: Progress = lambda words: None
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Time every contender, one after the other in each round, so that a slow moment hits all of them.

    Parameters
    ----------
    entries
        What to time.
    rounds
        Timed runs of each, after one that warms it up.
    progress
        Told in words what is done next; called len(entries) + rounds times.

    Returns
    -------
    rows
        Each contender's `seconds`, a run each, and `error`: the norm of (its image - the float32 engine's)
        over the latter's; None for a yardstick.
    skipped
        Those that failed on their first slice, with the reason.
    """
    skipped: list[dict[str, str]] = []
    plain: dict[str, Tensor] = {}
    rows: list[tuple[Contender, float | None, list[float]]] = []
    # The plain engine's image comes first: the others are held against it.
    for entry in sorted(entries, key=lambda entry: entry.engine != PLAIN):
        progress(f"first slice: {entry.model}, {entry.engine}, {entry.threads} threads")
        torch.set_num_threads(entry.threads)
        try:
            image = entry.run()
        except Exception as error:  # compilers and runtimes of others
            words = (str(error).strip().splitlines() or [type(error).__name__])[0]
            skipped.append({"model": entry.model, "engine": entry.engine, "reason": words})
            continue
        if entry.engine == PLAIN:
            plain.setdefault(entry.model, image)
        reference = plain.get(entry.model)
        rows.append((entry, None if reference is None else _error(image, reference), []))
    for turn in range(rounds):
        progress(f"timing round {turn + 1} of {rounds}")
        for entry, _, seconds in sorted(rows, key=lambda row: row[0].threads):
            torch.set_num_threads(entry.threads)
            started = time.perf_counter()
            entry.run()
            seconds.append(time.perf_counter() - started)
    place = {id(entry): index for index, entry in enumerate(entries)}
    return [
        {"model": e.model, "engine": e.engine, "threads": e.threads, "error": error, "seconds": seconds}
        for e, error, seconds in sorted(rows, key=lambda row: place[id(row[0])])
    ], skipped


def weights_in_memory(model: Model) -> Iterator[tuple[str, int]]:
    """Yield what a model's convolutions take: packed as stored, as the kernel unpacks them, in float32."""
    weights = sum(p.numel() for name, p in model.named_parameters() if name.endswith("weight"))
    if model.config.bits is not None:
        yield "packed", -(-weights * model.config.bits // 8)
        yield "8-bit", weights
    yield "bfloat16", 2 * weights
    yield "float32", 4 * weights


def _error(image: Tensor, reference: Tensor) -> float:
    return float((image - reference).norm() / reference.norm())


def _plain_call(network: Yardstick, adjoint: Tensor, corner: Tensor) -> Callable[[], Tensor]:
    return lambda: network(adjoint, corner)


def _exported(name: str, engine: str, threads: int, problem: Problem, folder: Path) -> Callable[[], Tensor]:
    path = folder / f"{Path(name).stem}.onnx"
    if not path.exists():
        export(name, path)
    run = (session if engine == "onnx" else _openvino)(path, threads, problem)
    return lambda: torch.view_as_complex(torch.from_numpy(run()))


def session(path: Path, threads: int, problem: Problem) -> Callable[[], Any]:
    """Return a call that runs an exported file in ONNX Runtime: (1, y, x, 2) float32."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    inner = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = _inputs(problem)
    return lambda: inner.run(None, inputs)[0]


def _openvino(path: Path, threads: int, problem: Problem) -> Callable[[], Any]:
    import openvino

    # Of any size, as exported: told the sizes beforehand, OpenVINO 2026.4 makes another image of it.
    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.compile_model(path, "CPU", options)
    inputs = _inputs(problem)
    return lambda: compiled(inputs)[0]


def _inputs(problem: Problem) -> dict[str, NDArray[Any]]:
    parts = {key: getattr(problem, key)[None] for key in ("kspace", "mps")}
    pairs = {key: np.ascontiguousarray(a).view(np.float32).reshape(*a.shape, 2) for key, a in parts.items()}
    return {**pairs, "mask": problem.mask[None]}
