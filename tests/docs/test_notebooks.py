"""The notebooks in docs/notebooks run from their first to their last cell, and keep no outputs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "notebooks"
CLAIMS = {
    "sigpy": "assert figures['QPanRecon'] > max(figures['L1WaveletRecon'], figures['QPanReg'])\n"
    "assert min(figures['L1WaveletRecon'], figures['QPanReg']) > figures['zero-filled'] + 2",
    "bart": "assert figures['qpan'] < figures['wavelet']",
}
"""What a reader is to see, in Python."""


def cells(name):
    return json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]


def test_every_notebook_is_run_here():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(CLAIMS)


@pytest.mark.parametrize("name", CLAIMS)
def test_outputs_are_cleared(name):
    for cell in cells(name):
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


@pytest.mark.parametrize("name", CLAIMS)
def test_it_runs_and_shows_what_it_claims(tmp_path, name):
    if name == "bart" and shutil.which("bart") is None:
        pytest.skip("BART is not installed")
    code = ["".join(cell["source"]) for cell in cells(name) if cell["cell_type"] == "code"]
    script = tmp_path / "cells.py"
    script.write_text("\n\n".join([*code, CLAIMS[name]]), encoding="utf-8")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path}
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
