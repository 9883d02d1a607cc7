"""The wheel holds the package and nothing else, and works from an empty folder of an empty environment."""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from mri_qpan._version import __version__
from mri_qpan.models import list_models

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "cli": "mri_qpan/cli",
    "mri_qpan": "mri_qpan",
    "recon": "mri_qpan/recon",
    "sampling_masks": "mri_qpan/sampling_masks",
}
SHIPPED = {".html", ".py", ".safetensors", ".md", ".toml", ".typed"}


def _run(command: list[str | Path], cwd: Path) -> str:
    """Run a command as a stranger would: no PYTHONPATH, from `cwd`; return what it printed."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the source archive, and from it the wheel, out of a copy of the sources."""
    source, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    _run([sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, source], cwd=dist)
    (built,) = dist.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel alone into an empty environment; return the folder of its commands.

    The dependencies come from the environment that runs the tests: its site-packages are put behind the
    empty one's own, without the editable install there (which only that environment's start-up would load).
    """
    home = tmp_path_factory.mktemp("venv")
    venv.create(home, with_pip=False, symlinks=os.name != "nt")
    folders = {"base": str(home), "platbase": str(home)}
    binary, site = (Path(sysconfig.get_path(key, "venv", folders)) for key in ("scripts", "purelib"))
    pip = [sys.executable, "-m", "pip", "--python", binary / "python"]
    _run([*pip, "install", "--no-deps", "--no-index", wheel], cwd=home)
    dependencies = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    (site / "dependencies.pth").write_text("\n".join(dependencies))
    return binary


def test_wheel_holds_the_package_alone(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    inside = {name for name in names if not name.startswith(f"mri_qpan-{__version__}.dist-info/")}
    expected = {
        (Path(inner) / path.relative_to(ROOT / folder)).as_posix()
        for folder, inner in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.suffix in SHIPPED or path.name == "decoder.h"
    }
    kernel = {name for name in inside if name.startswith("mri_qpan/engines/_fused.")}
    assert inside - kernel == expected
    if any(map(shutil.which, ("c++", "g++", "clang++"))) and platform.machine() in ("x86_64", "AMD64"):
        assert len(kernel) == 1
    assert f"mri_qpan-{__version__}.dist-info/licenses/LICENSE" in names


def test_installed_command_answers(installed: Path, tmp_path: Path) -> None:
    assert _run([installed / "mri-qpan", "--version"], cwd=tmp_path).strip() == f"mri-qpan {__version__}"
    where = "import mri_qpan.recon, mri_qpan.cli.main; print(mri_qpan.__file__, mri_qpan.recon.__file__)"
    for file in _run([installed / "python", "-c", where], cwd=tmp_path).split():
        assert Path(file).is_relative_to(installed.parent)


def test_installed_demo_runs_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    if not list_models():
        pytest.skip("mri_qpan.models ships no model")
    _run([installed / "mri-qpan", "demo"], cwd=tmp_path)
    assert any(path.suffix == ".png" for path in tmp_path.rglob("*"))
