"""`mri-qpan serve` and `send` as a user starts them."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import ismrmrd
import pytest
from mrd_files import lines, random_kspace, write
from mrd_sessions import XML, flagged, images, zero_filled
from typer.testing import CliRunner
from waiting import until

from mri_qpan.cli.main import app
from mri_qpan.errors import InputError, OptionError, ReconError
from mri_qpan.recon.serving.mrd_stream import HeaderText, MrdReader, MrdWriter
from mri_qpan.recon.serving.server import Server, Settings

COMMAND = [sys.executable, "-m", "mri_qpan.cli", "serve", "--port", "0", "--device", "cpu"]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write(tmp_path / "scan.h5", XML, lines(random_kspace(1, 24, 32)))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server process and its address."""
    configs = tmp_path / "configs"
    configs.mkdir()
    (configs / "site.toml").write_text(
        'method = "zero-filled"\nhard_dc = true\npartial_fourier = "none"\ncoils = 4\n'
    )
    log = (tmp_path / "log.txt").open("w")
    process = subprocess.Popen(
        [*COMMAND, "-m", "cg-sense", "--config-dir", str(configs)],
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    said = process.stdout.readline()
    found = re.search(r"listening on (\S+), configs default, .*site", said)
    assert found, said + (tmp_path / "log.txt").read_text()
    yield process, found.group(1)
    process.kill()
    process.wait()
    process.stdout.close()
    log.close()


def test_a_file_goes_out_and_images_come_back(server, raw: Path, tmp_path: Path) -> None:
    process, address = server
    out = tmp_path / "images.h5"
    for config in ("default", "site"):
        arguments = ["send", str(raw), "--to", address, "-o", str(out), "--config", config]
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert result.exit_code == 0
        assert f"1 image in {out}" in result.output
        assert "taken instead" not in result.output
        with ismrmrd.Dataset(str(out), "dataset", mode="r") as dataset:
            assert dataset.number_of_images("image_1") == 1
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        writer = MrdWriter(connection)
        sent = [HeaderText(XML), *flagged(random_kspace(1, 24, 32))]
        for message in sent[:9]:
            writer.serialize(message)
        writer.serialize('{"parameters": {"threshold": 1}}')  # its answer tells that the session is in hand
        answers = MrdReader(connection)
        assert "threshold" in next(iter(answers))
        process.send_signal(signal.SIGTERM)  # which lets it end
        log = tmp_path / "log.txt"
        until(lambda: "ends when 1 sessions in hand have ended" in log.read_text())
        for message in sent[9:]:
            writer.serialize(message)
        writer.close()
        assert len(images(list(answers))) == 1
    assert process.wait(30) == 0
    assert process.stdout is not None
    assert "every session has ended" in process.stdout.read()
    told = log.read_text()
    assert "24 acquisitions, 1 images, 0 failures" in told


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("method = 3", "method is a str"),
        ("partial_fourier = 'pox'", "choose auto, pocs, none"),
        ("coils = 'most'", "auto or all"),
        ("coils = true", "coils is a int or a str"),
        ("speed = 1", "unknown key 'speed'"),
        ("method = 'wavelets'", "no method or file called 'wavelets'"),
        ("= 1", "site.toml"),
    ],
)
def test_wrong_configs(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "site.toml").write_text(text)
    result = CliRunner().invoke(app, ["serve", "--port", "0", "--config-dir", str(tmp_path)])
    assert isinstance(result.exception, InputError)
    assert words in str(result.exception)


def test_an_address_of_ipv6(tmp_path: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    job = zero_filled()
    server = Server(Settings(jobs={"default": lambda: job}, default="default", host="::1", port=0))
    assert server.address[0] == "::1"
    server.stop()
    server.serve()


def test_an_address_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(app, ["serve", "--port", port, "-m", "zero-filled"])
    assert isinstance(result.exception, InputError)
    assert "cannot listen" in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        *(
            (["--to", to], OptionError, "the port")
            for to in (":1", "a:x", "a:0", "[::1]9", "[::1]:", "::1:9]")
        ),
        (["--to", "[::1]:9"], ReconError, "::1:9"),
        (["--to", "127.0.0.1:9", "-o", "nowhere/out.h5"], InputError, "no such folder"),
        (["--to", "127.0.0.1:9"], ReconError, "127.0.0.1:9"),
    ],
)
def test_wrong_ways_to_send(raw: Path, arguments: list[str], error: type, words: str) -> None:
    result = CliRunner().invoke(app, ["send", str(raw), *arguments])
    assert isinstance(result.exception, error)
    assert words in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", ""], "--host is empty"),
        (["-m", "wavelet", "--config-dir", "default"], "--method, and default.toml"),
        (["--config-dir", "null"], "makes no image"),
        (["--patience", "inf"], "patience"),
        (["--memory", "inf"], "memory"),
    ],
)
def test_what_would_serve_otherwise_than_meant_is_refused(tmp_path: Path, arguments, words) -> None:
    for name in ("default", "null"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.toml").write_text('method = "wavelet"')
    arguments = [str(tmp_path / a) if a in ("default", "null") else a for a in arguments]
    result = CliRunner().invoke(app, ["serve", *arguments])
    assert result.exit_code != 0
    assert words in f"{result.exception} {result.output}"
