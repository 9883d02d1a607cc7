"""The workers of a batch: processes of this machine, or whatever a Dask scheduler has."""

from __future__ import annotations

import logging
import math
import os
import queue
import time
import uuid
import warnings
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from mri_qpan.errors import InputError, ReconError
from mri_qpan.methods import find_device
from mri_qpan.recon.batch.inputs import text_of
from mri_qpan.recon.batch.work import LOST, Outcome, Task, perform
from mri_qpan.recon.memory import WORKERS

if TYPE_CHECKING:
    from distributed import Client, SpecCluster

HOST = "127.0.0.1"
MEMORY = 2 * 2**30
"""Bytes that a worker may need: no more workers than fit by default."""

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

RETRIES = 1
"""How often a job is begun again whose worker was lost. The next time, it is taken for the cause."""

PATIENCE = 10.0  # seconds to connect to a scheduler

ALONE = 120.0
"""Seconds without any worker on this machine, after which none is expected any more: a start takes a few."""

SPARE = 16
"""Jobs that a scheduler of someone else's gets beyond its threads, so that clusters that grow see a need."""

log = logging.getLogger(__name__)


class Crew:
    """Starts workers, or connects to them.

    Local workers are one a GPU, each seeing its own alone, or without a GPU `workers`, which share this
    machine's cores (OMP_NUM_THREADS can lower a worker's share). They are reached through TLS, since Dask's
    plain TCP lets every user of the machine run code in them.

    Parameters
    ----------
    workers
        How many; None takes one a GPU, else one a core where memory allows.
    scheduler
        Address of a Dask scheduler to use instead.
    device
        See `methods.find_device`.
    work
        What a worker does with a task.

    Raises
    ------
    InputError
        If Dask is not installed, the scheduler cannot be reached, or there are fewer GPUs than workers.
    ReconError
        From `finished`, if the scheduler is lost, or this machine's workers are and none starts again.
    """

    def __init__(
        self,
        workers: int | None,
        scheduler: str | None,
        device: str,
        work: Callable[[Task], Outcome] = perform,
    ) -> None:
        self._work = work
        self._outcomes: queue.Queue[tuple[Task, Any]] = queue.Queue()
        self._futures: dict[str, tuple[Task, Any]] = {}
        self._cluster: SpecCluster | None = None
        self._alone_since: float | None = None
        try:
            import dask
            import distributed
        except ImportError as error:
            raise InputError(
                'Dask is missing, which spreads the work: pip install "mri-qpan[batch]"'
            ) from error
        logging.getLogger("distributed").setLevel(logging.CRITICAL)  # it logs what is reported here anyway
        if scheduler is not None:
            if workers is not None:
                raise InputError("--workers and --scheduler: that scheduler has its own workers")
            self._client = _connect(scheduler)
            return
        number, environment = _places(workers, device)
        settings = {
            "distributed.nanny.pre-spawn-environ": {name: environment(0)[name] for name in THREADS},
            "distributed.scheduler.allowed-failures": RETRIES,
            "distributed.scheduler.worker-ttl": None,
            "distributed.admin.tick.limit": "1h",  # no words on a long wait for the interpreter's lock
        }
        with dask.config.set(settings):
            self._cluster = _start(number, environment)
            self._client = distributed.Client(self._cluster, security=self._cluster.security)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()
        if self._cluster is not None:
            self._cluster.close()

    @property
    def in_hand(self) -> int:
        """Number of tasks submitted and not finished."""
        return len(self._futures)

    @property
    def number(self) -> int:
        """How many tasks can be worked at once: none while a scheduler waits for its workers."""
        if self._cluster is None:
            return sum(self._client.nthreads().values())
        return len(self._cluster.worker_spec)

    def has_room(self) -> bool:
        """Return whether a worker waits for a task."""
        return self.in_hand < self.number + (SPARE if self._cluster is None else 0)

    def submit(self, task: Task) -> None:
        """Have a task done."""
        future = self._client.submit(self._work, task, key=f"mri-qpan-{uuid.uuid4().hex}", pure=False)
        self._futures[task.key] = task, future
        future.add_done_callback(lambda done: self._outcomes.put((task, done)))

    def recall(self) -> list[Task]:
        """Take back the tasks that no worker has yet: a scheduler may have none for hours."""
        if not self._futures or self._client.status != "running":
            return []
        try:
            taken = {key for keys in self._client.processing().values() for key in keys}
        except OSError:  # the scheduler is being lost, which `finished` tells
            return []
        back = [
            key for key, (_, future) in self._futures.items() if not future.done() and future.key not in taken
        ]
        found = [self._futures.pop(key) for key in back]
        self._client.cancel([future for _, future in found])
        return [task for task, _ in found]

    def finished(self, seconds: float) -> Outcome | None:
        """Wait so long for a task to finish; None if none did."""
        try:
            task, future = self._outcomes.get(timeout=seconds)
        except queue.Empty:
            if self._client.status not in ("running", "newly-created"):
                raise _lost() from None
            self._watch()
            return None
        if task.key not in self._futures:  # taken back
            return None
        del self._futures[task.key]
        if future.status == "finished":
            return future.result()
        if future.status != "error":
            raise _lost()
        error = future.exception()
        if type(error).__name__ == "KilledWorker":
            return Outcome(task, LOST)
        return Outcome(task, text_of(f"the worker could not take it: {type(error).__name__}: {error}"))

    def _watch(self) -> None:
        """Tell a local cluster whose workers all ended, and start no more, from one that works."""
        if self._cluster is None:
            return
        with suppress(OSError):  # the scheduler is being lost, which the next wait tells
            if self._client.nthreads():
                self._alone_since = None
            elif self._alone_since is None:
                self._alone_since = time.monotonic()
        if self._alone_since is not None and time.monotonic() - self._alone_since > ALONE:
            raise ReconError(
                f"this machine's workers ended and none started again in {ALONE:.0f} s; what is done is "
                "kept: run the same command again"
            )


def _lost() -> ReconError:
    return ReconError("the Dask scheduler is lost; what is done is kept: run the same command again")


def _connect(address: str) -> Client:
    from distributed import Client

    try:
        client = Client(address, timeout=PATIENCE)
    except (OSError, ValueError) as error:
        raise InputError(f"--scheduler {address}: no Dask scheduler can be reached there") from error
    if not client.nthreads():
        log.warning("%s has no workers yet: waiting for them", address)
    return client


def _places(workers: int | None, device: str) -> tuple[int, Callable[[int], dict[str, str]]]:
    """Return how many local workers to start, and the environment of each by its number."""
    from dask.system import CPU_COUNT
    from distributed.system import MEMORY_LIMIT

    gpus: list[str] = []
    if find_device(device).type == "cuda":
        import torch

        count = torch.cuda.device_count()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        gpus = visible.split(",")[:count] if visible else [str(i) for i in range(count)]
        if workers is not None and workers > count:
            raise InputError(f"--workers {workers}: one a GPU, and there are {count} here")
    fit = max(1, math.floor(MEMORY_LIMIT / MEMORY))
    number = workers or len(gpus) or min(CPU_COUNT, fit)
    threads = max(1, CPU_COUNT // number)
    with suppress(ValueError):
        threads = max(1, min(threads, int(os.environ.get(THREADS[0], threads))))

    def environment(worker: int) -> dict[str, str]:
        shared = dict.fromkeys(THREADS, str(threads)) | {WORKERS: str(number)}
        return shared | ({"CUDA_VISIBLE_DEVICES": gpus[worker]} if gpus else {})

    return number, environment


def _start(number: int, environment: Callable[[int], dict[str, str]]) -> SpecCluster:
    from distributed import Nanny, Scheduler, Security, SpecCluster

    security = Security.temporary()
    common = {"host": HOST, "protocol": "tls://", "security": security, "dashboard": False}
    workers = {
        i: {
            "cls": Nanny,
            "options": common
            | {
                "nthreads": 1,
                "memory_limit": 0,  # Dask would kill a worker for what its neighbours leave free
                "env": environment(i),
                "silence_logs": logging.CRITICAL,
            },
        }
        for i in range(number)
    }
    # An address of None would ask for port 8787, which another batch may hold.
    scheduler = {"cls": Scheduler, "options": common | {"port": 0, "dashboard_address": f"{HOST}:0"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of certificates that end on the day of their making
        return SpecCluster(
            scheduler=scheduler, workers=workers, security=security, silence_logs=logging.CRITICAL
        )
