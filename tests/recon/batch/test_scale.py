"""The throughput benchmark of batches, small."""

import json
from pathlib import Path

import pytest
from batches import raw
from typer.testing import CliRunner

from mri_qpan.cli.main import app
from mri_qpan.errors import InputError
from mri_qpan.recon.batch import scale


def test_a_page_and_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "LEAST", 6)
    monkeypatch.setattr(scale, "MOST", 20)
    path = raw(tmp_path / "scan.h5")
    arguments = ["benchmark", "batch", str(path), "-o", str(tmp_path), "-m", "zero-filled"]
    arguments += ["--files", "4", "--local", "1", "--cluster", "2"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    found = json.loads((tmp_path / "benchmark-batch.json").read_text())
    assert [(run["kind"], run["workers"], run["files"]) for run in found["runs"]] == [
        ("local", 1, 3),
        ("cluster", 2, 10),
        ("disk and journal", 1, 5),
        ("scheduler", 2, 20),
    ]
    assert all(run["files_a_second"] > 0 for run in found["runs"])
    cluster = found["runs"][1]
    assert cluster["ideal"] == pytest.approx(2 / found["seconds_alone"])
    assert cluster["files_a_second"] <= 1.2 * cluster["ideal"]  # the other's file was under way
    page = (tmp_path / "benchmark-batch.md").read_text()
    assert "| cluster | 2 | 10 |" in page


def test_files_that_leave_none_to_time(tmp_path: Path) -> None:
    arguments = ["benchmark", "batch", "scan.h5", "-o", str(tmp_path), "--files", "2", "--local", "2"]
    result = CliRunner().invoke(app, arguments)
    assert "--files 2: more files than workers (2)" in str(result.exception)


def test_numbers_that_are_none(tmp_path: Path) -> None:
    for option in ("--local", "--cluster"):
        arguments = ["benchmark", "batch", "scan.h5", "-o", str(tmp_path), option, "two"]
        result = CliRunner().invoke(app, arguments)
        assert isinstance(result.exception, InputError)
        assert option in str(result.exception)
