import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from batches import raw, run

from mri_qpan.errors import InputError
from mri_qpan.recon.batch.inputs import find_inputs

NOBODY = 65534


def names(inputs: list[Path], out: Path, dims: str | None = None) -> list[tuple[str, str]]:
    sources, troubles = find_inputs(inputs, out, dims)
    assert troubles == []
    return [(source.path.name, source.label) for source in sources]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (
        "b.h5",
        "a.cfl",
        "a.hdr",
        "notes.md",
        "c.npy",
        "meas.dat",
        "sub/b.h5",
        "sub/.h.h5",
        ".hidden/b.h5",
        "out/b.h5",
    ):
        path = tmp_path / "in" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.touch()
    return tmp_path / "in"


def test_folders(folder: Path) -> None:
    assert names([folder], folder / "out") == [
        ("a.cfl", "a"),
        ("b.h5", "b"),
        ("meas.dat", "meas"),
        ("b.h5", "sub_b"),
    ]
    assert ("c.npy", "c") in names([folder], folder / "out", "y,x")


def test_files_are_taken_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    given = [Path("a.hdr"), Path("a.cfl"), Path("b.h5"), folder / "b.h5", folder]
    assert names(given, folder / "out") == [
        ("a.cfl", "a"),
        ("b.h5", "b"),
        ("meas.dat", "meas"),
        ("b.h5", "sub_b"),
    ]


def test_one_spelling_of_a_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder / "sub")
    found = [find_inputs([top], tmp_path / "out")[0] for top in (Path(".."), folder)]
    assert found[0] == found[1]
    (folder / "far/deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(folder / "far/deep")
    (source,), _ = find_inputs([tmp_path / "link/../c.npy"], tmp_path / "out")
    assert source.path == tmp_path / "link/../c.npy"  # far/c.npy, not one beside the link


def test_lists(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("# two\nin/b.h5\n\nin/sub\n", encoding="utf-8")
    assert names([tmp_path / "list.txt"], tmp_path / "out") == [("b.h5", "b"), ("b.h5", "b")]
    (tmp_path / "list.txt").write_text("in/b.h5\r\n", encoding="utf-8-sig")
    assert names([tmp_path / "list.txt"], tmp_path / "out") == [("b.h5", "b")]
    with pytest.raises(InputError, match=r"gone\.txt: cannot be read as a list"):
        find_inputs([tmp_path / "gone.txt"], tmp_path / "out")


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A folder that belongs to this user, who is not root as long as the test lasts."""
    with tempfile.TemporaryDirectory() as folder:
        root = os.geteuid() == 0
        if root:
            os.chown(folder, NOBODY, NOBODY)
            os.seteuid(NOBODY)
        try:
            yield Path(folder)
        finally:
            if root:
                os.seteuid(0)


def test_a_folder_that_cannot_be_listed_is_named_beside_what_can(nobody: Path) -> None:
    for name in ("in/a.h5", "in/closed/b.h5"):
        (nobody / name).parent.mkdir(parents=True, exist_ok=True)
        (nobody / name).touch()
    (nobody / "in/closed").chmod(0)
    try:
        sources, troubles = find_inputs([nobody / "in"], nobody / "out")
    finally:
        (nobody / "in/closed").chmod(0o700)
    assert [source.path.name for source in sources] == ["a.h5"]
    (trouble,) = troubles
    assert trouble.path.name == "closed"
    assert trouble.reason == f"{trouble.path}: cannot be listed: Permission denied"


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(nobody: Path) -> None:
    if not os.access(sys.executable, os.X_OK, effective_ids=True):
        pytest.skip("root's Python is not for other users, and readers run in processes of their own")
    scan, closed, locked = raw(nobody / "in/a.h5"), nobody / "in/closed", raw(nobody / "in/b.h5")
    closed.mkdir(0)
    locked.chmod(0)
    (nobody / "in/loop").symlink_to("loop")
    (nobody / "in/loop.h5").symlink_to("loop.h5")
    try:
        summary = run([nobody / "in", nobody / "gone"], nobody / "out")
    finally:
        closed.chmod(0o700)
    assert [entry.source for entry in summary.done] == [str(scan)]
    reasons = {path.name: reason for path, reason in summary.failures}
    assert set(reasons) == {"closed", "b.h5", "loop.h5", "gone"}
    assert reasons["closed"].endswith("closed: cannot be listed: Permission denied")
    assert "Permission denied" in reasons["b.h5"]
    assert reasons["gone"].endswith("gone: no such file or directory")
    assert "symbolic links" in reasons["loop.h5"]


def test_linked_folders_are_entered_once(tmp_path: Path) -> None:
    for name in ("in/day/a.h5", "elsewhere/b.h5", "in/out/c.h5"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "in/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/up").symlink_to(tmp_path / "in")
    (tmp_path / "in/again").symlink_to("day")
    (tmp_path / "in/made").symlink_to("out")
    sources, troubles = find_inputs([tmp_path / "in"], tmp_path / "in/out")
    names = [(source.path.name, source.label) for source in sources]
    assert names == [("a.h5", "day_a"), ("b.h5", "linked_b")]
    assert not troubles


def test_a_list_that_names_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("b.txt\n")
    (tmp_path / "b.txt").write_text("a.txt\n")
    with pytest.raises(InputError, match="the list names itself"):
        find_inputs([tmp_path / "a.txt"], tmp_path / "out")


def test_outputs_are_kept_apart_from_inputs(tmp_path):
    (tmp_path / "a.h5").touch()
    with pytest.raises(InputError, match="choose another output folder"):
        find_inputs([tmp_path], tmp_path / "b" / "..")


def test_a_link_to_itself_is_refused(tmp_path):
    (tmp_path / "loop.h5").symlink_to("loop.h5")
    with pytest.raises(InputError, match=r"loop\.h5: a link that leads to itself"):
        find_inputs([tmp_path / "loop.h5"], tmp_path / "out")
    raw(tmp_path / "scan.h5")  # of a folder, it is told of when it is read
    found, _ = find_inputs([tmp_path], tmp_path / "out")
    assert [source.path.name for source in found] == ["loop.h5", "scan.h5"]
