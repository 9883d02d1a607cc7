import os
from pathlib import Path

import pytest

from mri_qpan.errors import InputError
from mri_qpan.recon.files import output_folder, staged


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


def test_output_folder_is_made_or_refused(tmp_path: Path) -> None:
    assert output_folder(tmp_path / "new" / "deep").is_dir()
    file = tmp_path / "file"
    file.touch()
    for bad in (file, file / "below"):
        with pytest.raises(InputError, match="cannot write to"):
            output_folder(bad)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_protected_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="permission denied"):
        output_folder(tmp_path)
