"""The output folder: what is done again, names, the lock, and a kill at every instant."""

import errno
import json
import os
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from batches import ZERO_FILLED, assert_whole, outputs, raw, run

from mri_qpan.errors import InputError, ReconError
from mri_qpan.recon.batch import outbox as outbox_module
from mri_qpan.recon.batch import work
from mri_qpan.recon.batch.inputs import Source
from mri_qpan.recon.batch.outbox import Outbox
from mri_qpan.recon.batch.work import ROOM, Outcome, Task, perform
from mri_qpan.sampling_masks import make_mask, save_mask


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    for number in range(2):
        raw(tmp_path / f"in/s{number}.h5", number)
    return tmp_path / "in"


def test_what_is_done_is_kept(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = run([scans], out)
    assert [Path(entry.source).name for entry in first.done] == ["s0.h5", "s1.h5"]
    assert first.done[0].images == 1
    made = outputs(out)
    assert sorted(made) == ["s0_zero-filled", "s1_zero-filled"]
    assert_whole(out)
    again = run([scans], out)
    assert (again.kept, again.done) == (2, [])
    assert outputs(out) == made


def touch(scan: Path) -> None:
    os.utime(scan, ns=(1, 1))


def rewrite(scan: Path) -> None:
    raw(scan, 7)


def rewrite_with_old_times(scan: Path) -> None:
    before = scan.stat()
    rewrite(scan)
    assert scan.stat().st_size == before.st_size
    os.utime(scan, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    ("change", "again"), [(touch, False), (rewrite, True), (rewrite_with_old_times, True)]
)
def test_an_input_is_done_again_when_its_content_changed(
    scans: Path, tmp_path: Path, change: object, again: bool
) -> None:
    out = tmp_path / "out"
    run([scans], out)
    before, pixels = outputs(out), np.load(out / "s0_zero-filled/s0_zero-filled.npy")
    change(scans / "s0.h5")  # type: ignore[operator]
    summary = run([scans], out)
    after = outputs(out)
    assert len(summary.done) == again
    assert (after["s0_zero-filled"] != before["s0_zero-filled"]) == again
    assert after["s1_zero-filled"] == before["s1_zero-filled"]
    assert np.array_equal(pixels, np.load(out / "s0_zero-filled/s0_zero-filled.npy")) != again
    assert run([scans], out).kept == 2


def test_an_input_that_cannot_be_read_is_no_fault_of_the_outputs(scans: Path, tmp_path: Path) -> None:
    run([scans], tmp_path / "out")
    scan = scans / "s0.h5"
    touch(scan)

    def unreadable(path: Path) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    with Outbox(tmp_path / "out", ZERO_FILLED, "") as outbox, pytest.MonkeyPatch.context() as patched:
        patched.setattr(outbox_module, "content_sha256", unreadable)
        with pytest.raises(OSError, match=r"s0\.h5"):
            outbox.is_done(Source(scan, "s0"))
        tasks, missing = outbox.plan([Source(scan, "s0"), Source(scans / "s1.h5", "s1")])
    assert tasks == []
    assert [words for _, words in missing] == [f"{scan}: input/output error"]


def test_a_mask_that_changed_does_all_again(scans: Path, tmp_path: Path) -> None:
    mask = tmp_path / "m.npy"
    studied = replace(ZERO_FILLED, undersample=str(mask))
    for seed in (1, 2):
        save_mask(mask, make_mask("lines", (24, 32), 0.5, seed=seed))
        assert len(run([scans], tmp_path / "out", studied).done) == 2
        assert run([scans], tmp_path / "out", studied).kept == 2


def test_an_option_or_a_model_that_changed_does_all_again(scans: Path, tmp_path: Path) -> None:
    code = tmp_path / "mine.py"
    code.write_text("def recon(adjoint, normal):\n    return adjoint\n")
    recipe = replace(ZERO_FILLED, method=f"{code}:recon")
    out = tmp_path / "out"
    assert len(run([scans], out, recipe).done) == 2
    assert run([scans], out, recipe).kept == 2
    code.write_text("def recon(adjoint, normal):\n    return 2 * adjoint\n")
    assert len(run([scans], out, recipe).done) == 2
    wider = replace(recipe, formats=("npy", "png"))
    assert len(run([scans], out, wider).done) == 2
    assert_whole(out)
    assert sorted(outputs(out)["s0_recon"]) == ["s0_recon.json", "s0_recon.npy", "s0_recon.png"]
    run([scans], out, recipe)
    assert_whole(out)  # the picture of before is gone
    assert run([scans], out).kept == 0  # another method has folders of its own
    assert len(outputs(out)) == 4


def test_a_lost_output_is_made_again(scans: Path, tmp_path: Path) -> None:
    run([scans], tmp_path / "out")
    (tmp_path / "out/s0_zero-filled/s0_zero-filled.npy").write_bytes(b"half")
    assert len(run([scans], tmp_path / "out").done) == 1
    assert_whole(tmp_path / "out")


def test_names_that_are_not_utf8(scans: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (scans / os.fsdecode(b"M\xfcller.h5")).write_bytes(b"garbage")
    os.rename(scans / "s1.h5", scans / os.fsdecode(b"\xfc.h5"))
    summary = run([scans], tmp_path / "out")
    assert len(summary.done) == 2
    ((_, reason),) = summary.failures
    assert reason.startswith(rf"{scans}/M\xfcller.h5: ")
    for record in caplog.records:
        json.dumps(vars(record).get("fields"), ensure_ascii=False).encode()
        record.getMessage().encode()
    assert "M\\xfcller.h5: " in caplog.text
    assert run([scans], tmp_path / "out").kept == 2


def test_a_name_too_long_for_outputs_is_the_failure_of_its_file(scans: Path, tmp_path: Path) -> None:
    raw(scans / f"{'a' * 250}.h5")
    summary = run([scans], tmp_path / "out")
    assert (len(summary.done), summary.left) == (2, 0)
    ((path, reason),) = summary.failures
    assert path.name.startswith("aaa")
    assert "file name too long" in reason


def test_what_others_put_beside_the_outputs_stays(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run([scans], out)
    (out / "s0_zero-filled/notes.txt").write_text("motion")
    rewrite(scans / "s0.h5")
    assert len(run([scans], out).done) == 1
    assert (out / "s0_zero-filled/notes.txt").read_text() == "motion"


def test_names_do_not_meet(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "mine_zero-filled").mkdir(parents=True)
    (out / "mine_zero-filled/precious").touch()
    paths = [raw(tmp_path / name, i) for i, name in enumerate(["a/s.h5", "b/s.h5", "b/S.h5", "mine.h5"])]
    summary = run(paths, out)
    names = [entry.name for entry in summary.done]
    assert len({name.lower() for name in names}) == 4
    assert names[0] == "s_zero-filled"
    assert all(name.startswith(("s_zero", "S_zero", "mine_zero")) for name in names)
    assert os.listdir(out / "mine_zero-filled") == ["precious"]
    assert run(list(reversed(paths)), out).kept == 4  # in whatever order they come


def test_subfolders_are_part_of_the_name(tmp_path: Path) -> None:
    raw(tmp_path / "in/sub-01/s.h5"), raw(tmp_path / "in/sub-02/s.h5", 1)
    run([tmp_path / "in"], tmp_path / "out")
    assert sorted(outputs(tmp_path / "out")) == ["sub-01_s_zero-filled", "sub-02_s_zero-filled"]


def test_strange_names(tmp_path: Path) -> None:
    odd = os.fsdecode(b"in/caf\xe9 " + "né".encode() + b".h5")
    summary = run(
        [raw(tmp_path / odd), raw(tmp_path / "in/.hidden.h5"), raw(tmp_path / f"{'x' * 200}.h5")],
        tmp_path / "out",
    )
    assert len(summary.done) == 3, summary.failures
    assert run([tmp_path / odd], tmp_path / "out").kept == 1


def test_failures_are_recorded_and_the_rest_goes_on(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (scans / "bad.h5").write_bytes(b"no")
    summary = run([scans, tmp_path / "gone.h5"], out)
    assert len(summary.done) == 2
    assert [(path.name, reason.partition(": ")[2]) for path, reason in summary.failures] == [
        ("gone.h5", "no such file or directory"),
        ("bad.h5", "not an HDF5 file, so not ISMRMRD or fastMRI (or cut off at its start)"),
    ]
    rows = sqlite3.connect(out / ROOM / "journal.sqlite").execute(
        "SELECT state, reason FROM files ORDER BY source"
    )
    assert [state for state, _ in rows] == ["failed", "done", "done"]
    raw(scans / "bad.h5", 3)
    mended = run([scans], out)
    assert (mended.kept, len(mended.done), mended.failures) == (2, 1, [])


def test_a_file_that_was_moved_before_it_was_read_is_no_broken_one(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = work.reconstruct_file

    def late(path: Path, folder: Path, job: object) -> object:
        if path.name == "s0.h5":
            path.rename(tmp_path / "elsewhere.h5")
        return real(path, folder, job)  # type: ignore[arg-type]

    monkeypatch.setattr(work, "reconstruct_file", late)
    summary = run([scans], tmp_path / "out")
    assert [reason for _, reason in summary.failures] == [work.CHANGED]


def test_a_file_that_changes_under_way_is_not_taken(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = work.reconstruct_file

    def grown(path: Path, folder: Path, job: object) -> object:
        record = real(path, folder, job)  # type: ignore[arg-type]
        if path.name == "s0.h5":
            os.utime(path)
        return record

    monkeypatch.setattr(work, "reconstruct_file", grown)
    summary = run([scans], tmp_path / "out")
    assert [reason for _, reason in summary.failures] == [work.CHANGED]
    assert list(outputs(tmp_path / "out")) == ["s1_zero-filled"]
    assert not list((tmp_path / "out" / ROOM / "work").iterdir())


def test_a_stop_leaves_the_rest(scans: Path, tmp_path: Path) -> None:
    stop = Event()

    def one(task: Task) -> Outcome:
        stop.set()
        return perform(task)

    summary = run([scans], tmp_path / "out", work=one, stop=stop)
    assert (len(summary.done), summary.left) == (1, 1)
    assert run([scans], tmp_path / "out").kept == 1


def test_a_set_that_came_without_a_word_is_kept(scans: Path, tmp_path: Path) -> None:
    """Its worker finished, and was lost before it could say so."""

    def lost(task: Task) -> Outcome:
        perform(task)
        return Outcome(task, "its worker was lost")

    assert len(run([scans], tmp_path / "out", work=lost).done) == 2
    assert_whole(tmp_path / "out")


def test_a_late_set_of_another_recipe_is_not_taken(scans: Path, tmp_path: Path) -> None:
    """A worker of a scheduler that outlived its batch completes a set after the next batch."""
    out, late = tmp_path / "out", []
    other = replace(ZERO_FILLED, formats=("png",))
    with pytest.raises(RuntimeError):
        run([scans / "s0.h5"], out, other, work=lambda task: late.append(task) or _die())  # type: ignore[func-returns-value]
    run([scans], out)
    made = outputs(out)
    perform(late[0])
    assert len(list((out / ROOM / "complete").iterdir())) == 1
    assert run([scans], out).kept == 2
    assert outputs(out) == made
    assert not list((out / ROOM / "complete").iterdir())


def _die() -> Outcome:
    raise RuntimeError


def test_one_at_a_time(scans: Path, tmp_path: Path) -> None:
    held = f"another batch or watch .*process {os.getpid()} on"
    with Outbox(tmp_path / "out", ZERO_FILLED, ""), pytest.raises(InputError, match=held):
        Outbox(tmp_path / "out", ZERO_FILLED, "")
    with Outbox(tmp_path / "out", ZERO_FILLED, ""):
        pass


def test_a_journal_that_is_none(scans: Path, tmp_path: Path) -> None:
    run([scans], tmp_path / "out")
    journal = tmp_path / "out" / ROOM / "journal.sqlite"
    db = sqlite3.connect(journal)
    db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(InputError, match="version 99"):
        run([scans], tmp_path / "out")
    journal.write_bytes(b"no journal at all" * 100)
    with pytest.raises(InputError, match="damaged"):
        run([scans], tmp_path / "out")


def test_a_method_that_differs_on_the_worker(scans: Path, tmp_path: Path) -> None:
    def elsewhere(task: Task) -> Outcome:
        return perform(replace(task, digest="0" * 64))

    summary = run([scans], tmp_path / "out", work=elsewhere)
    assert "differ on this worker" in summary.failures[0][1]


# --- a kill at every instant


STEPS = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "sqlite3.connect", "sync")


def _killed_at(number: int, act: Callable[[], object]) -> bool:
    """Run `act` in a fork that is killed before its nth change of files; return whether it was."""
    child = os.fork()
    if child == 0:
        steps = 0

        def count(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal steps
            if event in STEPS or (event == "open" and arguments[1] not in ("r", "rb", None)):
                steps += 1
                if steps == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(count)
            act()
            os._exit(0)
        except BaseException:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def _quick(calls: Path) -> Callable[..., dict[str, object]]:
    """In place of a reconstruction: three outputs of its input's content, and a line in `calls`."""

    def make(path: Path, folder: Path, job: object) -> dict[str, object]:
        with calls.open("a") as file:
            file.write(f"{path.name}\n")
        names = [f"{path.stem}.{suffix}" for suffix in ("a", "b", "json")]
        for name in names[:2]:
            (folder / name).write_bytes(path.read_bytes())
        (folder / names[2]).write_text('{"outputs": ["' + '", "'.join(names) + '"]}')
        return {"images": [1], "seconds": {"read": 0.0}}

    return make


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A folder where waiting for the disk takes no time, if there is one."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.mark.parametrize("redo", [False, True])
def test_a_kill_at_every_instant(in_memory: Path, monkeypatch: pytest.MonkeyPatch, redo: bool) -> None:
    """After it, no output is half there; the next run ends with all of them, and makes none a second time."""
    scan, calls, killed = in_memory / "scan.h5", in_memory / "calls", 0
    monkeypatch.setattr(work, "reconstruct_file", _quick(calls))
    for module in (work, outbox_module):
        monkeypatch.setattr(module, "sync", lambda path: sys.audit("sync"))
    for number in range(1, 400):
        out = in_memory / f"out{number}"
        calls.unlink(missing_ok=True)
        scan.write_bytes(b"first")
        if redo:
            run([scan], out)
            (out / "scan_zero-filled/notes").touch()
            scan.write_bytes(b"second")
        content = scan.read_bytes()
        alive = not _killed_at(number, lambda out=out: run([scan], out))
        killed += not alive
        complete = list(out.glob(f"{ROOM}/complete/*/files")) + [
            folder for folder in out.glob("scan*") if (folder / "scan.a").read_bytes() == content
        ]
        for folder in out.glob("scan*"):
            assert {"scan.a", "scan.b", "scan.json"} <= set(os.listdir(folder))
            assert (folder / "scan.a").read_bytes() == (folder / "scan.b").read_bytes()
        made = calls.read_text().count("\n") if calls.exists() else 0
        summary = run([scan], out)
        assert not summary.failures
        remade = calls.read_text().count("\n") - made
        assert remade == (0 if complete else 1), number
        assert (out / "scan_zero-filled/scan.b").read_bytes() == content
        assert sorted(os.listdir(out / "scan_zero-filled")) == ["notes"] * redo + [
            "scan.a",
            "scan.b",
            "scan.json",
        ]
        assert sorted(os.listdir(out)) == [ROOM, "scan_zero-filled"]
        assert [os.listdir(out / ROOM / name) for name in ("work", "complete", "trash")] == [[], [], []]
        if alive:
            break
        shutil.rmtree(out)
    assert alive
    assert killed > 20


def test_a_full_disk_while_moving(scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, real = tmp_path / "out", os.rename

    def full(source: Path, target: Path) -> None:
        if Path(target).parent == out:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(outbox_module.os, "rename", full)
    with pytest.raises(ReconError, match="No space left on device; what is done is kept"):
        run([scans], out)
    monkeypatch.undo()
    assert run([scans], out).kept == 1  # the one whose set was complete


def test_patience_with_network_drives(scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_module, "PATIENCE", 0.3)
    started = time.monotonic()
    with pytest.raises(ReconError, match="which a worker wrote"):
        run([scans], tmp_path / "out", work=lambda task: Outcome(task))
    assert time.monotonic() - started >= 0.3
