"""`mri-qpan batch` and `watch` as a user starts them, and as machines end them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from archives import Orthanc, start_orthanc
from batches import ZERO_FILLED, assert_whole, outputs, raw, scheduler, stack
from dask.system import CPU_COUNT
from mrd_files import header_xml, lines, random_kspace, write
from rich.console import Console
from typer.testing import CliRunner

from mri_qpan.cli.batch import _progress, _report
from mri_qpan.cli.main import app
from mri_qpan.errors import InputError
from mri_qpan.recon.batch.crew import Crew
from mri_qpan.recon.batch.outbox import Outbox
from mri_qpan.recon.batch.run import Summary
from mri_qpan.recon.batch.work import ROOM, Task

COMMAND = [sys.executable, "-m", "mri_qpan.cli"]
QUICK, DEADLY, HELD = (32, 36), 34, 40
METHOD = """
import os, signal, time
from pathlib import Path

import torch

HERE = Path(__file__).parent
with (HERE / "loads").open("a") as file:
    file.write(f"{os.getpid()}\\n")

def recon(adjoint, normal):
    width = adjoint.shape[-1]
    with (HERE / "calls").open("a+") as file:
        file.write(f"{width} {os.getpid()} {torch.get_num_threads()}\\n")
        file.seek(0)
        calls = sum(line.startswith("34 ") for line in file)
    if width == 34 and calls <= 3:
        os.kill(os.getpid(), signal.SIGKILL)
    while width >= 40 and (HERE / "hold").exists():
        time.sleep(0.05)
    return adjoint
"""

PIECES = """
import os, signal
from pathlib import Path

from distributed.worker import thread_state

HERE = Path(__file__).parent

def recon(adjoint, normal):
    if str(thread_state.key).startswith("perform_images"):
        with (HERE / "deaths").open("a+") as file:
            file.seek(0)
            if len(file.read()) < {deaths}:
                file.write(".")
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
    return adjoint
"""


def until(condition: Callable[[], object], seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return "(zombie)" not in Path(f"/proc/{process}/status").read_text()


def scan(path: Path, width: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    return write(path, header_xml((width, 24, 1)), lines(random_kspace(1, 24, width)))


@pytest.mark.parametrize("deaths", [1, 1000])
def test_workers_die_over_images_of_a_file_that_is_spread(tmp_path: Path, deaths: int) -> None:
    """One death costs time alone; when every try dies, the file fails and the batch ends."""
    (tmp_path / "mine.py").write_text(PIECES.format(deaths=deaths))
    stack(tmp_path / "stack.h5", 13)
    command = [*COMMAND, "batch", "stack.h5", "-o", "out", "--workers", "2", "-f", "npy", "--device", "cpu"]
    ended = subprocess.run(
        [*command, "-m", "mine.py:recon"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert (tmp_path / "deaths").stat().st_size >= 1
    if deaths == 1:
        assert ended.returncode == 0, ended.stderr
        assert_whole(tmp_path / "out")
        ((image,),) = (list(folder.glob("*.npy")) for folder in (tmp_path / "out").glob("stack*"))
        assert len(np.load(image)) == 13
    else:
        assert ended.returncode == 4, ended.stderr
        assert "its worker was lost" in " ".join(ended.stderr.split())
        assert outputs(tmp_path / "out") == {}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux which processes live")
def test_kills(tmp_path: Path) -> None:
    """A file that kills its workers, a kill of the batch; the same command, with one more kill, ends it."""
    names = {width: f"w{width}_recon" for width in (*QUICK, DEADLY, HELD)}
    for width in names:
        scan(tmp_path / f"in/w{width}.h5", width)
    (tmp_path / "method.py").write_text(METHOD)
    (tmp_path / "hold").touch()
    (tmp_path / "calls").touch()
    out = tmp_path / "out"
    options = ["-m", "method.py:recon", "-f", "npy", "--device", "cpu", "--workers", "1"]
    command = [*COMMAND, "batch", "in", "-o", "out", *options]

    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}

    def calls(width: int) -> list[int]:
        rows = [line.split() for line in (tmp_path / "calls").read_text().splitlines()]
        return [int(process) for found, process, _ in rows if int(found) == width]

    with (tmp_path / "log").open("w") as log:
        batch = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, env=environment)
    try:
        until(lambda: calls(HELD))
        until(lambda: set(outputs(out)) == {names[width] for width in QUICK})
        assert_whole(out)
        made = outputs(out)
        with pytest.raises(InputError, match=f"process {batch.pid} on"):
            Outbox(out, ZERO_FILLED, "")
    finally:
        batch.kill()
        batch.wait()
    until(lambda: not alive(calls(HELD)[0]))  # its worker went with it
    assert outputs(out) == made

    (tmp_path / "hold").unlink()
    again = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert {name: outputs(out)[name] for name in made} == made
    assert set(outputs(out)) == set(names.values())
    assert_whole(out)
    assert not list((out / ROOM / "work").iterdir())
    assert [len(calls(width)) for width in names] == [1, 1, 4, 2]
    assert "w34.h5: its worker was lost, and the next one too" in (tmp_path / "log").read_text()
    assert "2 of 4 done before" in again.stderr
    assert "│    2 │           2 │      0 │         0 │" in again.stdout
    _, processes, threads = zip(*map(str.split, (tmp_path / "calls").read_text().splitlines()), strict=True)
    assert set(threads) == {str(CPU_COUNT)}  # one worker has all of them
    loads = (tmp_path / "loads").read_text().split()
    assert {loads.count(process) for process in processes} == {1}
    record = json.loads((out / names[HELD] / f"{names[HELD]}.json").read_text())
    assert record["command"].startswith("mri-qpan batch in -o out -m method.py:recon")


ENDED = """
import os, signal, time
from pathlib import Path

TOLD = Path(__file__).with_name("told")

def recon(adjoint, normal):
    if not TOLD.exists():
        TOLD.touch()
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.2)
    return adjoint
"""


def test_sigterm_with_someone_elses_scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its workers have is finished, the rest is taken back; the same command does that."""
    monkeypatch.chdir(tmp_path)
    for number in range(12):
        raw(tmp_path / f"in/s{number}.h5", number)
    Path("method.py").write_text(ENDED)
    command = ["batch", "in", "-o", "out", "-m", "method.py:recon", "-f", "npy", "--log-format", "json"]
    with scheduler(2) as made:
        command += ["--scheduler", made.scheduler_address]
        ended = CliRunner().invoke(app, command)
        assert ended.exit_code == 143, ended.output
        first = outputs(tmp_path / "out")
        assert 0 < len(first) < 12
        assert_whole(tmp_path / "out")
        said = json.loads(ended.stderr.splitlines()[-1])
        assert (said["done"], said["failed"], said["not_begun"]) == (len(first), 0, 12 - len(first))
        assert CliRunner().invoke(app, command).exit_code == 0
    made_at_last = outputs(tmp_path / "out")
    assert len(made_at_last) == 12
    assert first.items() <= made_at_last.items()


def test_sigterm_ends_the_wait_for_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    raw(tmp_path / "in/s.h5")
    real = Crew.submit

    def submit(crew: Crew, task: Task) -> None:
        real(crew, task)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Crew, "submit", submit)
    with scheduler(0) as made:
        command = ["batch", "in", "-o", "out", "-m", "zero-filled", "--scheduler", made.scheduler_address]
        assert CliRunner().invoke(app, command).exit_code == 143


def test_a_failed_name_that_is_not_utf8_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(os.fsdecode(b"M\xfcller.h5"))
    _report(Summary(failures=[(path, r"M\xfcller.h5: damaged")]), "text")
    assert r"M\xfcller.h5 │ damaged" in capsys.readouterr().out


@pytest.fixture
def orthanc(tmp_path: Path) -> Orthanc:
    yield from start_orthanc(tmp_path)  # type: ignore[misc]


def test_a_hot_folder_to_an_archive(tmp_path: Path, orthanc: Orthanc) -> None:
    """A copy in two halves is taken when it is whole and sent on; SIGTERM finishes what is in hand."""
    whole = scan(tmp_path / "elsewhere/scan.h5", 32).read_bytes()
    (tmp_path / "method.py").write_text(METHOD)
    (tmp_path / "in").mkdir()
    command = [*COMMAND, "watch", "in", "-o", "out", "-m", "method.py:recon", "-f", "npy", "--device", "cpu"]
    command += ["--workers", "1", "--settle", "0.5", "--log-format", "json"]
    command += ["--push", f"ARCHIVE@127.0.0.1:{orthanc.port}"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=tmp_path, stderr=log)

    def said() -> list[dict[str, object]]:
        return [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]

    try:
        until(lambda: "watching" in [line["event"] for line in said()])
        with (tmp_path / "in/scan.h5").open("wb") as file:
            file.write(whole[:2000])
            file.flush()
            time.sleep(2)
            file.write(whole[2000:])
        until(lambda: "pushed" in [line["event"] for line in said()])
        assert len(orthanc.ask("/instances")) == 1
        (tmp_path / "hold").touch()
        scan(tmp_path / "held.h5", HELD).rename(tmp_path / "in/held.h5")
        until(lambda: str(HELD) in (tmp_path / "calls").read_text())
        process.terminate()
        scan(tmp_path / "late.h5", 32).rename(tmp_path / "in/late.h5")
        time.sleep(2)
        assert process.poll() is None
        (tmp_path / "hold").unlink()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    assert_whole(tmp_path / "out")
    assert sorted(outputs(tmp_path / "out")) == ["held_recon", "scan_recon"]
    assert len(orthanc.ask("/instances")) == 2
    assert [line["event"] for line in said()] == ["watching", "done", "pushed", "done", "pushed", "summary"]
    assert said()[1]["file"] == str(tmp_path / "in/scan.h5")
    assert (said()[-1]["done"], said()[-1]["failed"]) == (2, 0)


WRONG = {
    "nothing there": (["batch", "."], "no raw files in ."),
    "no such method": (["batch", "gone.h5", "-m", "wavlet"], "did you mean wavelet?"),
    "two crews": (
        ["batch", "x.h5", "-m", "tv", "--workers", "2", "--scheduler", "tcp://x:1"],
        "its own workers",
    ),
    "log format": (["batch", "gone.h5", "--log-format", "xml"], "choose text or json"),
    "no folder": (["watch", "gone"], "gone: no such folder"),
    "no archive": (["watch", ".", "--push", "PACS"], "AET@HOST:PORT"),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if case == "two crews":
        (tmp_path / "x.h5").touch()
    arguments, words = WRONG[case]
    result = CliRunner().invoke(app, [*arguments, "-o", "out"])
    assert isinstance(result.exception, InputError)
    assert words in str(result.exception)


def test_missing_files_need_no_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["batch", "gone.h5", "-o", "out", "-m", "tv", "--log-format", "json"])
    assert result.exit_code == 4
    lines = [json.loads(line) for line in result.stderr.splitlines()]
    assert [line["event"] for line in lines] == ["failed", "summary"]
    assert lines[0]["reason"].endswith("gone.h5: no such file or directory")
    assert lines[1]["failed"] == 1


@pytest.mark.parametrize(
    ("terminal", "log_format", "shown"), [(1, "text", 1), (0, "text", 0), (1, "json", 0)]
)
def test_progress_is_for_people(terminal: int, log_format: str, shown: int) -> None:
    console = Console(file=StringIO(), force_terminal=bool(terminal), width=100)
    with _progress(console, log_format) as progress:
        progress(1, 3)
    assert ("1/3" in console.file.getvalue()) == bool(shown)  # type: ignore[attr-defined]
