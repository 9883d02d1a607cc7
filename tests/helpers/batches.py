"""What tests of batches share: small raw files, a worker in this process, an output folder's state."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

from mrd_files import header_xml, lines, random_kspace, write

from mri_qpan.recon.batch.inline import Inline
from mri_qpan.recon.batch.inputs import find_inputs
from mri_qpan.recon.batch.outbox import Outbox
from mri_qpan.recon.batch.run import Summary, run_batch
from mri_qpan.recon.batch.work import ROOM, Outcome, Task, perform
from mri_qpan.recon.recipe import Recipe

NY, NX = 24, 32
ZERO_FILLED = Recipe(method="zero-filled", formats=("npy",), device="cpu")


def raw(path: Path, seed: int = 0) -> Path:
    """Write a slice of its own for every seed, over what is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    return write(path, header_xml((NX, NY, 1)), lines(random_kspace(1, NY, NX, seed=seed)))


def stack(path: Path, slices: int) -> Path:
    """Write a file of slices that differ."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        line
        for s in range(slices)
        for line in lines(random_kspace(1, NY, NX, seed=s), slice=s, position=(0, 0, 5.0 * s))
    ]
    return write(path, header_xml((NX, NY, 1)), rows)


def run(
    inputs: list[Path],
    out: Path,
    recipe: Recipe = ZERO_FILLED,
    work: Callable[[Task], Outcome] = perform,
    stop: Event | None = None,
) -> Summary:
    """A whole batch in this process."""
    sources, troubles = find_inputs(inputs, out, recipe.dims)
    with Outbox(out, recipe, "mri-qpan batch") as outbox:
        return run_batch(sources, troubles, outbox, lambda: Inline(work), stop=stop or Event())  # type: ignore[arg-type, return-value]


@contextmanager
def scheduler(workers: int, threads: int = 1) -> Iterator[Any]:
    """Someone else's Dask scheduler on TCP, with workers in this process."""
    from distributed import LocalCluster

    made = LocalCluster(
        n_workers=workers,
        threads_per_worker=threads,
        processes=False,
        protocol="tcp://",
        dashboard_address="127.0.0.1:0",  # None would ask for port 8787, which another may hold
    )
    try:
        yield made
    finally:
        made.close()


def outputs(out: Path) -> dict[str, dict[str, int]]:
    """Every output folder's files, each with its inode, which tells whether it was made anew."""
    return {
        folder.name: {path.name: path.stat().st_ino for path in folder.iterdir()}
        for folder in out.iterdir()
        if folder.name != ROOM
    }


def assert_whole(out: Path) -> None:
    """All files of every output folder are there, and nothing else."""
    for name, files in outputs(out).items():
        (record,) = (out / name).glob("*.json")
        assert sorted(json.loads(record.read_text())["outputs"]) == sorted(files)
