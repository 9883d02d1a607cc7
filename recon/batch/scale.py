"""How many files a second a batch finishes: with local workers, and with those of a feigned cluster."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

from mri_qpan.errors import InputError, OptionError, ReconError
from mri_qpan.recon.batch.crew import Crew
from mri_qpan.recon.batch.inline import Inline
from mri_qpan.recon.batch.inputs import find_inputs
from mri_qpan.recon.batch.outbox import Outbox
from mri_qpan.recon.batch.run import run_batch
from mri_qpan.recon.batch.work import Outcome, Task, perform
from mri_qpan.recon.job import Job, reconstruct_file
from mri_qpan.recon.recipe import Recipe

PROCESSES = 2  # that the threads of a feigned cluster lie in; one, of an odd number of them
LEAST, EACH, MOST = 60, 6, 1000
"""Files of a feigned run: so many, or so many a worker, but no more than the last."""


@dataclass(frozen=True)
class Rate:
    """What a batch came to.

    Attributes
    ----------
    kind
        "local", "cluster", "disk and journal" or "scheduler".
    workers
        How many.
    files
        How many were timed: all but the first ones, as many as workers, before which models are loaded.
    start_seconds
        Until those first files were in place.
    seconds
        From then until the last file was.
    ideal
        Files a second if nothing but the reconstructions took time; None where there is none to compare with.
    """

    kind: str
    workers: int
    files: int
    start_seconds: float
    seconds: float
    ideal: float | None

    @property
    def rate(self) -> float:
        """Files a second."""
        return self.files / self.seconds


def measure(
    path: Path,
    recipe: Recipe,
    *,
    files: int,
    local: Sequence[int],
    cluster: Sequence[int],
    progress: Callable[[str], None] = lambda words: None,
) -> tuple[list[Rate], float]:
    """Run batches of links to one file.

    Parameters
    ----------
    path
        A raw file.
    recipe
        How to reconstruct it.
    files
        Number of links for every run with local workers.
    local
        Numbers of local workers.
    cluster
        Numbers of workers of a feigned cluster: its scheduler, journal and disk are real, and every output is
        written in full; the reconstruction is the time that one took alone, slept.
    progress
        Called with words before each run.

    Returns
    -------
    list of Rate
        In their order; then what disk and journal, and the scheduler, do alone.
    float
        Seconds of a reconstruction alone.

    Raises
    ------
    InputError
        If Dask is missing, the file cannot be used, or there are no more files than workers.
    ReconError
        If a file fails.
    """
    if files <= max(local, default=0):
        raise OptionError(f"--files {files}: more files than workers ({max(local)}), or none is left to time")
    found = []
    with tempfile.TemporaryDirectory(prefix="mri-qpan-scale-") as name:
        room = Path(name)
        progress("one file alone")
        seconds, outputs = _once(path, recipe, room)
        for workers in local:
            progress(f"{workers} local workers")
            crew = partial(Crew, workers, None, recipe.device)
            found.append(_batch("local", path, recipe, room, files, workers, crew, None))
        for workers in cluster:
            progress(f"a cluster of {workers}")
            number = min(MOST, max(LEAST, EACH * workers))
            replay = partial(perform, make=partial(_replay, outputs, seconds))
            found.append(_clustered(path, recipe, room, number, workers, replay, seconds))
        progress("disk and journal alone")
        alone: Any = partial(Inline, partial(perform, make=partial(_replay, outputs, 0.0)))
        found.append(_batch("disk and journal", path, recipe, room, LEAST, 1, alone, None))
        if cluster:
            progress("scheduler alone")
            found.append(_scheduler(MOST, max(cluster)))
    return found, seconds


def _once(path: Path, recipe: Recipe, room: Path) -> tuple[float, Path]:
    """Return how long a warm reconstruction takes, and a folder with what it writes."""
    job, outputs = recipe.job(), room / "outputs"
    for _ in range(2):
        shutil.rmtree(outputs, ignore_errors=True)
        outputs.mkdir()
        started = time.perf_counter()
        reconstruct_file(path, outputs, job)
        seconds = time.perf_counter() - started
    return seconds, outputs


def _replay(outputs: Path, seconds: float, path: Path, folder: Path, job: Job) -> dict[str, Any]:
    """Take as long as a reconstruction, and write as much."""
    time.sleep(seconds)
    for output in outputs.iterdir():
        shutil.copyfile(output, folder / output.name)
    return {"images": [0], "seconds": {"recon": seconds}}


def _clustered(
    path: Path,
    recipe: Recipe,
    room: Path,
    files: int,
    workers: int,
    work: Callable[[Task], Outcome],
    seconds: float,
) -> Rate:
    with _cluster(workers) as cluster:
        crew = partial(Crew, None, cluster.scheduler_address, recipe.device, work)
        return _batch("cluster", path, recipe, room, files, workers, crew, workers / seconds)


def _cluster(workers: int) -> Any:
    try:
        from distributed import LocalCluster
    except ImportError as error:
        raise InputError('Dask is missing: pip install "mri-qpan[batch]"') from error
    processes = PROCESSES if workers % PROCESSES == 0 else 1
    return LocalCluster(
        n_workers=processes,
        threads_per_worker=workers // processes,
        processes=True,
        protocol="tcp://",
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",  # None would ask for port 8787, which another may hold
        memory_limit=0,
        silence_logs=50,
    )


def _batch(
    kind: str,
    path: Path,
    recipe: Recipe,
    room: Path,
    files: int,
    workers: int,
    crew: Callable[[], Any],
    ideal: float | None,
) -> Rate:
    folder, out = room / "in", room / "out"
    for made in (folder, out):
        shutil.rmtree(made, ignore_errors=True)
    folder.mkdir()
    for number in range(files):
        _link(path, folder / f"{number:05d}{path.suffix}")
    sources, troubles = find_inputs([folder], out, recipe.dims)
    warm: list[tuple[int, float]] = []

    def note(done: int, total: int) -> None:
        if not warm and done >= workers:
            warm.append((done, time.perf_counter()))

    started = time.perf_counter()
    with Outbox(out, recipe, "mri-qpan benchmark batch") as outbox:
        summary = run_batch(sources, troubles, outbox, crew, stop=Event(), progress=note)
        ended = time.perf_counter()
    if len(summary.done) != files:
        reason = summary.failures[0][1] if summary.failures else "no file was done"
        raise ReconError(f"{path}: the batch failed: {reason}")
    first, since = warm[0]
    return Rate(kind, workers, files - first, since - started, ended - since, ideal)


def _link(path: Path, place: Path) -> None:
    try:
        place.hardlink_to(path.resolve())
    except OSError:  # another file system
        shutil.copyfile(path, place)


def _scheduler(tasks: int, workers: int) -> Rate:
    """Time tasks that do nothing."""
    from distributed import Client, as_completed

    with _cluster(workers) as cluster, Client(cluster.scheduler_address) as client:
        started = time.perf_counter()
        for _ in as_completed(client.map(str, range(tasks), pure=False)):
            pass
        return Rate("scheduler", workers, tasks, 0.0, time.perf_counter() - started, None)


def to_json(
    rates: Sequence[Rate], seconds: float, path: Path, method: str, command: str, machine: dict[str, str]
) -> dict[str, Any]:
    """Return all figures, ready for JSON."""
    return {
        "command": command,
        "machine": machine,
        "input": path.name,
        "method": method,
        "seconds_alone": seconds,
        "runs": [asdict(found) | {"files_a_second": found.rate} for found in rates],
    }


def to_markdown(results: dict[str, Any]) -> str:
    """Return a page with the figures of `to_json`."""
    rows = []
    for run in results["runs"]:
        ideal = run["ideal"]
        share = "" if ideal is None else f"{run['files_a_second'] / ideal:.0%}"
        shown = "" if ideal is None else f"{ideal:.1f}"
        rows.append(
            f"| {run['kind']} | {run['workers']} | {run['files']} | {run['files_a_second']:.2f} | {shown} "
            f"| {share} | {run['start_seconds']:.1f} |"
        )
    machine = "; ".join(f"{name} {value}" for name, value in results["machine"].items())
    return (
        "# Throughput of a batch\n\n"
        f"```\n{results['command']}\n```\n\n{machine}.\n\n"
        f"Links to `{results['input']}`, reconstructed with {results['method']}; one takes "
        f"{results['seconds_alone']:.2f} s alone, reading and writing included. `local`: real workers "
        "of this machine, which share its cores. `cluster`: workers that sleep as long as a reconstruction "
        "takes and then write its outputs, with the real scheduler, journal and disk of this one machine; "
        "ideal is what the sleeping alone would allow. `disk and journal`: one worker that does not sleep, "
        "without Dask. `scheduler`: tasks that do nothing. As many files as there are workers, the first, "
        "are left out, before which models are loaded; the last column says when they were in place.\n\n"
        "| kind | workers | files | files a second | ideal | share of it | s to start |\n"
        "|---|---|---|---|---|---|---|\n" + "\n".join(rows) + "\n"
    )
