"""Set up .venv and run one task in it: `python3 make.py demo`, `test` or `check`.

Needs Python 3.11 or newer with pip and venv, and nothing else. Whatever torch is in .venv already, stays.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

MINIMUM = (3, 11)
ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = str(BIN / "python")
TYPES = ROOT / "build" / "types"

CUDA_HINT = """\
make.py: pip would now download gigabytes of CUDA with torch, and this machine shows no NVIDIA GPU.
Set PIP_EXTRA_INDEX_URL to the address that PyTorch's installation page shows for Linux, Pip, CPU,
and repeat the command. If you do want the CUDA build, install torch into .venv yourself first:
    {python} -m pip install -c constraints.txt torch"""


def run(*command: str, cwd: Path = ROOT) -> None:
    """Run a command; if it fails, stop with its exit code."""
    print("+", *command, flush=True)
    code = subprocess.run(command, cwd=cwd).returncode
    if code:
        sys.exit(code if code > 0 else 1)


def has_torch() -> bool:
    """Tell whether .venv has a torch."""
    find = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is None)"
    return subprocess.run([PYTHON, "-I", "-c", find]).returncode == 0


def brings_idle_cuda() -> bool:
    """Tell whether the torch that pip would choose needs CUDA libraries, on a machine without their GPU."""
    if sys.platform != "linux" or shutil.which("nvidia-smi"):
        return False
    ask = [PYTHON, "-m", "pip", "install", "--dry-run", "--no-deps", "--quiet", "--report", "-"]
    ask += ["-c", "constraints.txt", "torch"]
    answer = subprocess.run(ask, cwd=ROOT, capture_output=True, text=True)
    if answer.returncode:
        sys.exit(answer.stderr)
    (torch,) = json.loads(answer.stdout)["install"]
    return any(need.startswith(("nvidia", "cuda")) for need in torch["metadata"].get("requires_dist", []))


def set_up(target: str) -> None:
    """Install `target`, the package with or without its extras, editable into .venv, once per set of pins."""
    if sys.version_info < MINIMUM:
        sys.exit(f"make.py: needs Python 3.11 or newer, this is {sys.version.split()[0]}")
    pins = (ROOT / "constraints.txt").read_text()
    kernels = sorted(p for p in (ROOT / "mri_qpan" / "engines").iterdir() if p.suffix in (".cpp", ".h"))
    defines = [pins, str(ROOT), *(p.read_text() for p in (ROOT / "pyproject.toml", *kernels))]
    wanted = hashlib.sha256("".join(defines).encode()).hexdigest()
    done = VENV / f"installed-{target.partition('[')[2].strip(']') or 'package'}"
    if done.is_file() and done.read_text() == wanted:
        return
    if not Path(PYTHON).exists():
        run(sys.executable, "-m", "venv", str(VENV))
    if has_torch():
        pins = "\n".join(line for line in pins.splitlines() if not line.startswith("torch=="))
    elif "CI" not in os.environ and brings_idle_cuda():
        sys.exit(CUDA_HINT.format(python=PYTHON))
    constraints = VENV / "constraints.txt"
    constraints.write_text(pins)
    run(PYTHON, "-m", "pip", "install", "-c", str(constraints), "-e", target)
    done.write_text(wanted)


def check() -> None:
    """Lint and type-check. mypy sees the four folders linked as the one package that they install as."""
    run(str(BIN / "ruff"), "check", ".")
    run(str(BIN / "ruff"), "format", "--check", ".")
    shutil.rmtree(TYPES, ignore_errors=True)
    package = TYPES / "mri_qpan"
    package.mkdir(parents=True)
    parts = [ROOT / "cli", ROOT / "recon", ROOT / "sampling_masks", *(ROOT / "mri_qpan").iterdir()]
    for part in parts:
        (package / part.name).symlink_to(part)
    settings = ("--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache"))
    run(str(BIN / "mypy"), *settings, cwd=TYPES)


def main() -> None:
    """Run the task named on the command line."""
    task = sys.argv[1] if len(sys.argv) == 2 else ""
    if task == "demo":
        set_up(".")
        run(str(BIN / "mri-qpan"), "demo")
    elif task == "check":
        set_up(".[dev]")
        check()
    elif task == "test":
        set_up(".[dev]")
        check()
        # A file's tests stay together: they share what is dear to set up.
        run(str(BIN / "pytest"), "-n", "auto", "--dist", "loadfile")
    else:
        sys.exit("usage: python3 make.py demo|test|check")


if __name__ == "__main__":
    main()
