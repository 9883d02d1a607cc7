"""Imports run one way only, and the command line starts without the heavy ones."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "sampling_masks": "mri_qpan.sampling_masks",
    "mri_qpan": "mri_qpan",
    "recon": "mri_qpan.recon",
    "cli": "mri_qpan.cli",
}
MAY_IMPORT: dict[str, set[str]] = {
    "sampling_masks": set(),
    "mri_qpan": {"sampling_masks"},
    "recon": {"mri_qpan", "sampling_masks"},
    "cli": {"mri_qpan", "sampling_masks", "recon"},
}
HEAVY = {
    "torch",
    "distributed",
    "pynetdicom",
    "sigpy",
    "skimage",
    "scipy",
    "numba",
    "nibabel",
    "ismrmrd",
    "h5py",
    "onnx",
}


def _imports(folder: str) -> Iterator[tuple[str, str]]:
    """Yield (where, full name of a module or of a name in it) for every import in a folder's files."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        package = [*FOLDERS[folder].split("."), *path.relative_to(ROOT / folder).parent.parts]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import):
                yield from ((where, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                above = package[: len(package) - node.level + 1] if node.level else []
                module = ".".join([*above, *([node.module] if node.module else [])])
                yield from ((where, f"{module}.{alias.name}") for alias in node.names)


def _folder_of(name: str) -> str | None:
    """Return the folder of ours that an imported name lies in."""
    parts = name.split(".")
    if parts[0] != "mri_qpan":
        return None
    return parts[1] if parts[1:] and parts[1] in FOLDERS else "mri_qpan"


@pytest.mark.parametrize("folder", FOLDERS)
def test_arrows_run_down(folder: str) -> None:
    allowed = MAY_IMPORT[folder] | {folder, None}
    wrong = [f"{where} imports {name}" for where, name in _imports(folder) if _folder_of(name) not in allowed]
    assert not wrong, "\n".join(wrong)


def test_nothing_is_imported_as_a_top_level_folder() -> None:
    for folder in FOLDERS:
        for where, name in _imports(folder):
            assert name.split(".")[0] not in {"cli", "recon", "sampling_masks"}, f"{where} imports {name}"


def test_every_third_party_import_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    optional = [line for extra, lines in extras.items() if extra != "dev" for line in lines]
    declared = [*project["dependencies"], *optional]
    names = {re.split(r"[<>=\[; ]", line)[0] for line in declared}
    providers = packages_distributions()
    for folder in FOLDERS:
        for where, name in _imports(folder):
            top = name.split(".")[0]
            if top in sys.stdlib_module_names or top == "mri_qpan":
                continue
            given_by = {provider.lower().replace("_", "-") for provider in providers.get(top, [top])}
            assert given_by & names, f"{where} imports {name}"


def _loaded_after(code: str) -> set[str]:
    """Run code in a Python of its own; return which heavy packages it loaded."""
    report = f"\nimport sys; sys.stderr.write(' '.join({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_importing_the_package_is_light() -> None:
    assert _loaded_after("import mri_qpan") == set()


def test_help_is_light() -> None:
    code = """
from typer.main import get_command
from mri_qpan.cli.main import app

for verb in ([], *([name] for name in get_command(app).commands)):
    app([*verb, "--help"], standalone_mode=False)
"""
    assert _loaded_after(code) == set()


def test_a_reconstruction_starts_without_sigpy() -> None:
    """It takes more than a second to load, and nothing on a grid needs it."""
    assert not {"sigpy", "numba"} & _loaded_after("import mri_qpan.recon.job, mri_qpan.recon.serving.server")
