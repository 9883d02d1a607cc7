"""What a benchmark ran on."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

from mri_qpan import bart


def describe(threads: int | str) -> dict[str, str]:
    """Return processor, cores, threads in use and the versions of what computes, in words."""
    versions = {name: version(name) for name in ("mri-qpan", "torch", "sigpy", "numpy", "PyWavelets")}
    if bart.available():
        versions["BART"] = bart.version()
    return {
        "processor": processor(),
        "cores": str(os.cpu_count()),
        "threads a method": str(threads),
        "Python": platform.python_version(),
        **versions,
        **({"commit": found} if (found := commit()) else {}),
    }


def commit() -> str:
    """Return the commit of the checkout that this package runs from, with "+" if changed; else nothing."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        words = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--exclude=*"]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def processor() -> str:
    """Return the name of this machine's processor."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
