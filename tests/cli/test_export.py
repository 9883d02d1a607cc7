"""`mri-qpan export`: one file that is the network, or a line that says why not."""

import pytest
from typer.testing import CliRunner

from mri_qpan.cli.main import app, run
from mri_qpan.errors import InputError
from mri_qpan.models import DEFAULT


def export(*words):
    return CliRunner().invoke(app, ["export", *map(str, words)])


def test_the_default_model_goes_to_onnx_and_is_compared(tmp_path):
    path = tmp_path / "new" / "model.onnx"
    result = export(DEFAULT, "-o", path)
    assert result.exit_code == 0, result.output
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]
    assert f"wrote {path}: {DEFAULT}" in result.output
    assert "ONNX opset 18" in result.output
    assert float(result.output.split("within ")[1].split()[0]) < 1e-5


def test_nothing_is_left_where_it_fails(tmp_path):
    result = export("qpan+-fp", "-o", tmp_path / "model.h")
    assert isinstance(result.exception, InputError)
    assert not list(tmp_path.iterdir())


def test_what_the_file_system_refuses_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "model.h").mkdir()
    monkeypatch.setattr("sys.argv", ["mri-qpan", "export", DEFAULT, "-o", str(tmp_path / "model.h")])
    with pytest.raises(SystemExit) as stop:
        run()
    assert stop.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mri-qpan: ")
    assert "is a folder" in line
