"""The memory that a reconstruction takes by default, and freed memory, which is kept for the next image."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from mri_qpan.recon import memory
from mri_qpan.recon.memory import WORKERS, budget

FAULTS = """
import resource, sys
import numpy as np
from mri_qpan.recon.memory import keep_memory

kept = len(sys.argv) > 1 and keep_memory()

def image():
    [np.ones(3 * 2**20) for _ in range(8)]  # 24 MiB each, freed together

image()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    image()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")


def faults(*arguments: str, **variables: str) -> tuple[str, int]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    ended = subprocess.run(
        [sys.executable, "-c", FAULTS, *arguments],
        env=environment | variables | {"NUMPY_MADVISE_HUGEPAGE": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    kept, count = ended.stdout.split()
    return kept, int(count)


def test_freed_memory_is_kept() -> None:
    kept, count = faults("keep")
    assert kept == "True"
    assert count < 1000
    assert faults()[1] > 50_000  # of 24 arrays of 6144 pages


@pytest.mark.parametrize(
    "said",
    [{"MALLOC_MMAP_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072"}],
)
def test_what_the_user_says_of_the_allocator_stays(said: dict[str, str]) -> None:
    kept, count = faults("keep", **said)
    assert kept == "False"
    assert count > 50_000


def test_half_of_a_containers_memory_and_a_workers_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = [tmp_path / "memory.max", tmp_path / "limit_in_bytes"]
    monkeypatch.setattr(memory, "CONTAINER", limits)
    monkeypatch.delenv(WORKERS, raising=False)
    whole = budget()
    assert whole == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    limits[0].write_text("max\n")
    limits[1].write_text("9223372036854771712\n")
    assert budget() == whole
    limits[0].write_text(f"{whole}\n")
    assert budget() == whole // 2
    monkeypatch.setenv(WORKERS, "3")
    assert budget() == whole // 6
