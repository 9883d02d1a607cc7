"""C-STORE, to Orthanc."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from archives import Orthanc, free_port
from batches import ZERO_FILLED, raw

from mri_qpan.errors import InputError, ReconError
from mri_qpan.recon import watch as watch_module
from mri_qpan.recon.batch.inputs import Source
from mri_qpan.recon.batch.outbox import Outbox
from mri_qpan.recon.batch.work import perform
from mri_qpan.recon.push import Archive, push
from mri_qpan.recon.watch import Sender


@pytest.mark.parametrize(
    "text",
    ["PACS", "PACS@host", "PACS@host:0", "PACS@host:70000", "@host:104", f"{'A' * 17}@host:104", "A@b@c:1"],
)
def test_what_is_no_archive(text: str) -> None:
    with pytest.raises(InputError, match="AET@HOST:PORT"):
        Archive.parse(text)


def test_an_archive() -> None:
    for text in ("PACS@10.0.0.5:104", "MY PACS@host:11112"):
        assert str(Archive.parse(text)) == text
    assert Archive.parse("PACS@[::1]:104").host == "::1"


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """The DICOM files of a scan."""
    scan, recipe = raw(tmp_path / "in/scan.h5"), replace(ZERO_FILLED, formats=("dicom",))
    with Outbox(tmp_path / "out", recipe, "mri-qpan watch") as outbox:
        (task,), _ = outbox.plan([Source(scan, "scan")])
        outbox.settle(perform(task))
    return sorted((tmp_path / "out").glob("*/*.dcm"))


def test_orthanc_takes_them_once(orthanc: Orthanc, files: list[Path]) -> None:
    archive = Archive("ARCHIVE", "127.0.0.1", orthanc.port)
    before = set(orthanc.ask("/instances"))
    for _ in range(2):
        push(files, archive)
    (instance,) = set(orthanc.ask("/instances")) - before
    tags = orthanc.ask(f"/instances/{instance}/simplified-tags")
    assert tags["DerivationDescription"].startswith("Reconstructed by mri-qpan")
    assert tags["Rows"] == "24"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # pynetdicom's sockets
def test_what_goes_wrong(orthanc: Orthanc, files: list[Path], tmp_path: Path) -> None:
    # A rejection that the connection's end overtakes is no rejection to pynetdicom.
    with pytest.raises(ReconError, match=r"refuses us|takes no MR images"):
        push(files, Archive("OTHER", "127.0.0.1", orthanc.port))
    with pytest.raises(ReconError, match="cannot be reached"):
        push(files, Archive("ARCHIVE", "127.0.0.1", free_port()))
    (tmp_path / "no.dcm").write_bytes(b"no")
    with pytest.raises(ReconError, match=r"no\.dcm: cannot be sent"):
        push([tmp_path / "no.dcm"], Archive("ARCHIVE", "127.0.0.1", orthanc.port))
    with pytest.raises(ReconError, match="interrupted"):
        push(files, Archive("ARCHIVE", "127.0.0.1", orthanc.port), lambda: True)


def test_an_archive_that_is_away_gets_it_later(
    orthanc: Orthanc, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_module, "FIRST_RETRY", 0.0)
    monkeypatch.setattr(watch_module, "LAST_RETRY", 0.0)
    tried, real = [], push

    def away(found: list[Path], archive: Archive, is_left: Callable[[], bool]) -> None:
        tried.append(found)
        if len(tried) == 1:
            raise ReconError("the archive is away")
        real(found, archive)

    monkeypatch.setattr(watch_module, "push", away)
    recipe = replace(ZERO_FILLED, formats=("dicom",))
    archive = Archive("ARCHIVE", "127.0.0.1", orthanc.port)
    before = len(orthanc.ask("/instances"))
    for _ in range(2):  # the second start finds nothing to send
        with Outbox(tmp_path / "out", recipe, "") as outbox:
            sender = Sender(outbox, tmp_path / "in", archive)
            while sender.step():
                pass
            sender.close()
            assert outbox.unsent("OTHER@host:104", tmp_path / "in")
    assert tried == [files, files]
    assert len(orthanc.ask("/instances")) == before + 1
