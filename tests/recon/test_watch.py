"""What a hot folder takes, and when."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from batches import ZERO_FILLED, assert_whole, outputs, raw

from mri_qpan.recon import watch as watch_module
from mri_qpan.recon.batch.inline import Inline
from mri_qpan.recon.batch.inputs import Source
from mri_qpan.recon.batch.outbox import Outbox
from mri_qpan.recon.batch.work import Outcome, Task, perform
from mri_qpan.recon.watch import Arrivals, watch

SETTLE = 0.05


def new(source: Source) -> bool:
    return False


@pytest.fixture
def look(tmp_path: Path) -> Callable[[], list[str]]:
    """Look at a hot folder, and again when all has settled: names of the files that are ready."""
    arrivals = Arrivals(tmp_path, tmp_path / "out", None, SETTLE)

    def names() -> list[str]:
        first = list(arrivals.ready(new))
        time.sleep(1.2 * SETTLE)
        return [source.path.name for source in [*first, *arrivals.ready(new)]]

    return names


def test_a_file_is_taken_once_and_again_when_it_changed(
    tmp_path: Path, look: Callable[[], list[str]]
) -> None:
    raw(tmp_path / "sub/scan.h5")
    raw(tmp_path / "out/image.h5")
    assert look() == ["scan.h5"]
    assert look() == []
    raw(tmp_path / "sub/scan.h5", 1)
    assert look() == ["scan.h5"]


def test_a_file_that_grows_is_left_alone(tmp_path: Path, look: Callable[[], list[str]]) -> None:
    content = raw(tmp_path / "whole.mrd_").read_bytes()
    with (tmp_path / "scan.h5").open("wb") as file:
        for start in range(0, len(content), len(content) // 3):
            file.write(content[start : start + len(content) // 3])
            file.flush()
            if file.tell() < len(content):  # it has settled, and cannot be opened
                assert look() == []
    assert look() == ["scan.h5"]


def test_a_copy_that_never_ends_is_given_up(
    tmp_path: Path, look: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = raw(tmp_path / "scan.h5").read_bytes()
    (tmp_path / "scan.h5").write_bytes(content[: len(content) // 2])
    assert look() == []
    monkeypatch.setattr(watch_module, "GIVE_UP", 0.0)
    assert look() == ["scan.h5"]  # whose reconstruction says what is wrong with it


def test_half_a_pair_is_left_alone(tmp_path: Path, look: Callable[[], list[str]]) -> None:
    (tmp_path / "scan.cfl").write_bytes(bytes(64))
    assert look() == []
    (tmp_path / "scan.hdr").write_text("# Dimensions\n8 1\n")
    assert look() == ["scan.cfl"]


def test_from_arrival_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "POLL", 0.02)
    stop, calls = threading.Event(), []
    folder, out = tmp_path / "in", tmp_path / "out"
    raw(folder / "a.h5"), raw(folder / "b.h5", 1)
    (folder / "bad.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    monkeypatch.setattr(watch_module, "GIVE_UP", 0.0)

    def work(task: Task) -> Outcome:
        calls.append(task.source.name)
        if calls.count("b.h5") == 1 and task.source.name == "b.h5":
            raw(folder / "b.h5", 2)  # it changes while it is in hand: done again, when it has settled
        if len(calls) == 4:
            raw(folder / "late.h5")
            stop.set()
        return perform(task)

    with Outbox(out, ZERO_FILLED, "") as outbox:
        arrivals = Arrivals(folder, out, None, SETTLE)
        done, failed = watch(arrivals, outbox, lambda: Inline(work), None, stop=stop)  # type: ignore[arg-type, return-value]
    assert sorted(calls) == ["a.h5", "b.h5", "b.h5", "bad.h5"]
    assert (done, failed) == (2, 1)
    assert sorted(outputs(out)) == ["a_zero-filled", "b_zero-filled"]
    assert_whole(out)


def test_folders_that_cannot_be_listed_are_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mri_qpan.recon.batch import inputs

    real = os.walk

    def walk(top: Path, onerror: Callable[[OSError], None]) -> object:
        onerror(PermissionError(13, "Permission denied", str(top / "closed")))
        return real(top, onerror=onerror)

    monkeypatch.setattr(inputs.os, "walk", walk)
    arrivals = Arrivals(tmp_path, tmp_path / "out", None, SETTLE)
    for _ in range(3):
        list(arrivals.ready(new))
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'closed'}: cannot be listed: Permission denied"
    ]


def test_a_file_that_grows_while_it_is_opened_is_not_handed_on(
    tmp_path: Path, look: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = raw(tmp_path / "scan.h5")

    def opens(path: Path) -> bool:
        if scan.stat().st_mtime_ns > 2:
            os.utime(scan, ns=(1, 2))
        return True

    monkeypatch.setattr(watch_module, "_opens", opens)
    assert look() == []
    assert look() == ["scan.h5"]
    assert look() == []
