"""Workers of someone else's Dask scheduler, and a disk that is full."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import distributed
import pytest
from archives import free_port
from batches import ZERO_FILLED, assert_whole, outputs, raw, scheduler

from mri_qpan.errors import InputError, ReconError
from mri_qpan.recon.batch import crew as crew_module
from mri_qpan.recon.batch import work
from mri_qpan.recon.batch.crew import Crew
from mri_qpan.recon.batch.inputs import find_inputs
from mri_qpan.recon.batch.outbox import Outbox
from mri_qpan.recon.batch.run import Summary, run_batch
from mri_qpan.recon.job import Job
from mri_qpan.recon.memory import WORKERS
from mri_qpan.recon.recipe import Recipe

HELPERS = Path(__file__).parents[2] / "helpers"


@pytest.fixture
def cluster() -> Iterator[distributed.LocalCluster]:
    with scheduler(2) as made:
        yield made


def run(folder: Path, out: Path, address: str) -> Summary:
    sources, troubles = find_inputs([folder], out)
    with Outbox(out, ZERO_FILLED, "mri-qpan batch") as outbox:
        return run_batch(sources, troubles, outbox, lambda: Crew(None, address, "cpu"), stop=Event())


def wait_for_all(crew: Crew) -> None:
    deadline = time.monotonic() + 60
    while crew.in_hand and time.monotonic() < deadline:
        crew.finished(0.5)


def test_a_scheduler_by_address(cluster: distributed.LocalCluster, tmp_path: Path) -> None:
    for number in range(4):
        raw(tmp_path / f"in/s{number}.h5", number)
    (tmp_path / "in/bad.h5").write_bytes(b"no")
    summary = run(tmp_path / "in", tmp_path / "out", cluster.scheduler_address)
    assert (len(summary.done), len(summary.failures)) == (4, 1)
    assert_whole(tmp_path / "out")
    assert len(outputs(tmp_path / "out")) == 4
    raw(tmp_path / "in/s5.h5", 5)
    with (
        Crew(None, cluster.scheduler_address, "cpu") as crew,
        Outbox(tmp_path / "out", ZERO_FILLED, "") as box,
    ):
        (task, _), _ = box.plan(find_inputs([tmp_path / "in"], tmp_path / "out")[0])
        cluster.close()
        crew.submit(task)
        with pytest.raises(ReconError, match="scheduler is lost"):
            wait_for_all(crew)


def test_a_worker_loads_a_method_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many threads it has, and all begin at once."""
    loads, real = [], Recipe.job

    def job(recipe: Recipe) -> Job:
        loads.append(recipe)
        time.sleep(0.2)
        return real(recipe)

    for number in range(6):
        raw(tmp_path / f"in/s{number}.h5", number)
    work._job.cache_clear()
    monkeypatch.setattr(Recipe, "job", job)
    with scheduler(1, threads=4) as made:
        summary = run(tmp_path / "in", tmp_path / "out", made.scheduler_address)
    assert len(summary.done) == 6
    assert len(loads) == 1 + 1  # the batch's own, and the worker's


def test_a_machine_whose_workers_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A nanny that could start none again would let a batch wait for ever."""
    monkeypatch.setattr(crew_module, "ALONE", 0.3)
    threads: dict[str, int] = {}
    with Crew(1, None, "cpu") as crew:
        real = crew._client.nthreads
        assert crew.finished(0.1) is None
        monkeypatch.setattr(crew._client, "nthreads", lambda: threads)
        assert crew.finished(0.1) is None
        threads = real()  # one that starts again within the time is none lost
        for _ in range(5):
            assert crew.finished(0.1) is None
        threads = {}
        assert crew.finished(0.1) is None
        time.sleep(0.4)
        with pytest.raises(ReconError, match="ended and none started again"):
            crew.finished(0.1)


def test_no_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew_module, "PATIENCE", 0.5)
    for address in (f"tcp://127.0.0.1:{free_port()}", "nonsense://x"):
        with pytest.raises(InputError, match="no Dask scheduler can be reached"):
            Crew(None, address, "cpu")
    with pytest.raises(InputError, match="has its own workers"):
        Crew(2, "tcp://127.0.0.1:1", "cpu")


def test_threads_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import dask.system

    monkeypatch.setattr(dask.system, "CPU_COUNT", 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for workers, threads in ((None, "1"), (3, "2"), (2, "4"), (16, "1")):
        number, environment = crew_module._places(workers, "cpu")
        assert number == (workers or 8)
        assert {environment(i)["OMP_NUM_THREADS"] for i in range(number)} == {threads}
        assert "CUDA_VISIBLE_DEVICES" not in environment(0)
        assert environment(0)[WORKERS] == str(number)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert [crew_module._places(n, "cpu")[1](0)["OMP_NUM_THREADS"] for n in (8, 4, 1)] == ["1", "2", "2"]


def test_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    number, environment = crew_module._places(None, "auto")
    assert [environment(i)["CUDA_VISIBLE_DEVICES"] for i in range(number)] == ["3", "5"]
    with pytest.raises(InputError, match="there are 2 here"):
        crew_module._places(3, "cuda")


FULL = """
import os, subprocess, sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from batches import ZERO_FILLED, assert_whole, outputs, run
from mri_qpan.errors import ReconError

folder, out = Path(sys.argv[2]), Path(sys.argv[3])
made, full = {}, 0
for size in range(40, 600, 32):
    subprocess.run(["mount", "-o", f"remount,size={size}k", str(out)], check=True)
    try:
        summary = run([folder], out, replace(ZERO_FILLED, formats=("ismrmrd", "npy")))
    except ReconError as error:
        assert any(words in str(error) for words in ("No space left", "disk is full", "disk I/O")), error
        full += 1
    else:
        if not summary.failures:
            break
        ((_, reason),) = summary.failures
        assert "No space left" in reason or "is the disk full?" in reason, reason
        assert summary.left == 6 - summary.kept - len(summary.done) - 1
        full += 1
    assert_whole(out)
    now = outputs(out)
    assert made.items() <= now.items(), (made, now)
    made = now
assert len(outputs(out)) == 6
assert_whole(out)
print(full)
"""


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """A file system of a few pages, which grows by eight until all outputs find room."""
    tools = shutil.which("unshare"), shutil.which("mount")
    command = ["unshare", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "-o", "size=40k", "none"]
    out = tmp_path / "out"
    out.mkdir()
    if None in tools or subprocess.run([*command, str(out)], capture_output=True).returncode:
        pytest.skip("this machine does not let a test mount a file system of its own")
    for number in range(6):
        raw(tmp_path / f"in/s{number}.h5", number)
    (tmp_path / "full.py").write_text(FULL)
    script = f"mount -t tmpfs -o size=40k none '{out}' && exec '{sys.executable}' '{tmp_path}/full.py' \"$@\""
    inside = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
    done = subprocess.run([*inside, HELPERS, tmp_path / "in", out], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 3


def test_the_own_scheduler_asks_for_no_port_that_another_may_hold():
    """Dask's default, 8787, would be somebody's dashboard, or another batch's."""
    with crew_module._start(0, lambda _: {}) as made:
        assert made.scheduler.http_server.port != 8787
        assert made.scheduler.http_server.address == crew_module.HOST
