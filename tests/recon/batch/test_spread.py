"""The images of one input, spread among workers: the same outputs as by one."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import distributed
import numpy as np
import pytest
from batches import ZERO_FILLED, assert_whole, outputs, run, scheduler, stack
from hypothesis import given
from hypothesis import strategies as st

from mri_qpan.recon.batch import work
from mri_qpan.recon.batch.crew import Crew
from mri_qpan.recon.batch.inputs import find_inputs
from mri_qpan.recon.batch.outbox import Outbox
from mri_qpan.recon.batch.run import Summary, run_batch
from mri_qpan.recon.job import Done, Edges, Job, reconstruct_images

SLICES = 19


@pytest.fixture
def cluster() -> Iterator[distributed.LocalCluster]:
    with scheduler(2) as made:
        yield made


def spread_over(cluster: distributed.LocalCluster, folder: Path, out: Path) -> Summary:
    sources, troubles = find_inputs([folder], out)
    with Outbox(out, ZERO_FILLED, "mri-qpan batch") as outbox:
        made = partial(Crew, None, cluster.scheduler_address, "cpu")
        return run_batch(sources, troubles, outbox, made, stop=Event())


def result(out: Path, name: str) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
    (folder,) = (path for path in out.iterdir() if path.name.startswith(name))
    (image,), (record,) = folder.glob("*.npy"), folder.glob("*.json")
    kept = json.loads(record.read_text())
    for key in ("seconds", "peak_memory_mib", "created", "command"):
        del kept[key]
    for one in kept["images"]:
        del one["recon_seconds"], one["maps_seconds"]
    return np.load(image), kept


def test_the_last_file_is_shared(
    cluster: distributed.LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack(tmp_path / "in/stack.h5", SLICES)
    alone = run([tmp_path / "in"], tmp_path / "alone")
    assert len(alone.done) == 1
    ranges, workers, real = [], set(), reconstruct_images

    def noted(path: Path, job: Job, start: int, stop: int, edges: Edges) -> list[Done]:
        ranges.append((start, stop))
        workers.add(distributed.get_worker().address)
        return real(path, job, start, stop, edges)

    monkeypatch.setattr(work, "reconstruct_images", noted)
    summary = spread_over(cluster, tmp_path / "in", tmp_path / "out")
    assert (len(summary.done), summary.failures) == (1, [])
    assert sorted(ranges) == [(1, 5), (5, 10), (10, 14), (14, 19)]
    assert len(workers) == 2
    assert_whole(tmp_path / "out")
    images, record = result(tmp_path / "out", "stack")
    expected, told = result(tmp_path / "alone", "stack")
    assert np.array_equal(images, expected)
    assert record == told
    assert len(images) == SLICES
    again = spread_over(cluster, tmp_path / "in", tmp_path / "out")
    assert (again.kept, len(again.done)) == (1, 0)


def test_only_the_last_files_are(cluster: distributed.LocalCluster, tmp_path: Path) -> None:
    given_to = []

    class Noted(Crew):
        def submit(self, task: work.Task) -> None:
            given_to.append(task.workers)
            super().submit(task)

    for number in range(5):
        stack(tmp_path / f"in/s{number}.h5", 6)
    sources, troubles = find_inputs([tmp_path / "in"], tmp_path / "out")
    with Outbox(tmp_path / "out", ZERO_FILLED, "") as outbox:
        made = partial(Noted, None, cluster.scheduler_address, "cpu")
        summary = run_batch(sources, troubles, outbox, made, stop=Event())
    assert len(summary.done) == 5
    assert given_to == [1, 1, 1, 2, 2]
    assert len(outputs(tmp_path / "out")) == 5


def test_a_gpu_is_left_to_the_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker's GPU is one job's at a time; who waits for pieces must not keep it from them."""
    stack(tmp_path / "in/stack.h5", SLICES)
    monkeypatch.setattr(work, "_on_gpu", lambda job: True)
    held, real = [], reconstruct_images

    def noted(path: Path, job: Job, start: int, stop: int, edges: Edges) -> list[Done]:
        held.append(work._gpu.locked())
        return real(path, job, start, stop, edges)

    monkeypatch.setattr(work, "reconstruct_images", noted)
    with scheduler(1, threads=2) as cluster:
        summary = spread_over(cluster, tmp_path / "in", tmp_path / "out")
    assert (len(summary.done), summary.failures) == (1, [])
    assert len(held) > 1
    assert all(held)
    assert not work._gpu.locked()


def test_images_that_are_missing_fail_their_file(
    cluster: distributed.LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack(tmp_path / "in/stack.h5", SLICES)

    def fewer(path: Path, job: Job, start: int, stop: int, edges: Edges) -> list[Done]:
        return reconstruct_images(path, job, start, stop - (start == 10), edges)

    monkeypatch.setattr(work, "reconstruct_images", fewer)
    ((_, reason),) = spread_over(cluster, tmp_path / "in", tmp_path / "out").failures
    assert "18 of its 19 images were found again" in reason
    assert outputs(tmp_path / "out") == {}


def test_a_failing_image_fails_its_file(
    cluster: distributed.LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack(tmp_path / "in/stack.h5", SLICES)
    real = reconstruct_images

    def failing(path: Path, job: Job, start: int, stop: int, edges: Edges) -> list[Done]:
        if start == 10:
            raise MemoryError("no room for slice 10")
        return real(path, job, start, stop, edges)

    monkeypatch.setattr(work, "reconstruct_images", failing)
    summary = spread_over(cluster, tmp_path / "in", tmp_path / "out")
    ((_, reason),) = summary.failures
    assert "no room for slice 10" in reason
    assert outputs(tmp_path / "out") == {}
    monkeypatch.undo()
    assert len(spread_over(cluster, tmp_path / "in", tmp_path / "out").done) == 1


@given(st.integers(0, 50), st.integers(0, 2000), st.integers(1, 300))
def test_pieces_are_all_images_once(start: int, count: int, workers: int) -> None:
    found = work.pieces(start, start + count, workers)
    assert [i for first, last in found for i in range(first, last)] == list(range(start, start + count))
    sizes = [last - first for first, last in found]
    assert len(sizes) == 1 or min(sizes) >= work.SMALLEST
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) <= 2 * workers
