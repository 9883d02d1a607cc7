"""Freed memory is kept: the next image's pages are there already."""

import os
import subprocess
import sys

import pytest

FAULTS = """
import resource
import numpy as np
from mri_qpan.recon.memory import keep_memory

kept = keep_memory()

def image():
    for _ in range(4):
        np.ones(2**21)  # 16 MiB

image()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    image()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(**variables: str) -> tuple[str, int]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    ended = subprocess.run(
        [sys.executable, "-c", FAULTS],
        env=environment | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    kept, count = ended.stdout.split()
    return kept, int(count)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_kept() -> None:
    kept, count = faults()
    if kept == "False":
        pytest.skip("not glibc")
    assert count < 200  # 20 arrays of 4096 pages


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_what_the_user_says_of_the_allocator_stays() -> None:
    kept, count = faults(MALLOC_MMAP_THRESHOLD_="131072")
    assert kept == "False"
    assert count > 10_000
    assert faults(GLIBC_TUNABLES="glibc.malloc.mmap_threshold=131072")[0] == "False"
