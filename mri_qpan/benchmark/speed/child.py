"""A job in a process of its own: `python -m mri_qpan.benchmark.speed.child JOB`, one line of JSON out.

Imports stand inside: how long a fresh process takes is what is measured.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any


def start(job: dict[str, Any]) -> dict[str, Any]:
    """Reconstruct one slice, as soon as can be.

    Parameters
    ----------
    job
        `model`, `engine`, `threads`, `input` (a file of `Problem.save`) and `folder` of exported models.
    """
    if job["engine"] == "onnx":
        # Without PyTorch, as a user of the exported file has it.
        import numpy as np
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = job["threads"]
        path = Path(job["folder"]) / f"{Path(job['model']).stem}.onnx"
        with np.load(job["input"]) as arrays:
            parts = {key: arrays[key][None] for key in ("kspace", "mps")}
            inputs = {key: a.view(np.float32).reshape(*a.shape, 2) for key, a in parts.items()}
            inputs["mask"] = arrays["mask"][None]
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        session.run(None, inputs)
        return {"peak": memory("VmHWM")}
    import torch

    from mri_qpan.benchmark.speed.engines import reconstructor
    from mri_qpan.benchmark.speed.problem import Problem

    torch.set_num_threads(job["threads"])
    with torch.inference_mode():
        problem = Problem.load(Path(job["input"]))
        reconstructor(job["model"], job["engine"], job["threads"], problem, Path(job["folder"]))()
    return {"peak": memory("VmHWM")}


def size(job: dict[str, Any]) -> dict[str, Any]:
    """Reconstruct slices of a size, one after the other, from samples in memory to images in memory.

    Parameters
    ----------
    job
        `model`, `threads`, `matrix` (of a square), `coils`, `slices`, `mask` and `repeats`.
    """
    import numpy as np
    import torch

    from mri_qpan import models
    from mri_qpan.benchmark.speed.problem import Problem, scaled

    torch.set_num_threads(job["threads"])
    model = models.load_model(job["model"])

    @torch.inference_mode()
    def image(problem: Problem) -> Any:
        adjoint, normal = problem.operator(model.config.channels)
        return model(adjoint, normal).numpy()

    image(scaled(64, 1, job["mask"]))  # what any first slice brings into memory
    before = memory("VmRSS")
    problem = scaled(job["matrix"], job["coils"], job["mask"])
    samples = np.repeat(problem.kspace[None], job["slices"], 0)
    seconds = []
    for _ in range(job["repeats"]):
        started = time.perf_counter()
        images = [image(Problem(kspace, problem.mps, problem.mask)) for kspace in samples]
        seconds.append(time.perf_counter() - started)
    assert len(images) == job["slices"]
    return {"seconds": statistics.median(seconds), "memory": max(memory("VmHWM") - before, 0)}


def memory(field: str) -> int:
    """Return a field of this process's memory in bytes (Linux): VmRSS now, VmHWM at its peak; 0 elsewhere."""
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.is_file() else []
    found = [line.split()[1] for line in lines if line.startswith(field + ":")]
    return 1024 * int(found[0]) if found else 0


JOBS = {"start": start, "size": size}

if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    sys.stdout.write(json.dumps(JOBS[request.pop("job")](request)) + "\n")
