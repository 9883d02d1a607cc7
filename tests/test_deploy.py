"""The service that docs/deploy offers."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mri_qpan.cli.main import app
from mri_qpan.errors import InputError

UNIT = Path(__file__).resolve().parents[1] / "docs" / "deploy" / "mri-qpan.service"


def test_systemd_takes_the_unit() -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    done = subprocess.run(["systemd-analyze", "verify", UNIT], capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert (done.returncode, said) == (0, []), done.stderr


def test_its_command_line_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (command,) = re.findall(r"^ExecStart=\S+ mri-qpan (.*)$", UNIT.read_text(encoding="utf-8"), re.MULTILINE)
    result = CliRunner().invoke(app, command.replace("$OPTIONS", "--push PACS@10.0.0.5:104").split())
    assert isinstance(result.exception, InputError), result.output
    assert str(result.exception) == "${INCOMING}: no such folder"
