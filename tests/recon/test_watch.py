"""What a hot folder takes, and when."""

import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from batches import ZERO_FILLED, assert_whole, outputs, raw
from waiting import until

from mri_qpan.errors import ReconError
from mri_qpan.recon import watch as watch_module
from mri_qpan.recon.batch.inline import Inline
from mri_qpan.recon.batch.inputs import Source
from mri_qpan.recon.batch.outbox import Outbox
from mri_qpan.recon.batch.work import Outcome, Task, perform
from mri_qpan.recon.push import Archive
from mri_qpan.recon.recipe import Recipe
from mri_qpan.recon.watch import Arrivals, Sender, watch

SETTLE = 0.05
DICOM = replace(ZERO_FILLED, formats=("dicom",))
ARCHIVE = Archive("PACS", "host", 104)


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

    def walk(top: Path, onerror: Callable[[OSError], None], followlinks: bool) -> object:
        onerror(PermissionError(13, "Permission denied", str(top / "closed")))
        return real(top, onerror=onerror, followlinks=followlinks)

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


class Hot:
    """A hot folder `in` with an archive, watched in a thread of its own.

    `sent` are the scans that the archive has whole, by their first file; `refuses` and `lets` play it.
    """

    def __init__(self, top: Path, monkeypatch: pytest.MonkeyPatch, recipe: Recipe = DICOM) -> None:
        for name, value in (("POLL", 0.02), ("FIRST_RETRY", 0.02), ("LAST_RETRY", 0.02)):
            monkeypatch.setattr(watch_module, name, value)
        monkeypatch.setattr(watch_module, "push", self._push)
        self.scan, self._top, self._recipe, self._stop = top / "in/scan.h5", top, recipe, threading.Event()
        self.refuses, self.lets, self.begun = threading.Event(), threading.Event(), threading.Event()
        self.sent: list[bytes] = []
        self.lets.set()
        self.error: BaseException | None = None

    def __enter__(self) -> "Hot":
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.refuses.clear()
        self.lets.set()
        self._stop.set()
        self._thread.join(60)
        assert self.error is None

    def _watch(self) -> None:
        try:
            with Outbox(self._top / "out", self._recipe, "") as outbox:
                arrivals = Arrivals(self._top / "in", outbox.out, None, SETTLE)
                sender = Sender(outbox, self._top / "in/../in", ARCHIVE)
                watch(arrivals, outbox, Inline, sender, stop=self._stop)  # type: ignore[arg-type]
        except BaseException as error:
            self.error = error

    def _push(self, files: list[Path], archive: Archive, is_left: Callable[[], bool]) -> None:
        before = files[0].read_bytes()
        self.begun.set()
        assert self.lets.wait(60)
        if self.refuses.is_set():
            raise ReconError("the archive is away")
        assert files[0].read_bytes() == before
        self.sent.append(before)


@pytest.mark.parametrize("away", [True, False])
def test_images_of_a_file_that_is_replaced_are_sent_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, away: bool
) -> None:
    """Whether the archive is away, or takes them at that moment."""
    hot = Hot(tmp_path, monkeypatch)
    raw(hot.scan)
    if away:
        hot.refuses.set()
    else:
        hot.lets.clear()
    with hot:
        until(hot.begun.is_set)
        raw(hot.scan, 1)
        time.sleep(10 * SETTLE)
        assert hot.sent == []
        hot.refuses.clear()
        hot.lets.set()
        until(lambda: len(hot.sent) == 2)
    assert hot.sent[0] != hot.sent[1]
    assert caplog.text.count("changed before its images were sent to PACS@host:104") == away
    assert_whole(tmp_path / "out")


def test_a_set_that_is_moved_away_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hot = Hot(tmp_path, monkeypatch)
    raw(hot.scan)
    hot.refuses.set()
    with hot:
        until(hot.begun.is_set)
        raw(hot.scan, 1)
        (tmp_path / "out/scan_zero-filled").rename(tmp_path / "kept")
        until((tmp_path / "out/scan_zero-filled").is_dir)
        hot.refuses.clear()
        until(lambda: hot.sent)
    (kept,) = (tmp_path / "kept").glob("*.dcm")
    assert kept.read_bytes() != hot.sent[-1]


def test_a_set_without_dicom_is_not_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "mri_qpan")
    hot = Hot(tmp_path, monkeypatch, ZERO_FILLED)
    raw(hot.scan)
    with hot:
        until(lambda: "no DICOM" in caplog.text)
        time.sleep(0.2)
        raw(hot.scan, 1)  # and keeps no newer one waiting
        until(lambda: caplog.text.count("no DICOM") == 2)
    assert hot.sent == []
    assert ": sent to" not in caplog.text


def test_names_that_are_not_utf8_end_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watch_module, "GIVE_UP", 0.0)
    hot = Hot(tmp_path, monkeypatch)
    raw(hot.scan)
    (tmp_path / "in" / os.fsdecode(b"M\xfcller.h5")).write_bytes(b"garbage")
    with hot:
        until(lambda: "ller.h5" in caplog.text and hot.sent)
    for record in caplog.records:
        json.dumps([record.getMessage(), vars(record).get("fields")], ensure_ascii=False).encode()


def test_a_name_too_long_for_outputs_fails_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watch_module, "LATER", 0.0)
    hot = Hot(tmp_path, monkeypatch)
    raw(tmp_path / f"in/{'a' * 250}.h5")
    with hot:
        until(lambda: "file name too long" in caplog.text)
        time.sleep(10 * SETTLE)
    assert caplog.text.count("rename the file") == 1


def test_a_stop_does_not_wait_for_an_archive_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def away(files: list[Path], archive: Archive, is_left: Callable[[], bool]) -> None:
        tries.append(files)
        raise ReconError("the archive is away")

    monkeypatch.setattr(watch_module, "push", away)
    monkeypatch.setattr(watch_module, "FIRST_RETRY", 0.0)
    with Outbox(tmp_path / "out", DICOM, "") as outbox:
        sources = [Source(raw(tmp_path / f"in/{n}.h5", n), str(n)) for n in range(3)]
        for task in outbox.plan(sources)[0]:
            outbox.settle(perform(task))
        sender = Sender(outbox, tmp_path / "in", ARCHIVE)
        sender.finish()
        sender.close()
        assert len(tries) == 1
        assert len(list(outbox.unsent(str(ARCHIVE), tmp_path / "in"))) == 3


def test_leaving_sends_no_more_than_the_file_in_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def slow(files: list[Path], archive: Archive, is_left: Callable[[], bool]) -> None:
        asked.append(is_left())
        begun.set()
        until(is_left)
        raise ReconError("interrupted")

    begun = threading.Event()
    monkeypatch.setattr(watch_module, "push", slow)
    raw(tmp_path / "in/scan.h5")
    with Outbox(tmp_path / "out", DICOM, "") as outbox:
        arrivals = Arrivals(tmp_path / "in", outbox.out, None, SETTLE)

        class Interrupted(Inline):  # type: ignore[misc]
            def finished(self, *given: object) -> object:
                if begun.is_set():
                    raise KeyboardInterrupt
                return super().finished(*given)

        sender = Sender(outbox, tmp_path / "in", ARCHIVE)
        with pytest.raises(KeyboardInterrupt):
            watch(arrivals, outbox, Interrupted, sender, stop=threading.Event())  # type: ignore[arg-type]
        assert len(list(outbox.unsent(str(ARCHIVE), tmp_path / "in"))) == 1
    assert asked == [False]


def test_a_file_that_could_not_be_had_for_a_moment_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mri_qpan.recon.batch import outbox as outbox_module

    real, failed = outbox_module.stamp, []

    def stale(path: Path) -> object:
        if not failed and path.suffix == ".h5":
            failed.append(path)
            raise OSError(116, "Stale file handle")
        return real(path)

    monkeypatch.setattr(watch_module, "LATER", 0.0)
    monkeypatch.setattr(watch_module, "POLL", 0.02)
    stop = threading.Event()
    raw(tmp_path / "in/scan.h5")

    def work(task: Task) -> Outcome:
        stop.set()
        return perform(task)

    with Outbox(tmp_path / "out", ZERO_FILLED, "") as outbox:
        monkeypatch.setattr(outbox, "is_done", lambda source: False)
        monkeypatch.setattr(outbox_module, "stamp", stale)
        arrivals = Arrivals(tmp_path / "in", outbox.out, None, SETTLE)
        found = watch(arrivals, outbox, lambda: Inline(work), None, stop=stop)  # type: ignore[arg-type, return-value]
    assert found == (1, 0)
    assert failed
    assert "scan.h5: stale file handle; tried again" in caplog.text


def test_a_folder_that_goes_away_is_named_once_and_taken_up_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hot = tmp_path / "in"
    raw(hot / "scan.h5")
    arrivals = Arrivals(hot, tmp_path / "out", None, 0.0)
    hot.rename(tmp_path / "away")
    for _ in range(3):
        assert list(arrivals.ready(new)) == []
    assert [record.getMessage() for record in caplog.records] == [f"{hot}: is not there any more"]
    (tmp_path / "away").rename(hot)
    assert [s.path.name for _ in range(2) for s in arrivals.ready(new)] == ["scan.h5"]


def test_pipes_are_no_files(tmp_path: Path, look: Callable[[], list[str]]) -> None:
    os.mkfifo(tmp_path / "a.h5")
    os.mkfifo(tmp_path / "a.dat")
    raw(tmp_path / "scan.h5")
    assert look() == ["scan.h5"]
