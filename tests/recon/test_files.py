import os
from pathlib import Path

import pytest

from mri_qpan.errors import InputError
from mri_qpan.recon.files import check_output_folder, from_memory, output_folder, staged


def test_files_appear_when_all_are_written(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with staged(tmp_path) as stage:
        (stage / "a").write_text("new")
        (stage / "b").write_text("new")
        assert (tmp_path / "a").read_text() == "old"
        assert not (tmp_path / "b").exists()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "new", "b": "new"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interruption_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "a").write_text("old")

    def write() -> None:
        with staged(tmp_path) as stage:
            (stage / "a").write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_a_folder_in_the_place_of_a_file_moves_none(tmp_path: Path) -> None:
    (tmp_path / "b.png").mkdir()
    (tmp_path / "a.h5").write_text("old")

    def write() -> None:
        with staged(tmp_path) as stage:
            for name in ("a.h5", "b.png"):
                (stage / name).write_text("new")

    with pytest.raises(IsADirectoryError, match=r"b\.png is a folder"):
        write()
    assert (tmp_path / "a.h5").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5", "b.png"]


def test_output_folder_is_made_or_refused(tmp_path: Path) -> None:
    assert output_folder(tmp_path / "new" / "deep").is_dir()
    file = tmp_path / "file"
    file.touch()
    for bad in (file, file / "below"):
        with pytest.raises(InputError, match="cannot write to"):
            output_folder(bad)


def test_an_output_folder_is_checked_and_not_made(tmp_path: Path) -> None:
    check_output_folder(tmp_path / "new" / "deep")
    assert list(tmp_path.iterdir()) == []
    check_output_folder(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to("gone")
    for bad in ("file", "file/below", "nowhere"):
        with pytest.raises(InputError, match="cannot write to"):
            check_output_folder(tmp_path / bad)


def test_a_file_from_memory_is_whole_or_the_disk_says_why(tmp_path: Path) -> None:
    with from_memory(tmp_path / "a") as memory:
        memory.write(b"all of it")
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a").read_bytes() == b"all of it"
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"), from_memory(tmp_path / "full") as memory:
        memory.write(b"x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_protected_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="permission denied"):
        output_folder(tmp_path)
