"""The service and the container that docs/deploy offers."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from archives import free_port
from typer.testing import CliRunner

from mri_qpan.cli.main import app
from mri_qpan.errors import InputError
from mri_qpan.recon.serving.openrecon import KEY

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "docs" / "deploy"
UNIT, SERVE_UNIT = DEPLOY / "mri-qpan.service", DEPLOY / "mri-qpan-serve.service"
DOCKERFILE = DEPLOY / "Dockerfile"


@pytest.mark.parametrize("unit", [UNIT, SERVE_UNIT], ids=lambda unit: unit.stem)
def test_systemd_takes_the_unit(unit: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if unit.name in line]
    assert (done.returncode, said) == (0, []), done.stderr


def test_its_command_line_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (command,) = re.findall(r"^ExecStart=\S+ mri-qpan (.*)$", UNIT.read_text(encoding="utf-8"), re.MULTILINE)
    result = CliRunner().invoke(app, command.replace("$OPTIONS", "--push PACS@10.0.0.5:104").split())
    assert isinstance(result.exception, InputError), result.output
    assert str(result.exception) == "${INCOMING}: no such folder"


def test_the_servers_command_line_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    text = SERVE_UNIT.read_text(encoding="utf-8")
    (command,) = re.findall(r"^ExecStart=\S+ mri-qpan (.*)$", text, re.MULTILINE)
    seen = []
    monkeypatch.setattr(
        "mri_qpan.recon.serving.server.Server", lambda settings: seen.append(settings) or 1 / 0
    )
    arguments = command.replace("${HOST}", "10.0.0.4").replace("$OPTIONS", "--save kept").split()
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, ZeroDivisionError), result.output
    assert (seen[0].host, seen[0].port, seen[0].save) == ("10.0.0.4", 9002, Path("kept"))


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions with their continued lines joined."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(verb, rest) for line in lines if line for verb, _, rest in [line.partition(" ")]]


def test_the_image_holds_what_it_copies_and_runs_as_nobody() -> None:
    found = instructions()
    copied = [rest.split()[:-1] for verb, rest in found if verb == "COPY" and not rest.startswith("--from")]
    names = [name for sources in copied for name in sources]
    assert {"pyproject.toml", "mri_qpan", "recon", "cli", "sampling_masks"} <= set(names)
    assert all((ROOT / name).exists() for name in names)
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {f"!{name}" for name in names} <= set(ignored)
    verbs = [verb for verb, _ in found]
    assert verbs.index("USER") < verbs.index("ENTRYPOINT")
    assert "USER mri-qpan" in [" ".join(pair) for pair in found]
    (label,) = [rest for verb, rest in found if verb == "LABEL"]
    assert label.startswith(f'"{KEY}"')


def test_the_images_command_and_health_check(monkeypatch: pytest.MonkeyPatch) -> None:
    found = dict(instructions())
    assert found["ENTRYPOINT"] == '["mri-qpan"]'
    arguments = json.loads(found["CMD"])
    port = arguments[arguments.index("--metrics-port") + 1]
    assert f"127.0.0.1:{port}/metrics" in found["HEALTHCHECK"]
    seen = []
    monkeypatch.setattr(
        "mri_qpan.recon.serving.server.Server", lambda settings: seen.append(settings) or 1 / 0
    )
    taken = str(free_port())
    arguments[arguments.index("--metrics-port") + 1] = taken
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, ZeroDivisionError), result.output
    assert (seen[0].host, seen[0].port) == ("0.0.0.0", 9002)
